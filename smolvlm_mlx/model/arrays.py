"""What arrays stand for: numbers of Python, and weights that are quantized."""

from typing import cast

import mlx.core as mx


def ints(array: mx.array) -> list[int]:
    """Return integers (n,) as a list."""
    return cast(list[int], array.tolist())


def dequantized(
    packed: mx.array, scales: mx.array, biases: mx.array | None, form: tuple[int, int, str]
) -> mx.array:
    """The float32 values that a quantized weight stands for; rounded to nothing less, whatever the
    dtype of its scales.

    Args:
        form: bits, size of a group and mode.
    """
    if biases is not None:  # else scales are codes
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    bits, group_size, mode = form
    return mx.dequantize(packed, scales, biases, group_size, bits, mode, dtype=mx.float32)
