"""The command line: `smolvlm-mlx generate | convert | info`, and those of `finetune` and `evaluate`.

Answers go to stdout, everything else to stderr. What a user can fix ends as one line and exit code 1; --debug shows the
traceback. Imports that take time are made inside the commands, so that --help answers at once.
"""

import io
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import __version__
from ..errors import GenerationError, SmolVLMError
from . import chat, evaluate, finetune, history_commands, serve
from .options import (
    CONTROLS,
    DEFAULT_MODEL,
    INTERRUPTED,
    Adapter,
    Images,
    LongestEdge,
    MaxTiles,
    Model,
    Revision,
    Split,
)

if TYPE_CHECKING:
    from ..generation import Stream

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
        print(__version__)
        raise typer.Exit


@app.callback(epilog="--debug, anywhere, shows the traceback of an error.")
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """SmolVLM and SmolVLM2 on your own machine, in MLX."""


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The question; `-` or none: read from stdin.")] = None,
    model: Model = DEFAULT_MODEL,
    image: Images = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0: always the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens up to this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from this many tokens; 0: all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Sample from tokens this likely, relative to the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1, repeated tokens become less likely.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer before this text. Repeatable.")] = None,
    kv_bits: Annotated[int | None, typer.Option(help="Keep keys and values in 8 or 4 bits.")] = None,
    longest_edge: LongestEdge = None,
    split: Split = None,
    max_tiles: MaxTiles = None,
    adapter: Adapter = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32.")] = None,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with answer and statistics.")] = False,
) -> None:
    """Ask about pictures, or ask without; the answer streams to stdout."""
    from ..checkpoint import load
    from ..generation import stream_generate
    from ..inputs.image import load_image
    from ..inputs.prompt import user_message
    from ..sampling import Options

    options = Options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        kv_bits=kv_bits,  # type: ignore[arg-type]  # Options checks it
    )
    messages: list[Any] = [{"role": "system", "content": system}] if system else []
    # A missing question or a wrong path is told before a model is loaded.
    messages.append(user_message(_question(prompt), [load_image(source) for source in image or []]))
    started = time.perf_counter()
    network, processor = load(model, dtype, revision, adapter=adapter, lazy=True if image else "vision")
    loaded = time.perf_counter()
    inputs = processor(messages, longest_edge=longest_edge, split=split, max_tiles=max_tiles)
    preprocessed = time.perf_counter()
    stream = stream_generate(network, processor, inputs, options, keep_vision=False)
    stream.statistics.preprocess_seconds = preprocessed - loaded
    _print_answer(stream, loaded - started, as_json)


def _print_answer(stream: "Stream", load_seconds: float, as_json: bool) -> None:
    try:
        text = "".join(_echo(stream, silent=as_json))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        is_utf8 = (sys.stdout.encoding or "utf-8").lower() in ("utf-8", "utf8")
        print(json.dumps(_summary(text, stream, load_seconds), ensure_ascii=not is_utf8, indent=2))


def _question(prompt: str | None) -> str:
    if prompt is not None and prompt != "-":
        return prompt
    if sys.stdin is None or sys.stdin.isatty():
        raise GenerationError('no question; give one, as in: smolvlm-mlx generate --image cat.jpg "What is this?"')
    try:
        question = sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise GenerationError(f"stdin is not text in {error.encoding}; give the question in that encoding") from error
    if not question:
        raise GenerationError("no question: stdin is empty")
    return question


def _echo(stream: "Stream", silent: bool) -> list[str]:
    pieces, on_terminal = [], sys.stdout.isatty()
    for piece in stream:
        pieces.append(piece)
        if not silent:
            sys.stdout.write(piece.translate(CONTROLS) if on_terminal else piece)
            sys.stdout.flush()
    if not silent:
        print()
    return pieces


def _summary(text: str, stream: "Stream", load_seconds: float) -> dict[str, Any]:
    values = {**asdict(stream.statistics), "load_seconds": load_seconds}
    seconds = ("load", "preprocess", "vision", "prefill", "decode")
    return {
        "text": text,
        "token_ids": stream.token_ids,
        **{key: values[key] for key in ("finish_reason", "prompt_tokens", "image_tokens", "tiles", "generated_tokens")},
        "seconds": {phase: round(values[f"{phase}_seconds"], 4) for phase in seconds},
        "tokens_per_second": round(stream.statistics.tokens_per_second, 2),
        "peak_memory_bytes": values["peak_memory"],
    }


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
    from ..conversion import convert as run
    from ..errors import ConversionError
    from ..quantization import Recipe
    from . import report

    if recipe is not None and (quantize_vision or {bits, embedding_bits, group_size, dtype} != {None}):
        raise ConversionError(
            "--recipe stands for all of --bits, --embedding-bits, --group-size, --quantize-vision and --dtype"
        )
    if quantize_vision and bits is None:
        raise ConversionError("--quantize-vision needs --bits")
    own = Recipe(bits, group_size or 64, embedding_bits or bits, bits if quantize_vision else None, dtype or "bfloat16")
    with report.progress_bar(f"Converting {source}") as progress:
        result = run(source, out, recipe or own, adapter=adapter, revision=revision, progress=progress)
    report.print_conversion(result)
    if check:
        report.print_agreement(source, out, revision)


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
    from . import report

    if model is not None:
        report.print_model(model, revision, image, longest_edge, split, max_tiles)
    report.print_machine()


app.command()(chat.chat)
app.command()(serve.serve)
app.command()(finetune.finetune)
app.command()(evaluate.evaluate)
app.add_typer(history_commands.app, name="history")
