"""LoRA and DoRA adapters on a model: the layers they change, how much, and what else they hold.

LoRA is arXiv:2106.09685, DoRA arXiv:2402.09353; the layers are mlx-lm's (`mlx_lm.tuner`). How
folders of each maker say it is in `adapters` and `peft`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..errors import AdapterError, quote
from ..model import SmolVLM
from .choices import ADAPTER_CONFIG
from .safetensors import Tensor, listed

# Parts whose layers can be adapted or trained, by the beginning of their parameters' names.
PARTS = {
    "decoder": "language_model.layers.",
    "connector": "connector.",
    "vision": "vision_model.encoder.",
}
MAX_RANK = 4096
LINEAR = nn.Linear | nn.QuantizedLinear
KERNEL = "vision_model.embeddings.patch_embedding.weight"
HEAD, TABLE = "language_model.lm_head", "language_model.embed_tokens"
_LOW_RANK = ("lora_a", "lora_b", "m")  # of mlx-lm's layers: (in, rank), (rank, out), (out,)


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter is. `scale` is alpha / rank (rsLoRA: alpha / sqrt(rank)); `modules` are the
    paths of the adapted layers, `exceptions` (rank, scale) of those that have others."""

    fine_tune_type: Literal["lora", "dora"]
    rank: int
    scale: float
    dropout: float
    modules: tuple[str, ...]
    base: str  # fingerprint; empty where the maker notes none
    base_name: str  # as it was given; for people
    exceptions: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    def of(self, module: str) -> tuple[int, float]:
        """(rank, scale) of an adapted layer."""
        return self.exceptions.get(module, (self.rank, self.scale))


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, of which only the headers are read.

    Attributes:
        tensors: of `file`, by the names that their values have in an adapted model.
        is_transposed: matrices are (rank, in) and (out, rank), kernels (O, I, kH, kW): PEFT's.
        unties: it sets head or embeddings apart, where a base has one table for both.
    """

    config: AdapterConfig
    file: Path
    tensors: Mapping[str, Tensor]
    is_transposed: bool = False
    unties: bool = False

    @cached_property
    def whole(self) -> frozenset[str]:
        """Names of the base's own parameters that stand in the file as a whole."""
        low_rank = {f"{path}.{part}" for path in self.config.modules for part in _LOW_RANK}
        return frozenset(self.tensors.keys() - low_rank)

    def unlike_low_rank(self) -> Iterator[str]:
        """What is wrong with the matrices beside each other, whatever the base."""
        for path in self.config.modules:
            rank, _ = self.config.of(path)
            parts = _LOW_RANK[: 3 if self.config.fine_tune_type == "dora" else 2]
            missing = [f"{path}.{part}" for part in parts if f"{path}.{part}" not in self.tensors]
            yield from (f"missing {name}" for name in missing)
            for part, axis in (("lora_a", 1), ("lora_b", 0)):
                tensor = self.tensors.get(f"{path}.{part}")
                if tensor is not None:
                    shape = tensor.shape[::-1] if self.is_transposed else tensor.shape
                    if len(shape) != 2 or shape[axis] != rank:
                        yield f"{path}.{part} is {list(tensor.shape)}, not of rank {rank}"

    def stored_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of a parameter that has `shape` in the model."""
        if self.is_transposed and name not in self.whole:
            return shape[::-1]
        if self.is_transposed and name == KERNEL:
            O, kH, kW, I = shape
            return (O, I, kH, kW)
        return shape

    def read(self) -> dict[str, mx.array]:
        """The parameters by name, shaped as in the model.

        Raises:
            AdapterError: values that are not finite.
        """
        loaded = mx.load(str(self.file))
        assert isinstance(loaded, dict)
        arrays = {name: loaded[tensor.key] for name, tensor in self.tensors.items()}
        broken = [n for n, array in arrays.items() if not bool(mx.isfinite(array).all())]
        if broken:
            raise AdapterError(
                f"{self.file}: values that are not finite in {listed(broken)}; train it again"
            )
        if self.is_transposed:
            for name, array in arrays.items():
                if name == KERNEL:
                    arrays[name] = array.transpose(0, 2, 3, 1)  # (O, I, kH, kW) -> (O, kH, kW, I)
                elif name not in self.whole:
                    arrays[name] = array.T
        return arrays


def layers_of(model: SmolVLM, parts: Sequence[str]) -> tuple[str, ...]:
    """Paths of the Linear layers of `parts`, which are keys of PARTS."""
    prefixes = tuple(PARTS[part] for part in parts)
    return tuple(
        path
        for path, m in model.named_modules()
        if isinstance(m, LINEAR) and path.startswith(prefixes)
    )


def add_adapter(model: SmolVLM, config: AdapterConfig) -> None:
    """Put an untrained adapter, which changes nothing yet, around the layers that `config` names.

    Raises:
        AdapterError: the model has no such layers, or they are of another kind.
    """
    from mlx_lm.tuner.dora import DoRALinear
    from mlx_lm.tuner.lora import LoRALinear

    modules = dict(model.named_modules())
    _check_layers(modules, config)
    kind = DoRALinear if config.fine_tune_type == "dora" else LoRALinear
    adapted = []
    for path in config.modules:
        rank, scale = config.of(path)
        adapted.append((path, kind.from_base(modules[path], rank, config.dropout, scale)))
    model.update_modules(tree_unflatten(adapted))


def _check_layers(modules: Mapping[str, nn.Module], config: AdapterConfig) -> None:
    if absent := [path for path in config.modules if path not in modules]:
        raise AdapterError(
            f"the adapter changes {quote(absent[0])} ({len(absent)} such), which this model does "
            "not have"
        )
    others = [path for path in config.modules if not isinstance(modules[path], LINEAR)]
    if others:
        kind = type(modules[others[0]]).__name__
        raise AdapterError(
            f"the adapter changes {quote(others[0])} ({len(others)} such), of the kind {kind}; "
            "only Linear layers can be adapted"
        )
    for layer in (modules[path] for path in config.modules):
        if (
            config.fine_tune_type == "dora"
            and isinstance(layer, nn.QuantizedLinear)
            and 32 % layer.bits
        ):
            raise AdapterError(
                f"DoRA on a base of {layer.bits} bits is not supported; use LoRA, or 4 or 8 bits"
            )


def adapter_weights(model: SmolVLM, config: AdapterConfig) -> dict[str, mx.array]:
    """The adapter's own parameters by name."""
    modules = dict(model.named_modules())
    return {
        f"{path}.{name}": modules[path][name]
        for path in config.modules
        for name in _LOW_RANK
        if name in modules[path]
    }


