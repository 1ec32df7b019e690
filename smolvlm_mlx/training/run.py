"""Fine-tune a checkpoint on conversations: LoRA, QLoRA (a quantized checkpoint), DoRA, or all
parameters of some parts.

The folder that comes out is an adapter for `load(..., adapter=...)`, or, after full training, a
checkpoint. Beside it stand loss.csv, loss.png, the rows that were left out, and `run/` with the
state to resume from.
"""

import csv
import io
import json
import math
import shutil
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from .. import device
from ..checkpoint.adapters import fingerprint, save_adapter
from ..checkpoint.convert import write_trained
from ..checkpoint.hub import find
from ..checkpoint.lora import AdapterConfig, add_adapter, layers_of
from ..checkpoint.reader import Checkpoint, load, open_checkpoint
from ..data.rows import Row, read_rows
from ..errors import DataError, DeviceError, TrainingError, quote
from ..events import Reading, at_once
from ..files import expanded, lock, new_folder, write_file, written
from ..generation.image_cache import tiles_at_once
from ..inputs.processor import Processor
from ..model import SmolVLM
from .dataset import Dataset, SkippedRow, check_in_steps
from .loop import Record, Settings, Trainer, trains_vision
from .memory import Memory, estimate
from .plan import Plan


@dataclass
class Run:
    """A prepared run: what is trained, on what, and what it will take. `train` does it."""

    plan: Plan
    out: Path
    checkpoint: Checkpoint
    model: SmolVLM
    training: Dataset
    validation: Dataset
    trainer: Trainer
    adapter: AdapterConfig | None

    @property
    def trainable(self) -> int:
        return sum(
            array.size for array in dict(tree_flatten(self.model.trainable_parameters())).values()
        )

    @property
    def memory(self) -> Memory:
        """For the largest batch there can be: the longest rows side by side."""
        model, rows = self.model, self.training.rows
        count = min(self.plan.batch_size, len(rows))
        tokens = count * max(row.tokens for row in rows)
        return estimate(
            model.config,
            weights=sum(array.nbytes for array in model.named_parameters().values()),
            trainable=self.trainable,
            tokens=tokens,
            tiles=sum(sorted(row.tiles for row in rows)[-count:]),
            answer_tokens=min(tokens, 512 * count),
            width=model.language_model.norm.weight.dtype.size,
            checkpointed=self.plan.checkpoint_layers,
            trains_vision=trains_vision(model),
            chunk=tiles_at_once(model),
        )

    @property
    def skipped(self) -> list[SkippedRow]:
        """Rows that are left out."""
        return [*self.training.skipped, *self.validation.skipped]

    def train_in_steps(self, resume: bool = False) -> Generator[Record, None, Path | None]:
        """Train, and write what was learned best; the result is its folder, or None if `stop` ended
        it before the last step.

        Yields after each step. Closed, it leaves what was saved last, for `resume` to go on from.

        Raises:
            TrainingError: there is nothing to resume, the loss is not finite, or the folder cannot
                be written.
        """
        with written(self.out, TrainingError):
            return (yield from self._train(resume))

    train = at_once(train_in_steps)

    def _train(self, resume: bool) -> Generator[Record, None, Path | None]:
        if self.trainer.resume() != resume:
            raise TrainingError(
                f"{self.out}: nothing to resume; leave --resume out"
                if resume
                else f"{self.out}: holds a run already; go on with --resume, or choose another "
                "folder"
            )
        device.hold_freed(self.memory.total - self.memory.weights)
        steps = self.trainer.run_in_steps(
            self.training.batches(self.plan.batch_size, self.plan.accumulate, self.plan.seed),
            (lambda: self.validation.all(self.plan.batch_size)) if len(self.validation) else None,
        )
        if self.trainer.group.rank():  # under mlx.launch the first process writes
            yield from steps
        else:
            with lock(self.trainer.folder):
                yield from self._written(steps)
        return self._target if self.trainer.step == self.trainer.settings.steps else None

    def _written(self, steps: Generator[Record]) -> Generator[Record]:
        left_out = "".join(
            json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in self.skipped
        )
        write_file(self.out / "left-out.jsonl", left_out.encode())
        yield from steps
        write_curve(self.trainer.history, self.out / "loss.csv")
        draw_curve(self.trainer.history, self.out / "loss.png")
        if self.trainer.step == self.trainer.settings.steps:
            self.trainer.load_best()
            self._write_result()

    def stop(self) -> None:
        """End `train` after the step under way, with its state saved."""
        self.trainer.stop = True

    @property
    def _target(self) -> Path:
        return self.out / ("checkpoint" if self.adapter is None else "adapter")

    def _write_result(self) -> None:
        shutil.rmtree(self._target, ignore_errors=True)
        if self.adapter is None:
            write_trained(self.checkpoint, self.model.named_parameters(), self._target)
        else:
            with new_folder(self._target) as partial:
                save_adapter(self.model, self.adapter, partial, self.plan.save_as)


