"""The keys of the chat, which are told once to each user, and once more by a new version."""

from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from ...errors import HistoryError
from ...files import write_file
from ...tasks.history import private_folder

HINTS = """\
Enter sends, Alt-Enter begins a new line, Tab completes, arrows bring back
earlier lines, Ctrl-C stops an answer. Type, drop or paste pictures; Ctrl-V
takes one from the clipboard."""


def take_first_start(folder: Path) -> bool:
    """Note in the folder that this user has started this version; returns whether it was the first
    time. Where nothing can be kept, it is not."""
    told, now = folder / "hints", version("smolvlm-mlx")
    with suppress(OSError, UnicodeError, HistoryError):
        if not told.is_file() or told.read_text("utf-8") != now:
            write_file(private_folder(folder) / told.name, now.encode())
            told.chmod(0o600)
            return True
    return False