def apply_adapter(model: SmolVLM, adapter: Adapter) -> dict[str, mx.array]:
    """Add an adapter to a model, its layers apart; returns the base's own parameters that it
    replaces, in the model's dtype.

    Raises:
        AdapterError: it does not fit the model; all that does not is named.
    """
    dtype = model.language_model.norm.weight.dtype
    if adapter.unties:
        untie(model)
    _make_plain(model, adapter.whole)
    bases = model.named_parameters()
    shapes = {name: bases[name].shape for name in adapter.whole if name in bases}
    add_adapter(model, adapter.config)
    shapes |= {n: array.shape for n, array in adapter_weights(model, adapter.config).items()}
    width = model.config.vision_config.intermediate_size
    if problems := list(_misfits(adapter, shapes, width)):
        raise AdapterError(f"{adapter.file} does not fit {ADAPTER_CONFIG}: {listed(problems)}")
    arrays = {
        name: _padded(array.astype(dtype), shapes[name]) for name, array in adapter.read().items()
    }
    if adapter.config.fine_tune_type == "dora":
        _fill_rows(adapter, arrays)
    adapted = set(adapter.config.modules)
    weights = []
    for name, array in arrays.items():
        module, _, part = name.rpartition(".")
        inner = f"{module}.linear" if name in adapter.whole and module in adapted else module
        weights.append((f"{inner}.{part}", array))
    model.load_weights(weights, strict=False)
    return {name: arrays[name] for name in adapter.whole}


