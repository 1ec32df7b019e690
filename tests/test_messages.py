"""A picture or a video may be anything that is one, alone or in a list, before a question or in a
conversation's places for it; what is none is one line."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smolvlm_mlx import Options
from smolvlm_mlx.errors import FetchError, ImageError, PromptError, SmolVLMError
from smolvlm_mlx.inputs.fetch import FetchLimits
from smolvlm_mlx.inputs.media import Attachment, Frames, Video
from smolvlm_mlx.inputs.messages import (
    ImagePart,
    TextPart,
    VideoPart,
    notes,
    parse_messages,
    user_message,
    with_media,
)
from tests.support.pictures import PICTURE, data_url, encoded
from tests.support.videos import encode_video

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

QUESTION = "What is this?"
PIXELS = np.asarray(PICTURE)
PNG = encoded(PICTURE, "PNG")


def one_line(error: BaseException) -> str:
    assert len(str(error)) < 300
    assert "\n" not in str(error)
    return str(error)


# ---- one picture, one video

PICTURES: dict[str, Callable[[Path], Any]] = {
    "path": str,
    "Path": Path,
    "bytes": lambda path: PNG,
    "bytearray": lambda path: bytearray(PNG),
    "memoryview": lambda path: memoryview(PNG),
    "BytesIO": lambda path: io.BytesIO(PNG),
    "data: URL": lambda path: data_url(PNG),
    "base64": lambda path: base64.b64encode(PNG).decode(),
    "PIL": lambda path: PICTURE,
    "PIL, lazy": Image.open,
    "uint8": lambda path: PIXELS,
    "float32": lambda path: (PIXELS / 255).astype(np.float32),
    "float64": lambda path: PIXELS / 255,
    "mx.uint8": lambda path: mx.array(PIXELS),
    "mx.float16": lambda path: mx.array(PIXELS).astype(mx.float16) / 255,
    "part": lambda path: {"type": "image", "path": str(path)},
    "part without type": lambda path: {"path": str(path)},
    "part of OpenAI's": lambda path: {"type": "image_url", "image_url": {"url": data_url(PNG)}},
    "Attachment": Attachment,
    "ImagePart": lambda path: ImagePart(Attachment(path)),
}
VIDEOS: dict[str, Callable[[Path], Any]] = {
    "path": str,
    "Path": Path,
    "bytes": Path.read_bytes,
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "part": lambda path: {"type": "video", "path": str(path)},
    "part without type": lambda path: {"path": str(path)},
    "Video": Video,
    "VideoPart": lambda path: VideoPart(Video(path)),
}
FRAMES: dict[str, Callable[[], Any]] = {
    "list": lambda: [PICTURE, PICTURE],
    "tuple": lambda: (PIXELS, PNG),
    "array": lambda: np.stack([PIXELS, PIXELS]),
    "mx.array": lambda: mx.array(np.stack([PIXELS, PIXELS])),
    "Frames": lambda: Frames([Attachment(PICTURE), Attachment(PICTURE)]),
    "part": lambda: {"type": "video", "frames": [PICTURE, PICTURE]},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "cat.png").write_bytes(PNG)
    return tmp_path / "cat.png"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    path.write_bytes(encode_video(2))
    return path


def pixels_of(part: Any) -> Any:
    (picture,) = part.media
    return np.asarray(picture.preview)


@pytest.mark.parametrize("form", PICTURES)
def test_one_picture_stands_where_several_are_expected(form: str, file: Path) -> None:
    make = PICTURES[form]
    for images in (make(file), [make(file)], (make(file),), iter([make(file)])):
        assert np.array_equal(pixels_of(user_message(QUESTION, images)), PIXELS)


@pytest.mark.parametrize("form", [form for form in PICTURES if "art" not in form])
def test_a_part_holds_what_is_a_picture(form: str, file: Path) -> None:
    content = [{"type": "image", "image": PICTURES[form](file)}]
    (message,) = parse_messages([{"role": "user", "content": content}])
    assert np.array_equal(pixels_of(message), PIXELS)


@pytest.mark.parametrize("form", VIDEOS)
def test_one_video_stands_where_several_are_expected(form: str, clip: Path) -> None:
    make = VIDEOS[form]
    for videos in (make(clip), [make(clip)]):
        (part,) = user_message(QUESTION, videos=videos).media_parts
        assert isinstance(part, VideoPart)
        assert isinstance(part.video, Video)
        assert part.video.data == clip.read_bytes()


@pytest.mark.parametrize("form", FRAMES)
def test_frames_are_a_video(form: str) -> None:
    many = FRAMES[form]()
    for videos in ([many], many) if not isinstance(many, list | tuple) else ([many],):
        (part,) = user_message(QUESTION, videos=videos).media_parts
        assert isinstance(part, VideoPart)
        assert isinstance(part.video, Frames)
        assert [np.asarray(each.preview).tolist() for each in part.video.frames] == [
            PIXELS.tolist()
        ] * 2
    content = [many if form == "part" else {"type": "video", "video": many}]
    (message,) = parse_messages([{"role": "user", "content": content}])
    (part,) = message.media_parts
    assert isinstance(part, VideoPart)
    assert isinstance(part.video, Frames)
    assert (message.media, notes([message])) == ([], [])  # they have no file


def test_pictures_stand_before_videos_and_both_before_the_text(file: Path, clip: Path) -> None:
    parts = user_message(QUESTION, [file, Video(clip)], [clip]).parts
    assert [type(part) for part in parts] == [ImagePart, VideoPart, VideoPart, TextPart]


def test_a_file_that_was_just_written_is_read_from_its_beginning(tmp_path: Path) -> None:
    memory = io.BytesIO()
    PICTURE.save(memory, "PNG")
    with (tmp_path / "dog.png").open("w+b") as opened:
        opened.write(PNG)
        message = user_message(QUESTION, [memory, opened])
    assert [held.name for held in message.media] == ["picture", "dog.png"]
    assert all(np.array_equal(np.asarray(held.preview), PIXELS) for held in message.media)


def test_what_cannot_go_back_is_read_as_it_comes() -> None:
    class Body(io.RawIOBase):
        def __init__(self) -> None:
            self.left = PNG

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            data, self.left = self.left, b""
            return data

    assert np.array_equal(pixels_of(user_message(QUESTION, Body())), PIXELS)


@given(
    st.lists(st.integers(0, 255), min_size=8, max_size=8),
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.sampled_from([(2, 4), (4, 2, 1), (2, 1, 4)]),
)
def test_floats_from_0_to_1_are_the_same_picture(
    values: list[int], kind: Any, shape: tuple[int, ...]
) -> None:
    whole = np.array(values, np.uint8).reshape(shape)
    floats = (whole / 255).astype(kind)
    assert np.array_equal(pixels_of(user_message("", floats)), pixels_of(user_message("", whole)))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([PICTURE, None], "image 2: an image part needs one of"),
        ([[PICTURE]], "an image cannot be of type list; give a path, URL, bytes, open file"),
        (5, "an image cannot be of type int"),
        (Options(), "an image cannot be of type Options"),
        ({"role": "user", "content": "Hi"}, "image 1: an image part needs one of"),
        ({"type": "picture"}, "image 1: part 'picture' is not 'text', 'image' or 'video'"),
        (io.StringIO("a"), 'the file is open as text; open it with "rb"'),
        (np.zeros((3, 40, 50), np.uint8), r"uint8 (3, 40, 50); put the channels last"),
        (np.zeros((1, 40, 50), np.uint8), r"uint8 (1, 40, 50); put the channels last"),
        (np.zeros((4, 40, 50), np.uint8), r"uint8 (4, 40, 50); put the channels last"),
        (np.zeros((2, 40, 50, 3), np.uint8), "this one is uint8 (2, 40, 50, 3)"),
        (np.zeros((40, 50, 3), np.int64), "uint8, or floats from 0 to 1, of (H, W[, 1 | 3 | 4])"),
        (np.zeros((40, 50, 3), bool), "this one is bool"),
        (PIXELS.astype(np.float32), "floats from 0 to 255; divide"),
        (PIXELS / 250, "floats from 0 to 1.02; divide"),
        (PIXELS / -255, "floats from -1 to -0; divide"),
        (np.full((4, 4), np.nan), "floats from nan to nan"),
        (np.full((4, 4), np.inf), "floats from inf to inf"),
        (mx.zeros((4, 4, 3), mx.bfloat16), "of mlx.core.bfloat16 cannot be read; give uint8"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_picture_is_one_line(images: Any, said: str) -> None:
    with pytest.raises(SmolVLMError) as raised:
        user_message(QUESTION, images)
    assert said in one_line(raised.value)


def test_a_closed_file_is_one_line(file: Path) -> None:
    with file.open("rb") as closed:
        pass
    with pytest.raises(SmolVLMError, match="cannot read the open file: I/O operation on closed"):
        user_message(QUESTION, closed)


def test_a_video_among_pictures_is_told(clip: Path, file: Path) -> None:
    with pytest.raises(ImageError, match=r"'clip.mp4' is a video; use .* videos="):
        user_message(QUESTION, clip)
    with pytest.raises(SmolVLMError, match=r"'cat.png' is a picture; use .* images="):
        user_message(QUESTION, videos=file)
    with pytest.raises(SmolVLMError, match="frames as one list"):
        user_message(QUESTION, videos=[PICTURE, PICTURE])


@pytest.mark.parametrize("kind", ["image", "video"])
def test_paths_and_urls_may_be_refused(kind: str, file: Path) -> None:
    for key in (kind, "path", "url"):
        for source in (str(file), "https://example.com/a.png"):
            part = {"type": kind, key: source}
            none = FetchLimits(allow_paths=False, allow_urls=False)
            with pytest.raises(FetchError, match=r"(URLs|local files) are not .* here"):
                parse_messages([{"role": "user", "content": [part]}], none)


# ---- places in a conversation


def asked(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]


PLACE, VIDEO_PLACE = {"type": "image"}, {"type": "video"}


def test_pictures_fill_their_places_in_order(clip: Path) -> None:
    others = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    own = {"type": "image", "image": others[2]}
    first = asked({"type": "image", "image": None}, own, VIDEO_PLACE)
    messages = [
        {"role": "system", "content": "Be brief."},
        *first,
        {"role": "assistant", "content": [{"type": "text", "text": "Two."}]},
        *asked(PLACE),
    ]
    untouched = [dict(message) for message in messages]
    parsed = parse_messages(with_media(messages, iter(others[:2]), clip))
    assert messages == untouched
    assert [message.text for message in parsed] == ["Be brief.", QUESTION, "Two.", QUESTION]
    first_parts, last_parts = parsed[1].media, parsed[3].media
    assert isinstance(first_parts[2], Video)
    colors = [held.preview.getpixel((0, 0)) for held in (*first_parts[:2], *last_parts)]
    assert colors == [(255, 0, 0), (0, 0, 255), (0, 255, 0)]


def test_a_place_keeps_what_it_says_of_its_video(clip: Path) -> None:
    place = {**VIDEO_PLACE, "fps": 2.0, "end": 1.0}
    for video in (clip, Video(clip), VideoPart(Video(clip)), {"path": clip}):
        (message,) = parse_messages(with_media(asked(place), videos=video))
        (part,) = message.media_parts
        assert isinstance(part, VideoPart)
        assert part.options == {"fps": 2.0, "end": 1.0}


@pytest.mark.parametrize("places", range(3))
@pytest.mark.parametrize("count", range(4))
def test_too_few_and_too_many_are_counted(places: int, count: int) -> None:
    messages = asked(*[PLACE] * places)
    if places == count:
        assert len(parse_messages(with_media(messages, [PICTURE] * count))[0].media) == count
        return
    with pytest.raises(PromptError) as raised:
        with_media(messages, [PICTURE] * count)
    said = one_line(raised.value)
    assert said.startswith(f'{count} images, and {places} parts {{"type": "image"}} without')


def test_a_place_for_a_video_is_none_for_a_picture() -> None:
    with pytest.raises(PromptError, match="1 images, and 0 parts"):
        with_media(asked(VIDEO_PLACE), PICTURE)
    with pytest.raises(PromptError, match="0 videos, and 1 parts"):
        with_media(asked(VIDEO_PLACE))


@pytest.mark.parametrize("shape", [(8, 6, 1), (8, 6, 3), (8, 6, 4)])
def test_an_array_of_one_picture_is_no_video(shape: tuple[int, ...]) -> None:
    """Its rows are no frames."""
    picture = np.zeros(shape, np.uint8)
    for videos in (picture, [picture, picture]):
        with pytest.raises(PromptError, match=r"^video 1: an array \(8, 6, \d\) is one picture"):
            user_message("What?", videos=videos)
    part: Any = {"type": "video", "frames": picture}
    with pytest.raises(PromptError, match="is one picture"):
        parse_messages([{"role": "user", "content": [part]}])
    (grey,) = user_message("What?", videos=np.zeros((3, 8, 6), np.uint8)).media_parts
    assert isinstance(grey, VideoPart)
    assert isinstance(grey.video, Frames)
    assert len(grey.video.frames) == 3


def test_paths_come_as_numpy_has_them(tmp_path: Path) -> None:
    """From a column of a table, all or one by one."""
    for name in ("a.png", "b.png"):
        PICTURE.save(tmp_path / name)
    names = np.array([str(tmp_path / "a.png"), str(tmp_path / "b.png")])
    for images in (names, names.astype(object)):
        assert [each.name for each in user_message("What?", images).media] == ["a.png", "b.png"]
    assert [each.name for each in user_message("What?", names[1]).media] == ["b.png"]
