"""What this machine can do, measured: bandwidth, FLOP/s, the cost of a small kernel; and which fast
paths are open."""

import io
import re
import timeit
from collections import Counter
from collections.abc import Callable
from functools import partial

import mlx.core as mx
import numpy as np

from .. import device
from .roofline import Machine

MATRIX_BYTES = {"metal": 2**29, "cuda": 2**30, "cpu": 2**28}  # more than any cache holds
LARGEST_PRODUCT = 8192  # rows and columns
ENOUGH_SECONDS = 0.05  # of one matrix product
CHAIN = 1000  # small kernels one after another

# Primitives that only describe their input's memory anew. A Reshape of what does not lie in order
# copies it after all.
VIEWS = frozenset(
    "AsStrided Broadcast BroadcastAxes Copy Depends ExpandDims Flatten Reshape Slice Split Squeeze "
    "StopGradient Transpose "
    "Unflatten View".split()
)


def calibrate(dtype: mx.Dtype, repeats: int = 5) -> Machine:
    """Measure the default device; the best of `repeats` counts, as it is the machine that is asked
    for."""
    name = device.name()
    return Machine(
        device=device_name(),
        backend=name,
        dtype=dtype_name(dtype),
        bandwidth=_bandwidth(mx.float32 if name == "cpu" else dtype, repeats),
        flops=_flops(dtype, repeats),
        kernel_seconds=_kernel_seconds(repeats),
        memory=device.total_memory(),
    )


def _bandwidth(dtype: mx.Dtype, repeats: int) -> float:
    """Bytes a second of a large matrix-vector product; on a CPU, the faster of MLX's and NumPy's on
    the same memory."""
    rows = 8192
    columns = MATRIX_BYTES[device.name()] // (rows * dtype.size)
    matrix, vector = mx.ones((rows, columns), dtype), mx.ones((1, columns), dtype)
    mx.eval(matrix, vector)
    seconds = _best(lambda: mx.eval(vector @ matrix.T), repeats)
    if device.name() == "cpu":
        view, other = np.asarray(matrix), np.asarray(vector)[0]
        seconds = min(seconds, _best(lambda: view @ other, repeats))
    return matrix.nbytes / seconds


def _flops(dtype: mx.Dtype, repeats: int) -> float:
    """FLOPs a second of a square matrix product, grown until it takes its time."""
    size, best = 256, 0.0
    while True:
        matrix = mx.random.uniform(shape=(size, size)).astype(dtype)
        mx.eval(matrix)
        multiply = partial(lambda matrix: mx.eval(matrix @ matrix), matrix)
        seconds = _best(multiply, repeats)
        best = max(best, 2 * size**3 / seconds)
        if seconds > ENOUGH_SECONDS or size >= LARGEST_PRODUCT:
            return best
        size *= 2


def _kernel_seconds(repeats: int) -> float:
    """Seconds of one addition of two numbers that waits for the one before; building the graph is
    not counted."""
    x = mx.zeros((1,))

    def chain() -> None:
        nonlocal x
        for _ in range(CHAIN):
            x = x + 1

    return min(timeit.repeat(lambda: mx.eval(x), chain, repeat=repeats + 1, number=1)) / CHAIN


def _best(call: Callable[[], object], repeats: int) -> float:
    """Seconds; the first run is one more, to warm up."""
    return min(timeit.repeat(call, repeat=repeats + 1, number=1))


def dtype_name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def device_name() -> str:
    """The default device's name, as MLX has it."""
    return str(mx.device_info(mx.default_device()).get("device_name", device.name()))


def is_fused(
    head_dim: int,
    queries: int = 64,
    mask: str | None = None,
    dtype: mx.Dtype = mx.bfloat16,
    heads: tuple[int, int] = (2, 2),
) -> bool:
    """Whether this backend has one kernel for attention of this form: with `force_fused` MLX raises
    if not.

    Args:
        queries: rows, of 64 keys.
        heads: of the queries, and of keys and values.
    """
    q = mx.zeros((1, heads[0], queries, head_dim), dtype)
    kv = mx.zeros((1, heads[1], 64, head_dim), dtype)
    try:
        mx.eval(
            mx.fast.scaled_dot_product_attention(q, kv, kv, scale=1.0, mask=mask, force_fused=True)
        )
    except ValueError:
        return False
    return True


def count_kernels(*arrays: mx.array) -> Counter[str]:
    """Kernels by primitive that evaluating these arrays starts: MLX's graph, as exported, without
    views.

    Each primitive counts as one kernel. That is too low where MLX splits one (a long sum, a product
    split along its inner side) or has to copy for a Reshape, and what is evaluated already counts
    nothing.
    """
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)
    # A primitive has one node.
    nodes = dict(re.findall(r'(\d+) \[label ="([^"]+)"', graph.getvalue()))
    return Counter(name for name in nodes.values() if name not in VIEWS)
