"""Inference on a GPU: fewer and larger kernels, with the same numbers.

Projections that share their input are joined, queries and keys are rotated together, and each
activation is one compiled kernel.
"""

from collections.abc import Callable, Sequence
from functools import cache

import mlx.core as mx
import mlx.nn as nn

from .. import activations
from ..language import MLP, Attention
from ..vision import VisionAttention, VisionMLP


class GPUVisionAttention(VisionAttention):
    def project(self, x: mx.array) -> tuple[mx.array, ...]:
        return tuple(mx.split(self.qkv_proj(x), 3, axis=-1))


class GPUVisionMLP(VisionMLP):
    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(compiled(activations.gelu_tanh)(self.fc1(x)))


class GPUAttention(Attention):
    def project(self, x: mx.array, offset: int | mx.array) -> tuple[mx.array, mx.array, mx.array]:
        B, T, _ = x.shape
        # (B, h + 2k, T, d)
        qkv = self.qkv_proj(x).reshape(B, T, -1, self.head_dim).transpose(0, 2, 1, 3)
        rotated, values = mx.split(qkv, [self.heads + self.kv_heads], axis=1)
        queries, keys = mx.split(self.rope(rotated, offset), [self.heads], axis=1)
        return queries, keys, values


class GPUMLP(MLP):
    def __call__(self, x: mx.array) -> mx.array:
        gate, up = mx.split(self.gate_up_proj(x), 2, axis=-1)
        return self.down_proj(compiled(activations.swiglu)(gate, up))


# By plain class: the fast one, and the projection that it joins from others.
KINDS: dict[type[nn.Module], tuple[type[nn.Module], str, Sequence[str]]] = {
    VisionAttention: (GPUVisionAttention, "qkv_proj", ("q_proj", "k_proj", "v_proj")),
    VisionMLP: (GPUVisionMLP, "", ()),
    Attention: (GPUAttention, "qkv_proj", ("q_proj", "k_proj", "v_proj")),
    MLP: (GPUMLP, "gate_up_proj", ("gate_proj", "up_proj")),
}


def swap(module: nn.Module) -> None:
    """Make a module of `KINDS` its fast kind; it stays plain where its projections cannot be
    joined."""
    kind, name, parts = KINDS[type(module)]
    if name:
        joined = join(*(module[part] for part in parts))
        if joined is None:
            return
        module[name] = joined
        for part in parts:
            del module[part]
    module.__class__ = kind


def join(*layers: nn.Module) -> nn.Module | None:
    """Return one layer with the outputs of `layers`, which share their input, one after another in
    the last axis.

    Rows of a weight, and of its quantization scales and biases, belong to one output each, so
    stacking rows is exact. None when the layers differ in kind, dtype or quantization (a mixed
    recipe, adapters) and have to stay apart.
    """
    first = layers[0]
    if type(first) not in (nn.Linear, nn.QuantizedLinear):  # a LoRA layer, say
        return None
    if any(type(layer) is not type(first) or _form(layer) != _form(first) for layer in layers):
        return None
    joined: nn.Module = nn.Module.__new__(type(first))
    nn.Module.__init__(joined)
    if isinstance(first, nn.QuantizedLinear):
        joined.group_size, joined.bits, joined.mode = first.group_size, first.bits, first.mode
    for name in first:
        joined[name] = mx.concatenate([layer[name] for layer in layers])
    joined.freeze()
    return joined


def _form(layer: nn.Module) -> tuple[object, ...]:
    quantization = (
        (layer.group_size, layer.bits, layer.mode) if isinstance(layer, nn.QuantizedLinear) else ()
    )
    return (
        *quantization,
        *((name, layer[name].dtype, layer[name].shape[1:]) for name in sorted(layer)),
    )


def compiled(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """Return a function as one kernel; as it is on a CPU, where MLX would call a C++ compiler."""
    return function if mx.default_device().type == mx.DeviceType.cpu else _compile(function)


@cache
def _compile(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    return mx.compile(function, shapeless=True)
