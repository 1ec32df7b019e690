"""The clipboard: the picture in it, and text into it, through the programs that each system has for
it, or through the terminal."""

import base64
import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shutil import which

from PIL import Image, ImageGrab

from ...errors import ImageError, reason
from ...inputs.media import Attachment

# Programs that take a text from stdin, and the variable that says that their display is there.
_COPIERS = (
    (("pbcopy",), ""),
    (("wl-copy",), "WAYLAND_DISPLAY"),
    (("xclip", "-selection", "clipboard"), "DISPLAY"),
    (("xsel", "--clipboard", "--input"), "DISPLAY"),
)
_SECONDS = 10  # for a program that hangs


def read_pictures() -> list[Attachment | Path]:
    """The picture in the clipboard, or the files.

    Raises:
        ImageError: there is none, or the clipboard cannot be read.
    """
    try:
        found = ImageGrab.grabclipboard()
    except NotImplementedError as error:
        programs = "wl-paste (of wl-clipboard)" if os.getenv("WAYLAND_DISPLAY") else "xclip"
        raise ImageError(
            f"the clipboard cannot be read without {programs}; install it, or give the picture's "
            "file"
        ) from error
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"the clipboard cannot be read ({reason(error)}); give the picture's file"
        ) from error
    if not found:
        raise ImageError("there is no picture in the clipboard; copy one, or give its file")
    if isinstance(found, Image.Image):
        return [Attachment(found, name="clipboard")]
    return [Path(path) for path in found]


def copy(text: str) -> str | None:
    """Put a text into the clipboard of this machine; returns the program that took it, or None:
    there is none, or the user is at another machine."""
    if os.getenv("SSH_CONNECTION") or os.getenv("SSH_TTY"):
        return None
    for command, display in _COPIERS:
        if (not display or os.getenv(display)) and which(command[0]):
            with suppress(OSError, subprocess.SubprocessError):
                _give(command, text)
                return command[0]
    return None


def _give(command: Sequence[str], text: str) -> None:
    """Run a program with a text on stdin, in UTF-8: pbcopy takes it for what the locale says. Some
    stay there to hand it on, so that the end of what they write would not come."""
    subprocess.run(
        command,
        input=text.encode("utf-8", "replace"),
        env={**os.environ, "LC_ALL": "en_US.UTF-8"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_SECONDS,
        check=True,
    )


def through_terminal(text: str) -> str:
    """What asks a terminal to take a text into its clipboard (OSC 52)."""
    data = base64.b64encode(text.encode("utf-8", "replace")).decode()
    return f"\x1b]52;c;{data}\x1b\\"
