"""The training loop: batches -> gradients -> AdamW, with everything that is needed to go on after a
crash.

A state folder holds the trained weights, the optimizer's moments, the random state, the step and
the losses so far; it appears whole or not at all. Batches are a function of the step, so a resumed
run repeats an uninterrupted one bit for bit (on a CPU). Under `mlx.launch` each process takes its
share of every step's batches, and gradients are summed.
"""

import json
import math
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

from ..checkpoint.safetensors import save_safetensors
from ..errors import TrainingError
from ..events import at_once
from ..files import new_folder, write_file
from ..generation.image_cache import encode_tiles
from ..inputs.tiles import normalize
from ..model import SmolVLM, ints
from .dataset import Batch, Batches


def trains_vision(model: SmolVLM) -> bool:
    """Whether anything that makes image_tokens is trained."""
    return any(
        tree_flatten(part.trainable_parameters()) for part in (model.vision_model, model.connector)
    )


def image_tokens_of(model: SmolVLM, batch: Batch) -> mx.array | None:
    """image_tokens (N, S, Dt) when nothing that makes them is trained, as constants: chunk by
    chunk, repeats once."""
    return None if trains_vision(model) else encode_tiles(model, batch.tiles, batch.settings)


def loss_sum(model: SmolVLM, batch: Batch, image_tokens: mx.array | None = None) -> mx.array:
    """Sum over `batch.tokens` predicted tokens, in nats. Differentiable."""
    if image_tokens is None and len(batch.tiles):
        image_tokens = model.encode_images(mx.array(normalize(batch.tiles, batch.settings)))
    embeddings = model.merge(mx.array(batch.input_ids), image_tokens)  # (B, T, Dt)
    hidden = model.language_model.hidden_states(None, None, embeddings)
    B, T, D = hidden.shape
    rows, columns = np.nonzero(batch.loss_mask[:, 1:])
    # (tokens, Dt): those before each target
    learned = hidden.reshape(B * T, D)[mx.array(rows * T + columns)]
    logits = model.language_model.logits(learned).astype(mx.float32)
    targets = mx.array(batch.input_ids[rows, columns + 1])
    return nn.losses.cross_entropy(logits, targets, reduction="sum")


STATE, BEST = "state-", "best.safetensors"


@dataclass(frozen=True)
class Settings:
    """How long and how fast. Steps are optimizer steps, each of one or more batches."""

    steps: int
    # At its peak, after `warmup` steps; then a cosine down to a hundredth.
    learning_rate: float = 1e-4
    warmup: int = 10
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of a step's gradient
    validate_every: int = 50
    save_every: int = 50
    seed: int = 0

    def schedule(self) -> Callable[[mx.array], mx.array]:
        """Learning rate by step."""
        rise = optimizers.linear_schedule(
            self.learning_rate / self.warmup, self.learning_rate, max(1, self.warmup - 1)
        )
        decay = max(1, self.steps - self.warmup)
        fall = optimizers.cosine_decay(self.learning_rate, decay, self.learning_rate / 100)
        return optimizers.join_schedules([rise, fall], [self.warmup])


@dataclass(frozen=True)
class Record:
    """One step of the loss curve; losses are means over tokens, in nats."""

    step: int
    loss: float
    validation_loss: float | None
    learning_rate: float
    tokens: int


