"""`smolvlm-mlx convert`: a checkpoint in MLX's layout, quantized or not."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checkpoint import choices
from ..checkpoint.choices import RECIPES, Recipe
from ..errors import ConversionError
from . import completion
from .options import CHECKPOINT, Flags, Loading, note_unused, typed

if TYPE_CHECKING:
    from ..checkpoint.convert import Report

Source = Annotated[
    str,
    typer.Argument(
        help="Name, folder or hub id of the checkpoint to convert.", autocompletion=completion.names
    ),
    CHECKPOINT,
]
EmbeddingBits = Annotated[
    choices.Bits | None, typer.Option(help="Of embeddings and lm_head; else as --bits.")
]


def convert(
    context: typer.Context,
    source: Source,
    out: Annotated[Path, typer.Argument(help="New folder for the result.")],
    recipe: Annotated[
        choices.RecipeName | None,
        typer.Option(
            metavar="NAME",
            help=f"{', '.join(RECIPES)}. Options below, but --bits, change it.",
        ),
    ] = None,
    bits: Annotated[
        choices.Bits | None, typer.Option(help="Quantize the decoder; 8, 6 and 4 are usual.")
    ] = None,
    embedding_bits: EmbeddingBits = None,
    group_size: Annotated[choices.GroupSize, typer.Option(help="Weights that share a scale.")] = 64,
    quantize_vision: Annotated[
        bool, typer.Option("--quantize-vision", help="Quantize the vision tower too.")
    ] = False,
    dtype: Annotated[choices.Dtype, typer.Option(help="Of what is not quantized.")] = Recipe.dtype,
    loading: Annotated[Loading, Flags(without=("dtype", "memory"))] = Loading(),
    check: Annotated[
        bool, typer.Option("--check", help="Compare the result's predictions with the source's.")
    ] = False,
) -> None:
    """Convert a checkpoint to MLX's layout, quantized or not."""
    from ..checkpoint.convert import convert_in_steps as run
    from .show import byte_bar, follow

    own = Recipe(bits, group_size, embedding_bits or bits, bits if quantize_vision else None, dtype)
    wanted = _choose(context, recipe, own)
    steps = run(source, out, wanted, adapter=loading.adapter, revision=loading.revision)
    _print_report(follow(steps, byte_bar(f"Converting {source}")))
    if check:
        _print_agreement(source, out, loading)


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


def _print_agreement(source: str, out: Path, loading: Loading) -> None:
    """How far the result's predictions are from the source's."""
    from ..checkpoint.compare import compare
    from .show import console, table

    shown = table("prompt", "tokens", "KL (nats)", "same top token")
    for row in compare(source, out, loading.revision, loading.adapter):
        shown.add_row(row.prompt, str(row.tokens), f"{row.kl:.2g}", f"{row.top1:.1%}")
    console().print(shown)
