"""A model as blocks that are quantized one after another: each computes on what the blocks before
make of their inputs, in the source and in the model that is quantized so far."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from ..checkpoint.choices import Form
from ..model import SmolVLM
from ..model.arrays import dequantized
from .compensation import Codes, Floats, Inputs

Packed = tuple[
    mx.array, mx.array, mx.array
]  # weight, scales, biases, as `mx.quantize` returns them

_DECODER = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
_TOWER = (_DECODER[0], ("self_attn.out_proj",), ("mlp.fc1",), ("mlp.fc2",))


@dataclass(frozen=True)
class Block:
    """Layers of a module and how it is run, (B, T, D) -> (B, T, D'); those of a stage have the same
    inputs, which those of the stages before them change."""

    path: str
    module: nn.Module
    run: Callable[[mx.array], mx.array]
    stages: Sequence[Sequence[str]]
    is_last: bool = False  # what it makes is not needed

    def name(self, layer: str) -> str:
        """The path of a layer in the model."""
        return f"{self.path}.{layer}"


@dataclass
class Batch:
    """Hidden states (B, T, D) of the source and of the quantized model; `real` (B, T): no
    padding."""

    source: mx.array
    student: mx.array
    real: NDArray[np.bool_]

    def halves(self, x: mx.array, number: int) -> Iterator[Floats]:
        """Real positions (n, I) of inputs (B, T, I): of every second row, and of the others."""
        rows = np.arange(len(self.real)) + number
        array = np.array(x.astype(mx.float32))
        for half in range(2):
            yield array[self.real & (rows % 2 == half)[:, None]]


def distance(batches: Sequence[Batch]) -> float:
    """How far the quantized model's hidden states are from the source's, as a share of these."""
    apart = whole = 0.0
    for batch in batches:
        real = mx.array(batch.real)[..., None]
        source = batch.source.astype(mx.float32) * real
        apart += float(mx.square(batch.student * real - source).sum())
        whole += float(mx.square(source).sum())
    return math.sqrt(apart / whole) if whole else 0.0


def tower_blocks(model: SmolVLM) -> list[Block]:
    """Embedded patches (N, P, Dv) -> image features before the last norm."""
    path = "vision_model.encoder.layers"
    return [
        Block(f"{path}.{number}", layer, layer, _TOWER)
        for number, layer in enumerate(model.vision_model.encoder.layers)
    ]


def decoder_blocks(model: SmolVLM) -> list[Block]:
    """Embeddings (B, T, Dt) -> logits, which are not needed."""
    decoder = model.language_model

    def run(layer: nn.Module) -> Callable[[mx.array], mx.array]:
        return lambda x: layer(x, "causal", None)

    blocks = [
        Block(f"language_model.layers.{number}", layer, run(layer), _DECODER)
        for number, layer in enumerate(decoder.layers)
    ]
    stages = [["lm_head"]] if "lm_head" in decoder else []
    return [*blocks, Block("language_model", decoder, decoder.logits, stages, is_last=True)]


class Tap(nn.Module):
    """A layer that keeps its last inputs."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self._seen: list[mx.array] = []

    def __call__(self, x: mx.array) -> mx.array:
        self._seen = [x]
        result: mx.array = self.layer(x)
        return result

    def take(self) -> mx.array:
        """The last inputs."""
        return self._seen.pop()


def learn_block(
    block: Block,
    batches: Sequence[Batch],
    forms: Mapping[str, Form],
    dtype: mx.Dtype,
    known: Mapping[str, Packed] | None = None,
) -> dict[str, Packed]:
    """Quantize a block's layers that have a form, by their paths in the model, and take the batches
    through it.

    Args:
        dtype: of scales and biases.
        known: what an earlier run has found.

    Raises:
        TrainingError: numbers are not finite.
    """
    stages = [[layer for layer in stage if block.name(layer) in forms] for stage in block.stages]
    stages = [stage for stage in stages if stage]
    sources = _run_source(block, batches, [stage[0] for stage in stages])
    found: dict[str, Packed] = {}
    for stage, seen in zip(stages, sources, strict=True):
        paths = [block.name(layer) for layer in stage]
        if known is None:
            inputs = _inputs(block, batches, stage[0], seen)
            found |= _learn(block, stage, inputs, forms, dtype)
        else:
            found |= {path: known[path] for path in paths}
        for layer, path in zip(stage, paths, strict=True):
            attrgetter(layer)(block.module).weight = dequantized(*found[path], forms[path])
        seen.clear()
    for batch in batches if not block.is_last else ():
        batch.student = block.run(batch.student)
        mx.eval(batch.student)
    return found


def learn_table(model: SmolVLM, batches: Sequence[Batch], form: Form, dtype: mx.Dtype) -> Packed:
    """Quantize the table of embeddings that is the head, too: what is said before it, by the
    source, is known."""
    decoder = model.language_model
    weights = np.array(decoder.embed_tokens.weight)
    inputs = Inputs(weights.shape[1])
    for number, batch in enumerate(batches):
        x = decoder.norm(decoder.run(batch.source, [None] * len(decoder.layers)))
        for half, rows in enumerate(batch.halves(x, number)):
            inputs.add(half, rows, rows)
    for squares in inputs.squares:  # as embeddings all numbers of it count alike
        squares += np.eye(len(squares)) * (np.trace(squares) / len(squares))
    return inputs.quantize(weights, form.bits, form.group_size, dtype).packed(form.bits, dtype)


def put(module: Any, path: str, layer: nn.Module) -> None:
    """Set a layer by its path."""
    parent, _, name = path.rpartition(".")
    setattr(attrgetter(parent)(module) if parent else module, name, layer)


# ---- parts


def _run_source(
    block: Block, batches: Sequence[Batch], layers: Sequence[str]
) -> list[list[list[Floats]]]:
    """Take the source through a block; inputs of some of its layers, of each batch by halves."""
    taps = [Tap(attrgetter(layer)(block.module)) for layer in layers]
    for layer, tap in zip(layers, taps, strict=True):
        put(block.module, layer, tap)
    found: list[list[list[Floats]]] = [[] for _ in layers]
    for number, batch in enumerate(batches):
        result = block.run(batch.source)
        if not block.is_last:
            batch.source = result
            mx.eval(result)
        for tap, seen in zip(taps, found, strict=True):
            seen.append(list(batch.halves(tap.take(), number)))
    for layer, tap in zip(layers, taps, strict=True):
        put(block.module, layer, tap.layer)
    return found


def _inputs(
    block: Block, batches: Sequence[Batch], layer: str, sources: Sequence[Sequence[Floats]]
) -> Inputs:
    """What is known of a layer's inputs, from the source and from the model quantized so far."""
    linear = attrgetter(layer)(block.module)
    tap, inputs = Tap(linear), Inputs(linear.weight.shape[1])
    put(block.module, layer, tap)
    for number, (batch, source) in enumerate(zip(batches, sources, strict=True)):
        block.run(batch.student)  # of which only the way to this layer is computed
        for half, rows in enumerate(batch.halves(tap.take(), number)):
            inputs.add(half, source[half], rows)
    put(block.module, layer, linear)
    return inputs


def _learn(
    block: Block,
    stage: Sequence[str],
    inputs: Inputs,
    forms: Mapping[str, Form],
    dtype: mx.Dtype,
) -> dict[str, Packed]:
    weights = [np.array(attrgetter(layer)(block.module).weight) for layer in stage]
    corrected = inputs.corrected(np.concatenate(weights))
    parts = np.split(corrected, np.cumsum([len(part) for part in weights])[:-1])
    found: dict[str, Packed] = {}
    for layer, part in zip(stage, parts, strict=True):
        bits, group_size, _ = forms[block.name(layer)]
        codes: Codes = inputs.quantize(part, bits, group_size, dtype)
        found[block.name(layer)] = codes.packed(bits, dtype)
    return found
