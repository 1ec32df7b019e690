"""What several commands show: tables, progress bars, rows that cannot be used."""

import logging
import os
import re
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich import console as rich
from rich import progress
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from ..errors import escaped
from ..events import Reading, Result, Work
from .gate import Gate, clean, own

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 5  # rows that cannot be used


def table(first: str, *others: str) -> Table:
    """One whose columns but the first are numbers."""
    return Table(first, *(Column(name, justify="right") for name in others), box=None)


class Console(rich.Console):
    """One that reads no markup, and cleans each text that it shows, whoever it is from."""

    def __init__(self, stderr: bool = False, **options: Any):
        plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
        file = own(sys.stderr if stderr else sys.stdout)
        super().__init__(stderr=stderr, file=file, **plain, **options)

    def render(
        self, renderable: rich.RenderableType, options: rich.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(clean(text), style)


def shows_pictures(on: Console) -> bool:
    """Whether it is a terminal that says how large it is; some say that they have no columns."""
    # It logs, with a traceback, that a terminal does not tell how large its characters are.
    logging.getLogger("textual_image").setLevel(logging.CRITICAL)
    with suppress(OSError):  # not a terminal of the system's
        return on.is_terminal and min(os.get_terminal_size()) > 0
    return on.is_terminal


def shows_pixels(on: Console) -> bool:
    """Whether it shows pictures as they are, not in blocks of the size of characters."""
    if not shows_pictures(on):
        return False
    from textual_image.renderable import HalfcellImage, Image, UnicodeImage

    return Image not in (HalfcellImage, UnicodeImage)


def print_picture(on: Console, image: "Image", rows: int) -> None:
    """Show a picture so many rows high, or as wide as the terminal; in blocks, where it cannot
    otherwise."""
    from textual_image.renderable import Image as Inline

    width, height = image.size
    columns = max(min(on.width, round(rows * 2 * width / height)), 1)
    shown = columns * height / (2 * width)  # rows, of characters that are twice as high as wide
    # The terminal knows better how high its characters are, but not that a line has to be seen.
    is_line = columns == 1 or shown < 2
    on.print(Inline(image, columns, min(max(round(shown), 1), rows) if is_line else "auto"))


def console(stderr: bool = False) -> Console:
    """One that prints text as it is."""
    return Console(stderr, soft_wrap=True)


class _Progress(progress.Progress):
    """While it is shown, other text on stderr goes through the gate before it."""

    def start(self) -> None:
        super().start()
        if not isinstance(sys.stderr, Gate):
            sys.stderr = Gate(sys.stderr, True, False)


def bar(title: str, *columns: progress.ProgressColumn) -> progress.Progress:
    """A bar on stderr with these columns behind it, and the time that is left; none without a
    terminal."""
    err = Console(stderr=True)
    shown = (
        progress.TextColumn(re.sub("([{}])", r"\1\1", escaped(title)), markup=False),
        progress.BarColumn(),
        *columns,
        progress.TimeRemainingColumn(),
    )
    # Steps of training and windows of captions take minutes, more than the 30 seconds that rates
    # are of otherwise.
    return _Progress(
        *shown,
        console=err,
        disable=not err.is_terminal,
        redirect_stdout=False,  # it may be data
        speed_estimate_period=3600,
    )


def spinner() -> progress.Progress:
    """What is done now, by the descriptions of tasks, on stderr; nothing without a terminal."""
    err = Console(stderr=True)
    shown = progress.SpinnerColumn(), progress.TextColumn("{task.description}", markup=False)
    return _Progress(
        *shown, console=err, disable=not err.is_terminal, transient=True, redirect_stdout=False
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
        err.print(f"  {escaped(where)}: {escaped(why)}")
    if len(rows) > SHOWN:
        err.print("  ...")
