"""`smolvlm-mlx convert`: a checkpoint in MLX's layout, quantized or not."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..checkpoint import choices
from ..checkpoint.choices import RECIPES, Recipe
from ..device import size_in_bytes
from ..errors import ConversionError, DataError, SmolVLMError
from . import completion
from .options import CHECKPOINT, Flags, Loading, note_unused, typed

if TYPE_CHECKING:
    from ..checkpoint.convert import Report
    from ..data.rows import Row
    from ..quality.report import QualityReport

Source = Annotated[
    str,
    typer.Argument(
        help="Name, folder or hub id of the checkpoint to convert.", autocompletion=completion.names
    ),
    CHECKPOINT,
]
Check = Annotated[
    bool,
    typer.Option(
        "--check",
        help="Compare the result's predictions with the source's, by kind of prompt; exit code 1 "
        "where it is broken.",
    ),
]
CheckData = Annotated[
    str | None,
    typer.Option(
        "--check-data",
        metavar="FILE",
        help="Compare on your own questions with answers, as `finetune` and `evaluate` take them; "
        "means --check.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print sizes and figures as one JSON object.")]
RecipeOption = Annotated[
    choices.RecipeName | None,
    typer.Option(metavar="NAME", help=f"In place of the five options below: {', '.join(RECIPES)}."),
]
TargetKL = Annotated[
    float | None,
    typer.Option(
        metavar="NATS",
        help="Choose the bits of each layer: the smallest result whose predictions are so near to "
        "the source's, such as 0.02; means --check.",
    ),
]
TargetSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Choose the bits of each layer: the best result of at most this size, such as 180MB.",
    ),
]
EmbeddingBits = Annotated[
    choices.Bits | None, typer.Option(help="Of embeddings and lm_head; else as --bits.")
]


def convert(
    context: typer.Context,
    source: Source,
    out: Annotated[Path, typer.Argument(help="New folder for the result.")],
    recipe: RecipeOption = None,
    bits: Annotated[
        choices.Bits | None, typer.Option(help="Quantize the decoder; 8, 6 and 4 are usual.")
    ] = None,
    embedding_bits: EmbeddingBits = None,
    group_size: Annotated[
        choices.GroupSize, typer.Option(help="Weights that share a scale.")
    ] = Recipe.group_size,
    quantize_vision: Annotated[
        bool, typer.Option("--quantize-vision", help="Quantize the vision tower too.")
    ] = False,
    dtype: Annotated[choices.Dtype, typer.Option(help="Of what is not quantized.")] = Recipe.dtype,
    target_kl: TargetKL = None,
    target_size: TargetSize = None,
    loading: Annotated[Loading, Flags(without=("dtype", "memory"))] = Loading(),
    check: Check = False,
    check_data: CheckData = None,
    as_json: AsJson = False,
) -> None:
    """Convert a checkpoint to MLX's layout, quantized or not."""
    from ..checkpoint.convert import convert_in_steps as run
    from .show import byte_bar, follow

    own = Recipe(bits, group_size, embedding_bits or bits, bits if quantize_vision else None, dtype)
    wanted = _choose(context, recipe, own)
    rows = _check_rows(check_data)
    if target_kl is not None or target_size is not None:
        wanted = _mixed(context, source, out, target_kl, target_size, loading)
    steps = run(source, out, wanted, adapter=loading.adapter, revision=loading.revision)
    report = follow(steps, byte_bar(f"Converting {source}"))
    check = check or bool(rows) or target_kl is not None
    quality = _compared(report, source, loading, rows) if check else None
    _print_result(report, quality, target_kl, as_json)


def _check_rows(data: str | None) -> "Sequence[Row]":
    """Rows to compare on, of which one at least has a question and an answer; read before the
    conversion, which may take long."""
    if data is None:
        return ()
    from ..data.rows import read_rows
    from ..data.samples import make_sample

    rows, problem = read_rows(data), ""
    for row in rows:
        try:
            make_sample(row)
            return rows
        except SmolVLMError as error:
            problem = problem or f"{row.where}: {error}"
    raise DataError(f"{data}: no row can be compared on; {problem}")


def _mixed(
    context: typer.Context,
    source: str,
    out: Path,
    target_kl: float | None,
    target_size: str | None,
    loading: Loading,
) -> Recipe:
    """Bits that are measured to be the best for a target."""
    from ..quality.mix import choose_in_steps
    from .show import count_bar, follow

    others = "recipe", "bits", "embedding_bits", "group_size", "quantize_vision", "dtype", "adapter"
    if flags := typed(context, *others):
        raise ConversionError(f"--target-kl and --target-size choose all bits; leave out {flags}")
    if target_kl is not None and target_size is not None:
        raise ConversionError("give --target-kl or --target-size, not both")
    if target_kl is not None and not 0 < target_kl < float("inf"):
        raise ConversionError(f"--target-kl {target_kl:g} is no distance above 0")
    size = None if target_size is None else size_in_bytes(target_size, "--target-size")
    steps = choose_in_steps(
        source, out, target_size=size, target_kl=target_kl, revision=loading.revision
    )
    mix = follow(steps, count_bar(f"Measuring {source}"))
    counts = Counter(
        "16" if form is None else str(form.bits) for form in mix.recipe.modules.values()
    )
    bits = ", ".join(f"{count} of {bits}" for bits, count in sorted(counts.items(), key=_bits))
    err = f"layers by bits: {bits}; mean KL {mix.kl:.2g} nats on the prompts that chose them"
    print(err, file=sys.stderr)
    return mix.recipe


