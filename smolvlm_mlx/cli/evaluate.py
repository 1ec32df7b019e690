"""`smolvlm-mlx evaluate`: score checkpoints on questions with known answers."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from ..errors import EvaluationError
from ..generation.options import Options
from ..inputs.settings import ImageOptions
from ..tasks.options import EVALUATION, Metric
from . import completion
from .choice import choose
from .options import CHECKPOINT, DEFAULT_MODEL, Loading

if TYPE_CHECKING:
    from ..tasks.evaluation import Result, Score

Questions = Annotated[
    str, typer.Argument(help="Questions: JSONL, JSON or CSV file, folder, or id of a hub dataset.")
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="Checkpoint: a name, folder or hub id; none: auto, as of chat. Repeatable: compared "
        "with the first.",
        rich_help_panel="Checkpoint",
        autocompletion=completion.names,
    ),
    CHECKPOINT,
]
ScoredBy = Annotated[
    Metric,
    typer.Option(
        metavar="METRIC",
        help=f"{', '.join(get_args(Metric))}. auto: the benchmark's own, choice with choices, "
        "else exact.",
    ),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder for the answers; a stopped run goes on.")
]
Subset = Annotated[
    str | None, typer.Option(help="Which subset of a folder or hub dataset, such as validation.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the scores as one JSON object.")]


def evaluate(
    data: Questions,
    model: Models = None,
    metric: ScoredBy = "auto",
    out: Out = Path("evaluation"),
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions.")] = None,
    subset: Subset = None,
    options: Options = EVALUATION,
    image_options: ImageOptions = ImageOptions(),
    loading: Loading = Loading(),
    as_json: AsJson = False,
) -> None:
    """Score checkpoints on questions with known answers.

    A line of DATA: {"image": "cat.jpg", "question": "...", "answers": ["...", ...], "category":
    "..."}, or {"messages": [...], "answers": [...]}; with "choices" the question is multiple
    choice. Published benchmarks are known by their columns. Exit code 1 if a row was not asked.
    """
    from ..data.rows import read_rows
    from ..tasks.evaluation import evaluate_in_steps as run
    from .show import count_bar, follow

    models = model or [choose(DEFAULT_MODEL)]
    _check_adapter(loading.adapter, models)
    rows, results = read_rows(data, subset)[:limit], []
    for name in models:
        steps = run(
            name,
            rows,
            out / _file_name(name),
            metric=metric,
            options=options,
            image_options=image_options,
            **vars(_loading(loading, name, models)),
        )
        results.append(follow(steps, count_bar(name)))
    _show(results, as_json)


def _check_adapter(adapter: Path | None, models: list[str]) -> None:
    if adapter is not None and len(models) > 1:
        raise EvaluationError(
            "--adapter belongs to one checkpoint; give one --model, or fuse it with convert "
            "--adapter"
        )


def _loading(loading: Loading, model: str, models: list[str]) -> Loading:
    """Beside checkpoints of the hub, a folder is compared with their revision."""
    from ..checkpoint.hub import find_folder

    if loading.revision is None or not find_folder(model) or all(map(find_folder, models)):
        return loading
    return replace(loading, revision=None)


def _file_name(model: str) -> str:
    return re.sub(r"[^\w.-]+", "--", model.strip("/."))[-100:] + ".jsonl"


def _show(results: "list[Result]", as_json: bool) -> None:
    if as_json:
        print(json.dumps([_summary(result, results[0]) for result in results], indent=2))
    else:
        _print_scores(results)
    if any(result.failed for result in results):
        raise typer.Exit(1)


def _summary(result: "Result", first: "Result") -> dict[str, object]:
    return {
        "model": result.name,
        **asdict(result.score),
        "interval": result.score.interval,
        "failed": len(result.failed),
        **dict(zip(("images", "videos"), result.shown, strict=True)),
        "categories": {name: asdict(score) for name, score in result.categories.items()},
        "agreement": result.agreement(first),
    }


def _print_scores(results: "list[Result]") -> None:
    """A row for each category, a column for each checkpoint; then agreement with the first."""
    from .show import console, print_rows, table, with_media

    first = results[0]
    shown = table("category", "questions", *(result.name for result in results))
    if len(first.categories) > 1:
        for name, score in first.categories.items():
            others = [result.categories[name] for result in results]
            shown.add_row(
                name or "-", str(score.count), *(f"{100 * other.mean:.1f}" for other in others)
            )
    shown.add_row(
        "all", str(first.score.count), *(_with_interval(result.score) for result in results)
    )
    if len(results) > 1:
        differences = [result.difference(first) for result in results[1:]]
        shown.add_row(
            "difference",
            "",
            "",
            *(f"{100 * mean:+.1f} ± {100 * half:.1f}" for mean, half in differences),
        )
        shown.add_row(
            "same answers",
            "",
            "",
            *(f"{100 * result.agreement(first):.1f}" for result in results[1:]),
        )
    console().print(shown)
    print(f"Per cent, with 95 per cent intervals. {with_media(first.score.count, *first.shown)}.")
    for result in results:
        failed = [(answer.where, answer.error) for answer in result.failed]
        print_rows(failed, f"could not be asked, and count as wrong for {result.name}")


def _with_interval(score: "Score") -> str:
    low, high = score.interval
    return f"{100 * score.mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"
