"""The command line: `smolvlm-mlx generate | convert | info`, and those of `finetune` and `evaluate`.

Answers go to stdout, everything else to stderr. What a user can fix ends as one line and exit code 1; --debug shows the
traceback. Imports that take time are made inside the commands, so that --help answers at once.
"""

import io
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from ..errors import SmolVLMError
from . import bench, caption, document, evaluate, finetune, generate, history, live, serve
from .chat import command
from .options import INTERRUPTED, Adapter, LongestEdge, MaxTiles, Revision, Split

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the console script."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments  # accepted anywhere, as it is wanted when the rest has been typed
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have every character of an answer
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="smolvlm-mlx")
    except SmolVLMError as error:
        if debug:
            raise
        print(f"smolvlm-mlx: {error}", file=sys.stderr)
        sys.exit(1)


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    """Ctrl-C raises KeyboardInterrupt, except during an import: there some C extensions swallow it and others abort."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("smolvlm-mlx"))
        raise typer.Exit


@app.callback(epilog="--debug, anywhere, shows the traceback of an error.")
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """SmolVLM and SmolVLM2 on your own machine, in MLX."""


app.command()(generate.generate)
app.command()(command.chat)
app.command()(live.live)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder or hub id of the checkpoint to convert.")],
    out: Annotated[Path, typer.Argument(help="New folder for the result.")],
    recipe: Annotated[str | None, typer.Option(help="A named recipe; see `python -m convert` for the list.")] = None,
    bits: Annotated[int | None, typer.Option(help="Quantize the decoder: 8, 6 or 4 bits.")] = None,
    embedding_bits: Annotated[int | None, typer.Option(help="Bits of embeddings and lm_head; else as --bits.")] = None,
    group_size: Annotated[int | None, typer.Option(help="Weights that share a scale: 32, 64 (default) or 128.")] = None,
    quantize_vision: Annotated[bool, typer.Option("--quantize-vision", help="Quantize the vision tower too.")] = False,
    dtype: Annotated[str | None, typer.Option(help="Of the rest: bfloat16 (default), float16 or float32.")] = None,
    adapter: Adapter = None,
    revision: Revision = None,
    check: Annotated[bool, typer.Option("--check", help="Compare the result's predictions with the source's.")] = False,
) -> None:
    """Convert a checkpoint to MLX's layout, quantized or not."""
    from ..checkpoint.convert import convert_in_steps as run
    from ..checkpoint.quantization import Recipe
    from ..errors import ConversionError
    from . import show

    if recipe is not None and (quantize_vision or {bits, embedding_bits, group_size, dtype} != {None}):
        raise ConversionError(
            "--recipe stands for all of --bits, --embedding-bits, --group-size, --quantize-vision and --dtype"
        )
    if quantize_vision and bits is None:
        raise ConversionError("--quantize-vision needs --bits")
    own = Recipe(bits, group_size or 64, embedding_bits or bits, bits if quantize_vision else None, dtype or "bfloat16")
    with show.progress_bar(f"Converting {source}") as progress:
        result = show.follow(run(source, out, recipe or own, adapter=adapter, revision=revision), progress)
    show.print_conversion(result)
    if check:
        show.print_agreement(source, out, revision)


@app.command()
def info(
    model: Annotated[
        str | None, typer.Argument(help="Folder or hub id of a checkpoint; none: the machine alone.")
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", "-i", help="Show the tiles and tokens of this picture.")
    ] = None,
    longest_edge: LongestEdge = None,
    split: Split = None,
    max_tiles: MaxTiles = None,
    revision: Revision = None,
) -> None:
    """Show a checkpoint's parts and tokens, and what this machine computes with."""
    from ..inputs.tiles import ImageOptions
    from . import show

    if model is not None:
        show.print_model(model, revision, image, ImageOptions(longest_edge, split, max_tiles))
    show.print_machine()


app.command()(caption.caption)
app.command()(document.document)
app.command()(serve.serve)
app.command()(finetune.finetune)
app.command()(evaluate.evaluate)
app.command()(bench.bench)
app.add_typer(history.app, name="history")
