"""`smolvlm-mlx evaluate`: score checkpoints on questions with known answers."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EvaluationError
from .options import DEFAULT_MODEL, Adapter, Dtype, LongestEdge, MaxTiles, Revision, Split

if TYPE_CHECKING:
    from ..tasks.evaluation import Result


def evaluate(
    data: Annotated[str, typer.Argument(help="Questions: JSONL file, folder, or id of a hub dataset.")],
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Checkpoint. Repeatable: compared with the first.")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="vqa, anls, relaxed, choice, contains, formula, exact; auto: choice or exact.")
    ] = "auto",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the answers; a stopped run goes on.")] = Path(
        "evaluation"
    ),
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Longest answer, in tokens.")] = 64,
    part: Annotated[str | None, typer.Option(help="Part of a folder or hub dataset, such as validation.")] = None,
    longest_edge: LongestEdge = None,
    split: Split = None,
    max_tiles: MaxTiles = None,
    adapter: Adapter = None,
    dtype: Dtype = None,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as one JSON object.")] = False,
) -> None:
    """Answer the questions with each checkpoint, and print a table of scores.

    A line of DATA: {"image": "cat.jpg", "question": "...", "answers": ["...", ...], "category": "..."}, or
    {"messages": [...], "answers": [...]}; with "choices" the question is multiple choice.
    """
    from ..data.rows import read_rows
    from ..generation.sampling import Options
    from ..inputs.tiles import ImageOptions
    from ..tasks.evaluation import evaluate_in_steps as run
    from . import training_report as report
    from .show import follow

    models = model or [DEFAULT_MODEL]
    if adapter is not None and len(models) > 1:
        raise EvaluationError(
            "--adapter belongs to one checkpoint; give one --model, or fuse it with convert --adapter"
        )
    image_options = ImageOptions(longest_edge, split, max_tiles)
    common: dict[str, Any] = {"metric": metric, "adapter": adapter, "dtype": dtype, "revision": revision}
    common["options"] = Options(max_tokens=max_tokens)
    common["image_options"] = image_options
    rows, results = read_rows(data, part)[:limit], []
    for name in models:
        with report.count_bar(name) as progress:
            steps = run(name, rows, out / f"{_file_name(name)}.jsonl", **common)
            results.append(follow(steps, progress))
    if as_json:
        print(json.dumps([_summary(result, results[0]) for result in results], indent=2))
    else:
        report.print_scores(results)


def _summary(result: "Result", first: "Result") -> dict[str, Any]:
    return {
        "model": result.name,
        **asdict(result.score),
        "interval": result.score.interval,
        "failed": sum(bool(answer.error) for answer in result.answers),
        "categories": {name: asdict(score) for name, score in result.categories.items()},
        "agreement": result.agreement(first),
    }


def _file_name(model: str) -> str:
    return re.sub(r"[^\w.-]+", "--", model.strip("/."))[-100:]
