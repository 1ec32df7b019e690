"""Disks that fail, fill, vanish or end the process at a chosen call of the system.

`python -m tests.support.faults FOLDER CALL NTH ARGUMENT...` is the command line, killed at that
call.
"""

import errno
import os
import resource
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir")  # of os
Act = Callable[[Callable[..., Any], tuple[Any, ...]], Any]


@contextmanager
def at_call(folder: Path, name: str, which: Container[int], act: Act) -> Iterator[list[int]]:
    """Do `act` in place of those calls of `os.NAME`, from 1, that are about something below
    `folder`, or about an open file. Gives the number of calls, in a list."""
    call, count = getattr(os, name), [0]

    def watched(*arguments: Any, **options: Any) -> Any:
        if _concerns(folder, arguments[0]):
            count[0] += 1
            if count[0] in which:
                return act(call, arguments)
        return call(*arguments, **options)

    setattr(os, name, watched)
    try:
        yield count
    finally:
        setattr(os, name, call)


def _concerns(folder: Path, what: Any) -> bool:
    if isinstance(what, int):
        mode = os.fstat(what).st_mode
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    return Path(os.fsdecode(what)).is_relative_to(folder)


def fails(number: int) -> Act:
    """The call raises this error."""

    def act(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        raise OSError(number, os.strerror(number))

    return act


ERRORS = {name: fails(getattr(errno, name)) for name in ("ENOSPC", "EIO", "EDQUOT")}


def short(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """One byte is written, of many."""
    descriptor, data = arguments
    return call(descriptor, data[:1])


def vanishes(folder: Path) -> Act:
    """The folder is gone before the call."""

    def act(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        shutil.rmtree(folder)
        return call(*arguments)

    return act


def closes(folder: Path) -> Act:
    """Nothing may be written into the folder any more."""

    def act(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        folder.chmod(0o500)
        return call(*arguments)

    return act


def kills(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The process ends, as by `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may be larger, in bytes: a full disk, without root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


if __name__ == "__main__":
    from smolvlm_mlx.__main__ import main

    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    folder, name, nth, *rest = sys.argv[1:]
    sys.argv = ["smolvlm-mlx", *rest]
    with at_call(Path(folder), name, {int(nth)}, kills):
        main()
