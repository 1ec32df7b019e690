"""The keys of the chat, which are told once to each user, and once more by a new version."""

from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from ...errors import HistoryError
from ...files import write_file
from ...tasks.history import private_folder

HINTS = """\
Enter sends, Alt-Enter begins a new line, Tab completes, arrows bring back earlier lines,
Ctrl-C stops an answer. Type, drop or paste pictures; Ctrl-V takes one from the clipboard."""


def is_first_start(folder: Path) -> bool:
    """Whether it is this user's first of this version; the folder keeps that it was. Where nothing
    can be kept, it is not."""
    told, now = folder / "hints", version("smolvlm-mlx")
    with suppress(OSError, UnicodeError, HistoryError):
        if not told.is_file() or told.read_text("utf-8") != now:
            write_file(private_folder(folder) / told.name, now.encode())
            return True
    return False
