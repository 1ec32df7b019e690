"""JSON in, within limits and with one-line errors; whole files and folders out, or none.

What is being written is beside its target, under a name of its own, and locked: a process that was
killed holds no lock, and what it left is removed by whoever writes there next.
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any
from zlib import crc32

from .errors import CheckpointError, SmolVLMError

MAX_JSON_BYTES = 4 * 2**20  # the family's largest, tokenizer.json apart, has 30 kB
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


def read_bytes(path: Path, most: int) -> bytes:
    """The bytes of a checkpoint's file.

    Raises:
        CheckpointError: missing, no file, unreadable, or larger than `most`, whatever its size is
            said to be.
    """
    try:
        data = read_file(path, most)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent}: no {path.name}; give the folder of a SmolVLM checkpoint"
        ) from error
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise CheckpointError(
                f"{path}: {error.strerror}; this is no checkpoint's file"
            ) from error
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return data


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: missing, unreadable, absurdly large, not JSON, or not an object.
    """
    try:
        value = json.loads(read_bytes(path, MAX_JSON_BYTES))
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


# ---- writing

MOST_AT_ONCE = 2**26  # bytes of one write; macOS refuses 2 GiB


@contextmanager
def written(path: Path, kind: type[SmolVLMError]) -> Iterator[None]:
    """Within, what the disk refuses is an error of this kind: that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise kind(f"{path}: cannot be written ({error.strerror or error})") from error


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all bytes, however few the system takes at once.

    Raises:
        OSError: no space, ...
    """
    left = memoryview(data)
    while left:
        count = os.write(descriptor, left[:MOST_AT_ONCE])
        if not count:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        left = left[count:]


def append_file(path: Path, data: bytes) -> None:
    """Write at the end of a file that is there, and sync it: all, or, on an error, nothing.

    Raises:
        OSError: no such file, no space, ...
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        end = os.fstat(descriptor).st_size
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
            if not os.fstat(descriptor).st_nlink:  # removed meanwhile, with all that is in it
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        except BaseException:
            with suppress(OSError):
                os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Write a small file, which appears whole or not at all; one that is there is replaced, behind
    its link if it is one. A pipe or device is written into, and so is what is open already, such as
    /dev/stdout, where that is.

    Raises:
        OSError: no access, no such folder, no space, ...
    """
    if (descriptor := _open_already(path)) is not None:
        write_all(descriptor, data)
        return
    if path.is_fifo() or path.is_char_device():
        with path.open("wb", 0) as file:
            write_all(file.fileno(), data)
        return
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    with new_file(target) as partial, partial.open("wb", 0) as file:
        write_all(file.fileno(), data)


def _open_already(path: Path) -> int | None:
    """The number of what this process has open, where a path or its links name that."""
    for _ in range(40):  # links, of which the system follows as many
        folder = os.path.realpath(path.parent)
        if path.name.isdecimal() and folder == os.path.realpath("/dev/fd"):
            return int(path.name)
        if not path.is_symlink():
            break
        path = Path(folder, os.readlink(path))
    return None


@contextmanager
def new_file(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """An empty file beside `path` to write into, with its ending, which becomes `path` at the end,
    in place of one that is there; or is gone if anything fails.

    Args:
        mode: who may do what with it, from its beginning on, less what the umask forbids.

    Raises:
        OSError: no access, no such folder, no space, ...
    """
    with _partial(path, lambda partial: partial.touch(mode, exist_ok=False)) as partial:
        yield partial
        _sync(partial)
        partial.replace(path)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` to write into, which becomes `out` at the end, or is gone if
    anything fails.

    A crash leaves `out` absent, never partial. Folders above it are made, and removed again on
    failure.

    Raises:
        BusyError: another process makes `out`.
        OSError: no access, not a folder, ...
    """
    made = [folder for folder in out.parents if not folder.exists()]
    try:
        with lock(out), _partial(out, Path.mkdir) as partial:
            if os.path.lexists(out):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(out))
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
        for folder in made:
            with suppress(OSError):  # not made after all, or someone else put something there
                folder.rmdir()


class BusyError(BlockingIOError):
    """Another process writes there."""


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Keep other processes from writing to `path` meanwhile, as far as they ask here; its folder
    is made. Where the file system has no locks nobody is kept.

    Raises:
        BusyError: another process does.
        OSError: no access, ...
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{path.name[:40]}.lock-{crc32(os.fsencode(path.name)):08x}")
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            if not _lock(descriptor, without=True):
                raise BusyError(errno.EWOULDBLOCK, "another run writes to it", str(path))
            if _is_at(file, descriptor):  # else whoever had it has removed it
                try:
                    yield
                finally:
                    _remove(file)
                return
        finally:
            os.close(descriptor)


@contextmanager
def _partial(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A file or folder beside `path`, locked; removed, if it is there at the end."""
    _sweep(path.parent)
    while True:
        name = f".{path.name[:40]}.partial-{_machine()}-{os.urandom(4).hex()}{path.suffix[:10]}"
        partial = path.with_name(name)
        make(partial)
        try:
            descriptor = _opened(partial)
            if descriptor is not None:
                try:
                    yield partial
                finally:
                    os.close(descriptor)
                return
        finally:
            _remove(partial)


def _opened(partial: Path) -> int | None:
    """Its descriptor, locked; None if another process has swept it in between."""
    try:
        descriptor = os.open(partial, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if _lock(descriptor, without=True) and _is_at(partial, descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _sweep(folder: Path) -> None:
    """Remove what this person's processes of this machine, which are gone, were writing."""
    pattern = re.compile(rf"\..{{1,40}}\.partial-{_machine()}-[0-9a-f]{{8}}(\.[^.]*)?", re.DOTALL)
    names = list[str]()
    with suppress(OSError):  # it may be written into, and not listed
        names = os.listdir(folder)
    for name in filter(pattern.fullmatch, names):
        path = folder / name
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                is_own = os.fstat(descriptor).st_uid == os.getuid()
                if is_own and _lock(descriptor, without=False):
                    _remove(path)
            finally:
                os.close(descriptor)


def _machine() -> str:
    """Part of the names of what is being written: locks may not be seen from other machines."""
    return f"{crc32(os.uname().nodename.encode()):08x}"


def _lock(descriptor: int, *, without: bool) -> bool:
    """Hold an open file against other processes, until it is closed or the process is gone; False
    if another does, and `without` where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return without
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    """As far as it can be; who writes there next tries again."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
