"""`smolvlm-mlx finetune`: train a checkpoint on conversations."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from .. import device
from ..errors import TrainingError, quote
from ..events import Work
from ..files import is_utf8
from ..training.plan import PRESETS, Plan, Preset
from .options import DEFAULT_MODEL, INTERRUPTED, Flags, Loading, Model, given, note_unused

if TYPE_CHECKING:
    from ..training.run import Run

Conversations = Annotated[
    str,
    typer.Argument(help="Conversations: JSONL, JSON or CSV file, folder, or id of a hub dataset."),
]
Out = Annotated[
    Path, typer.Argument(help="New folder for adapter (or checkpoint), loss curve and state.")
]
Presets = Annotated[
    Preset | None,
    typer.Option(
        help="Settings that fit: QLoRA on 256M and 500M in 8gb, on 2.2B in 16gb. "
        "Options beside it go first."
    ),
]
Validation = Annotated[
    str | None, typer.Option(help="Conversations to validate on; else a share of DATA.")
]
Subset = Annotated[
    str | None, typer.Option(help="Which subset of a folder or hub dataset, such as train.")
]
ADAPTERS_OWN = ("rank", "alpha", "dropout", "save_as")  # options
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in OUT, stopped or killed.")
]
Estimate = Annotated[bool, typer.Option("--estimate", help="Say what it would take, and stop.")]


def finetune(
    context: typer.Context,
    data: Conversations,
    out: Out,
    model: Model = DEFAULT_MODEL,
    preset: Presets = None,
    plan: Annotated[Plan, Flags(title="Training")] = Plan(),
    validation: Validation = None,
    subset: Subset = None,
    resume: Resume = False,
    estimate: Estimate = False,
    loading: Annotated[Loading, Flags(without=("adapter",))] = Loading(),
) -> None:
    """Train a checkpoint on your own pictures and answers.

    A line of DATA: {"messages": [...]} as for an answer, or {"image": "cat.jpg", "question": "...",
    "answer": "..."}. Formats of LLaVA, TRL, LlamaFactory and ms-swift, and captions, are read too.
    """
    from ..training.run import prepare_in_steps
    from .show import count_bar, follow

    _check(out)
    if preset is not None:
        plan = replace(plan, **{**PRESETS[preset], **given(context, plan)})
    _note_unused(context, plan, validation)
    steps = prepare_in_steps(
        model,
        data,
        out,
        plan,
        validation=validation,
        subset=subset,
        dtype=loading.dtype,
        revision=loading.revision,
        memory=loading.memory,
    )
    run = follow(steps, count_bar("Checking conversations"))
    _print_run(run)
    if not estimate:
        _train(run, resume)


def _check(out: Path) -> None:
    """What would be wrong with the folder in the end is told in the beginning."""
    if out.is_symlink() and not out.exists():
        raise TrainingError(f"{out}: a link to nothing; give a new folder")
    if out.exists() and not out.is_dir():
        raise TrainingError(f"{out}: not a folder; give a new one")
    if not is_utf8(out.absolute()):
        raise TrainingError(
            f"{quote(out, end=True)}: MLX writes only files whose names are UTF-8; choose another"
        )


def _note_unused(context: typer.Context, plan: Plan, validation: str | None) -> None:
    if plan.method == "full":
        note_unused(context, "--method full has no adapter", *ADAPTERS_OWN)
    if plan.steps is not None:
        note_unused(context, "--steps stands in its place", "epochs")
    if validation is not None:
        note_unused(context, "--validation stands in its place", "validation_share")


def _train(run: "Run", resume: bool) -> None:
    def stop(signal_number: int, frame: FrameType | None) -> None:
        run.stop()
        signal.signal(signal.SIGINT, before)  # a second Ctrl-C does not wait
        # stderr itself may be in the midst of a line.
        os.write(2, b"\nStopping after this step; again: at once.\n")

    before = signal.signal(signal.SIGINT, stop)
    started = time.perf_counter()
    try:
        result = _follow(run, resume)
    finally:
        signal.signal(signal.SIGINT, before)
    _print_result(run, result, time.perf_counter() - started)
    if result is None:
        raise typer.Exit(INTERRUPTED)


def _follow(run: "Run", resume: bool) -> Path | None:
    """Train, with loss, speed and memory in a bar on stderr; without a terminal, in a line for
    every tenth of the steps."""
    from rich.progress import MofNCompleteColumn, TextColumn

    from .show import bar

    work, steps = Work(run.train_in_steps(resume)), run.trainer.settings.steps
    started, tokens, first = time.perf_counter(), 0, 0
    with bar(
        "training", MofNCompleteColumn(), TextColumn("{task.fields[now]}", markup=False)
    ) as shown:
        task = shown.add_task("training", total=steps, now="")
        for record in work:
            first = first or record.step
            tokens += record.tokens
            now, best = f"loss {record.loss:.4f}", run.trainer.best
            if best is not None:
                now += f"  best {best.validation_loss:.4f} at {best.step}"
            speed = tokens / (time.perf_counter() - started)
            now += f"  {speed:.0f} answer tokens/s  {device.peak_memory() / 1e9:.2f} GB"
            shown.update(task, completed=record.step, now=now)
            due = record.step in (first, steps) or record.step % max(1, steps // 10) == 0
            if shown.disable and due:
                shown.console.print(
                    f"step {record.step} of {steps}  {now}", markup=False, highlight=False
                )
    return work.result


def _print_run(run: "Run") -> None:
    """What is about to be trained, on what, and the memory it will take; on stderr."""
    from .show import console, print_rows, with_media

    err, plan, quantization = console(stderr=True), run.plan, run.checkpoint.quantization
    total = sum(array.size for array in run.model.named_parameters().values())
    kind = plan.method if quantization is None else f"{plan.method} on {quantization.default}"
    err.print(
        f"{kind} of {', '.join(plan.parts)}: {run.trainable:,} of {total:,} numbers are trained"
    )
    rows = run.training.rows
    tokens, tiles = max(row.tokens for row in rows), max(row.tiles for row in rows)
    err.print(
        f"{len(rows):,} conversations of up to {tokens:,} tokens and {tiles} tiles, "
        f"{len(run.validation):,} to validate, {run.trainer.settings.steps:,} steps"
    )
    every = (*rows, *run.validation.rows)
    shown = sum(row.image for row in every), sum(row.video for row in every)
    err.print(with_media(len(every), *shown))
    memory = {
        name: value
        for name, value in vars(run.memory).items()
        if value and not isinstance(value, bool)
    }
    parts = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in memory.items())
    err.print(f"memory, by estimate: {run.memory.total / 1e9:.2f} GB ({parts})")
    if problem := device.training_problem():
        err.print(problem)
    print_rows([(row.where, row.reason) for row in run.skipped], "are left out")


def _print_result(run: "Run", result: Path | None, seconds: float) -> None:
    """Where the result is, and how to use it."""

    from .show import console

    err, step = console(stderr=True), run.trainer.step
    if result is None:
        err.print(f"stopped after step {step} of {run.trainer.settings.steps}; --resume goes on")
        return
    best = run.trainer.best
    chosen = (
        f"step {best.step}, validation loss {best.validation_loss:.4f}"
        if best
        else f"step {step}, the last"
    )
    err.print(f"{seconds:.0f} s, peak memory {device.peak_memory() / 1e9:.2f} GB; kept: {chosen}")
    if not (run.out / "loss.png").exists():
        err.print("loss.csv has the curve; for a picture of it: pip install 'smolvlm-mlx[plot]'")
    print(result)