def prepare_in_steps(
    model_path: str | Path,
    data: str | Path,
    out: str | Path,
    plan: Plan | None = None,
    *,
    validation: str | Path | None = None,
    subset: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    memory: int | str | None = None,
) -> Generator[Reading, None, Run]:
    """Load the checkpoint, try every row of the data, and set up what is trained.

    Args:
        model_path: folder or hub id; a quantized checkpoint gets adapters (QLoRA).
        data: JSONL file, folder or hub dataset, see `data.samples`.
        validation: the same, in place of a share of `data`.
        subset: of a folder or hub dataset, such as "train".
        memory: as `load` has it.

    Raises:
        CheckpointError, DataError, TrainingError, DeviceError: checkpoint, data, plan, `memory`.
    """
    plan, out = plan or Plan(), expanded(out)
    checkpoint = _open(model_path, revision, plan)
    rows, others = read_rows(data, subset), [] if validation is None else read_rows(validation)
    model, processor = load(checkpoint.folder, dtype, fuse=False, memory=memory)
    processor.settings = replace(processor.settings, max_tiles=plan.max_tiles)
    training = yield from _check(processor, data, rows, plan)
    if validation is None:
        training, held_out = training.split(int(len(training) * plan.validation_share), plan.seed)
    else:
        held_out = yield from _check(processor, validation, others, plan)
    base = fingerprint(dict(checkpoint.read()))
    adapter = _unfreeze(model, plan, base, str(model_path))
    about = _about(plan, training, held_out, base, model)
    trainer = Trainer(model, _settings(plan, training), out / "run", about)
    run = Run(plan, out, checkpoint, model, training, held_out, trainer, adapter)
    return _within(memory, run)


prepare = at_once(prepare_in_steps)


def _about(
    plan: Plan, training: Dataset, held_out: Dataset, base: str, model: SmolVLM
) -> dict[str, object]:
    """What has to be the same for a run to go on: the plan, what it learns from, and in what it
    computes."""
    dtype = str(model.language_model.norm.weight.dtype).removeprefix("mlx.core.")
    read = {"data": training.fingerprint, "validation": held_out.fingerprint, "base": base}
    return {**asdict(plan), **read, "dtype": dtype}


def _within(memory: int | str | None, run: Run) -> Run:
    """Return the run, if it needs no more memory than that, by estimate; None: let it have that."""
    needed = run.memory.total
    if memory is None:
        device.limit_memory(None, needed)
    elif needed > device.memory_limit():
        raise DeviceError(
            f"memory {quote(memory)}: the run takes {needed / 1e9:.2f} GB by estimate; allow more, "
            "or lower batch_size, max_tokens or max_tiles, or set checkpoint_layers"
        )
    return run


def _open(model_path: str | Path, revision: str | None, plan: Plan) -> Checkpoint:
    """A checkpoint that can be trained as planned."""
    checkpoint = open_checkpoint(find(model_path, revision))
    if plan.method == "full" and checkpoint.quantization is not None:
        raise TrainingError(
            f"{model_path}: quantized weights cannot be trained in full; use lora, or the original "
            "checkpoint"
        )
    return checkpoint


def _settings(plan: Plan, data: Dataset) -> Settings:
    steps = plan.steps or math.ceil(plan.epochs * data.steps(plan.batch_size, plan.accumulate))
    return Settings(
        steps=steps,
        learning_rate=plan.learning_rate,
        warmup=max(1, round(steps * plan.warmup)),
        weight_decay=plan.weight_decay,
        clip=plan.clip,
        validate_every=plan.validate_every,
        save_every=plan.save_every,
        seed=plan.seed,
    )


def _check(
    processor: Processor, source: str | Path, rows: Sequence[Row], plan: Plan
) -> Generator[Reading, None, Dataset]:
    dataset = yield from check_in_steps(processor, rows, plan.max_tokens)
    if not len(dataset):
        first = dataset.skipped[0]
        raise DataError(
            f"{source}: none of {len(rows)} rows can be used; {first.where}: {first.reason}"
        )
    return dataset


def _unfreeze(model: SmolVLM, plan: Plan, base: str, name: str) -> AdapterConfig | None:
    model.freeze()
    model.language_model.checkpointed = model.vision_model.encoder.checkpointed = (
        plan.checkpoint_layers
    )
    mx.random.seed(plan.seed)
    if plan.method == "full":
        wholes = {
            "decoder": model.language_model,
            "connector": model.connector,
            "vision": model.vision_model,
        }
        for part in plan.parts:
            wholes[part].unfreeze()
            wholes[part].set_dtype(mx.float32)  # small steps are lost in 16 bits
        return None
    layers = layers_of(model, plan.parts)
    adapter = AdapterConfig(
        plan.method, plan.rank, plan.alpha / plan.rank, plan.dropout, layers, base, name
    )
    add_adapter(model, adapter)
    return adapter


def write_curve(history: Sequence[Record], path: Path) -> None:
    """One line a step, as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Record)])
    writer.writeheader()
    writer.writerows(asdict(record) for record in history)
    write_file(path, text.getvalue().encode())


def draw_curve(history: Sequence[Record], path: Path) -> None:
    """Training and validation loss by step, as PNG; nothing without matplotlib, an extra."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [record.step for record in history],
        [record.loss for record in history],
        lw=1,
        label="training",
    )
    measured = {
        record.step: record.validation_loss
        for record in history
        if record.validation_loss is not None
    }
    if measured:
        axes.plot(list(measured), list(measured.values()), marker="o", ms=3, label="validation")
    axes.set(xlabel="step", ylabel="loss (nats per token)", yscale="log")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    png = io.BytesIO()
    figure.savefig(png, dpi=120)
    write_file(path, png.getvalue())
