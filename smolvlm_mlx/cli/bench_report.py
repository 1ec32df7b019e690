"""What `smolvlm-mlx bench` shows: a line of progress, the table, and the picture of the roofline."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from ..bench.bench import Phase, Result
from ..errors import BenchError
from .show import console

UNITS = {"tokens": "tok", "tiles": "tiles", "pictures": "pic"}
SHOWN = 6  # primitives of a decode step, by name


@contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """What is measured now, on stderr."""
    err = console(stderr=True)
    with err.status("") as line:

        def show(phase: str) -> None:
            line.update(Text(f"Measuring: {phase}"))
            if not err.is_terminal:
                err.print(f"measuring: {phase}")

        yield show


def print_result(name: str, result: Result) -> None:
    """Machine, phases with their limits, kernels, memory, and what has fallen back."""
    out, machine = console(), result.machine
    out.print(
        f"{name}: {result.parameters:,} parameters, {machine.dtype} on {machine.backend} ({machine.device}): "
        f"{machine.bandwidth / 1e9:.1f} GB/s, {machine.flops / 1e9:,.0f} GFLOP/s, "
        f"{machine.kernel_seconds * 1e6:.2f} us a small kernel"
    )
    first, others = Column("phase", no_wrap=True), ("median", "spread", "rate", "limit", "reached", "by")
    columns = (Column(title, justify="right", no_wrap=True) for title in others)
    shown = Table(first, *columns, box=None, padding=(0, 2), collapse_padding=True, pad_edge=False)
    for phase in result.phases:
        work, limit, share = phase.work, phase.limit(machine), phase.share(machine)
        limits = [_seconds(limit), f"{share:.0%}"] if limit is not None and share is not None else ["-", "-"]
        measured = (Text(phase.name), _seconds(phase.median), f"{phase.spread:.0%}", _rate(phase))
        shown.add_row(*measured, *limits, work.bound(machine) if work else "-")
    out.print(shown)
    kernels = result.kernels
    most = ", ".join(f"{count} {kind}" for kind, count in kernels.most_common(SHOWN))
    rest = "" if any("Matmul" in kind or kind == "AddMM" for kind in kernels) else "; NumPy multiplies the matrices"
    out.print(f"a decode step: {kernels.total()} kernels ({most}, ...){rest}")
    whole = f" of {machine.memory / 1e9:.1f} GB" if machine.memory else ""
    out.print(
        f"memory: weights {result.weights / 1e6:,.1f} MB, peak of a first turn {_megabytes(result.peak_memory)}{whole}"
    )
    out.print("limit: the time at best on this machine; by: what it goes to; spread: fastest to slowest, of the median")
    for check in result.checks:
        out.print(f"{check.name}: {check.value}" + ("" if check.fine else "  (!)"))


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms" if value < 0.1 else f"{value * 1e3:.0f} ms"


def _megabytes(value: int) -> str:
    return f"{value / 1e6:,.1f} MB"


def _rate(phase: Phase) -> str:
    if phase.unit == "bytes":
        return f"{phase.rate / 1e6:,.0f} MB/s"
    unit = UNITS[phase.unit]
    return f"{phase.rate:,.1f} {unit}/s" if phase.rate < 100 else f"{phase.rate:,.0f} {unit}/s"


def can_draw() -> bool:
    """Whether matplotlib, which is an extra, is there."""
    return find_spec("matplotlib") is not None


def draw(name: str, result: Result, path: Path) -> None:
    """FLOP/s by FLOPs a byte: the roof that bandwidth and FLOP/s make, and the phases under it; as PNG.

    Raises:
        BenchError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    machine = result.machine
    phases = [(phase, phase.work) for phase in result.phases if phase.work is not None]
    intensities = [work.flops / work.bytes for _, work in phases]
    ridge = machine.flops / machine.bandwidth
    low, high = min(*intensities, ridge) / 4, max(*intensities, ridge) * 4
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    roof = [value * machine.bandwidth / 1e9 for value in (low, ridge)] + [machine.flops / 1e9]
    axes.plot([low, ridge, high], roof, color="black", lw=1.5)
    for number, ((phase, work), intensity) in enumerate(zip(phases, intensities, strict=True)):
        label = f"{phase.name}: {phase.share(machine):.0%}"
        reached = work.flops / phase.median / 1e9
        axes.plot(intensity, reached, "o^sDvP*X"[number % 8], ms=7, label=label)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="GFLOP/s")
    axes.set_title(f"{name} on {machine.device}, {machine.dtype}", fontsize=10)
    axes.legend(frameon=False, fontsize=8, title="per cent of the limit, kernels included", title_fontsize=8)
    axes.grid(alpha=0.3, which="both")
    try:
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise BenchError(f"{path}: cannot be written ({error.strerror})") from error
