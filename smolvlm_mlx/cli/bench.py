"""`smolvlm-mlx bench`: how fast a model runs here, and how fast it could."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import BenchError
from .options import Dtype, Revision

if TYPE_CHECKING:
    from ..bench.bench import Open, Result

PICTURES = ".png"


def bench(
    model: Annotated[
        str | None, typer.Argument(help="Folder or hub id of a checkpoint; `tiny` is bundled. Or use --random.")
    ] = None,
    random: Annotated[
        str | None, typer.Option(help="Random weights in the shape of 256M, 500M or 2.2B: nothing is downloaded.")
    ] = None,
    dtype: Dtype = None,
    bits: Annotated[int | None, typer.Option(help="Quantize random weights of the decoder: 8, 6 or 4 bits.")] = None,
    runs: Annotated[int | None, typer.Option(min=1, help="Of each phase; 3.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few runs, one short prompt, a picture of one tile.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    plot: Annotated[Path | None, typer.Option(help="PNG file for a picture of the roofline with the phases.")] = None,
    revision: Revision = None,
) -> None:
    """Measure each phase of an answer, beside the limit that this machine sets.

    The limit: what a large matrix product, a large matrix-vector product and a chain of small kernels reach on this machine,
    measured first, for the FLOPs, bytes and kernels that the phase needs.
    """
    from dataclasses import replace

    from ..bench.bench import QUICK, Plan
    from ..bench.bench import bench as run
    from . import bench_report as report

    if (model is None) == (random is None):
        raise BenchError("give a checkpoint (a folder, a hub id, tiny) or --random 256M, 500M or 2.2B")
    if plot is not None:
        _check_picture(plot)
    open_model = _stored(model, dtype, bits, revision) if model is not None else _random(str(random), dtype, bits)
    plan = QUICK if quick else Plan()
    with report.status() as progress:
        result = run(open_model, plan if runs is None else replace(plan, runs=runs), model is not None, progress)
    name = model or f"{random}, random weights" + (f", {bits} bits" if bits else "")
    if as_json:
        print(json.dumps(_summary(name, result), indent=2))
    else:
        report.print_result(name, result)
    if plot is not None:
        report.draw(name, result, plot)


def _stored(model: str, dtype: str | None, bits: int | None, revision: str | None) -> "Open":
    from ..checkpoint.reader import load

    if bits is not None:
        raise BenchError(f"--bits is for --random; make one with: smolvlm-mlx convert {model} OUT --bits {bits}")

    def opened() -> tuple:  # type: ignore[type-arg]
        loaded, processor = load(model, dtype, revision)
        return loaded, processor.settings

    return opened


def _random(name: str, dtype: str | None, bits: int | None) -> "Open":
    from .. import device
    from ..bench.machine import total_memory
    from ..checkpoint.presets import SIZES, random_model
    from ..checkpoint.quantization import form_problem
    from ..checkpoint.reader import DTYPES

    compute = dtype or device.default_dtype()
    if name not in SIZES:
        raise BenchError(f"--random {name!r:.40} is not one of {', '.join(SIZES)}")
    if compute not in DTYPES:
        raise BenchError(f"dtype {compute!r:.40} is not one of {', '.join(DTYPES)}")
    problem = None if bits is None else form_problem(bits, 64)
    if problem is not None:
        raise BenchError(f"--bits: {problem}")
    size = SIZES[name]
    needed, memory = size.config.parameters * DTYPES[compute].size * 5 // 4, total_memory()
    if 0 < memory < needed:
        raise BenchError(
            f"{name} in {compute} needs {needed / 1e9:.1f} GB, this machine has {memory / 1e9:.1f}; try a smaller one"
        )
    return lambda: (random_model(size.config, DTYPES[compute], bits), size.settings)


def _check_picture(path: Path) -> None:
    """Now, and not after minutes of measuring."""
    from .bench_report import can_draw

    if path.suffix.lower() != PICTURES:
        raise BenchError(f"--plot {path}: its name has to end in {PICTURES}")
    if not path.absolute().parent.is_dir():
        raise BenchError(f"--plot {path}: there is no folder {path.parent}")
    if not can_draw():
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
                "seconds": {"median": phase.median, "min": min(phase.seconds), "max": max(phase.seconds)},
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
