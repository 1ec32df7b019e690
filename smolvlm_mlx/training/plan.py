"""What to train and how: the settings of a fine-tuning run, and presets for laptops."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..checkpoint.adapters import PARTS
from ..errors import TrainingError

METHODS = ("lora", "dora", "full")


@dataclass(frozen=True)
class Plan:
    """What to train and how. Rates, batch and rank default to what works for small sets of pictures."""

    method: str = "lora"
    parts: tuple[str, ...] = ("decoder",)
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    epochs: float = 3.0
    steps: int | None = None  # instead of epochs
    batch_size: int = 1
    accumulate: int = 8  # batches a step
    learning_rate: float = 2e-4
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 0.01
    clip: float = 1.0
    max_tokens: int = 4096
    max_tiles: int | None = None
    validation_share: float = 0.05
    validate_every: int = 50
    save_every: int = 50
    checkpoint_layers: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise TrainingError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if self.method not in METHODS:
            yield f"method {self.method!r} is not one of {', '.join(METHODS)}"
        if not self.parts or set(self.parts) - PARTS.keys():
            yield f"parts {', '.join(self.parts) or 'none'}: choose from {', '.join(PARTS)}"
        for name in ("rank", "batch_size", "accumulate", "steps", "validate_every", "save_every", "max_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                yield f"{name} is {getattr(self, name)}, less than 1"
        for name in ("alpha", "epochs", "learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                yield f"{name} is {getattr(self, name)}, not a positive number"
        for name in ("dropout", "warmup", "validation_share"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name} is {getattr(self, name)}, not from 0 to below 1"


# For laptops of these sizes: what the arithmetic of `memory` says leaves room for the system.
PRESETS: dict[str, dict[str, Any]] = {
    "8gb": {"rank": 8, "max_tokens": 1536, "max_tiles": 17, "checkpoint_layers": True},
    "16gb": {"rank": 16, "max_tokens": 2048, "max_tiles": 17, "checkpoint_layers": True},
}
