"""Linear layers side by side as one: fewer and larger matrix products, with the same numbers."""

import mlx.core as mx
import mlx.nn as nn


def fuse_linears(*layers: nn.Module) -> nn.Module | None:
    """One layer that returns the outputs of `layers`, which share their input, one after another in the last axis.

    Rows of a weight, and of its quantization scales and biases, belong to one output each, so stacking rows is exact.
    Returns None when the layers differ in kind, dtype or quantization (a mixed recipe) and have to stay apart.
    """
    first = layers[0]
    if type(first) not in (nn.Linear, nn.QuantizedLinear):  # a LoRA layer, say
        return None
    if any(_form(layer) != _form(first) for layer in layers):
        return None
    fused: nn.Module = nn.Module.__new__(type(first))
    nn.Module.__init__(fused)
    if isinstance(first, nn.QuantizedLinear):
        fused.group_size, fused.bits, fused.mode = first.group_size, first.bits, first.mode
    for name in first:
        fused[name] = mx.concatenate([layer[name] for layer in layers])
    fused.freeze()
    return fused


def _form(layer: nn.Module) -> tuple[object, ...]:
    kind = type(layer)
    quantization = (layer.group_size, layer.bits, layer.mode) if isinstance(layer, nn.QuantizedLinear) else ()
    return (kind, *quantization, *((name, layer[name].dtype, layer[name].shape[1:]) for name in sorted(layer)))
