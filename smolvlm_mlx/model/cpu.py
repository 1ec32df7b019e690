"""Inference on a CPU: MLX multiplies matrices, NumPy takes the exponentials, in place, and makes the steps of one row.

MLX's CPU kernels compute exp and tanh one number at a time, where NumPy's use the vector units and are more than ten times
as fast; without this, exponentials take most of the vision tower's time on x86-64. And MLX multiplies a matrix by one row
with the same BLAS routine as by many, which packs the matrix first; NumPy's routine for a vector reads it at twice the speed.
An evaluated MLX array on the CPU is NumPy memory, so nothing is copied. NumPy knows no gradients: only fused modules, which
are for inference, come here, and only in float32, on the CPU device. What is not finite passes through without NumPy's
warnings; `generation` looks for it.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

_BLOCK = 64 * 1024  # numbers that NumPy works on at a time, to stay in a core's cache
_SCORES = 4 * 2**20  # attention scores that are there at a time (16 MiB)


def is_device() -> bool:
    return mx.default_device().type == mx.DeviceType.cpu


def is_used(x: mx.array) -> bool:
    return x.dtype == mx.float32 and is_device()


def attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float, causal: bool) -> mx.array:
    """Softmax attention, (B, h, T, d) queries on (B, k, C, d) keys and values -> (B, h, T, d).

    With `causal`, the T queries are the last of the C positions.
    """
    (B, h, T, d), (_, k, C, _) = queries.shape, keys.shape
    queries = (queries * scale).reshape(B, k, h // k * T, d)
    if T == 1:  # a decode step: few scores, left to MLX as a whole, without the copies its own attention makes of keys
        return (mx.softmax(queries @ keys.swapaxes(-1, -2), axis=-1) @ values).reshape(B, h, 1, d)
    step = max(1, _SCORES // (B * h // k * T * C))  # key-value heads at a time
    parts = []
    for head in range(0, k, step):
        some = slice(head, head + step)
        scores = queries[:, some] @ keys[:, some].swapaxes(-1, -2)  # (B, step, h/k*T, C)
        sums = _exponentials(_view(scores).reshape(-1, T, C), causal)
        part = (scores @ values[:, some]).reshape(B, -1, T, d)  # (B, step*h/k, T, d)
        parts.append(part / mx.array(sums).reshape(B, -1, T, 1))
        mx.eval(parts[-1])
    return mx.concatenate(parts, axis=1)


@np.errstate(invalid="ignore")
def _exponentials(scores: NDArray[np.float32], causal: bool) -> NDArray[np.float32]:
    """In place: scores (heads, T, C) become exp(score - the row's largest). Returns the rows' sums (heads, T)."""
    heads, T, C = scores.shape
    future = np.triu(np.full((T, T), -np.inf, np.float32), 1) if causal else None
    sums = np.empty((heads, T), np.float32)
    rows = max(1, _BLOCK // C)
    for head in range(heads):
        if future is not None:
            scores[head, :, C - T :] += future
        for start in range(0, T, rows):
            block = scores[head, start : start + rows]
            block -= block.max(axis=1, keepdims=True)
            np.exp(block, out=block)
            block.sum(axis=1, out=sums[head, start : start + rows])
    return sums


@np.errstate(over="ignore", invalid="ignore")
def gelu_tanh(x: mx.array) -> mx.array:
    """GELU's tanh form, as `activations.gelu_tanh`; overwrites x, which must be a result that nothing else uses."""
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
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up, as `activations.swiglu`; overwrites up, which must be a result that nothing else uses."""
    mx.eval(gate, up)
    for x, y in zip(_blocks(gate), _blocks(up), strict=True):
        z = np.exp(-x)  # overflows to inf, and the quotient to 0, as it should
        z += 1
        np.divide(x, z, out=z)
        y *= z
    return up


@np.errstate(over="ignore", invalid="ignore")
def decode_step(layers: Sequence[Any], x: mx.array, caches: Sequence[Any]) -> mx.array:
    """All of a decoder's layers for the next token of one conversation: (1, 1, Dt) -> (1, 1, Dt).

    Args:
        layers: `DecoderLayer`s that are plain.
        caches: a `KVCache` for each, not empty; they grow by one token.
    """
    attention, offset = layers[0].self_attn, caches[0].offset
    h, k, d = attention.heads, attention.kv_heads, attention.head_dim
    angles = offset * _frequencies(attention.rope_theta, d)
    cosines, sines = np.cos(angles), np.sin(angles)
    y = np.array(x).reshape(-1)
    for layer, cache in zip(layers, caches, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        normed = _normed(layer.input_layernorm, y)
        query, key, value = (
            (np.asarray(linear.weight) @ normed).reshape(-1, d)
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        left, right = np.split(np.concatenate([query, key]), 2, axis=1)
        turned = np.concatenate([left * cosines - right * sines, right * cosines + left * sines], axis=1)
        keys, values = (_view(array)[0] for array in cache.row())  # (k, more than offset, d)
        keys[:, offset], values[:, offset] = turned[h:], value
        queries = (turned[:h] * attention.scale).reshape(k, h // k, d)
        scores = queries @ keys[:, : offset + 1].swapaxes(1, 2)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        out = scores @ values[:, : offset + 1] / scores.sum(axis=-1, keepdims=True)
        y += np.asarray(attention.o_proj.weight) @ out.reshape(-1)
        normed = _normed(layer.post_attention_layernorm, y)
        gate, up = np.asarray(mlp.gate_proj.weight) @ normed, np.asarray(mlp.up_proj.weight) @ normed
        y += np.asarray(mlp.down_proj.weight) @ (gate / (1 + np.exp(-gate)) * up)
    for cache in caches:
        cache.offset += 1
    return mx.array(y).reshape(1, 1, -1)


def product(weight: mx.array, x: mx.array) -> mx.array:
    """One row by a matrix (O, I): (..., I) -> (..., O)."""
    return mx.array(np.asarray(weight) @ np.asarray(x).reshape(-1)).reshape(*x.shape[:-1], -1)


@lru_cache
def _frequencies(theta: float, d: int) -> NDArray[np.float32]:
    """Of rotary positions (d/2,), rounded as `mx.fast.rope` rounds them, which turned the keys of the prompt."""
    return np.array(mx.exp(mx.arange(0, -(d // 2), -1, dtype=mx.float32) * (math.log(theta) / (d // 2))))


def _normed(norm: Any, y: NDArray[np.float32]) -> NDArray[np.float32]:
    """`nn.RMSNorm` of a row (Dt,)."""
    normed: NDArray[np.float32] = y / np.sqrt(np.mean(y * y) + np.float32(norm.eps)) * np.asarray(norm.weight)
    return normed


def _view(x: mx.array) -> NDArray[np.float32]:
    """The memory of an array, which is evaluated first, for NumPy to write to."""
    view = np.asarray(x)
    assert view.flags.writeable and view.flags.c_contiguous
    return view


def _blocks(x: mx.array) -> list[NDArray[np.float32]]:
    flat = _view(x).reshape(-1)
    return [flat[start : start + _BLOCK] for start in range(0, len(flat), _BLOCK)]
