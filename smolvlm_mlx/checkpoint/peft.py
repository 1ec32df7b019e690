"""PEFT's adapters (github.com/huggingface/peft), as its 0.21 reads and writes them.

`adapter_config.json` has its LoraConfig, `adapter_model.safetensors` the parameters by the names of
transformers' model behind `base_model.model.`: A (rank, in), B (out, rank), DoRA's magnitudes, and
as a whole what `modules_to_save` and `bias` name. What layers are adapted shows in the file, and
not in `target_modules`. Of the base nothing is known but a name.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import AdapterError, quote
from ..files import write_file
from .choices import ADAPTER_CONFIG
from .lora import HEAD, MAX_RANK, TABLE, Adapter, AdapterConfig
from .names import resolve
from .safetensors import Tensor, listed, read_header, save_safetensors

WEIGHTS = "adapter_model.safetensors"
_PREFIX, _MAX_PATTERNS = "base_model.model.", 2000
_COSTLY, _MAX_COSTLY = re.compile(r"\{|\\\w"), 64  # parts of patterns that may become large
_PARTS = {
    "text_model.": "language_model.",
    "vision_model.": "vision_model.",
    "connector.": "connector.",
}
_LOW_RANK = {
    ".lora_A.weight": "lora_a",
    ".lora_B.weight": "lora_b",
    ".lora_magnitude_vector": "m",
    ".lora_magnitude_vector.weight": "m",
}
# Fields that tell how it was trained, or are for other kinds of layers: no number depends on them.
_INFORMING = set(
    "peft_type auto_mapping base_model_name_or_path revision inference_mode task_type peft_version "
    "target_modules exclude_modules layers_to_transform layers_pattern fan_in_fan_out loftq_config "
    "eva_config corda_config lora_ga_config velora_config megatron_core qalora_group_size "
    "runtime_config".split()
)
# What `bias` writes of modules that are saved as a whole, where it stands too; nobody reads it.
_AGAIN = (".modules_to_save.bias", ".original_module.bias")
# Beginnings of A and B that leave the base's weights as they are.
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")


def _number(value: object, most: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value < most  # type: ignore[operator]


def _rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _alpha(value: object) -> bool:
    return _number(value, 1e9)


def _patterns(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        if not isinstance(value, Mapping):
            return value is None
        return len(value) <= _MAX_PATTERNS and all(map(fits, value.values()))

    return check


def _names(value: object) -> bool:
    return value is None or (
        isinstance(value, list) and all(isinstance(name, str) for name in value)
    )


# What is obeyed: what a value has to be, and that of configs without the field.
_OBEYED: dict[str, tuple[Callable[[object], bool], object]] = {
    "r": (_rank, ...),
    "lora_alpha": (_alpha, ...),
    "lora_dropout": (lambda value: _number(value, 1), 0.0),
    "rank_pattern": (_patterns(_rank), None),
    "alpha_pattern": (_patterns(_alpha), None),
    "use_rslora": (lambda value: isinstance(value, bool), False),
    "use_dora": (lambda value: isinstance(value, bool), False),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none"),
    "modules_to_save": (_names, None),
    "ensure_weight_tying": (lambda value: isinstance(value, bool), False),
    "init_lora_weights": (lambda value: value is None or isinstance(value, bool | str), True),
}


def is_peft(raw: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is PEFT's."""
    return "peft_type" in raw or "lora_alpha" in raw


def read_peft(folder: Path, raw: Mapping[str, Any]) -> Adapter:
    """Read the headers of PEFT's folder.

    Raises:
        AdapterError: it is of a kind that cannot be used here, or malformed.
        CheckpointError: its weights are no safetensors.
    """
    values, file = _checked(folder / ADAPTER_CONFIG, raw), _weights(folder)
    tensors, layers = _named(file)
    ranks, alphas = (
        _found([*layers.values()], values[f"{name}_pattern"] or {}, folder / ADAPTER_CONFIG)
        for name in ("rank", "alpha")
    )
    forms = {
        path: _scaled(
            ranks.get(key, values["r"]),
            alphas.get(key, values["lora_alpha"]),
            values["use_rslora"],
        )
        for path, key in layers.items()
    }
    usual = _scaled(values["r"], values["lora_alpha"], values["use_rslora"])
    config = AdapterConfig(
        "dora" if values["use_dora"] else "lora",
        *usual,
        values["lora_dropout"],
        tuple(forms),
        base="",
        base_name=str(raw.get("base_model_name_or_path") or ""),
        exceptions={path: form for path, form in forms.items() if form != usual},
    )
    saved = {*layers, *(name.rpartition(".")[0] for name in tensors)}
    unties = HEAD in saved or (
        f"{TABLE}.weight" in tensors
        and "embed_tokens" in (values["modules_to_save"] or ())
        and not values["ensure_weight_tying"]
    )
    return Adapter(config, file, tensors, is_transposed=True, unties=unties)


def _weights(folder: Path) -> Path:
    file, other = folder / WEIGHTS, folder / "adapter_model.bin"
    if file.is_file():
        return file
    hint = f" ({other.name} is not read: only safetensors files are safe to open)"
    raise AdapterError(f"{folder}: no {WEIGHTS}{hint if other.is_file() else ''}")


