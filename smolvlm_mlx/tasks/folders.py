"""Paths -> the pictures and videos in them, and what was passed over."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import DataError, quote
from ..inputs.media import PICTURE_SUFFIXES, VIDEO_SUFFIXES

MOST_ENDINGS = 10  # that are shown


def find_files(paths: Sequence[str | Path]) -> tuple[list[Path], Counter[str]]:
    """Pictures and videos: those named, and those in folders named and below, by their ending;
    hidden ones are left out.

    Returns:
        The files; and how many others were passed over, by ending.

    Raises:
        DataError: a path is not there, or there are none.
    """
    passed_over = Counter[str]()
    files = (file for path in map(Path, paths) for file in _files(path, passed_over))
    found = list(dict.fromkeys(files))
    if not found:
        names = ", ".join(quote(path, end=True) for path in paths)
        others = f" ({passed_over_note(passed_over)})" if passed_over else ""
        raise DataError(f"no pictures or videos in {names}{others}")
    return found, passed_over


def passed_over_note(passed_over: Counter[str]) -> str:
    """Such as "passed over: 12 .txt, 3 .docx", for people."""
    shown = passed_over.most_common(MOST_ENDINGS)
    counts = [f"{count} {ending}" for ending, count in shown]
    others = passed_over.total() - sum(count for _, count in shown)
    return f"passed over: {', '.join([*counts, *([f'{others} others'] if others else [])])}"


def _files(path: Path, passed_over: Counter[str]) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise DataError(f"{quote(path, end=True)}: no such file or folder")

    def note_unread(error: OSError) -> None:
        passed_over.update(["folder that cannot be read"])

    for folder, below, names in os.walk(path, onerror=note_unread):
        below[:] = sorted(name for name in below if not name.startswith("."))
        passed_over.update("linked folder" for name in below if Path(folder, name).is_symlink())
        for name in sorted(name for name in names if not name.startswith(".")):
            file = Path(folder, name)
            ending = file.suffix.lower()
            if ending in PICTURE_SUFFIXES + VIDEO_SUFFIXES:
                yield file
            else:
                shown = ending if ending[1:].isalnum() else quote(ending)
                passed_over.update([shown if ending else "without ending"])
