"""Which layers are quantized, and how: the `quantization` block of config.json.

The block is mlx-community's:
`{"group_size": 64, "bits": 4, "mode": "affine", "<module>": {...} or false}`. An entry by module
path stands in place of the block; what it leaves out is not the block's, but what MLX has by
default in its mode. A module is quantized if the file has its `.scales`, whatever else the block
says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.nn as nn

from ..errors import CheckpointError, quote
from .choices import FORMS, Form

# Of a block or entry that has a mode and no more, as in `mlx.nn.quantize`.
_DEFAULTS = {mode: (bits[0], groups[0]) for mode, (bits, groups) in FORMS.items()}
_DEFAULTS["affine"] = (4, 64)


@dataclass(frozen=True)
class Quantization:
    """How modules are quantized: `modules` by path, all others as `default`."""

    default: Form
    modules: Mapping[str, Form] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, form in {"quantization": self.default, **self.modules}.items():
            if problem := check_quantization(*form):
                raise CheckpointError(f"config.json: {quote(name)}: {problem}")

    @classmethod
    def from_config(cls, raw: Mapping[str, object]) -> "Quantization | None":
        """Read the block of config.json; None if there is none.

        Raises:
            CheckpointError: the block is malformed, or of a kind that MLX does not have.
        """
        block = raw.get("quantization")
        if block is None:
            block = raw.get("quantization_config")
        if block is None:
            return None
        if not isinstance(block, Mapping) or not block.keys() & {"bits", "mode"}:
            method = block.get("quant_method") if isinstance(block, Mapping) else block
            raise CheckpointError(
                f"config.json: quantization {quote(method)} is not MLX's; convert the original "
                "checkpoint"
            )
        modules = {
            name.removeprefix("model."): _form(entry)
            for name, entry in block.items()
            if isinstance(entry, Mapping)
        }
        return cls(_form(block), modules)

    def to_config(self) -> dict[str, object]:
        """The block to write into config.json."""
        return self.default._asdict() | {
            name: form._asdict() for name, form in sorted(self.modules.items())
        }

    def of(self, module: str) -> Form:
        """The form of a quantized module."""
        return self.modules.get(module, self.default)


def _form(entry: Mapping[str, Any]) -> Form:
    """The form that a block or entry says, which `Quantization` checks."""
    mode = entry.get("mode", "affine")
    bits, group_size = _DEFAULTS.get(mode if isinstance(mode, str) else "", (0, 0))
    return Form(entry.get("bits", bits), entry.get("group_size", group_size), mode)


def check_quantization(bits: object, group_size: object, mode: object = "affine") -> str | None:
    """What is wrong with a form's three values; True and 4.0 are no integers here."""
    if not isinstance(mode, str) or mode not in FORMS:
        return f"mode {quote(mode)} is not one of {', '.join(FORMS)}"
    fitting, groups = FORMS[mode]
    if type(bits) is int and bits in fitting and type(group_size) is int and group_size in groups:
        return None
    return (
        f"{quote(bits)} bits in groups of {quote(group_size)} "
        f"({mode}: bits {', '.join(map(str, fitting))}; groups {', '.join(map(str, groups))})"
    )


def quantize_modules(
    model: nn.Module, quantization: Quantization, quantized: Callable[[str], bool]
) -> None:
    """Turn the Linear and Embedding layers for which `quantized(path)` holds into their quantized
    kind, in place."""

    def form(path: str, module: nn.Module) -> bool | dict[str, object]:
        if not isinstance(module, nn.Linear | nn.Embedding) or not quantized(path):
            return False
        own = quantization.of(path)
        if module.weight.shape[1] % own.group_size:
            raise CheckpointError(
                f"{path}: {module.weight.shape[1]} inputs are no multiple of group_size "
                f"{own.group_size}"
            )
        return own._asdict()

    nn.quantize(model, class_predicate=form)
