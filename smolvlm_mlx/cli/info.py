"""`smolvlm-mlx info`: a checkpoint's parts and tokens, and what this machine computes with."""

import platform
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CheckpointError, quote
from ..inputs.settings import ImageOptions
from . import completion
from .options import CHECKPOINT, Flags, Loading, note_unused

if TYPE_CHECKING:
    from ..checkpoint.reader import Checkpoint
    from ..inputs.media import Attachment

Model = Annotated[
    str | None,
    typer.Argument(
        help="Name, folder or hub id of a checkpoint; none: the machine alone.",
        autocompletion=completion.names,
    ),
    CHECKPOINT,
]
Picture = Annotated[
    str | None,
    typer.Option(
        "--image", "-i", metavar="FILE", help="Show the tiles and tokens of this picture."
    ),
]


def info(
    context: typer.Context,
    model: Model = None,
    image: Picture = None,
    image_options: ImageOptions = ImageOptions(),
    loading: Annotated[Loading, Flags(without=("adapter", "dtype"))] = Loading(),
) -> None:
    """Show a checkpoint's parts, and what this machine computes with."""
    if model is None and image is not None:
        raise CheckpointError("--image: of which checkpoint? give a folder or hub id")
    if model is None:
        note_unused(context, "there is no checkpoint", "revision", "memory")
    if image is None:
        note_unused(context, "there is no --image", *vars(image_options))
    if model is not None:
        _print_model(model, loading, image, image_options)
    _print_machine()


def _print_model(
    model: str, loading: Loading, image: str | None, image_options: ImageOptions
) -> None:
    """The parts of a checkpoint, from its headers alone, and what a picture becomes."""
    from .. import device
    from ..checkpoint.hub import find
    from ..checkpoint.reader import FLOATS, open_checkpoint
    from ..inputs.media import Attachment

    picture = None if image is None else Attachment(image)
    checkpoint = open_checkpoint(find(model, loading.revision))
    layout = "Hugging Face layout" if checkpoint.is_hf_layout else "MLX layout"
    print(
        f"{checkpoint.folder}: {checkpoint.config.model_type}, {layout}, "
        f"{checkpoint.nbytes / 1e6:,.1f} MB"
    )
    _print_parts(checkpoint)
    mixed = {tensor.dtype for tensor in checkpoint.tensors.values()} & FLOATS
    if len(mixed) > 1:
        print(
            f"dtypes: MIXED, {', '.join(sorted(mixed))}; loading makes {device.default_dtype()} of "
            "all"
        )
    if left_out := checkpoint.left_out:
        print(f"left out: {len(left_out)} tensors that are computed, such as {quote(left_out[0])}")
    _print_memory(checkpoint, loading.memory)
    _print_tokens(checkpoint, image, picture, image_options)


def _print_parts(checkpoint: "Checkpoint") -> None:
    from .show import console, table

    shown = table("part", "parameters", "MB", "kind")
    parts = checkpoint.parts()
    for part, (count, size) in parts.items():
        shown.add_row(part, f"{count:,}", f"{size / 1e6:,.1f}", _kind(checkpoint, part))
    total = sum(count for count, _ in parts.values())
    shown.add_row("in all", f"{total:,}", f"{checkpoint.nbytes / 1e6:,.1f}", "")
    console().print(shown)


def _print_memory(checkpoint: "Checkpoint", most: str | None) -> None:
    """What a process takes that answers with it, at most."""
    from .. import device
    from ..checkpoint.reader import DTYPES
    from ..generation.memory import Memory

    dtype = DTYPES[device.default_dtype()]
    weights = checkpoint.loaded_nbytes(dtype)
    device.limit_memory(most, weights)
    memory = Memory.share(checkpoint.config, weights, dtype.size)
    print(f"memory of a process: {memory.describe()}")


def _kind(checkpoint: "Checkpoint", part: str) -> str:
    """The dtypes of a part, and how it is quantized."""
    quantization, kinds = checkpoint.quantization, set()
    for name, tensor in checkpoint.tensors.items():
        if not name.startswith(part) or name.endswith((".scales", ".biases")):
            continue
        module = name.removesuffix(".weight")
        if f"{module}.scales" in checkpoint.tensors and quantization is not None:
            kinds.add(str(quantization.of(module)))
        else:
            kinds.add(tensor.dtype)
    return ", ".join(sorted(kinds))


def _print_tokens(
    checkpoint: "Checkpoint",
    image: str | None,
    picture: "Attachment | None",
    image_options: ImageOptions,
) -> None:
    """What a tile is to the model, and what a picture becomes."""
    from ..inputs.messages import notes, user_message
    from ..inputs.processor import Processor
    from .show import console
    from .tiles import SeenTiles

    config = checkpoint.config
    processor = Processor.from_folder(checkpoint.folder, config)
    settings = processor.settings
    print(
        f"context {config.text_config.max_position_embeddings} tokens; a tile of "
        f"{settings.tile_size} pixels is {config.tokens_per_tile} tokens; pictures up to "
        f"{settings.longest_edge} pixels on the longer side"
    )
    if picture is not None:
        message = user_message("", [picture])
        inputs = processor([message], image_options)
        seen = SeenTiles(picture, inputs.settings, processor)
        print(f"{image}: {seen.summary()}, {len(inputs.input_ids)} prompt tokens")
        seen.print_on(console())
        for note in notes([message]):
            print(note)


def _print_machine() -> None:
    """Backend, memory, and whether the fast paths are open."""
    from .. import device
    from ..bench.diagnostics import machine_checks
    from ..bench.machine import device_name

    lines = [
        f"mlx {version('mlx')} on {device.name()}: {device_name()}, {platform.machine()}, "
        f"{sys.platform}"
    ]
    if memory := device.total_memory():
        lines.append(f"memory: {memory / 2**30:.1f} GiB")
    lines.append(f"compute dtype: {device.default_dtype()}")
    lines += [f"{check.name}: {check.value}" for check in machine_checks()]
    print("\n".join(lines))
