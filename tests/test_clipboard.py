"""The clipboard, with programs that stand in for those of the systems."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from smolvlm_mlx.cli.chat.clipboard import copy, read_pictures, through_terminal
from smolvlm_mlx.errors import ImageError
from smolvlm_mlx.inputs.media import Attachment

import pytest
from PIL import Image

IS_MAC = sys.platform == "darwin"
DISPLAYS = ("WAYLAND_DISPLAY", "DISPLAY", "SSH_CONNECTION", "SSH_TTY")
Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes a program of a line of shell; there are no others, and no display."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in DISPLAYS:
        monkeypatch.delenv(name, raising=False)

    def install(name: str, line: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)

    return install


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (30, 20), (200, 0, 0)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def check(found: list[Attachment | Path]) -> None:
    (only,) = found
    assert isinstance(only, Attachment)
    assert (only.name, only.size) == ("clipboard", (30, 20))
    assert only.preview.getpixel((3, 3)) == (200, 0, 0)


@pytest.mark.skipif(IS_MAC, reason="is of other systems than macOS")
@pytest.mark.parametrize(
    ("display", "program"), [("WAYLAND_DISPLAY", "wl-paste"), ("DISPLAY", "xclip")]
)
def test_the_picture_is_read(
    display: str, program: str, install: Install, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(display, ":0")
    with pytest.raises(ImageError, match=f"cannot be read without {program}.*; install it, or"):
        read_pictures()
    install(program, f"exec /bin/cat '{picture}'")
    check(read_pictures())
    install(program, "echo 'No selection, or target image/png not available' >&2; exit 1")
    with pytest.raises(ImageError, match="there is no picture in the clipboard"):
        read_pictures()
    for broken in ("echo no picture", "echo the display is gone >&2; exit 1"):
        install(program, broken)
        with pytest.raises(ImageError, match=r"the clipboard cannot be read .*; give the picture"):
            read_pictures()


@pytest.mark.skipif(not IS_MAC, reason="is of macOS alone")
def test_the_picture_is_read_on_a_mac(install: Install, picture: Path) -> None:
    install("osascript", f"echo '«data PNGf{picture.read_bytes().hex().upper()}»'")
    check(read_pictures())
    install("osascript", "exit 1")
    with pytest.raises(ImageError, match="there is no picture in the clipboard"):
        read_pictures()


@pytest.mark.parametrize(
    ("program", "display"),
    [("pbcopy", ""), ("wl-copy", "WAYLAND_DISPLAY"), ("xclip", "DISPLAY"), ("xsel", "DISPLAY")],
)
def test_a_text_is_copied(
    program: str, display: str, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    line = f"/bin/cat > '{tmp_path}/copied'; echo $LC_ALL > '{tmp_path}/locale'"
    install(program, line)
    if display:
        assert copy("nowhere") is None
        monkeypatch.setenv(display, ":0")
    assert copy("A red *circle* ✓") == program
    assert (tmp_path / "copied").read_text("utf-8") == "A red *circle* ✓"
    assert (tmp_path / "locale").read_text() == "en_US.UTF-8\n"
    monkeypatch.setenv("SSH_TTY", "/dev/pts/1")  # the clipboard is another machine's
    assert copy("nowhere") is None


def test_what_stays_with_the_text_is_not_waited_for(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As xclip does, which keeps open what it may write to."""
    monkeypatch.setenv("DISPLAY", ":0")
    install("xclip", f"/bin/sleep 300 & echo $! > '{tmp_path}/pid'")
    assert copy("A") == "xclip"
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)  # it is still there


def test_a_program_that_fails_has_not_copied(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    install("xclip", "exit 1")
    assert copy("A") is None
    install("xsel", "exit 0")
    assert copy("A") == "xsel"


def test_the_terminal_is_asked() -> None:
    assert through_terminal("Grün") == "\x1b]52;c;R3LDvG4=\x1b\\"
