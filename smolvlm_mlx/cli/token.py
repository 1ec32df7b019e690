"""The token of this user's servers: the same from run to run, in a file for this user alone."""

import errno
import os
import re
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

from ..errors import ServerError, escaped
from ..files import BusyError, lock, new_file, write_all

BUSY_SECONDS = 5  # for another start, which makes the token
FORM = re.compile(rb"([A-Za-z0-9_-]{32,128})\n?")


def token_file() -> Path:
    """Return where it is kept."""
    from ..tasks.history import data_folder

    return data_folder() / "token"


def random_token() -> str:
    import secrets

    return secrets.token_urlsafe(24)


def kept_token(*, new: bool = False) -> str:
    """Return the token that is kept; another where there is none, or `new` is asked for. One that
    is damaged, or that others may have read, is replaced; that, and what cannot be kept, is said on
    stderr."""
    path, found = token_file(), None
    try:
        found = None if new else _read(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        _say(f"{path}: {error.strerror}; there is a new token, which browsers are to be given")
    if found is None:
        found = random_token()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = _keep(path, found, new)
        except OSError as error:
            why = f"cannot be written ({error.strerror}); the token is for this run alone"
            _say(f"{path}: {why}")
    return found


def _keep(path: Path, token: str, new: bool) -> str:
    """Write a token, and return it; or that which another start has made meanwhile.

    Raises OSError: it cannot be written.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            with lock(path):
                with suppress(OSError):
                    if not new:
                        return _read(path)
                with new_file(path, 0o600) as partial, partial.open("wb", 0) as file:
                    write_all(file.fileno(), f"{token}\n".encode())
                return token
        except BusyError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def checked_token(token: str) -> str:
    """Return a token that was typed, if it can be sent.

    Raises ServerError: it is empty, or cannot be in a header of HTTP.
    """
    if token == "":
        raise ServerError("--token is empty; leave it out for the one that is kept")
    if not re.fullmatch("[!-~]([ -~]*[!-~])?", token):
        raise ServerError("--token: give ASCII letters, digits and signs, and no space at an end")
    return token


def _read(path: Path) -> str:
    """The token in a file.

    Raises OSError: there is no such file, or none to trust.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "not a file")
        if state.st_uid != os.geteuid():
            raise OSError(errno.EPERM, "another user's")
        if state.st_mode & 0o077:
            raise OSError(errno.EPERM, "others could read it")
        found = FORM.fullmatch(file.read(200))
    if found is None:
        raise OSError(errno.EINVAL, "damaged")
    return found[1].decode()


def _say(text: str) -> None:
    print(f"smolvlm-mlx: {escaped(text)}", file=sys.stderr)
