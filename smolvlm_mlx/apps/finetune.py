"""`smolvlm-mlx finetune`: train a checkpoint on conversations."""

import signal
import sys
import time
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import TrainingError
from .options import DEFAULT_MODEL, Dtype, MaxTiles, Model, Revision

if TYPE_CHECKING:
    from ..training.finetune import Run


def finetune(
    data: Annotated[str, typer.Argument(help="Conversations: JSONL file, folder, or id of a hub dataset.")],
    out: Annotated[Path, typer.Argument(help="New folder for adapter (or checkpoint), loss curve and state.")],
    model: Model = DEFAULT_MODEL,
    method: Annotated[str, typer.Option(help="lora (on a quantized checkpoint: QLoRA), dora or full.")] = "lora",
    train: Annotated[str, typer.Option(help="What is trained: decoder, connector, vision, with commas.")] = "decoder",
    preset: Annotated[
        str | None, typer.Option(help="8gb (QLoRA on 256M and 500M) or 16gb (QLoRA on 2.2B): settings that fit.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of the adapter; 8.")] = None,
    alpha: Annotated[float | None, typer.Option(help="The adapter counts alpha / rank; 16.")] = None,
    dropout: Annotated[float | None, typer.Option(help="On the adapter's input; 0.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Times through the data; 3.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps, in place of epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Conversations computed at once; 1.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Batches for one step; 8.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its peak; 0.0002.")] = None,
    warmup: Annotated[float | None, typer.Option(help="Share of the steps before the peak; 0.05.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's; 0.01.")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of a gradient; 1.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longer conversations are left out; 4096.")] = None,
    max_tiles: MaxTiles = None,
    checkpoint_layers: Annotated[
        bool | None, typer.Option("--checkpoint-layers", help="Keep fewer activations and compute them again.")
    ] = None,
    validation: Annotated[str | None, typer.Option(help="Conversations to validate on; else a share of DATA.")] = None,
    validation_share: Annotated[float | None, typer.Option(help="That share; 0.05.")] = None,
    validate_every: Annotated[int | None, typer.Option(help="Steps between validations; 50.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between saved states; 50.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of order, dropout and the adapter; 0.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of a folder or hub dataset, such as train.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT, stopped or killed.")] = False,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what it would take, and stop.")] = False,
    dtype: Dtype = None,
    revision: Revision = None,
) -> None:
    """Fine-tune on your own pictures and answers; the best weights by validation loss are kept.

    A line of DATA: {"messages": [...]} as for an answer, or {"image": "cat.jpg", "question": "...", "answer": "..."}.
    """
    from ..training.finetune import PRESETS, Plan, prepare
    from . import training_report as report

    given = {name: value for name, value in locals().items() if name in {field.name for field in fields(Plan)}}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if preset is not None:
        if preset not in PRESETS:
            raise TrainingError(f"preset {preset!r} is not one of {', '.join(PRESETS)}")
        chosen = {**PRESETS[preset], **chosen}
    plan = Plan(**chosen, parts=tuple(part.strip() for part in train.split(",")))
    with report.count_bar("Checking conversations") as progress:
        run = prepare(
            model,
            data,
            out,
            plan,
            validation=validation,
            split=split,
            dtype=dtype,
            revision=revision,
            progress=progress,
        )
    report.print_run(run)
    if not estimate:
        _train(run, resume)


def _train(run: "Run", resume: bool) -> None:
    from . import training_report as report

    def stop(signal_number: int, frame: FrameType | None) -> None:
        run.stop()
        signal.signal(signal.SIGINT, before)  # a second Ctrl-C does not wait
        print("\nStopping after this step; again: at once.", file=sys.stderr)

    before = signal.signal(signal.SIGINT, stop)
    started = time.perf_counter()
    try:
        with report.training_bar(run.settings.steps) as show:
            result = run.train(show, resume)
    finally:
        signal.signal(signal.SIGINT, before)
    report.print_result(run, result, time.perf_counter() - started)
    if result is None:
        raise typer.Exit(130)
