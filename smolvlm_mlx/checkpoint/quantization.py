"""Which layers are quantized, and to how many bits: the `quantization` block of config.json.

The block is mlx-community's:
`{"group_size": 64, "bits": 4, "mode": "affine", "<module>": {...} or false}`. Entries by module
path override the defaults. A module is quantized if the file has its `.scales`, whatever else the
block says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import get_args

import mlx.nn as nn

from ..errors import CheckpointError, quote
from .choices import Bits, GroupSize

BITS, GROUP_SIZES = get_args(Bits), get_args(GroupSize)


@dataclass(frozen=True)
class Quantization:
    """How modules are quantized. `modules` holds exceptions by module path: (bits, group_size)."""

    bits: int
    group_size: int
    modules: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, form in {"quantization": (self.bits, self.group_size), **self.modules}.items():
            if problem := check_quantization(*form):
                raise CheckpointError(f"config.json: {quote(name)}: {problem}")

    @classmethod
    def from_config(cls, raw: Mapping[str, object]) -> "Quantization | None":
        """Read the block of config.json; None if there is none.

        Raises:
            CheckpointError: the block is malformed, or of a kind that MLX's affine quantization is
                not.
        """
        block = raw.get("quantization")
        if block is None:
            block = raw.get("quantization_config")
        if block is None:
            return None
        if not isinstance(block, Mapping) or "bits" not in block:
            method = block.get("quant_method") if isinstance(block, Mapping) else block
            raise CheckpointError(
                f"config.json: quantization {quote(method)} is not MLX's; convert the original "
                "checkpoint"
            )
        defaults = {"group_size": 64, "mode": "affine", **block}
        exceptions = {
            name.removeprefix("model."): {**defaults, **entry}
            for name, entry in block.items()
            if isinstance(entry, Mapping)
        }
        for name, entry in {"quantization": defaults, **exceptions}.items():
            if entry["mode"] != "affine":
                raise CheckpointError(
                    f"config.json: {quote(name)}: mode {quote(entry['mode'])} (only 'affine')"
                )
        modules = {name: (entry["bits"], entry["group_size"]) for name, entry in exceptions.items()}
        return cls(defaults["bits"], defaults["group_size"], modules)

    def to_config(self) -> dict[str, object]:
        """The block to write into config.json."""
        exceptions = {
            name: {"bits": bits, "group_size": size}
            for name, (bits, size) in sorted(self.modules.items())
        }
        return {"group_size": self.group_size, "bits": self.bits, "mode": "affine", **exceptions}

    def of(self, module: str) -> tuple[int, int]:
        """(bits, group_size) of a quantized module."""
        return self.modules.get(module, (self.bits, self.group_size))


def check_quantization(bits: object, group_size: object) -> str | None:
    """What is wrong with a number of bits and a group size; True and 4.0 are no integers here."""
    if type(bits) is int and bits in BITS and type(group_size) is int and group_size in GROUP_SIZES:
        return None
    return (
        f"{quote(bits)} bits in groups of {quote(group_size)} "
        f"(bits: {', '.join(map(str, BITS))}; groups: {', '.join(map(str, GROUP_SIZES))})"
    )


def quantize_modules(
    model: nn.Module, quantization: Quantization, quantized: Callable[[str], bool]
) -> None:
    """Turn the Linear and Embedding layers for which `quantized(path)` holds into their quantized
    kind, in place."""

    def form(path: str, module: nn.Module) -> bool | dict[str, object]:
        if not isinstance(module, nn.Linear | nn.Embedding) or not quantized(path):
            return False
        bits, group_size = quantization.of(path)
        if module.weight.shape[1] % group_size:
            raise CheckpointError(
                f"{path}: {module.weight.shape[1]} inputs are no multiple of group_size "
                f"{group_size}"
            )
        return {"bits": bits, "group_size": group_size}

    nn.quantize(model, quantization.group_size, quantization.bits, class_predicate=form)