def _checked(file: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """What is obeyed of a config that can be."""
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{file}: PEFT's {quote(kind)} is not supported; LoRA and DoRA are")
    values = {name: raw.get(name, default) for name, (_, default) in _OBEYED.items()}
    if wrong := [name for name, (fits, _) in _OBEYED.items() if not fits(values[name])]:
        raise AdapterError(f"{file}: {', '.join(wrong)} missing or malformed")
    others = raw.keys() - _OBEYED.keys() - _INFORMING
    if unknown := sorted(name for name in others if raw[name]):
        raise AdapterError(
            f"{file}: {', '.join(quote(name)[1:-1] for name in unknown[:20])} not supported; "
            "merge the adapter with PEFT's merge_and_unload, and convert the result"
        )
    if values["init_lora_weights"] not in _BEGINNINGS:
        raise AdapterError(
            f"{file}: init_lora_weights {quote(values['init_lora_weights'])} changes the base's "
            "weights; save it with PEFT's path_initial_model_for_weight_conversion"
        )
    return values


def _named(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by our names, and the adapted layers: our paths, and those that PEFT
    knows them by."""
    tensors: dict[str, Tensor] = {}
    layers: dict[str, str] = {}
    problems = []
    for tensor in read_header(file):
        key = tensor.key.removeprefix(_PREFIX)
        if key.endswith(_AGAIN):
            continue
        suffix = next((suffix for suffix in _LOW_RANK if key.endswith(suffix)), None)
        whole = key.replace(".base_layer.", ".")
        path = _our_path(whole if suffix is None else key.removesuffix(suffix))
        if ".lora_embedding_" in key or path is None or (suffix is None and ".lora_" in key):
            problems.append(
                f"{quote(tensor.key, 160)[1:-1]} is of LoRA on embeddings, which is not supported"
                if ".lora_embedding_" in key
                else f"unexpected {quote(tensor.key, 160)}"
            )
            continue
        if suffix is not None:
            layers[path] = key.removesuffix(suffix)
        name = path if suffix is None else f"{path}.{_LOW_RANK[suffix]}"
        if name in tensors:
            problems.append(f"{quote(tensor.key, 160)[1:-1]} is there twice")
        tensors[name] = tensor
    if problems:
        raise AdapterError(f"{file}: {listed(problems)}")
    if not tensors:
        raise AdapterError(f"{file}: no tensors in it")
    return tensors, layers


def _our_path(key: str) -> str | None:
    """The name here of one in transformers' model, of all its versions; None for another's."""
    while key.startswith("model."):
        key = key.removeprefix("model.")
    if key.startswith("lm_head."):
        return f"language_model.{key}"
    if key == "lm_head":
        return HEAD
    for theirs, ours in _PARTS.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs).removeprefix("model.")
    return None


def _scaled(rank: int, alpha: float, is_rank_stabilized: bool) -> tuple[int, float]:
    return rank, alpha / (math.sqrt(rank) if is_rank_stabilized else rank)


def _found(keys: list[str], patterns: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The value of the first pattern that fits, for layers that one does: it is for the whole name
    or its end, as PEFT has it.

    By Rust's expressions, which take no endless time, whatever they are; some take 0.1 s and 20 MB
    to compile.
    """
    if not patterns:
        return {}
    from pydantic_core import SchemaError, SchemaValidator, core_schema  # 50 ms

    if sum(map(bool, map(_COSTLY.search, patterns))) > _MAX_COSTLY:
        raise AdapterError(f"{file}: more than {_MAX_COSTLY} patterns with classes or counts")
    found: dict[str, Any] = {}
    for pattern, value in patterns.items():
        try:
            schema = core_schema.str_schema(pattern=rf"^(.*\.)?({pattern})$")
            fits = SchemaValidator(schema).isinstance_python
        except SchemaError as error:
            raise AdapterError(f"{file}: {quote(pattern)} is no pattern of layers") from error
        found |= {key: value for key in keys if key not in found and fits(key)}
    return found


def write_peft(folder: Path, config: AdapterConfig, weights: Mapping[str, mx.array]) -> None:
    """Write PEFT's two files, in float32, into an existing folder."""
    tensors = {}
    for path in config.modules:
        key = _their_path(path)
        for suffix, part in list(_LOW_RANK.items())[:3]:
            if f"{path}.{part}" in weights:
                array = weights[f"{path}.{part}"].astype(mx.float32)
                tensors[f"{_PREFIX}{key}{suffix}"] = mx.contiguous(array.T)
    ranks = {_their_path(path): config.of(path) for path in config.exceptions}
    text = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": resolve(config.base_name),
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": _whole(config.scale * config.rank),
        "lora_dropout": config.dropout,
        "use_dora": config.fine_tune_type == "dora",
        "use_rslora": False,
        "bias": "none",
        "rank_pattern": {re.escape(key): rank for key, (rank, _) in ranks.items()},
        "alpha_pattern": {re.escape(k): _whole(rank * scale) for k, (rank, scale) in ranks.items()},
        "target_modules": [_their_path(path) for path in config.modules],
    }
    save_safetensors(folder / WEIGHTS, tensors)
    write_file(folder / ADAPTER_CONFIG, (json.dumps(text, indent=2) + "\n").encode())


def _their_path(path: str) -> str:
    if path == HEAD:
        return "lm_head"
    theirs = next(theirs for theirs, ours in _PARTS.items() if path.startswith(ours))
    return "model." + theirs + path.removeprefix(_PARTS[theirs])


def _whole(alpha: float) -> int | float:
    """8 for 8.0, and for what rounding has made of it."""
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha
