"""What `smolvlm-mlx finetune` and `evaluate` show: bars, estimates, results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import mlx.core as mx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from .. import device
from ..tasks.evaluation import Result, Score
from ..training.dataset import Bad
from ..training.loop import Record
from ..training.run import Run
from .show import console, table

SHOWN = 5  # rows that are left out


@contextmanager
def count_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that counts, with rate and time left."""
    with _bar(title, TextColumn("{task.fields[rate]}", markup=False)) as bar:
        task = bar.add_task(title, total=None, rate="")
        first: list[float] = []  # the first count, which an earlier run may have a part in, and when it was

        def show(done: int, total: int) -> None:
            if not first:
                first.extend((done, perf_counter()))
            elif done > first[0]:
                rate = (done - first[0]) / (perf_counter() - first[1])
                bar.update(task, rate=f"{rate:.1f}/s")
            bar.update(task, completed=done, total=total)

        yield show


@contextmanager
def training_bar(steps: int) -> Iterator[Callable[[Record, Run], None]]:
    """A bar on stderr with loss, speed and memory; without a terminal, a line for every tenth of the steps."""
    started, tokens, first = perf_counter(), 0, 0
    with _bar("training", TextColumn("{task.fields[now]}", markup=False)) as bar:
        task = bar.add_task("training", total=steps, now="")

        def show(record: Record, run: Run) -> None:
            nonlocal tokens, first
            first = first or record.step
            tokens += record.tokens
            now = f"loss {record.loss:.4f}"
            best = run.trainer.best
            if best is not None:
                now += f"  best {best.validation_loss:.4f} at {best.step}"
            now += f"  {tokens / (perf_counter() - started):.0f} answer tokens/s  {mx.get_peak_memory() / 1e9:.2f} GB"
            bar.update(task, completed=record.step, now=now)
            due = record.step in (first, steps) or record.step % max(1, steps // 10) == 0
            if bar.disable and due:
                bar.console.print(f"step {record.step} of {steps}  {now}", markup=False, highlight=False)

        yield show


def _bar(title: str, *more: TextColumn) -> Progress:
    stderr = Console(stderr=True)
    columns = (TextColumn(title, markup=False), BarColumn(), MofNCompleteColumn(), *more, TimeRemainingColumn())
    return Progress(*columns, console=stderr, disable=not stderr.is_terminal)


def print_run(run: Run) -> None:
    """What is about to be trained, on what, and the memory it will take; on stderr."""
    err, plan = console(stderr=True), run.plan
    total = sum(array.size for array in run.model.named_parameters().values())
    kind = (
        plan.method
        if run.checkpoint.quantization is None
        else f"{plan.method} on {run.checkpoint.quantization.bits} bits"
    )
    err.print(f"{kind} of {', '.join(plan.parts)}: {run.trainable:,} of {total:,} numbers are trained")
    err.print(
        f"{len(run.training):,} conversations of up to {max(run.training.tokens):,} tokens and "
        f"{max(run.training.tiles)} tiles, {len(run.validation):,} to validate, {run.settings.steps:,} steps"
    )
    memory = {name: value for name, value in vars(run.memory).items() if value and not isinstance(value, bool)}
    parts = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in memory.items())
    err.print(f"memory, by estimate: {run.memory.total / 1e9:.2f} GB ({parts})")
    if problem := device.training_problem():
        err.print(problem)
    print_bad(run.bad)


def print_bad(bad: list[Bad], what: str = "are left out") -> None:
    """Rows that cannot be used, the first of them by name; on stderr."""
    err = console(stderr=True)
    if bad:
        err.print(f"{len(bad)} rows {what}:")
    for row in bad[:SHOWN]:
        err.print(f"  {row.where}: {row.reason}")
    if len(bad) > SHOWN:
        err.print("  ...")


def print_result(run: Run, result: Path | None, seconds: float) -> None:
    """Where the result is, and how to use it."""
    err, last = console(stderr=True), run.trainer.history[-1]
    if result is None:
        err.print(f"stopped after step {last.step} of {run.settings.steps}; --resume goes on")
        return
    best = run.trainer.best
    chosen = (
        f"step {last.step}, the last"
        if best is None
        else f"step {best.step}, validation loss {best.validation_loss:.4f}"
    )
    err.print(f"{seconds:.0f} s, peak memory {mx.get_peak_memory() / 1e9:.2f} GB; kept: {chosen}")
    if not (run.out / "loss.png").exists():
        err.print("loss.csv has the curve; for a picture of it: pip install 'smolvlm-mlx[plot]'")
    print(result)


def print_scores(results: list[Result]) -> None:
    """A row for each category, a column for each checkpoint; then agreement with the first."""
    out, first = console(), results[0]
    shown = table("category", "questions", *(result.name for result in results))
    if len(first.categories) > 1:
        for name, score in first.categories.items():
            others = [result.categories[name] for result in results]
            shown.add_row(Text(name or "-"), str(score.count), *(f"{100 * other.mean:.1f}" for other in others))
    shown.add_row("all", str(first.score.count), *(_with_interval(result.score) for result in results))
    if len(results) > 1:
        differences = [result.difference(first) for result in results[1:]]
        shown.add_row("difference", "", "", *(f"{100 * mean:+.1f} ± {100 * half:.1f}" for mean, half in differences))
        shown.add_row("same answers", "", "", *(f"{100 * result.agreement(first):.1f}" for result in results[1:]))
    out.print(shown)
    out.print("Per cent, with 95 per cent intervals.")
    for result in results:
        failed = [Bad(answer.where, answer.error) for answer in result.answers if answer.error]
        print_bad(failed, f"could not be asked, and count as wrong for {result.name}")


def _with_interval(score: Score) -> str:
    low, high = score.interval
    return f"{100 * score.mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"
