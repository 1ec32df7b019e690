"""`smolvlm-mlx bench`: how fast a model runs here, and how fast it could."""

import io
import json
import sys
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..bench.plan import QUICK, Plan
from ..checkpoint import choices
from ..errors import BenchError
from ..events import Reading, Work
from . import completion
from .options import CHECKPOINT, Flags, Loading, note_unused

if TYPE_CHECKING:
    from ..bench.bench import Open, Phase, Result

UNITS = {"tokens": "tok", "tiles": "tiles", "pictures": "pic"}
SHOWN = 6  # primitives of a decode step, by name

StoredModel = Annotated[
    str | None,
    typer.Argument(
        help="Name, folder or hub id of a checkpoint. Or use --random.",
        autocompletion=completion.names,
    ),
    CHECKPOINT,
]
RandomModel = Annotated[
    choices.Size | None,
    typer.Option(help="Random weights in this size's shape: nothing is downloaded."),
]
RandomBits = Annotated[
    choices.Bits | None,
    typer.Option(help="Quantize random weights of the decoder; 8, 6 and 4 are usual."),
]
Runs = Annotated[
    int | None, typer.Option(help=f"Of each phase; else {Plan.runs}, with --quick {QUICK.runs}.")
]
Quick = Annotated[
    bool, typer.Option("--quick", help="Few runs, one short prompt, a picture of one tile.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")]
Plot = Annotated[
    Path | None, typer.Option(help="PNG file for a picture of the roofline with the phases.")
]


def bench(
    context: typer.Context,
    model: StoredModel = None,
    random: RandomModel = None,
    bits: RandomBits = None,
    runs: Runs = None,
    quick: Quick = False,
    as_json: AsJson = False,
    plot: Plot = None,
    loading: Annotated[Loading, Flags(without=("adapter",))] = Loading(),
) -> None:
    """Measure speed, beside the limit that this machine sets.

    Each phase of an answer is measured. The limit: what a large matrix product, a large
    matrix-vector product and a chain of small kernels reach on this machine, measured first, for
    the FLOPs, bytes and kernels that the phase needs.
    """
    from dataclasses import replace

    from ..bench.bench import bench_in_steps as run

    _check_model(context, model, random)
    if plot is not None:
        _check_picture(plot)
    open_model = _random(random, loading, bits) if random else _stored(str(model), loading, bits)
    plan = QUICK if quick else Plan()
    if runs is not None:
        plan = replace(plan, runs=runs)
    result = _follow(run(open_model, plan, model is not None))
    name = model or f"{random}, random weights" + (f", {bits} bits" if bits else "")
    if as_json:
        print(json.dumps(_summary(name, result), indent=2))
    else:
        _print_result(name, result)
    if plot is not None:
        draw(name, result, plot)


def _check_model(context: typer.Context, model: str | None, random: str | None) -> None:
    if (model is None) == (random is None):
        raise BenchError(
            "give a checkpoint (a name, a folder, a hub id) or --random 256M, 500M or 2.2B"
        )
    if random:
        note_unused(context, "random weights have none", "revision")


def _stored(model: str, loading: Loading, bits: int | None) -> "Open":
    if bits is not None:
        raise BenchError(
            f"--bits is for --random; make one with: smolvlm-mlx convert {model} OUT --bits {bits}"
        )

    def opened() -> tuple:  # type: ignore[type-arg]
        loaded, processor = loading.load(model)
        return loaded, processor.settings

    return opened


def _random(name: choices.Size, loading: Loading, bits: choices.Bits | None) -> "Open":
    from .. import device
    from ..checkpoint.presets import SIZES, random_model, settings_of
    from ..checkpoint.reader import DTYPES

    dtype = loading.dtype or device.default_dtype()
    compute, config = DTYPES[dtype], SIZES[name]
    needed, memory = config.parameters * compute.size * 5 // 4, device.total_memory()
    if 0 < memory < needed:
        raise BenchError(
            f"{name} in {dtype} needs {needed / 1e9:.1f} GB, this machine has {memory / 1e9:.1f}; "
            "try a smaller one"
        )
    device.limit_memory(loading.memory, needed if bits is None else 0)
    return lambda: (random_model(config, compute, bits), settings_of(config))


def _check_picture(path: Path) -> None:
    """Now, and not after minutes of measuring."""
    if path.suffix.lower() != ".png":
        raise BenchError(f"--plot {path}: its name has to end in .png")
    if not path.absolute().parent.is_dir():
        raise BenchError(f"--plot {path}: there is no folder {path.parent}")
    # Matplotlib signs what it draws.
    if path.exists() and not (path.is_file() and b"Matplotlib" in path.read_bytes()[:1000]):
        raise BenchError(f"--plot {path}: is another picture already; choose another name")
    if find_spec("matplotlib") is None:  # an extra
        raise BenchError("--plot needs matplotlib: pip install 'smolvlm-mlx[plot]'")


