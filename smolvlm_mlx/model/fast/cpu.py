"""Inference on a CPU in float32: NumPy multiplies, takes the exponentials, and makes the steps of
one row.

MLX's wheel for Linux brings a reference BLAS, which is about 30 times slower than the one in
NumPy's, and its kernels compute exp and tanh one number at a time. An evaluated MLX array on the
CPU is NumPy memory, so what goes in is not copied. NumPy knows no gradients: only models for
inference come here. What is not in float32, or on another device, is left to MLX.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..arrays import dequantized
from ..cache import Cache, KVCache, Mask
from ..language import MLP, Attention, DecoderLayer, LanguageModel
from ..vision import VisionAttention, VisionEmbeddings, VisionMLP
from .kernels import Floats, attention, future, gelu_tanh, product, swiglu

# From so many on, MLX's kernels for quantized weights are slower than to unpack and multiply.
UNPACKED_ROWS = 32


def is_used(x: mx.array) -> bool:
    """Whether NumPy computes with this array: it is in float32, for inference on the CPU device."""
    return x.dtype == mx.float32 and mx.default_device().type == mx.DeviceType.cpu


class CPULinear(nn.Linear):
    def __call__(self, x: mx.array) -> mx.array:
        if not (is_used(x) and is_used(self.weight)):
            return super().__call__(x)
        return mx.array(linear(self, np.asarray(x)))


class CPUQuantizedLinear(nn.QuantizedLinear):
    def __call__(self, x: mx.array) -> mx.array:
        if _is_unpacked(x):
            bias = np.asarray(self.bias.astype(mx.float32)) if "bias" in self else None
            return mx.array(product(np.asarray(x), unpacked(self), bias))
        y: mx.array = super().__call__(x)
        return y


class CPUQuantizedEmbedding(nn.QuantizedEmbedding):
    def as_linear(self, x: mx.array) -> mx.array:
        if _is_unpacked(x):
            return mx.array(product(np.asarray(x), unpacked(self)))
        y: mx.array = super().as_linear(x)
        return y


class CPUVisionEmbeddings(VisionEmbeddings):
    def embed(self, patches: mx.array) -> mx.array:
        if not is_used(patches):
            return super().embed(patches)
        weight, bias = self.patch_embedding.weight, self.patch_embedding.bias
        return mx.array(
            product(
                np.asarray(patches), np.asarray(weight).reshape(len(weight), -1), np.asarray(bias)
            )
        )


class CPUVisionAttention(VisionAttention):
    def __call__(self, x: mx.array) -> mx.array:
        if not is_used(x):
            return super().__call__(x)
        N, P, D = x.shape
        queries, keys, values = (
            linear(layer, np.asarray(x)).reshape(N, P, self.heads, -1).transpose(0, 2, 1, 3)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )  # (N, h, P, d)
        y = attention(queries, keys, values, self.scale, None)
        return mx.array(linear(self.out_proj, y.transpose(0, 2, 1, 3).reshape(N, P, D)))


class CPUVisionMLP(VisionMLP):
    def __call__(self, x: mx.array) -> mx.array:
        if not is_used(x):
            return super().__call__(x)
        return mx.array(linear(self.fc2, gelu_tanh(linear(self.fc1, np.asarray(x)))))


class CPUAttention(Attention):
    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, mask: Mask) -> mx.array:
        if not is_used(queries):
            return super().attend(queries, keys, values, mask)
        keys, values = keys.astype(mx.float32), values.astype(mx.float32)  # of caches in 16 bits
        added = added_by(mask, queries.shape[2], keys.shape[2])
        return mx.array(
            attention(np.asarray(queries), np.asarray(keys), np.asarray(values), self.scale, added)
        )


class CPUMLP(MLP):
    def __call__(self, x: mx.array) -> mx.array:
        if not is_used(x):
            return super().__call__(x)
        y = np.asarray(x)
        return mx.array(
            linear(self.down_proj, swiglu(linear(self.gate_proj, y), linear(self.up_proj, y)))
        )


class CPULanguageModel(LanguageModel):
    """Takes the next token of one conversation by `decode_step`."""

    def run(self, x: mx.array, caches: Sequence[Cache | None]) -> mx.array:
        held = [
            cache
            for cache in caches
            if type(cache) is KVCache and cache.offset and cache.keys.dtype == mx.float32
        ]
        is_next = x.size == x.shape[-1] and len(held) == len(caches)
        if is_next and is_used(x) and all(_is_plain(layer) for layer in self.layers):
            return decode_step(self.layers, x, held)
        return super().run(x, caches)

    def head(self, x: mx.array) -> mx.array:
        table = self.embed_tokens
        if (
            "lm_head" in self
            or type(table) is not nn.Embedding
            or not (is_used(x) and is_used(table.weight))
        ):
            return super().head(x)
        return mx.array(product(np.asarray(x), np.asarray(table.weight)))


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: CPULinear,
    nn.QuantizedLinear: CPUQuantizedLinear,
    nn.QuantizedEmbedding: CPUQuantizedEmbedding,
    VisionEmbeddings: CPUVisionEmbeddings,
    VisionAttention: CPUVisionAttention,
    VisionMLP: CPUVisionMLP,
    Attention: CPUAttention,
    MLP: CPUMLP,
    LanguageModel: CPULanguageModel,
}


def swap(module: nn.Module) -> None:
    """Make a module of `KINDS` its fast kind."""
    module.__class__ = KINDS[type(module)]


def linear(layer: nn.Module, x: Floats) -> Floats:
    """Apply a layer that is linear in effect, quantized and adapted ones included: (..., I) ->
    (..., O), the caller's own."""
    if type(layer) is CPULinear and layer.weight.dtype == mx.float32:
        return product(
            x, np.asarray(layer.weight), np.asarray(layer.bias) if "bias" in layer else None
        )
    return np.array(layer(mx.array(x)), np.float32)


def _is_unpacked(x: mx.array) -> bool:
    """Whether a quantized weight is multiplied by faster as the matrix that it stands for."""
    return is_used(x) and x.size >= UNPACKED_ROWS * x.shape[-1]


def unpacked(layer: nn.QuantizedLinear | nn.QuantizedEmbedding) -> Floats:
    """The matrix that a quantized weight stands for, (O, I), not rounded to its scales' 16 bits."""
    form = layer.bits, layer.group_size, layer.mode
    return np.asarray(dequantized(layer.weight, layer.scales, layer.get("biases"), form))


def added_by(mask: Mask, T: int, C: int) -> Floats | None:
    """What a mask of MLX's attention adds to the scores (..., T, C); "causal" is that of the last T
    positions.

    Raises:
        ValueError: it has no such shape, or another name.
    """
    if mask is None or isinstance(mask, str):
        if mask not in (None, "causal"):
            raise ValueError(f"mask {mask!r} is not causal")
        return None if mask is None or T == 1 else future(T)
    # As MLX, the least number and not infinity: a row that sees nothing stays finite.
    if mask.dtype == mx.bool_:
        added = np.where(np.asarray(mask), np.float32(0), np.finfo(np.float32).min)
    else:
        added = np.asarray(mask.astype(mx.float32))
    return np.broadcast_to(added, (*added.shape[:-2], T, C))


@np.errstate(over="ignore", invalid="ignore")
def decode_step(layers: Sequence[DecoderLayer], x: mx.array, caches: Sequence[KVCache]) -> mx.array:
    """All of a decoder's layers for the next token of one conversation: (1, 1, Dt) -> (1, 1, Dt).

    Args:
        layers: plain ones, see `_is_plain`.
        caches: one for each, not empty; they grow by one token.
    """
    attention, offset = layers[0].self_attn, caches[0].offset
    h, k, d = attention.heads, attention.kv_heads, attention.head_dim
    angles = offset * _frequencies(attention.rope_theta, attention.rope_periods, d)
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
        rotated = np.concatenate(
            [left * cosines - right * sines, right * cosines + left * sines], axis=1
        )
        keys, values = (_view(array)[0] for array in cache.row())  # (k, more than offset, d)
        keys[:, offset], values[:, offset] = rotated[h:], value
        queries = (rotated[:h] * attention.scale).reshape(k, h // k, d)
        scores = queries @ keys[:, : offset + 1].swapaxes(1, 2)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        out = scores @ values[:, : offset + 1] / scores.sum(axis=-1, keepdims=True)
        y += np.asarray(attention.o_proj.weight) @ out.reshape(-1)
        normed = _normed(layer.post_attention_layernorm, y)
        gate = np.asarray(mlp.gate_proj.weight) @ normed
        up = np.asarray(mlp.up_proj.weight) @ normed
        y += np.asarray(mlp.down_proj.weight) @ (gate / (1 + np.exp(-gate)) * up)
    for cache in caches:
        cache.offset += 1
    return mx.array(y).reshape(1, 1, -1)


def _is_plain(layer: DecoderLayer) -> bool:
    """Whether its projections multiply by one float32 matrix each: no adapters, no quantization."""
    names = {
        "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "mlp": ("gate_proj", "up_proj", "down_proj"),
    }
    layers = [layer[part].get(name) for part in names for name in names[part]]
    return all(type(each) is CPULinear and each.weight.dtype == mx.float32 for each in layers)


@lru_cache
def _frequencies(theta: float, periods: tuple[float, ...] | None, d: int) -> Floats:
    """Of rotary positions (d/2,), rounded as `mx.fast.rope` rounds them, which rotated the keys of
    the prompt."""
    if periods is not None:
        return np.float32(1) / np.array(periods, np.float32)
    return np.array(mx.exp(mx.arange(0, -(d // 2), -1) * (math.log(theta) / (d // 2))))


def _normed(norm: nn.RMSNorm, y: Floats) -> Floats:
    """`nn.RMSNorm` of a row (Dt,)."""
    normed: Floats = y / np.sqrt(np.mean(y * y) + np.float32(norm.eps)) * np.asarray(norm.weight)
    return normed


def _view(x: mx.array) -> Floats:
    """The memory of an array, which is evaluated first, for NumPy to write to."""
    view = np.asarray(x)
    assert view.flags.writeable and view.flags.c_contiguous
    return view
