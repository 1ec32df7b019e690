"""What completes a line of the chat, and what reads it, take no longer for hostile lines."""

import time
from contextlib import suppress
from pathlib import Path

from smolvlm_mlx.cli.chat.commands import about
from smolvlm_mlx.cli.chat.completion import CommandCompleter, in_question, paths, setting
from smolvlm_mlx.cli.chat.line import read_line
from smolvlm_mlx.cli.chat.paths import MAX_NAMES, read_path, read_sources
from smolvlm_mlx.errors import FetchError

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

SIZE = 100_000  # characters
SECONDS = 60  # a net: each takes a tenth of one; what grows with the square takes minutes
PIECES = (
    "a",
    "a ",
    "cat.jpg ",
    "是.png",
    "a.jpg.b",
    "x.png,",
    "'",
    "'a ",
    '"a ',
    "\\",
    "\\ ",
    "[",
    "~/",
    "/tmp/a b.png ",
    "https://a ",
    "![a](b.png)",
    "```",
    "\ufeff",
)


def completed(text: str) -> list[str]:
    arguments = {"/ask": in_question, "/image": paths, "/settings": setting}
    completer = CommandCompleter(about(), arguments)
    found = completer.get_completions(Document(text), CompleteEvent())
    return [completion.text for completion in found]


def check_time(line: str) -> None:
    for begun in ("", "/image ", "/settings "):
        start = time.monotonic()
        completed(begun + line)
        assert time.monotonic() - start < SECONDS, begun
    for read in (read_line, read_path, read_sources):
        start = time.monotonic()
        with suppress(FetchError):
            read(line)
        assert time.monotonic() - start < SECONDS, read.__name__


@pytest.mark.parametrize("piece", PIECES)
def test_long_lines_take_no_time(
    piece: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.jpg").touch()
    check_time((piece * SIZE)[:SIZE])


@pytest.mark.parametrize("begun", ["data:image/png;base64,", "'", "http://a.jpg?"])
def test_long_words_take_no_time(begun: str) -> None:
    check_time(begun + "A" * SIZE)


def test_a_line_names_no_more_pictures_than_a_model_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"{number:03}.jpg" for number in range(MAX_NAMES + 1)]
    for name in names:
        (tmp_path / name).touch()
    for text in ("*.jpg", " ".join(names)):
        with pytest.raises(FetchError, match=f"^over {MAX_NAMES} pictures and videos in a line; "):
            read_sources(text)
    with pytest.raises(FetchError, match=f"^over {MAX_NAMES} pictures and videos in a line; "):
        read_line(" ".join(names))
    assert len(read_sources(" ".join(names[1:]))) == MAX_NAMES
    assert len(read_line(" ".join(names[1:])).sources) == MAX_NAMES