class Trainer:
    """Trains the unfrozen parameters of `model`; `folder` keeps the state."""

    def __init__(
        self,
        model: SmolVLM,
        settings: Settings,
        folder: Path,
        about: Mapping[str, object] | None = None,
    ):
        """`about`: what else a resumed run must have in common with the one before, in JSON's
        types."""
        self.model, self.settings, self.folder = model, settings, folder
        self._about = json.loads(json.dumps({**(about or {}), **asdict(settings)}))
        self.optimizer = optimizers.AdamW(
            learning_rate=settings.schedule(),
            betas=[0.9, 0.95],
            weight_decay=settings.weight_decay,
            bias_correction=True,
        )
        self.optimizer.init(model.trainable_parameters())
        self.history: list[Record] = []
        self.stop = False
        self.group = mx.distributed.init()

    @property
    def step(self) -> int:
        return len(self.history)

    @property
    def best(self) -> Record | None:
        """The step with the lowest validation loss so far."""
        validated = [record for record in self.history if record.validation_loss is not None]
        return min(validated, key=attrgetter("validation_loss"), default=None)

    def run_in_steps(
        self, batches: Batches, validation: Callable[[], Iterable[Batch]] | None = None
    ) -> Generator[Record]:
        """Train to the last step, or to the end of the step in which `stop` was set, and save the
        state there.

        Yields after each step. Closed, it saves nothing more.

        Args:
            batches: those of each step; more than one: their gradients are accumulated.
            validation: makes the batches of the validation loss, one after another.

        Raises:
            TrainingError: the loss is not finite.
        """
        self.model.train()
        if not self.step:
            mx.random.seed(self.settings.seed)
        with ThreadPoolExecutor(1) as pool:  # makes the next step's batches while MLX computes
            upcoming = pool.submit(batches, self.step)
            while self.step < self.settings.steps and not self.stop:
                current = upcoming.result()
                upcoming = pool.submit(batches, self.step + 1)
                self._record(*self._update(current), validation)
                yield self.history[-1]
                if self.step % self.settings.save_every == 0:
                    self.save()
        self.stop = False
        self.save()
        self.model.eval()

    run = at_once(run_in_steps)

    def _update(self, batches: Sequence[Batch]) -> tuple[float, int]:
        """One optimizer step: its loss and its tokens."""
        loss_and_gradients = nn.value_and_grad(self.model, loss_sum)
        total, gradients = mx.array(0.0), None
        for batch in batches[self.group.rank() :: self.group.size()]:
            loss, new = loss_and_gradients(self.model, batch, image_tokens_of(self.model, batch))
            total = total + loss
            gradients = new if gradients is None else tree_map(mx.add, gradients, new)
            mx.eval(total, gradients)
        tokens = sum(batch.tokens for batch in batches)
        if gradients is None:  # fewer batches than processes
            gradients = tree_map(mx.zeros_like, self.model.trainable_parameters())
        if self.group.size() > 1:
            total = mx.distributed.all_sum(total)
            gradients = tree_map(lambda g: g * self.group.size(), nn.average_gradients(gradients))
        gradients, _ = optimizers.clip_grad_norm(
            tree_map(lambda g: g / tokens, gradients), self.settings.clip
        )
        loss = float(total) / tokens
        if not math.isfinite(loss):
            raise TrainingError(
                f"step {self.step + 1}: the loss is {loss}; use a lower learning rate, or dtype "
                "bfloat16 or float32"
            )
        self.optimizer.update(self.model, gradients)
        mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        return loss, tokens

    def _record(
        self, loss: float, tokens: int, validation: Callable[[], Iterable[Batch]] | None
    ) -> None:
        step = self.step + 1
        due = step % self.settings.validate_every == 0 or step == self.settings.steps
        value = self.validate(validation()) if due and validation is not None else None
        self.history.append(Record(step, loss, value, float(self.optimizer.learning_rate), tokens))
        if self.best is self.history[-1] and self.group.rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_safetensors(self.folder / BEST, self._weights())

    def validate(self, batches: Iterable[Batch]) -> float:
        """Mean loss over the tokens of `batches`, without dropout."""
        self.model.eval()
        total, tokens = 0.0, 0
        for batch in batches:
            total += float(loss_sum(self.model, batch, image_tokens_of(self.model, batch)))
            tokens += batch.tokens
        self.model.train()
        return total / tokens

    # ---- state

    def _weights(self) -> dict[str, mx.array]:
        return dict(tree_flatten(self.model.trainable_parameters()))

    def save(self) -> None:
        """Write the state, then remove the one before. Under `mlx.launch` only the first process
        writes."""
        target = self.folder / f"{STATE}{self.step:07d}"
        if self.group.rank() or target.exists():
            return
        with new_folder(target) as partial:
            save_safetensors(partial / "weights.safetensors", self._weights())
            moments = dict(tree_flatten(self.optimizer.state))
            save_safetensors(partial / "optimizer.safetensors", moments)
            history = [asdict(record) for record in self.history]
            state = {"about": self._about, "random": _random_seed(), "history": history}
            write_file(partial / "state.json", json.dumps(state).encode())
        for folder in self._states():
            if folder != target:
                shutil.rmtree(folder)

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob(f"{STATE}*"))

    def resume(self) -> bool:
        """Go on from the last state in `folder`; False when there is none.

        Raises:
            TrainingError: it belongs to a run with other settings, or about something else.
        """
        states = self._states()
        if not states:
            return False
        saved = json.loads((states[-1] / "state.json").read_text())
        begun = saved["about"]  # an earlier version's may have fewer names
        changed = [name for name, value in self._about.items() if begun.get(name, value) != value]
        if changed:
            was = ", ".join(f"{name} {begun[name]}" for name in changed)
            raise TrainingError(
                f"{self.folder}: begun with {was}; resume with the same, or begin in another folder"
            )
        self.model.load_weights(str(states[-1] / "weights.safetensors"), strict=False)
        moments = mx.load(str(states[-1] / "optimizer.safetensors"))
        assert isinstance(moments, dict)
        self.optimizer.state = tree_map_with_path(
            lambda path, _: moments[path], self.optimizer.state
        )
        mx.random.seed(saved["random"])
        self.history = [Record(**record) for record in saved["history"]]
        mx.eval(self.model.parameters(), self.optimizer.state)
        return True

    def load_best(self) -> None:
        """Put the weights of the lowest validation loss into the model; those of the last step if
        none was measured."""
        if self.best is not None:
            self.model.load_weights(str(self.folder / BEST), strict=False)
            mx.eval(self.model.parameters())


def _random_seed() -> int:
    """The seed that brings MLX's random state to where it is: a key is the two halves of its
    seed."""
    state: Any = mx.random.state
    high, low = ints(state[0])
    return high << 32 | low
