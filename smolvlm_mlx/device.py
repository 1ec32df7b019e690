"""What MLX computes on: the default device, its dtype, how much memory it may take, and on Linux
the BLAS that training on a CPU multiplies with.

The Linux CPU wheel of MLX brings a reference BLAS that is about 30 times slower in float32 than
OpenBLAS. Inference does not need it (`model/fast/cpu.py` multiplies with NumPy's); gradients do.
Symbols of a library that is loaded first, and globally, win; so the system's OpenBLAS, if there is
one, is loaded before `mlx.core` is imported.
"""

import ctypes
import os
import re
import sys
from contextlib import suppress

from .errors import DeviceError, quote

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


# ---- memory


UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30}
# Of the memory, what MLX may hold in freed buffers; on a CPU they are little use.
POOL = {"metal": 1 / 8, "cuda": 1 / 8, "cpu": 1 / 512}


def total_memory() -> int:
    """Bytes: the GPU's where it has its own, else the machine's; 0 if nobody says. Imports MLX."""
    import mlx.core as mx

    details = mx.device_info(mx.default_device())
    memory = int(details.get("memory_size") or details.get("total_memory") or 0)
    if not memory and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory


def limit_memory(most: int | str | None = None, least: int = 0) -> None:
    """Tell MLX how much memory this process may take. Imports MLX.

    Of its own accord MLX keeps every buffer that was freed, up to the memory of the machine
    (mlx/backend/metal/allocator.cpp), and wires none of them, so that a pause may cost a page-in.

    Args:
        most: bytes, or text such as "6GB"; by default half of the machine's, or a quarter more
            than is needed.
        least: bytes that are needed.

    Raises:
        DeviceError: `most` is no size, less than what is needed, or more than the machine has.
    """
    import mlx.core as mx

    total = total_memory()
    if most is None:
        limit = max(total // 2, least * 5 // 4)
    elif (limit := size_in_bytes(most)) < least:
        raise DeviceError(
            f"memory {quote(most)}: the model needs {least / 1e9:.2f} GB; allow more, or "
            "convert it with fewer bits"
        )
    elif total and limit > total:
        raise DeviceError(f"memory {quote(most)}: this machine has {total / 1e9:.1f} GB")
    mx.set_memory_limit(limit)
    mx.set_cache_limit(most_freed())
    if name() == "metal":  # wires nothing before macOS 15
        most_wired = mx.device_info()["max_recommended_working_set_size"]
        mx.set_wired_limit(min(limit, int(most_wired)))


def hold_freed(size: int) -> None:
    """Let MLX hold freed buffers of so many bytes, where that is more than `limit_memory` lets it:
    what each step of training needs again. Imports MLX."""
    import mlx.core as mx

    mx.set_cache_limit(max(most_freed(), min(size, memory_limit())))


def most_freed() -> int:
    """Bytes of freed buffers that MLX holds, as `limit_memory` lets it. Imports MLX."""
    return int(memory_limit() * POOL[name()])


def memory_limit() -> int:
    """Bytes that this process may take, as `limit_memory` was told. Imports MLX."""
    import mlx.core as mx

    return mx.get_memory_limit()


def peak_memory() -> int:
    """Most bytes that arrays took, and those of the freed buffers that MLX holds. Imports MLX."""
    import mlx.core as mx

    return mx.get_peak_memory() + mx.get_cache_memory()


def size_in_bytes(size: int | str, name: str = "memory") -> int:
    """As many as a size says.

    Raises:
        DeviceError: it is none.
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d+)?) ?([kmgt]?i?)b?", str(size).strip().lower())
    if found is None or found[2] not in UNITS or not (number := float(found[1])):
        raise DeviceError(f"{name} {quote(size)}: give bytes, or a size such as 6GB")
    return int(number * UNITS[found[2]])
