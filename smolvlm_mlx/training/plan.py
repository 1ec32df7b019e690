"""What to train and how, and settings that fit laptops."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..checkpoint.choices import AdapterForm, Part
from ..errors import TrainingError, quote
from ..options import option

Method = Literal["lora", "dora", "full"]
Preset = Literal["8gb", "16gb"]


@dataclass(frozen=True)
class Plan:
    """What to train and how. Rates, batch and rank default to what works for small sets of
    pictures.

    Raises:
        TrainingError: a value is out of range (all are named at once).
    """

    method: Method = option(
        "lora", "LoRA (on a quantized checkpoint: QLoRA), DoRA, or all numbers of the parts."
    )
    parts: tuple[Part, ...] = option(
        ("decoder",), "What is trained. Repeatable, or with commas.", flag="--train"
    )
    rank: int = option(8, "Of the adapter.")
    alpha: float = option(16.0, "The adapter counts alpha / rank.")
    dropout: float = option(0.0, "On the adapter's input.")
    epochs: float = option(3.0, "Times through the data.")
    steps: int | None = option(None, "Steps, in place of epochs.")
    batch_size: int = option(1, "Conversations computed at once.")
    accumulate: int = option(8, "Batches for one step.")
    learning_rate: float = option(2e-4, "At its peak.")
    warmup: float = option(0.05, "Share of the steps before the peak.")
    weight_decay: float = option(0.01, "AdamW's.")
    clip: float = option(1.0, "Largest norm of a gradient.")
    max_tokens: int = option(4096, "Longer conversations are left out.")
    max_tiles: int | None = option(None, "Most tiles for one picture.")
    checkpoint_layers: bool = option(False, "Keep fewer activations and compute them again.")
    validation_share: float = option(0.05, "Share of DATA to validate on, without --validation.")
    validate_every: int = option(50, "Steps between validations.")
    save_every: int = option(50, "Steps between saved states.")
    seed: int = option(0, "Of order, dropout and the adapter.")
    save_as: AdapterForm = option("mlx", "Who reads the adapter: programs on MLX, or PEFT.")

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise TrainingError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if self.method not in get_args(Method):
            yield f"method {quote(self.method)} is not one of {', '.join(get_args(Method))}"
        if not self.parts or set(self.parts) - set(get_args(Part)):
            chosen = ", ".join(self.parts) or "none"
            yield f"parts {chosen}: choose from {', '.join(get_args(Part))}"
        if self.save_as not in get_args(AdapterForm):
            yield f"save_as {quote(self.save_as)} is not one of {', '.join(get_args(AdapterForm))}"
        for name in (
            "rank",
            "batch_size",
            "accumulate",
            "steps",
            "validate_every",
            "save_every",
            "max_tokens",
            "max_tiles",
        ):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                yield f"{name} is {getattr(self, name)}, less than 1"
        for name in ("alpha", "epochs", "learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                yield f"{name} is {getattr(self, name)}, not a positive number"
        if not 0 <= self.weight_decay < math.inf:
            yield f"weight_decay is {self.weight_decay}, not a number from 0 on"
        if self.seed < 0:
            yield f"seed is {self.seed}, less than 0"
        for name in ("dropout", "warmup", "validation_share"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name} is {getattr(self, name)}, not from 0 to below 1"


# For laptops of these sizes: what the arithmetic of `memory` says leaves room for the system.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "8gb": {"rank": 8, "max_tokens": 1536, "max_tiles": 17, "checkpoint_layers": True},
    "16gb": {"rank": 16, "max_tokens": 2048, "max_tiles": 17, "checkpoint_layers": True},
}
