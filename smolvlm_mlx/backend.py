"""What MLX computes on: the default device, its dtype, and on Linux the BLAS that its CPU backend uses.

The Linux CPU wheel of MLX brings a reference BLAS that is about 30 times slower in float32 than OpenBLAS. Symbols of a
library that is loaded first, and globally, win; so OpenBLAS has to be loaded before `mlx.core` is imported.
"""

import ctypes
import os
import sys

OPENBLAS_LIBRARY = "libopenblas.so.0"
# How long OpenBLAS's threads spin after a product, for another to come: 2^22 cycles, 1 or 2 ms, instead of 2^26. NumPy brings
# an OpenBLAS of its own, and while the threads of one spin, they take the cores from the other's.
THREAD_TIMEOUT = "22"
SLOW_BLAS = "MLX computes on the CPU with its slow built-in BLAS; OpenBLAS is about 30 times faster: "
INSTALL = "install it with `sudo apt-get install libopenblas0-pthread` (Fedora: `sudo dnf install openblas-threads`)"
IMPORT_FIRST = "import smolvlm_mlx before mlx (transformers imports mlx too)"

_openblas: ctypes.CDLL | None = None
_remedy = INSTALL


def load_openblas() -> bool:
    """Load OpenBLAS before MLX. Returns whether MLX uses it (always False outside Linux, where it is not wanted)."""
    global _openblas, _remedy
    if sys.platform != "linux" or _openblas is not None:
        return _openblas is not None
    if "mlx.core" in sys.modules:
        _remedy = IMPORT_FIRST
        return False
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", THREAD_TIMEOUT)
    try:
        _openblas = ctypes.CDLL(OPENBLAS_LIBRARY, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def blas_problem() -> str | None:
    """What to say if this process computes on Linux's CPU backend without OpenBLAS. Imports MLX."""
    return SLOW_BLAS + _remedy if sys.platform == "linux" and _openblas is None and name() == "cpu" else None


def name() -> str:
    """`metal`, `cuda` or `cpu`: what MLX's default device is. Imports MLX."""
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def default_dtype() -> str:
    """Compute dtype: bfloat16 on a GPU; float32 on the CPU, whose 16-bit matmuls are about 40 times slower."""
    return "float32" if name() == "cpu" else "bfloat16"