def _bits(item: tuple[str, int]) -> int:
    return int(item[0])


def _compared(
    report: "Report", source: str, loading: Loading, rows: "Sequence[Row]"
) -> "QualityReport":
    from ..quality.report import check_in_steps
    from .show import count_bar, follow

    steps = check_in_steps(
        source, report.out, revision=loading.revision, adapter=loading.adapter, rows=rows
    )
    return follow(steps, count_bar("Comparing"))


def _print_result(
    report: "Report", quality: "QualityReport | None", target_kl: float | None, as_json: bool
) -> None:
    """Sizes, figures, and what to think of them; exit code 1 where the result is broken."""
    if as_json:
        print(json.dumps(_as_json(report, quality), indent=2))
    else:
        _print_report(report)
    if quality is None:
        return
    if not as_json:
        _print_quality(quality)
    kl = quality.total.kl_mean
    if target_kl is not None and not kl <= target_kl:
        print(
            f"smolvlm-mlx: mean KL {kl:.2g} on other prompts is above --target-kl {target_kl:g}: "
            "on those that chose the bits it was not. Convert again with a lower one.",
            file=sys.stderr,
        )
    if quality.verdict == "broken":
        raise typer.Exit(1)


def _as_json(report: "Report", quality: "QualityReport | None") -> dict[str, object]:
    parts = {
        part: {"parameters": count, "bytes": size} for part, (count, size) in report.parts.items()
    }
    sizes = {"out": str(report.out), "source_bytes": report.source_bytes}
    sizes |= {"bytes": report.out_bytes, "bits_per_weight": report.bits_per_weight, "parts": parts}
    return sizes if quality is None else {**sizes, "quality": quality.to_json()}


def _choose(context: typer.Context, recipe: choices.RecipeName | None, own: Recipe) -> Recipe:
    """A named recipe, or the one that was typed option by option."""
    vision = typed(context, "quantize_vision")
    if recipe is not None and (vision or own != Recipe()):
        raise ConversionError(
            "--recipe stands for all of --bits, --embedding-bits, --group-size, --quantize-vision "
            "and --dtype"
        )
    if vision and own.bits is None:
        raise ConversionError("--quantize-vision needs --bits")
    if recipe is None and not own.quantizes:
        note_unused(context, "nothing is quantized without --bits", "group_size")
    return RECIPES[recipe] if recipe else own


def _print_report(report: "Report") -> None:
    """Sizes before and after, and what each part came to."""
    from .show import console, table

    shown = table("part", "parameters", "MB", "bits a weight")
    for part, (count, size) in report.parts.items():
        shown.add_row(part, f"{count:,}", f"{size / 1e6:,.1f}", f"{8 * size / count:.2f}")
    console().print(shown)
    print(
        f"{report.out}: {report.out_bytes / 1e6:,.1f} MB from {report.source_bytes / 1e6:,.1f} MB, "
        f"{report.bits_per_weight:.2f} bits a weight"
    )


def _print_quality(report: "QualityReport") -> None:
    """How far the result's predictions are from the source's."""
    from .show import console, print_rows, table

    shown = table(
        "prompts", "positions", "mean KL", "median", "99 %", "changed", "perplexity", "source's"
    )
    for kind, figures in (*report.kinds.items(), ("all", report.total)):
        kls = (figures.kl_mean, figures.kl_median, figures.kl_p99)
        perplexities = (figures.result_perplexity, figures.source_perplexity)
        shown.add_row(
            kind,
            f"{figures.positions:,}",
            *(f"{kl:.2g}" for kl in kls),
            f"{figures.changed:.1%}",
            *(f"{perplexity:.4g}" for perplexity in perplexities),
        )
    console().print(shown)
    print_rows(report.skipped, "are left out of the comparison")
    if report.left_out:
        print(f"left out: {', '.join(report.left_out)} (this model does not take it)")
    print(_verdict(report))


def _verdict(report: "QualityReport") -> str:
    """What to think of it, in a line."""
    kl = f"mean KL {report.kinds[report.worst].kl_mean:.2g} nats on {report.worst} prompts"
    return {
        "good": f"good: {kl}; answers are the source's as a rule",
        "fair": f"fair: {kl}; some answers differ from the source's",
        "poor": f"POOR: {kl}; many answers differ from the source's. More bits, --target-kl or "
        "--recipe 8bit help",
        "broken": "BROKEN: predictions are not finite numbers; do not use this result",
    }[report.verdict]
