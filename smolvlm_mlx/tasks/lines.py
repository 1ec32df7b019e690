"""A file of answers about files: JSONL, a line for each, which can be cut off at any byte and goes
on; and the same as CSV.

A line has `path`, `stat` (the file's size in bytes and time of change), `sha256` (of the file),
`run` (of model, task and settings), `note` where something is unusual about the file, `ended_by`
where the answer was ended because it went in circles, and the answer's fields or `error`.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import append_file, write_file, written

Line = dict[str, Any]
FIELDS = ("path", "stat", "sha256", "run", "note", "ended_by", "error")


def read_lines(path: Path, run: str) -> tuple[list[Line], bool]:
    """The whole lines of a file that is there, all of the same run; and whether there was a piece
    of one more.

    Raises:
        DataError: it holds something else.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
        lines: list[Line] = [
            json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()
        ]
        if not all(
            isinstance(line["path"], str) and isinstance(line["sha256"], str) for line in lines
        ):
            raise ValueError("no captions")
        runs = {line["run"] for line in lines}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: holds something else than captions; choose another --out"
        ) from error
    if runs - {run}:
        raise DataError(
            f"{path}: captions of another model, task or settings; choose another --out"
        )
    return lines, data[-1:] not in (b"", b"\n")


def stat_of(path: str) -> list[float] | None:
    """Size in bytes and time of change in seconds; None if the file is not there."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime]


def current(line: Line) -> Line | None:
    """The line of a file that was answered and is the same; None if it is to be asked about. One
    that has another time, and the same bytes, has that time in its line."""
    stat = stat_of(line["path"])
    if "error" in line or stat is None:
        return None
    if stat == line.get("stat"):
        return line
    try:
        with Path(line["path"]).open("rb") as file:
            is_same = file_digest(file, "sha256").hexdigest() == line["sha256"]
    except OSError:
        return None
    return line | {"stat": stat} if is_same else None


def write_lines(path: Path, lines: Iterable[Line], *, append: bool = False) -> None:
    """In place of what is there, as a whole; or at the end of a file that is there.

    Raises:
        DataError: they cannot be written.
    """
    _write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), append)


def write_csv(path: Path, lines: Sequence[Line]) -> None:
    """A table; lists are joined by semicolons.

    Raises:
        DataError: it cannot be written.
    """
    keys = dict.fromkeys(key for line in lines for key in line)
    columns = [key for key in keys if key not in ("stat", "sha256", "run")]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in line.items()} for line in lines)
    _write(path, text.getvalue())


def _write(path: Path, text: str, append: bool = False) -> None:
    data = text.encode("utf-8", "backslashreplace")  # lone surrogates, of paths that are not UTF-8
    with written(path, DataError):
        if append:
            append_file(path, data)
        elif not (path.is_file() and path.read_bytes() == data):  # a full disk holds no second one
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, data)


def _cell(value: object) -> object:
    if isinstance(value, list):
        return "; ".join(map(str, value))
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@"):
        return f"'{value}"  # no formula
    return value
