"""What several commands show: tables, progress bars, rows that cannot be used."""

from collections.abc import Generator, Sequence

from rich import progress
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from ..events import Reading, Result, Work

SHOWN = 5  # rows that cannot be used


def table(first: str, *others: str) -> Table:
    """One whose columns but the first are numbers."""
    return Table(first, *(Column(name, justify="right") for name in others), box=None)


def console(stderr: bool = False) -> Console:
    """One that prints text as it is."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=stderr)


def bar(title: str, *columns: progress.ProgressColumn) -> progress.Progress:
    """A bar on stderr with these columns behind it, and the time that is left; none without a
    terminal."""
    err = Console(stderr=True)
    shown = (
        progress.TextColumn(title, markup=False),
        progress.BarColumn(),
        *columns,
        progress.TimeRemainingColumn(),
    )
    # Steps of training and windows of captions take minutes, more than the 30 seconds that rates
    # are of otherwise.
    return progress.Progress(
        *shown, console=err, disable=not err.is_terminal, speed_estimate_period=3600
    )


def byte_bar(title: str) -> progress.Progress:
    """A bar on stderr that counts bytes, with their rate and time left."""
    return bar(title, progress.DownloadColumn(), progress.TransferSpeedColumn())


def count_bar(title: str) -> progress.Progress:
    """A bar on stderr that counts, with rate and time left."""
    return bar(title, progress.MofNCompleteColumn(), _Rate())


class _Rate(progress.ProgressColumn):
    """Things a second since the first count, which an earlier run may have a part in."""

    def render(self, task: progress.Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "")


def follow(steps: Generator[Reading, None, Result], shown: progress.Progress) -> Result:
    """Do the work, and show on a bar how far it is; returns its result."""
    work = Work(steps)
    with shown:
        task = shown.add_task("", total=None)
        for reading in work:
            shown.update(task, completed=reading.done, total=reading.total)
    return work.result


def with_media(rows: int, images: int, videos: int) -> str:
    """How many rows of data have a picture, and a video, for who thinks that all have."""
    text = f"{images:,} of {rows:,} rows have a picture"
    return f"{text}, {videos:,} a video" if videos else text


def print_rows(rows: Sequence[tuple[str, str]], what: str) -> None:
    """Rows that cannot be used, where they are and why, the first of them by name; on stderr."""
    err = console(stderr=True)
    if rows:
        err.print(f"{len(rows)} rows {what}:")
    for where, why in rows[:SHOWN]:
        err.print(f"  {where}: {why}")
    if len(rows) > SHOWN:
        err.print("  ...")
