"""The one gate to a terminal: what goes to stdout and stderr is cleaned of what a terminal obeys
and of what deceives its reader; and streams that are closed, full or left by their reader.

Stderr is for people, and always cleaned. Stdout is cleaned on a terminal; in a pipe or a file it is
data, and stays as it is. What is our own to say to a terminal (colors, bars, pictures) goes past
the cleaning by `own`, which is for `rich` and `prompt_toolkit` alone, whose texts are cleaned
before (see `show.Console`).
"""

import errno
import io
import os
import re
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

# Controls other than tab and newline; then, of Unicode's ignorable characters, all but joiners and
# variation selectors, which emoji and scripts need; and what turns the direction of text.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e00ff\U000e01f0-\U000e0fff]"
)


def clean(text: str) -> str:
    """Leave out what a terminal obeys, or what is not seen and deceives. Character by character, so
    that pieces of a text come out as the whole does."""
    return _UNSEEN.sub("", text)


def own(stream: TextIO) -> TextIO:
    """The same stream for what is our own to say to a terminal, or is cleaned already."""
    return cast(TextIO, stream.own) if isinstance(stream, Gate) else stream


class Gate:
    """A stream to write text to, in place of `file`; None, where it is closed.

    When stdout cannot be written, that is said on stderr, unless nobody reads it any longer, and
    the program ends with 1. When stderr cannot, nobody is left to tell, and the work goes on.

    Args:
        cleans: whether text is cleaned.
        vital: whether the program ends when it cannot be written.
    """

    def __init__(self, file: TextIO | None, cleans: bool, vital: bool):
        self.file, self.cleans, self.vital = file, cleans, vital

    @property
    def own(self) -> "Gate":
        """As of `own`; hub.py, which must not import this, knows it by its name."""
        return Gate(self.file, False, self.vital)

    def write(self, text: str) -> int:
        passed = clean(text) if self.cleans else text
        try:
            if self.file is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self.file.write(passed)
        except OSError as error:
            self._fail(error)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            if self.file is not None:
                self.file.flush()
        except OSError as error:
            self._fail(error)

    def isatty(self) -> bool:
        return self.file is not None and self.file.isatty()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the file's, but the way around."""
        if name in ("buffer", "detach", "reconfigure"):
            raise AttributeError(name)
        file = io.TextIOWrapper(io.BytesIO(), "utf-8") if self.file is None else self.file
        return getattr(file, name)

    def _fail(self, error: OSError) -> None:
        """What is still in the file's buffer goes nowhere, so that the end of the program does not
        try again."""
        with suppress(OSError, AttributeError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, cast(TextIO, self.file).fileno())
            os.close(nothing)
        if not self.vital:
            return
        if error.errno != errno.EPIPE:
            print(f"smolvlm-mlx: stdout cannot be written ({error.strerror})", file=sys.stderr)
        raise SystemExit(1)


def install() -> None:
    """Put gates in the place of stdout and stderr. Streams that are closed are none, and their
    numbers no other files'."""
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDWR), errors="backslashreplace")
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            os.open(os.devnull, os.O_RDWR)
    for name, vital in (("stdout", True), ("stderr", False)):
        file = getattr(sys, name)
        file = file.file if isinstance(file, Gate) else file
        if isinstance(file, io.TextIOWrapper):
            # A terminal may not have every character of an answer; half a surrogate pair, of a
            # file's name, is none.
            file.reconfigure(errors="backslashreplace")
        is_data = vital and not (file is not None and file.isatty())
        setattr(sys, name, Gate(file, not is_data, vital))
