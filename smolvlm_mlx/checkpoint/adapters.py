"""Adapters' folders: whose they are, what they change, and the base they belong to.

Each has adapter_config.json and one file of weights. Ours (mlx-lm's names) knows its base by a
fingerprint of the norms' weights in bfloat16, which no conversion quantizes, so it fits a
checkpoint and its conversions (but not one of float32 to float16, which was rounded in another
way), and no other. Its `lora_parameters` are what mlx-vlm reads; mlx-vlm's own folders have only
those. PEFT's are in `peft`.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import AdapterError, quote, reason
from ..files import expanded, new_folder, read_json, write_file
from ..model import SmolVLM
from .choices import ADAPTER_CONFIG, AdapterForm
from .lora import MAX_RANK, Adapter, AdapterConfig, adapter_weights, apply_adapter
from .peft import is_peft, read_peft, write_peft
from .safetensors import Tensor, listed, read_header, save_safetensors

WEIGHTS = "adapters.safetensors"
# Of mlx-vlm before it took mlx-lm's names.
_OLD_NAMES = {"A": "lora_a", "B": "lora_b"}


def fingerprint(weights: Mapping[str, mx.array]) -> str:
    """A name for a base, of its norms' weights in bfloat16; reads nothing else of lazy
    `weights`."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        if "norm" in name.rpartition(".")[0].rpartition(".")[2]:
            values = np.array(weights[name].astype(mx.bfloat16).view(mx.uint16))
            digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()[:16]


def load_adapter(
    model: SmolVLM, folder: str | Path, base: str
) -> tuple[AdapterConfig, dict[str, mx.array]]:
    """Add the adapter of `folder` to a model whose checkpoint has the fingerprint `base`; its
    layers stay apart. Returns what it is, and the base's own parameters that it replaces.

    Raises:
        AdapterError: it is not there, damaged, or belongs to another base.
        CheckpointError: its files are no JSON, no safetensors.
    """
    adapter = open_adapter(folder)
    if adapter.config.base and adapter.config.base != base:
        raise AdapterError(
            f"{folder}: this adapter was trained on {quote(adapter.config.base_name, end=True)} "
            "and does not fit this checkpoint; use that one, or a conversion of it"
        )
    return adapter.config, apply_adapter(model, adapter)


@dataclass(frozen=True)
class AdapterMerger:
    """An adapter as a conversion fuses it: tensor by tensor, without the base's weights.

    Attributes:
        layers: adapted ones by path; their own weights are never read.
        wholes: tensors that stand in place of the base's.
        is_tied: whether the result's logits come from its embedding table.
    """

    layers: Mapping[str, nn.Module]
    wholes: Mapping[str, mx.array]
    is_tied: bool

    @classmethod
    def of(cls, unread: SmolVLM, folder: str | Path, base: str) -> "AdapterMerger":
        """The adapter of `folder`, for a base as `load_adapter` has it; `unread` has its shapes."""
        config, wholes = load_adapter(unread, folder, base)
        modules = dict(unread.named_modules())
        layers = {path: modules[path] for path in config.modules}
        return cls(layers, wholes, "lm_head" not in unread.language_model)

    def changes(self, name: str) -> bool:
        """Whether a tensor is another than the base's."""
        is_low_rank = name.endswith(".weight") and name.removesuffix(".weight") in self.layers
        return is_low_rank or name in self.wholes

    def merged(self, name: str, array: mx.array) -> mx.array:
        """A tensor of the base with what was learned."""
        array, module = self.wholes.get(name, array), name.removesuffix(".weight")
        if not name.endswith(".weight") or module not in self.layers:
            return array
        layer = self.layers[module]
        unread = layer.linear.weight
        layer.linear.weight = array.astype(mx.float32)
        array = layer.fuse().weight
        layer.linear.weight = unread  # or all that were fused would stay in memory
        return array


def open_adapter(folder: str | Path) -> Adapter:
    """Read an adapter's config and the headers of its weights.

    Raises:
        AdapterError: there is none, or it cannot be used here.
        CheckpointError: its files are no JSON, no safetensors.
    """
    name = quote(folder, end=True)
    try:
        folder = expanded(folder)
        is_there = (folder / ADAPTER_CONFIG).is_file()
    except (OSError, ValueError) as error:  # no access, an endless name
        raise AdapterError(f"{name}: {reason(error)}; give an adapter's folder") from error
    if not is_there:
        is_model = (folder / "config.json").is_file()
        what = f"a checkpoint, with no {ADAPTER_CONFIG}" if is_model else f"no {ADAPTER_CONFIG}"
        raise AdapterError(
            f"{name}: {what}; give a folder that `smolvlm-mlx finetune`, PEFT or mlx-vlm made"
        )
    raw = read_json(folder / ADAPTER_CONFIG)
    if is_peft(raw):
        return read_peft(folder, raw)
    if not {"modules", "base"} & raw.keys() and ("lora_parameters" in raw or "alpha" in raw):
        return _read_mlx_vlm(folder, raw)
    config = _our_config(folder, raw)
    return Adapter(config, folder / WEIGHTS, _tensors(folder / WEIGHTS))


def _our_config(folder: Path, raw: Mapping[str, Any]) -> AdapterConfig:
    names = [each.name for each in fields(AdapterConfig) if each.name != "exceptions"]
    if wrong := [name for name in names if not _fits(name, raw.get(name))]:
        raise AdapterError(
            f"{folder / ADAPTER_CONFIG}: {', '.join(wrong)} missing or malformed; was it made "
            "by another tool?"
        )
    values = {name: raw[name] for name in names}
    return AdapterConfig(**values | {"modules": tuple(raw["modules"])})


def _read_mlx_vlm(folder: Path, raw: Mapping[str, Any]) -> Adapter:
    """One of mlx-vlm: scale and rank for all layers, which are those of the file."""
    values = raw.get("lora_parameters", raw)
    values = {**values} if isinstance(values, Mapping) else {}
    kind, rank, alpha = raw.get("fine_tune_type", "lora"), values.get("rank"), values.get("alpha")
    if kind == "full":
        raise AdapterError(f"{folder}: weights of a whole model (fine_tune_type full), no adapter")
    if "lora_parameters" not in raw and _fits("rank", rank) and _fits("scale", alpha):
        values["scale"] = alpha / rank  # type: ignore[operator]  # numbers, as just seen
    values = {"fine_tune_type": kind, "dropout": 0.0, **values}
    names = ("fine_tune_type", "rank", "scale", "dropout")
    if wrong := [name for name in names if not _fits(name, values.get(name))]:
        raise AdapterError(f"{folder / ADAPTER_CONFIG}: {', '.join(wrong)} missing or malformed")
    file = next(
        (folder / n for n in (WEIGHTS, "weights.safetensors") if (folder / n).is_file()),
        folder / WEIGHTS,
    )
    tensors = {}
    for name, tensor in _tensors(file).items():
        module, _, part = name.rpartition(".")
        tensors[f"{module}.{_OLD_NAMES.get(part, part)}"] = tensor
    modules = tuple(n.removesuffix(".lora_a") for n in tensors if n.endswith(".lora_a"))
    if not modules:
        raise AdapterError(f"{file}: no low-rank layers in it")
    config = AdapterConfig(
        **{name: values[name] for name in names}, modules=modules, base="", base_name=""
    )
    return Adapter(config, file, tensors)


def _fits(name: str, value: object) -> bool:
    if name == "fine_tune_type":
        return value in ("lora", "dora")
    if name == "rank":
        return type(value) is int and 1 <= value <= MAX_RANK
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


def _tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise AdapterError(f"{file.parent}: no {file.name}")
    tensors = list(read_header(file))
    found = {tensor.key: tensor for tensor in tensors}
    if len(tensors) > len(found):
        count = len(tensors) - len(found)
        raise AdapterError(f"{file} does not fit {ADAPTER_CONFIG}: {count} tensors are there twice")
    return found


def save_adapter(
    model: SmolVLM, config: AdapterConfig, folder: Path, form: AdapterForm = "mlx"
) -> None:
    """Write the files of a model's adapter, in float32, into an existing folder."""
    write = write_peft if form == "peft" else write_adapter
    write(folder, config, adapter_weights(model, config))


def export_adapter(folder: str | Path, out: str | Path, form: AdapterForm = "peft") -> None:
    """Write an adapter into the new folder `out`, as PEFT or as programs on MLX read it.

    Raises:
        AdapterError: it cannot be used, or `out` exists or cannot be written.
        CheckpointError: its files are no JSON, no safetensors.
    """
    if form not in get_args(AdapterForm):
        raise AdapterError(f"form {quote(form)} is not one of {', '.join(get_args(AdapterForm))}")
    adapter, out = open_adapter(folder), expanded(out)
    if adapter.whole or not adapter.config.modules:
        raise AdapterError(
            f"{folder}: holds whole tensors of the base ({listed(sorted(adapter.whole))}), which "
            "are not exported; fuse it with `smolvlm-mlx convert --adapter`"
        )
    if problems := list(adapter.unlike_low_rank()):
        raise AdapterError(f"{adapter.file} does not fit {ADAPTER_CONFIG}: {listed(problems)}")
    if os.path.lexists(out):
        raise AdapterError(f"{out} exists; choose another name, or delete it first")
    write = write_peft if form == "peft" else write_adapter
    try:
        with new_folder(out) as partial:
            write(partial, adapter.config, adapter.read())
    except OSError as error:
        raise AdapterError(f"{out}: cannot be made ({reason(error)})") from error


def write_adapter(folder: Path, config: AdapterConfig, weights: Mapping[str, mx.array]) -> None:
    """Write an adapter's two files, in float32, into an existing folder, in the form that mlx-vlm
    reads too: layers of different ranks and scales get those of the largest, and mean the same."""
    weights = {name: array.astype(mx.float32) for name, array in weights.items()}
    if config.exceptions:
        config, weights = _even(config, weights)
    own = {name: value for name, value in asdict(config).items() if name != "exceptions"}
    if not config.base:
        own = {"fine_tune_type": config.fine_tune_type}
    for_mlx_vlm = {
        "rank": config.rank,
        "scale": config.scale,
        "dropout": config.dropout,
        "keys": config.modules,
    }
    text = json.dumps({**own, "lora_parameters": for_mlx_vlm}, indent=2) + "\n"
    save_safetensors(folder / WEIGHTS, weights)
    write_file(folder / ADAPTER_CONFIG, text.encode())


def _even(
    config: AdapterConfig, weights: Mapping[str, mx.array]
) -> tuple[AdapterConfig, dict[str, mx.array]]:
    """The same adapter with one rank and one scale: zeros are added, and B scaled."""
    rank = max(config.of(path)[0] for path in config.modules)
    scale = max(config.of(path)[1] for path in config.modules)
    even = dict(weights)
    for path in config.modules:
        own_rank, own_scale = config.of(path)
        missing = rank - own_rank
        even[f"{path}.lora_a"] = mx.pad(weights[f"{path}.lora_a"], [(0, 0), (0, missing)])
        b = weights[f"{path}.lora_b"] * (own_scale / scale if scale else 1.0)
        even[f"{path}.lora_b"] = mx.pad(b, [(0, missing), (0, 0)])
    return replace(config, rank=rank, scale=scale, exceptions={}), even
