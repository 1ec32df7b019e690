"""Small JSON files of a checkpoint folder, read with limits and one-line errors; and how messages name files."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ImageError, VideoError
from .fetch import short, short_path

MAX_JSON_BYTES = 64 * 2**20
MAX_SHOWN = 120
MAX_JSON_DEPTH = 64  # what is deeper overflows the stack of whoever prints or writes it


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: missing, unreadable, absurdly large, not JSON, or not an object.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{path}: not a file")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB; this is no checkpoint's file")
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent}: no {path.name}; give the folder of a SmolVLM checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged, not JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not an object")
    if _deeper_than(MAX_JSON_DEPTH, value):
        raise CheckpointError(f"{path}: nested more than {MAX_JSON_DEPTH} deep; this is no checkpoint's file")
    return value


def _deeper_than(depth: int, value: object) -> bool:
    level: list[object] = [value]
    for _ in range(depth + 1):
        level = [inner for outer in level for inner in _inside(outer)]
    return bool(level)


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def shown(name: str) -> str:
    """Text that came with a file, fit for an error's one line: no control characters, not endless. Of a long one its
    beginning."""
    text = name if len(name) <= MAX_SHOWN else f"{name[: MAX_SHOWN - 3]}..."
    return text if text.isprintable() else short(name, MAX_SHOWN)


def shown_path(path: str | Path) -> str:
    """As `shown`; of a long path the end, which names the file."""
    name = str(path)
    text = name if len(name) <= MAX_SHOWN else f"...{name[3 - MAX_SHOWN :]}"
    return text if text.isprintable() else short_path(name, MAX_SHOWN)


def reason(error: Exception) -> str:
    """What an error says, without the path that an OSError repeats."""
    return (isinstance(error, OSError) and error.strerror) or shown(str(error))


def read_json_if_there(path: Path) -> dict[str, Any]:
    """As `read_json`; empty if there is no such file."""
    return read_json(path) if path.exists() else {}


@contextmanager
def named(name: str) -> Iterator[None]:
    """What is wrong with a picture or a video within begins with the name of its file, where it has one."""
    try:
        yield
    except (ImageError, VideoError) as error:
        if name in ("picture", "video"):
            raise
        raise type(error)(f"{shown_path(name)}: {error}") from error
