"""What several commands show: tables, progress bars, rows that cannot be used."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table

from ..events import Reading, Result, Work

SHOWN = 5  # rows that cannot be used

Show = Callable[[int, int], None]  # moves a bar: what is done, and all


def table(first: str, *others: str) -> Table:
    """One whose columns but the first are numbers."""
    return Table(first, *(Column(name, justify="right") for name in others), box=None)


def console(stderr: bool = False) -> Console:
    """One that prints text as it is."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=stderr)


def bar(title: str, *columns: ProgressColumn) -> Progress:
    """A bar on stderr with these columns behind it, and the time that is left; none without a terminal."""
    err = Console(stderr=True)
    all_columns = (TextColumn(title, markup=False), BarColumn(), *columns, TimeRemainingColumn())
    return Progress(*all_columns, console=err, disable=not err.is_terminal)


@contextmanager
def byte_bar(title: str) -> Iterator[Show]:
    """A bar on stderr that counts bytes, with their rate and time left."""
    with bar(title, DownloadColumn(), TransferSpeedColumn()) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@contextmanager
def count_bar(title: str) -> Iterator[Show]:
    """A bar on stderr that counts, with rate and time left."""
    with bar(title, MofNCompleteColumn(), TextColumn("{task.fields[rate]}", markup=False)) as shown:
        task = shown.add_task(title, total=None, rate="")
        first: list[float] = []  # the first count, which an earlier run may have a part in, and when it was

        def show(done: int, total: int) -> None:
            if not first:
                first.extend((done, perf_counter()))
            elif done > first[0]:
                rate = (done - first[0]) / (perf_counter() - first[1])
                shown.update(task, rate=f"{rate:.1f}/s")
            shown.update(task, completed=done, total=total)

        yield show


def follow(steps: Generator[Reading, None, Result], shown: AbstractContextManager[Show]) -> Result:
    """Do the work, and show on a bar how far it is; returns its result."""
    work = Work(steps)
    with shown as progress:
        for reading in work:
            progress(reading.done, reading.total)
    return work.result


def print_rows(rows: Sequence[tuple[str, str]], what: str) -> None:
    """Rows that cannot be used, where they are and why, the first of them by name; on stderr."""
    err = console(stderr=True)
    if rows:
        err.print(f"{len(rows)} rows {what}:")
    for where, why in rows[:SHOWN]:
        err.print(f"  {where}: {why}")
    if len(rows) > SHOWN:
        err.print("  ...")
