"""Where folders have long names, as macOS's temporary ones do, errors still say which file they are
about."""

import re
from collections.abc import Callable
from pathlib import Path

from smolvlm_mlx import Chat
from smolvlm_mlx.checkpoint.adapters import open_adapter
from smolvlm_mlx.checkpoint.hub import find
from smolvlm_mlx.checkpoint.safetensors import find_shards, read_header
from smolvlm_mlx.data.rows import read_rows
from smolvlm_mlx.errors import FetchError, ImageError, SmolVLMError, VideoError, cut, quote, reason
from smolvlm_mlx.files import read_json
from smolvlm_mlx.inputs.fetch import FetchLimits, fetch, read_path
from smolvlm_mlx.inputs.image import load_image
from smolvlm_mlx.inputs.media import Attachment, Video, attach
from smolvlm_mlx.inputs.pdf import count_pages, is_pdf
from smolvlm_mlx.inputs.video import read_video
from smolvlm_mlx.tasks.folders import find_files
from smolvlm_mlx.tasks.history import private_folder
from smolvlm_mlx.tasks.lines import read_lines

import pytest

NOTHING = FetchLimits(max_bytes=3)


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A folder whose path is longer than any message shows."""
    folder = tmp_path.joinpath(*["folder-with-a-long-name" + "-x" * 40] * 4)
    folder.mkdir(parents=True)
    return folder


def open_chat(path: Path) -> None:
    Chat.open(Chat.__new__(Chat), path)


# What fails on a file that is not there.
ABSENT: dict[str, Callable[[Path], object]] = {
    "picture": load_image,
    "picture, by text": lambda path: load_image(str(path)),
    "picture, by key": lambda path: load_image({"path": str(path)}),
    "picture, by URL": lambda path: fetch(f"file://{path}"),
    "picture, not allowed": lambda path: read_path(path, FetchLimits(allow_paths=False)),
    "video": read_video,
    "attachment": attach,
    "checkpoint": find,
    "weights": find_shards,
    "JSON": read_json,
    "adapter": open_adapter,
    "rows": read_rows,
    "PDF": is_pdf,
    "pages": count_pages,
    "files": lambda path: find_files([path]),
    "conversation": open_chat,
}
# And on one that holds something else.
DAMAGED: dict[str, Callable[[Path], object]] = {
    "picture": load_image,
    "picture, by text": lambda path: load_image(str(path)),
    "picture, by key": lambda path: load_image({"path": str(path)}),
    "picture, too large": lambda path: load_image(path, NOTHING),
    "video, too large": lambda path: read_video(path, NOTHING),
    "video": Video,
    "attachment": Attachment,
    "attached video": lambda path: attach(path.rename(path.with_name("photo.jpg.mp4"))),
    "checkpoint": find,
    "weights": lambda path: list(read_header(path)),
    "JSON": read_json,
    "rows": read_rows,
    "pages": count_pages,
    "conversation": open_chat,
    "captions": lambda path: read_lines(path, "run"),
    "history": private_folder,
}


def message(call: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(SmolVLMError) as caught:
        call(path)
    return str(caught.value)


@pytest.mark.parametrize("kind", ABSENT)
def test_what_is_missing_is_named(kind: str, deep: Path) -> None:
    assert "photo.jpg" in message(ABSENT[kind], deep / "photo.jpg")


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_damaged_is_named(kind: str, deep: Path) -> None:
    path = deep / "photo.jpg"
    path.write_bytes(b"\xff\xfe no file of ours\n")
    assert "photo.jpg" in message(DAMAGED[kind], path)


def test_folders_in_the_way_are_named(deep: Path) -> None:
    for call in (load_image, read_video, read_json, is_pdf):
        assert deep.name[-20:] in message(call, deep)


def test_a_written_picture_is_not_taken_for_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "QUJD" * 30  # base64
    for part in (text, {"base64": text}, {"url": f"data:image/png;base64,{text}"}):
        with pytest.raises(ImageError, match=r"^the picture is text"):
            load_image(part)
    monkeypatch.chdir(tmp_path)
    Path(text).write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"^'.*QUJD' is text"):
        load_image(text)
    with pytest.raises(ImageError, match=r"^the picture is text"):
        load_image({"base64": text})


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize(
    "text", ["a" * 500, "\n" * 500, "\ud800" * 90, "é\x1b'\"" * 40, "b" * 121, "\u202e" * 119]
)
def test_what_is_quoted_is_one_short_line(end: bool, text: str) -> None:
    assert quote(text, end=end).isprintable()
    assert len(quote(text, end=end)) <= 80


def test_an_error_is_one_line_and_moves_no_cursor() -> None:
    assert str(VideoError("a\x1b[31m\nb é")) == r"a\x1b[31m\nb é"


def test_text_shows_its_beginning_and_a_path_its_end() -> None:
    text = "beginning" + "-" * 200 + "end"
    assert re.fullmatch(r"'beginning-+\.\.\.'", quote(text))
    assert re.fullmatch(r"'\.\.\.-+end'", quote(text, end=True))
    assert re.fullmatch(r"beginning-+\.\.\.", cut(text))
    assert [quote("a b"), quote(Path("a b"), end=True), quote(2.5), quote(None)] == [
        "'a b'",
        "'a b'",
        "2.5",
        "None",
    ]


def test_an_url_shows_its_host() -> None:
    with pytest.raises(FetchError, match=r"'https://example\.com/xxx"):
        load_image({"url": "https://example.com/" + "x" * 500}, FetchLimits(allow_urls=False))


def test_a_reason_has_no_path(deep: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (deep / "a").read_bytes()
    assert reason(caught.value) == "No such file or directory"
    assert reason(ValueError("a" * 500)) == "a" * 117 + "..."
