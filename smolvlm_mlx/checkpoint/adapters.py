"""LoRA and DoRA adapters: which layers they change, their two files, and the base they belong to.

An adapter folder holds adapter_config.json and adapters.safetensors (mlx-lm's names). Its base is
known by a fingerprint of the norms' weights in bfloat16, which no conversion quantizes, so an
adapter fits a checkpoint and its conversions (but not one of float32 to float16, which was rounded
in another way), and no other. LoRA is arXiv:2106.09685, DoRA arXiv:2402.09353; the layers are
mlx-lm's (`mlx_lm.tuner`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from ..errors import AdapterError, quote, reason
from ..files import expanded, read_json, write_file
from ..model import SmolVLM
from .safetensors import listed, read_header, save_safetensors

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
# Parts whose layers can be adapted or trained, by the beginning of their parameters' names.
PARTS = {
    "decoder": "language_model.layers.",
    "connector": "connector.",
    "vision": "vision_model.encoder.",
}

LINEAR = nn.Linear | nn.QuantizedLinear


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says. `scale` is alpha / rank; `modules` are the paths of the
    adapted layers."""

    fine_tune_type: Literal["lora", "dora"]
    rank: int
    scale: float
    dropout: float
    modules: tuple[str, ...]
    base: str  # fingerprint
    base_name: str  # as it was given; for people

    @classmethod
    def from_folder(cls, folder: str | Path) -> "AdapterConfig":
        """Read adapter_config.json.

        Raises:
            AdapterError: there is none, or it is not of our making.
            CheckpointError: it is no JSON.
        """
        name = quote(folder, end=True)
        try:
            folder = expanded(folder)
            is_there = (folder / CONFIG).is_file()
        except (OSError, ValueError) as error:  # no access, an endless name
            raise AdapterError(f"{name}: {reason(error)}; give an adapter's folder") from error
        if not is_there:
            raise AdapterError(
                f"{name}: no {CONFIG}; give a folder that `smolvlm-mlx finetune` made"
            )
        raw = read_json(folder / CONFIG)
        wrong = [field.name for field in fields(cls) if not _fits(field.name, raw.get(field.name))]
        if wrong:
            raise AdapterError(
                f"{folder / CONFIG}: {', '.join(wrong)} missing or malformed; was it made by "
                "another tool?"
            )
        return cls(
            **{field.name: raw[field.name] for field in fields(cls)}
            | {"modules": tuple(raw["modules"])}
        )


def _fits(name: str, value: object) -> bool:
    if name == "fine_tune_type":
        return value in ("lora", "dora")
    if name == "rank":
        return type(value) is int and 1 <= value <= 4096
    if name in ("scale", "dropout"):
        largest = 1 if name == "dropout" else 1e6
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < largest
        )
    if name == "modules":
        if not isinstance(value, list) or not all(isinstance(module, str) for module in value):
            return False
        return 0 < len(value) == len(set(value))
    return isinstance(value, str)


def fingerprint(weights: Mapping[str, mx.array]) -> str:
    """A name for a base, of its norms' weights in bfloat16; reads nothing else of lazy
    `weights`."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        if "norm" in name.rpartition(".")[0].rpartition(".")[2]:
            values = np.array(weights[name].astype(mx.bfloat16).view(mx.uint16))
            digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()[:16]


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
        AdapterError: the model has no such layers.
    """
    from mlx_lm.tuner.dora import DoRALinear
    from mlx_lm.tuner.lora import LoRALinear

    modules = dict(model.named_modules())
    absent = [path for path in config.modules if not isinstance(modules.get(path), LINEAR)]
    if absent:
        raise AdapterError(
            f"the adapter changes {quote(absent[0])} ({len(absent)} such), which this model does "
            "not have"
        )
    layers = {path: modules[path] for path in config.modules}
    for layer in layers.values():
        if (
            config.fine_tune_type == "dora"
            and isinstance(layer, nn.QuantizedLinear)
            and 32 % layer.bits
        ):
            raise AdapterError(
                f"DoRA on a base of {layer.bits} bits is not supported; use LoRA, or 4 or 8 bits"
            )
    kind = DoRALinear if config.fine_tune_type == "dora" else LoRALinear
    adapted = [
        (path, kind.from_base(layer, config.rank, config.dropout, config.scale))
        for path, layer in layers.items()
    ]
    model.update_modules(tree_unflatten(adapted))


def adapter_weights(model: SmolVLM, config: AdapterConfig) -> dict[str, mx.array]:
    """The adapter's own parameters by name."""
    own = ("lora_a", "lora_b", "m")
    modules = dict(model.named_modules())
    return {
        f"{path}.{name}": modules[path][name]
        for path in config.modules
        for name in own
        if name in modules[path]
    }


def load_adapter(model: SmolVLM, folder: str | Path, base: str) -> AdapterConfig:
    """Add the adapter of `folder` to a model whose checkpoint has the fingerprint `base`; its
    layers stay apart.

    Raises:
        AdapterError: it is not there, damaged, or belongs to another base.
    """
    config = AdapterConfig.from_folder(folder)
    if config.base != base:
        raise AdapterError(
            f"{folder}: this adapter was trained on {quote(config.base_name, end=True)} and does "
            "not fit this checkpoint; use that one, or a conversion of it"
        )
    add_adapter(model, config)
    weights = _read(model, config, expanded(folder))
    dtype = model.language_model.norm.weight.dtype
    model.load_weights(
        [(name, array.astype(dtype)) for name, array in weights.items()], strict=False
    )
    return config


def _read(model: SmolVLM, config: AdapterConfig, folder: Path) -> dict[str, mx.array]:
    if not (folder / WEIGHTS).is_file():
        raise AdapterError(f"{folder}: no {WEIGHTS}")
    expected = adapter_weights(model, config)
    tensors = list(read_header(folder / WEIGHTS))
    found = {tensor.key: tensor for tensor in tensors}
    problems = (
        [f"{len(tensors) - len(found)} tensors are there twice"]
        if len(tensors) > len(found)
        else []
    )
    problems += [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected {quote(name)}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        have, shape = found[name], expected[name].shape
        if have.shape != shape or have.dtype not in ("F32", "F16", "BF16"):
            problems.append(f"{name} is {have.dtype} {list(have.shape)}, not F32 {list(shape)}")
    if problems:
        raise AdapterError(f"{folder / WEIGHTS} does not fit {CONFIG}: {listed(problems)}")
    arrays = mx.load(str(folder / WEIGHTS))
    assert isinstance(arrays, dict)
    broken = [name for name, array in arrays.items() if not bool(mx.isfinite(array).all())]
    if broken:
        raise AdapterError(
            f"{folder / WEIGHTS}: values that are not finite in {listed(broken)}; train it again"
        )
    return arrays


def save_adapter(model: SmolVLM, config: AdapterConfig, folder: Path) -> None:
    """Write the adapter's two files, in float32, into an existing folder."""
    weights = {
        name: array.astype(mx.float32) for name, array in adapter_weights(model, config).items()
    }
    save_safetensors(folder / WEIGHTS, weights)
    write_file(folder / CONFIG, (json.dumps(asdict(config), indent=2) + "\n").encode())
