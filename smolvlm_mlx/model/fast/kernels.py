"""NumPy's kernels for inference on a CPU in float32: arrays to arrays, without MLX and without
gradients.

What is not finite passes through without NumPy's warnings; `generation` looks for it.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BLOCK = 64 * 1024  # numbers that are worked on at a time, to stay in a core's cache
_FEW_ROWS = 64
SCORES = 4 * 2**20  # attention scores that are there at a time (16 MiB)


@np.errstate(over="ignore", invalid="ignore")
def product(x: Floats, weight: Floats, bias: Floats | None = None) -> Floats:
    """Rows by a matrix (O, I): (..., I) -> (..., O).

    BLAS multiplies one row as a vector, and reads the matrix once as it lies. Of more rows it first
    orders the operand on the right, so that the matrix is on the left where rows are few.
    """
    rows = x.reshape(-1, x.shape[-1])
    y: Floats
    if len(rows) == 1:
        y = np.matmul(weight, rows[0])[None]
    elif len(rows) <= _FEW_ROWS:
        y = np.ascontiguousarray(np.matmul(weight, rows.T).T)
    else:
        y = np.matmul(rows, weight.T)
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], len(weight))


@np.errstate(over="ignore", invalid="ignore")
def attention(
    queries: Floats, keys: Floats, values: Floats, scale: float, added: Floats | None
) -> Floats:
    """Softmax attention, (B, h, T, d) queries on (B, k, C, d) keys and values -> (B, h, T, d).

    Args:
        added: to the scores of the last keys, such as `future(T)`: what can be broadcast to (B, h,
            T, n), with n up to C.
    """
    (B, h, T, d), (_, k, C, _) = queries.shape, keys.shape
    # (B, k, h/k*T, d)
    grouped: Floats = np.multiply(queries, scale).reshape(B, k, h // k * T, d)
    if added is not None:
        added = np.broadcast_to(added, (B, h, T, added.shape[-1]))
    out = np.empty((B, h, T, d), np.float32)
    step = max(1, SCORES // (h // k * T * C))  # key-value heads at a time
    for b in range(B):
        for head in range(0, k, step):
            some, those = slice(head, head + step), slice(head * (h // k), (head + step) * (h // k))
            scores = grouped[b, some] @ keys[b, some].swapaxes(-1, -2)  # (step, h/k*T, C)
            sums = _exponentials(
                scores.reshape(-1, T, C), None if added is None else added[b, those]
            )
            part = (scores @ values[b, some]).reshape(-1, T, d)  # (step*h/k, T, d)
            np.divide(part, sums[..., None], out=out[b, those])
    return out


@lru_cache(maxsize=1)
def future(T: int) -> Floats:
    """What T queries add to the scores of the last T keys, so that they see none after themselves
    (T, T)."""
    return np.triu(np.full((T, T), -np.inf, np.float32), 1)


def _exponentials(scores: Floats, added: Floats | None) -> Floats:
    """In place: scores (heads, T, C) become exp(score - the row's largest). Returns the rows' sums
    (heads, T)."""
    heads, T, C = scores.shape
    sums = np.empty((heads, T), np.float32)
    rows = max(1, min(T, BLOCK // C))
    step = max(1, BLOCK // (rows * C))  # heads at a time
    for head in range(0, heads, step):
        for start in range(0, T, rows):
            some = slice(head, head + step), slice(start, start + rows)
            block = scores[some]
            if added is not None:
                block[..., C - added.shape[-1] :] += added[some]
            block -= block.max(axis=-1, keepdims=True)
            np.exp(block, out=block)
            block.sum(axis=-1, out=sums[some])
    return sums


@np.errstate(over="ignore", invalid="ignore")
def gelu_tanh(x: Floats) -> Floats:
    """GELU's tanh form, as `activations.gelu_tanh`; overwrites x."""
    for y in _blocks(x):
        z = y * y
        z *= math.sqrt(2 / math.pi) * 0.044715
        z += math.sqrt(2 / math.pi)
        z *= y
        np.tanh(z, out=z)
        z += 1
        z *= 0.5
        y *= z
    return x


@np.errstate(over="ignore", invalid="ignore")
def swiglu(gate: Floats, up: Floats) -> Floats:
    """silu(gate) * up, as `activations.swiglu`; overwrites up."""
    for x, y in zip(_blocks(gate), _blocks(up), strict=True):
        z = np.exp(-x)  # overflows to inf, and the quotient to 0, as it should
        z += 1
        np.divide(x, z, out=z)
        y *= z
    return up


def _blocks(x: Floats) -> list[Floats]:
    assert x.flags.c_contiguous  # or these would be a copy's
    flat = x.reshape(-1)
    return [flat[start : start + BLOCK] for start in range(0, len(flat), BLOCK)]
