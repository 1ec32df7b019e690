"""Tables and progress bars of the command line."""

import platform
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column, Table
from rich.text import Text

from .. import device
from ..checkpoint.compare import compare
from ..checkpoint.convert import PARTS, Report
from ..checkpoint.hub import find
from ..checkpoint.reader import Checkpoint, open_checkpoint
from ..events import Reading, Result, Work
from ..inputs.messages import user_message
from ..inputs.processor import Processor
from ..inputs.tiles import ImageOptions, load_image
from ..model import SmolVLM


def table(first: str, *others: str) -> Table:
    """One whose columns but the first are numbers."""
    return Table(first, *(Column(name, justify="right") for name in others), box=None)


def console(stderr: bool = False) -> Console:
    """One that prints text as it is."""
    return Console(highlight=False, markup=False, soft_wrap=True, stderr=stderr)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; yields the function that moves it, called with bytes done and bytes in all."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(TextColumn(title, markup=False), *columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def follow(steps: Generator[Reading, None, Result], progress: Callable[[int, int], None]) -> Result:
    """Do the work, and show how far it is; returns its result."""
    work = Work(steps)
    for reading in work:
        progress(reading.done, reading.total)
    return work.result


def print_conversion(report: Report) -> None:
    """Sizes before and after, and what each part came to."""
    shown = table("part", "parameters", "MB", "bits a weight")
    for part, (count, size) in report.parts.items():
        shown.add_row(part, f"{count:,}", f"{size / 1e6:,.1f}", f"{8 * size / count:.2f}")
    out = console()
    out.print(shown)
    out.print(
        f"{report.out}: {report.out_bytes / 1e6:,.1f} MB from {report.source_bytes / 1e6:,.1f} MB, "
        f"{report.bits_per_weight:.2f} bits a weight"
    )


def print_agreement(source: str, out: Path, revision: str | None) -> None:
    """How far the result's predictions are from the source's."""
    shown = table("prompt", "tokens", "KL (nats)", "same top token")
    for row in compare(source, out, revision):
        shown.add_row(Text(row.prompt), str(row.tokens), f"{row.kl:.2g}", f"{row.top1:.1%}")
    console().print(shown)


def print_model(
    model: str,
    revision: str | None,
    image: str | None,
    image_options: ImageOptions,
) -> None:
    """The parts of a checkpoint, from its headers alone, and what a picture becomes."""
    picture = None if image is None else load_image(image)
    checkpoint = open_checkpoint(find(model, revision))
    config, out = checkpoint.config, console()
    out.print(f"{checkpoint.folder}: {config.model_type}, {_layout(checkpoint)}, {checkpoint.nbytes / 1e6:,.1f} MB")
    shown = table("part", "parameters", "MB", "kind")
    counts = _parameters(checkpoint)
    for part in PARTS:
        size = sum(tensor.nbytes for name, tensor in checkpoint.tensors.items() if name.startswith(part))
        shown.add_row(part, f"{counts[part]:,}", f"{size / 1e6:,.1f}", _kind(checkpoint, part))
    shown.add_row("in all", f"{sum(counts.values()):,}", f"{checkpoint.nbytes / 1e6:,.1f}", "")
    out.print(shown)
    mixed = {tensor.dtype for tensor in checkpoint.tensors.values()} - {"U32"}  # which is packed weights
    if len(mixed) > 1:
        out.print(f"dtypes: MIXED, {', '.join(sorted(mixed))}; loading makes {device.default_dtype()} of all")
    processor = Processor.from_folder(checkpoint.folder, config)
    settings = processor.settings
    out.print(
        f"context {config.text_config.max_position_embeddings} tokens; a tile of {settings.tile_size} pixels is "
        f"{config.tokens_per_tile} tokens; pictures up to {settings.longest_edge} pixels on the longer side"
    )
    if picture is not None:
        inputs = processor([user_message("", [picture])], image_options)
        (layout,) = inputs.layouts
        grid = f"{layout.rows} rows x {layout.cols} columns and the global tile" if layout.rows else "one tile"
        out.print(
            Text(f"{image}: {picture.width} x {picture.height} pixels, {grid}: {layout.tiles} tiles, ")
            + Text(f"{layout.tiles * config.tokens_per_tile} image tokens, {len(inputs.input_ids)} prompt tokens")
        )


def _layout(checkpoint: Checkpoint) -> str:
    return "Hugging Face layout" if checkpoint.is_hf_layout else "MLX layout"


def _parameters(checkpoint: Checkpoint) -> dict[str, int]:
    parameters = SmolVLM(checkpoint.config, tied=not checkpoint.has_head).named_parameters()
    return {part: sum(array.size for name, array in parameters.items() if name.startswith(part)) for part in PARTS}


def _kind(checkpoint: Checkpoint, part: str) -> str:
    modules = {name.removesuffix(".scales") for name in checkpoint.tensors if name.endswith(".scales")}
    quantization, kinds = checkpoint.quantization, set()
    for name, tensor in checkpoint.tensors.items():
        if not name.startswith(part) or name.endswith((".scales", ".biases")):
            continue
        module = name.removesuffix(".weight")
        if module in modules and quantization is not None:
            kinds.add("{} bits in groups of {}".format(*quantization.of(module)))
        else:
            kinds.add(tensor.dtype)
    return ", ".join(sorted(kinds))


def print_machine() -> None:
    """Backend, memory, and whether the fast paths are open."""
    from ..bench.diagnostics import machine_checks
    from ..bench.machine import device_name, total_memory

    name = device.name()
    lines = [f"mlx {version('mlx')} on {name}: {device_name()}, {platform.machine()}, {sys.platform}"]
    memory = total_memory()
    if memory:
        lines.append(f"memory: {memory / 2**30:.1f} GiB")
    lines.append(f"compute dtype: {device.default_dtype()}")
    lines += [f"{check.name}: {check.value}" for check in machine_checks()]
    console().print("\n".join(lines))