def _summary(name: str, result: "Result") -> dict[str, object]:
    machine = result.machine
    return {
        "model": name,
        "machine": vars(machine),
        "parameters": result.parameters,
        "weights": result.weights,
        "peak_memory": result.peak_memory,
        "checks": [vars(check) for check in result.checks],
        "decode_kernels": {"total": result.kernels.total(), **dict(result.kernels.most_common())},
        "phases": [
            {
                "name": phase.name,
                "seconds": {
                    "median": phase.median,
                    "min": min(phase.seconds),
                    "max": max(phase.seconds),
                },
                "runs": len(phase.seconds),
                "count": phase.count,
                "unit": phase.unit,
                "per_second": phase.rate,
                "work": None if phase.work is None else vars(phase.work),
                "limit_seconds": phase.limit(machine),
                "bound_by": None if phase.work is None else phase.work.bound(machine),
                "share_of_limit": phase.share(machine),
            }
            for phase in result.phases
        ],
    }


def _follow(steps: Generator[Reading, None, "Result"]) -> "Result":
    """Do the work; what is measured now is on stderr."""
    from .show import spinner

    work = Work(steps)
    with spinner() as shown:
        task = shown.add_task("")
        for reading in work:
            shown.update(task, description=f"Measuring: {reading.what}")
            if shown.disable:
                print(f"measuring: {reading.what}", file=sys.stderr)
    return work.result


def _print_result(name: str, result: "Result") -> None:
    """Machine, phases with their limits, kernels, memory, and what has fallen back."""
    machine = result.machine
    print(
        f"{name}: {result.parameters:,} parameters, {machine.dtype} on {machine.backend} "
        f"({machine.device}): {machine.bandwidth / 1e9:.1f} GB/s, {machine.flops / 1e9:,.0f} "
        f"GFLOP/s, {machine.kernel_seconds * 1e6:.2f} us a small kernel"
    )
    _print_phases(result)
    kernels = result.kernels
    most = ", ".join(f"{count} {kind}" for kind, count in kernels.most_common(SHOWN))
    rest = (
        ""
        if any("Matmul" in kind or kind == "AddMM" for kind in kernels)
        else "; NumPy multiplies the matrices"
    )
    print(f"a decode step: {kernels.total()} kernels ({most}, ...){rest}")
    whole = f" of {machine.memory / 1e9:.1f} GB" if machine.memory else ""
    peak = f"peak of a first turn {result.peak_memory / 1e6:,.1f} MB{whole}"
    print(f"memory: weights {result.weights / 1e6:,.1f} MB, {peak}")
    print(
        "limit: the time at best on this machine; by: what it goes to; spread: fastest to slowest, "
        "of the median"
    )
    for check in result.checks:
        print(f"{check.name}: {check.value}" + ("" if check.fine else "  (!)"))


def _print_phases(result: "Result") -> None:
    from rich.table import Column, Table

    from .show import console

    machine, first = result.machine, Column("phase", no_wrap=True)
    others = ("median", "spread", "rate", "limit", "reached", "by")
    columns = (Column(title, justify="right", no_wrap=True) for title in others)
    shown = Table(first, *columns, box=None, padding=(0, 2), collapse_padding=True, pad_edge=False)
    for phase in result.phases:
        limits = ["-", "-", "-"]
        if work := phase.work:
            limits = [
                _seconds(work.limit(machine)),
                f"{phase.share(machine):.0%}",
                work.bound(machine),
            ]
        shown.add_row(
            phase.name, _seconds(phase.median), f"{phase.spread:.0%}", _rate(phase), *limits
        )
    console().print(shown)


def _seconds(value: float) -> str:
    return (
        f"{value:.2f} s"
        if value >= 1
        else f"{value * 1e3:.2f} ms"
        if value < 0.1
        else f"{value * 1e3:.0f} ms"
    )


def _rate(phase: "Phase") -> str:
    if phase.unit == "bytes":
        return f"{phase.rate / 1e6:,.0f} MB/s"
    unit = UNITS[phase.unit]
    return f"{phase.rate:,.1f} {unit}/s" if phase.rate < 100 else f"{phase.rate:,.0f} {unit}/s"


def draw(name: str, result: "Result", path: Path) -> None:
    """FLOP/s by FLOPs a byte: the roof that bandwidth and FLOP/s make, and the phases under it; as
    PNG.

    Raises:
        BenchError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    from ..files import write_file, written

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
    axes.legend(
        frameon=False, fontsize=8, title="per cent of the limit, kernels included", title_fontsize=8
    )
    axes.grid(alpha=0.3, which="both")
    png = io.BytesIO()
    figure.savefig(png, dpi=120, format="png")
    with written(path, BenchError):
        write_file(path, png.getvalue())