def _misfits(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], width: int) -> Iterator[str]:
    """What is wrong with the tensors of an adapter for a model that has these parameters, and a
    tower whose MLP is so wide."""
    found = adapter.tensors
    yield from (f"missing {name}" for name in sorted(shapes.keys() - found.keys()))
    yield from (
        f"unexpected {quote(found[name].key)}" for name in sorted(found.keys() - shapes.keys())
    )
    for name in sorted(shapes.keys() & found.keys()):
        tensor, shape = found[name], adapter.stored_shape(name, shapes[name])
        fits = len(tensor.shape) == len(shape) and all(
            old == new or (_is_in_mlp(name) and new == width and 0 < new - old < 128)
            for old, new in zip(tensor.shape, shape, strict=True)
        )
        if not fits or tensor.dtype not in ("F32", "F16", "BF16"):
            yield (
                f"{quote(tensor.key, 160)[1:-1]} is {tensor.dtype} {list(tensor.shape)}, "
                f"not F32 {list(shape)}"
            )


def _is_in_mlp(name: str) -> bool:
    """Whether a quantized conversion may have widened this parameter (`convert`), with zeros."""
    return name.startswith("vision_model.") and ".mlp.fc" in name


def _padded(array: mx.array, shape: tuple[int, ...]) -> mx.array:
    if array.shape == shape:
        return array
    return mx.pad(array, [(0, new - old) for old, new in zip(array.shape, shape, strict=True)])


def _fill_rows(adapter: Adapter, arrays: dict[str, mx.array]) -> None:
    """Keep DoRA from dividing by the norm of rows that a conversion has added to the tower: they
    get one of A's columns, and the magnitude 0, which makes them 0 again."""
    for path in adapter.config.modules:
        a, b, m = (arrays[f"{path}.{part}"] for part in _LOW_RANK)
        have = adapter.tensors[f"{path}.m"].shape[0]
        if have < m.shape[0]:
            largest = mx.linalg.norm(a.astype(mx.float32), axis=0).argmax()
            row = (mx.arange(a.shape[1]) == largest).astype(b.dtype)
            added = mx.broadcast_to(row[:, None], (a.shape[1], m.shape[0] - have))
            arrays[f"{path}.lora_b"] = mx.concatenate([b[:, :have], added], axis=1)


def untie(model: SmolVLM) -> None:
    """Give a model whose logits come from the embedding table a head of its own, equal to it."""
    decoder = model.language_model
    if "lm_head" in decoder:
        return
    table = decoder.embed_tokens
    head: nn.Module
    if isinstance(table, nn.QuantizedEmbedding):
        head = nn.QuantizedLinear(
            table.group_size, 1, False, table.group_size, table.bits, table.mode
        )
        for name in ("weight", "scales", "biases"):
            head[name] = table.get(name)
    else:
        head = nn.Linear(1, 1, bias=False)
        head.weight = table.weight
    decoder["lm_head"] = head


def _make_plain(model: SmolVLM, names: frozenset[str]) -> None:
    """Put unquantized layers in place of those whose weights will be replaced."""
    plain: list[tuple[str, nn.Module]] = []
    for path, module in model.named_modules():
        if f"{path}.weight" not in names:
            continue
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            out, inputs = module.weight.shape[0], module.weight.shape[1] * 32 // module.bits
            if isinstance(module, nn.QuantizedEmbedding):
                plain.append((path, nn.Embedding(out, inputs)))
            else:
                layer = nn.Linear(inputs, out, bias="bias" in module)
                if "bias" in module:
                    layer.bias = module.bias
                plain.append((path, layer))
    if plain:
        model.update_modules(tree_unflatten(plain))
