"""JSON in, within limits and with one-line errors; whole files and folders out, or none."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from .errors import CheckpointError

MAX_JSON_BYTES = 64 * 2**20
MAX_JSON_DEPTH = 64  # what is deeper overflows the stack of whoever prints or writes it


def expanded(path: str | Path) -> Path:
    """A path with a person's folder in place of `~`; as it is, where there is no such person."""
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # a zero byte, or half a surrogate pair
        return Path(path)


def is_utf8(path: Path) -> bool:
    """Whether a path can be written as UTF-8, which on Linux any bytes may be the name of."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_file(path: Path, most: int) -> bytes:
    """The bytes of a file of at most so many.

    Raises:
        OSError: no access, no such file, larger, or no file: a pipe would be waited for, and a
            device may never end.
    """
    if path.exists() and not path.is_file():
        number = errno.EISDIR if path.is_dir() else errno.EINVAL
        raise OSError(number, "a folder" if path.is_dir() else "not a file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most >> 20} MiB")
    return data


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: missing, unreadable, absurdly large, not JSON, or not an object.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{path}: not a file")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB; this is no checkpoint's file"
            )
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent}: no {path.name}; give the folder of a SmolVLM checkpoint"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged, not JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not an object")
    if _deeper_than(MAX_JSON_DEPTH, value):
        raise CheckpointError(
            f"{path}: nested more than {MAX_JSON_DEPTH} deep; this is no checkpoint's file"
        )
    return value


def _deeper_than(depth: int, value: object) -> bool:
    level: list[object] = [value]
    for _ in range(depth + 1):
        inside = (
            each.values() if isinstance(each, dict) else each
            for each in level
            if isinstance(each, dict | list)
        )
        level = [*chain.from_iterable(inside)]
    return bool(level)


def read_json_if_there(path: Path) -> dict[str, Any]:
    """As `read_json`; empty if there is no such file."""
    return read_json(path) if path.exists() else {}


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` to write into, which becomes `out` at the end, or is gone if
    anything fails.

    A crash leaves `out` absent, never partial. Folders above it are made, and removed again on
    failure.

    Raises:
        OSError: no access, not a folder, ...
    """
    made = [folder for folder in out.parents if not folder.exists()]
    partial = out.with_name(f".{out.name[:40]}.partial-{secrets.token_hex(4)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        for path in (*partial.rglob("*"), partial):
            _sync(path)
        partial.rename(out)
        try:
            _sync(out.parent)
        except OSError:
            out.rename(partial)
            raise
        made = []
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already, if all went well
        for folder in made:
            with suppress(OSError):  # not made after all, or someone else put something there
                folder.rmdir()


def write_file(path: Path, data: bytes) -> None:
    """Write a small file, which appears whole or not at all; one that is there is replaced.

    Raises:
        OSError: no access, no such folder, no space, ...
    """
    partial = path.with_name(f".{path.name[:40]}.partial-{secrets.token_hex(4)}")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
