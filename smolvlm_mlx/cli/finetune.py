"""`smolvlm-mlx finetune`: train a checkpoint on conversations."""

import os
import signal
import time
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import TrainingError
from .options import DEFAULT_MODEL, INTERRUPTED, Dtype, MaxTiles, Model, Revision

if TYPE_CHECKING:
    from ..training.run import Plan, Run


Data = Annotated[str, typer.Argument(help="Conversations: JSONL file, folder, or id of a hub dataset.")]
Out = Annotated[Path, typer.Argument(help="New folder for adapter (or checkpoint), loss curve and state.")]
Method = Annotated[str | None, typer.Option(help="lora (on a quantized checkpoint: QLoRA), dora or full; lora.")]
Train = Annotated[str, typer.Option(help="What is trained: decoder, connector, vision, with commas.")]
Preset = Annotated[
    str | None, typer.Option(help="8gb (QLoRA on 256M and 500M) or 16gb (QLoRA on 2.2B): settings that fit.")
]
Rank = Annotated[int | None, typer.Option(help="Of the adapter; 8.")]
Alpha = Annotated[float | None, typer.Option(help="The adapter counts alpha / rank; 16.")]
Dropout = Annotated[float | None, typer.Option(help="On the adapter's input; 0.")]
Epochs = Annotated[float | None, typer.Option(help="Times through the data; 3.")]
Steps = Annotated[int | None, typer.Option(help="Steps, in place of epochs.")]
BatchSize = Annotated[int | None, typer.Option(help="Conversations computed at once; 1.")]
Accumulate = Annotated[int | None, typer.Option(help="Batches for one step; 8.")]
LearningRate = Annotated[float | None, typer.Option(help="At its peak; 0.0002.")]
Warmup = Annotated[float | None, typer.Option(help="Share of the steps before the peak; 0.05.")]
WeightDecay = Annotated[float | None, typer.Option(help="AdamW's; 0.01.")]
Clip = Annotated[float | None, typer.Option(help="Largest norm of a gradient; 1.")]
MaxTokens = Annotated[int | None, typer.Option(help="Longer conversations are left out; 4096.")]
CheckpointLayers = Annotated[
    bool | None, typer.Option("--checkpoint-layers", help="Keep fewer activations and compute them again.")
]
Validation = Annotated[str | None, typer.Option(help="Conversations to validate on; else a share of DATA.")]
ValidationShare = Annotated[float | None, typer.Option(help="That share; 0.05.")]
ValidateEvery = Annotated[int | None, typer.Option(help="Steps between validations; 50.")]
SaveEvery = Annotated[int | None, typer.Option(help="Steps between saved states; 50.")]
Seed = Annotated[int | None, typer.Option(help="Of order, dropout and the adapter; 0.")]
Part = Annotated[str | None, typer.Option(help="Part of a folder or hub dataset, such as train.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT, stopped or killed.")]
Estimate = Annotated[bool, typer.Option("--estimate", help="Say what it would take, and stop.")]


def finetune(
    data: Data,
    out: Out,
    model: Model = DEFAULT_MODEL,
    method: Method = None,
    train: Train = "decoder",
    preset: Preset = None,
    rank: Rank = None,
    alpha: Alpha = None,
    dropout: Dropout = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    learning_rate: LearningRate = None,
    warmup: Warmup = None,
    weight_decay: WeightDecay = None,
    clip: Clip = None,
    max_tokens: MaxTokens = None,
    max_tiles: MaxTiles = None,
    checkpoint_layers: CheckpointLayers = None,
    validation: Validation = None,
    validation_share: ValidationShare = None,
    validate_every: ValidateEvery = None,
    save_every: SaveEvery = None,
    seed: Seed = None,
    part: Part = None,
    resume: Resume = False,
    estimate: Estimate = False,
    dtype: Dtype = None,
    revision: Revision = None,
) -> None:
    """Fine-tune on your own pictures and answers; the best weights by validation loss are kept.

    A line of DATA: {"messages": [...]} as for an answer, or {"image": "cat.jpg", "question": "...", "answer": "..."}.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    from ..training.run import prepare_in_steps
    from . import training_report as report
    from .show import follow

    plan = _plan(given, train, preset)
    with report.count_bar("Checking conversations") as progress:
        preparing = prepare_in_steps(
            model, data, out, plan, validation=validation, part=part, dtype=dtype, revision=revision
        )
        run = follow(preparing, progress)
    report.print_run(run)
    if not estimate:
        _train(run, resume)


def _plan(given: dict[str, Any], train: str, preset: str | None) -> "Plan":
    """Of a preset's values and those given on the command line, which go first."""
    from ..training.run import PRESETS, Plan

    if preset is not None and preset not in PRESETS:
        raise TrainingError(f"preset {preset!r} is not one of {', '.join(PRESETS)}")
    names = {field.name for field in fields(Plan)}
    chosen = {**PRESETS.get(preset or "", {}), **{name: given[name] for name in given if name in names}}
    return Plan(**chosen, parts=tuple(name.strip() for name in train.split(",")))


def _train(run: "Run", resume: bool) -> None:
    from . import training_report as report

    def stop(signal_number: int, frame: FrameType | None) -> None:
        run.stop()
        signal.signal(signal.SIGINT, before)  # a second Ctrl-C does not wait
        os.write(2, b"\nStopping after this step; again: at once.\n")  # stderr itself may be in the midst of a line

    before = signal.signal(signal.SIGINT, stop)
    started = time.perf_counter()
    try:
        with report.training_bar(run.settings.steps) as show:
            result = run.train(show, resume)
    finally:
        signal.signal(signal.SIGINT, before)
    report.print_result(run, result, time.perf_counter() - started)
    if result is None:
        raise typer.Exit(INTERRUPTED)
