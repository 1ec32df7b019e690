"""What MLX computes on: the default device, its dtype, and on Linux the BLAS that training on a CPU
multiplies with.

The Linux CPU wheel of MLX brings a reference BLAS that is about 30 times slower in float32 than
OpenBLAS. Inference does not need it (`model/fast/cpu.py` multiplies with NumPy's); gradients do.
Symbols of a library that is loaded first, and globally, win; so the system's OpenBLAS, if there is
one, is loaded before `mlx.core` is imported.
"""

import ctypes
import sys
from contextlib import suppress

SLOW_TRAINING = (
    "training on the CPU multiplies with MLX's own slow BLAS; OpenBLAS is about 30 times faster: "
)
_remedy = (
    "install it with `sudo apt-get install libopenblas0-pthread` "
    "(Fedora: `sudo dnf install openblas-threads`)"
)
_openblas: ctypes.CDLL | None = None


def load_openblas() -> None:
    """Load OpenBLAS, if it is there, before MLX (not outside Linux, where it is not wanted)."""
    global _openblas, _remedy
    if sys.platform != "linux":
        return
    if "mlx.core" in sys.modules:
        _remedy = "import smolvlm_mlx before mlx (transformers imports mlx too)"
        return
    with suppress(OSError):
        _openblas = ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)


def training_problem() -> str | None:
    """What to say where this process trains on Linux's CPU backend without OpenBLAS. Imports
    MLX."""
    return (
        SLOW_TRAINING + _remedy
        if sys.platform == "linux" and _openblas is None and name() == "cpu"
        else None
    )


def name() -> str:
    """`metal`, `cuda` or `cpu`: what MLX's default device is. Imports MLX."""
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def default_dtype() -> str:
    """Compute dtype: bfloat16 on a GPU; float32 on the CPU, whose 16-bit matmuls are about 40 times
    slower."""
    return "float32" if name() == "cpu" else "bfloat16"
