"""GELU and SwiGLU: on a GPU one compiled kernel each, on a CPU as they are (compiling there would call a C++ compiler)."""

import math
from collections.abc import Callable
from functools import cache

import mlx.core as mx

from . import cpu


def gelu_tanh(x: mx.array) -> mx.array:
    """GELU's tanh form, `0.5 x (1 + tanh(z))` with `z = sqrt(2/pi) (x + 0.044715 x^3)` (arXiv:1606.08415).

    Written as `x sigmoid(2 z)`, the same function, in float32 inside.
    """
    return _gelu_tanh(x) if cpu.is_device() else _compiled(_gelu_tanh)(x)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up (arXiv:2002.05202)."""
    return _swiglu(gate, up) if cpu.is_device() else _compiled(_swiglu)(gate, up)


def _gelu_tanh(x: mx.array) -> mx.array:
    y = x.astype(mx.float32)
    z = y * (2 * math.sqrt(2 / math.pi)) * (1 + 0.044715 * y * y)
    return (y * mx.sigmoid(z)).astype(x.dtype)


def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up


@cache
def _compiled(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    return mx.compile(function, shapeless=True)
