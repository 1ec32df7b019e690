"""`smolvlm-mlx convert`: a checkpoint in MLX's layout, quantized or not, or in Hugging Face's."""

import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checkpoint import choices
from ..checkpoint.choices import KEPT, RECIPES, Recipe
from ..checkpoint.upload import Upload
from ..errors import ConversionError
from . import check as checking
from . import completion
from .learn import Learning
from .mix import Target
from .options import CHECKPOINT, Flags, Loading, note_unused, typed
from .publish import card_words, publish

if TYPE_CHECKING:
    from ..checkpoint.convert import Report
    from ..quality.report import QualityReport

Source = Annotated[
    str,
    typer.Argument(
        help="Name, folder or hub id of the checkpoint to convert.", autocompletion=completion.names
    ),
    CHECKPOINT,
]
RecipeName = Annotated[
    choices.RecipeName | None,
    typer.Option(
        metavar="NAME", help=f"{', '.join(RECIPES)}. Options below, but --bits, change it."
    ),
]
EmbeddingBits = Annotated[
    choices.Bits | None, typer.Option(help="Of embeddings and lm_head; else as --bits.")
]
QuantizeVision = Annotated[
    bool, typer.Option("--quantize-vision", help="Quantize the vision tower too.")
]
Dtype = Annotated[
    choices.Dtype | None,
    typer.Option(help="Of what is not quantized; else bfloat16, or as in a quantized source."),
]
Layout = Annotated[
    choices.Layout,
    typer.Option(help="Who reads it: programs on MLX, or transformers."),
]


def convert(
    context: typer.Context,
    source: Source,
    out: Annotated[Path, typer.Argument(help="New folder for the result.")],
    recipe: RecipeName = None,
    bits: Annotated[
        choices.Bits | None, typer.Option(help="Quantize the decoder; 8, 6 and 4 are usual.")
    ] = None,
    embedding_bits: EmbeddingBits = None,
    group_size: Annotated[choices.GroupSize, typer.Option(help="Weights that share a scale.")] = 64,
    quantize_vision: QuantizeVision = False,
    dtype: Dtype = None,
    target: Annotated[Target, Flags(title="Bits by measurement")] = Target(),
    layout: Layout = "mlx",
    loading: Annotated[Loading, Flags(without=("dtype", "memory"))] = Loading(),
    check: checking.Check = False,
    check_data: checking.CheckData = None,
    as_json: checking.AsJson = False,
    learning: Annotated[Learning, Flags(title="Learned quantization")] = Learning(),
    upload: Annotated[Upload, Flags(title="Upload")] = Upload(),
) -> None:
    """Convert a checkpoint to MLX's layout, quantized or not, or back."""
    own = Recipe(bits, group_size, embedding_bits or bits, bits if quantize_vision else None)
    own = own if dtype is None else replace(own, dtype=dtype)
    wanted = _choose(context, recipe, own)
    rows = checking.check_rows(check_data)
    upload.check()
    learning.check(layout)
    if target.is_given:
        wanted = target.choose(context, source, out, loading.revision)
    card = card_words(context, upload)
    options = {"adapter": loading.adapter, "revision": loading.revision, "card": card}
    report, quality = learning.convert(source, out, wanted, layout, options), None
    if not as_json:
        _print_report(report)
    if check or rows or target.target_kl is not None:
        quality = checking.check_result(report, source, loading, rows)
        target.note(quality.total.kl_mean)
    _finish(context, report, quality, upload, as_json)


def _finish(
    context: typer.Context,
    report: "Report",
    quality: "QualityReport | None",
    upload: Upload,
    as_json: bool,
) -> None:
    """Tell what came out, complete its card and upload it; what is broken stays here, with exit
    code 1."""
    figures = None if quality is None else checking.figures_of(quality)
    is_broken = quality is not None and quality.verdict == "broken"
    if as_json:
        checking.print_json(report, quality)
    elif quality is not None:
        checking.print_quality(quality)
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        publish(context, report, figures, Upload() if is_broken else upload)
    if is_broken:
        raise typer.Exit(1)


def _choose(context: typer.Context, recipe: choices.RecipeName | None, own: Recipe) -> Recipe:
    """The recipe that was typed option by option, or a named one with what was typed beside it."""
    if recipe is not None and own.bits is not None:
        raise ConversionError("--recipe has its own bits; leave out --recipe or --bits")
    vision, base = typed(context, "quantize_vision"), RECIPES[recipe or "bf16"]
    if vision and own.bits is None and base.bits is None:
        raise ConversionError("--quantize-vision needs --bits, or a recipe that has them")
    if recipe is not None:
        names = ("embedding_bits", "group_size", "dtype")
        beside: dict[str, Any] = {
            name: getattr(own, name) for name in names if typed(context, name)
        }
        own = replace(base, **beside)
        own = replace(own, vision_bits=own.bits) if vision else own
    if not own.quantizes:
        note_unused(context, "nothing is quantized without --bits", "group_size")
    if recipe is None and not own.quantizes:
        return replace(KEPT, dtype=own.dtype) if typed(context, "dtype") else KEPT
    return own


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
    if report.drift is not None:
        print(f"Learned: hidden states end {report.drift:.1%} from the source's, see learning.csv.")
    if report.kept is not None:
        print(f"Quantized as the source is ({report.kept}); --recipe bf16 dequantizes it.")
