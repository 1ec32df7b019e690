"""Pictures and videos that a message owns: their names, also where something is wrong with them,
and that nothing is decoded twice."""

from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import ImageError, VideoError
from smolvlm_mlx.events import Work
from smolvlm_mlx.inputs.fetch import FetchLimits
from smolvlm_mlx.inputs.media import Attachment, Frames, Recent, Video
from smolvlm_mlx.inputs.settings import ImageSettings
from smolvlm_mlx.inputs.video import VideoSampling
from smolvlm_mlx.inputs.video_file import upright
from tests.support.pictures import PICTURE, encoded
from tests.support.videos import encode_video

import pytest
from PIL import Image

PNG = encoded(PICTURE, "PNG")
SETTINGS = ImageSettings(32, 64)
FOLDERS = "folder " * 20


def test_what_has_no_file_is_named_by_its_kind(tmp_path: Path) -> None:
    data = encode_video(2)
    (tmp_path / "clip.mp4").write_bytes(data)
    (tmp_path / "cat.png").write_bytes(PNG)
    pictures = [Attachment(PNG), Attachment(tmp_path / "cat.png"), Attachment(PNG, name="dog")]
    videos = [Video(data), Video(tmp_path / "clip.mp4"), Video(data, name="film")]
    assert [held.name for held in pictures] == ["picture", "cat.png", "dog"]
    assert [held.name for held in videos] == ["video", "clip.mp4", "film"]


def test_the_last_sixteen_pictures_are_kept() -> None:
    recent = Recent()
    files = [encoded(Image.new("RGB", (4, 4), (shade, 0, 0)), "PNG") for shade in range(17)]

    def owned(number: int) -> Attachment:
        return recent.attachment(files[number], FetchLimits(), None)

    first = owned(0)
    for number in range(1, 16):
        owned(number)
    assert owned(0) is first
    for number in range(1, 17):
        owned(number)
    assert owned(0) is not first


def test_a_preview_is_small() -> None:
    large = encoded(Image.new("RGB", (2000, 16)), "PNG")
    for held in (Attachment(large), Video(encode_video(1, size=(2000, 16)))):
        assert (held.size, held.preview.size) == ((2000, 16), (1024, 8))


WRONG: list[tuple[Any, str]] = [
    (b"\1" * 9, " is not a readable picture; "),
    (encoded(Image.new("RGB", (9, 9)), "BMP")[:30], " cannot be decoded, it may be damaged: "),
    (PNG, ": a picture of "),
    (Image.new("RGB", (70_000, 1)), ": the picture has 70000 x 1 pixels; "),
]


@pytest.mark.parametrize(("source", "said"), WRONG, ids=lambda value: str(value)[:20])
def test_what_is_wrong_with_a_picture_begins_with_the_end_of_its_name(
    source: Any, said: str
) -> None:
    with pytest.raises(ImageError, match=rf"^'\.\.\..*{FOLDERS[-60:]}a.png'{said}"):
        Attachment(source, FetchLimits(max_bytes=100), f"{FOLDERS}a.png")


@pytest.mark.parametrize(("data", "said"), [(PNG, " is a picture; "), (bytes(99), ": the video ")])
def test_what_is_wrong_with_a_video_begins_with_the_end_of_its_name(data: bytes, said: str) -> None:
    with pytest.raises(VideoError, match=rf"^'\.\.\..*{FOLDERS[-60:]}a.mp4'{said}"):
        Video(data, name=f"{FOLDERS}a.mp4")


def test_frames_of_a_video_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def counted(frame: Any) -> Image.Image:
        made.append(frame)
        return upright(frame)

    monkeypatch.setattr("smolvlm_mlx.inputs.video.upright", counted)
    held = Video(encode_video(30))
    assert len(made) == 1
    cut = [
        Work(held.clip(VideoSampling(), settings)).finish()
        for settings in (SETTINGS, SETTINGS, ImageSettings(16, 64), SETTINGS)
    ]
    assert cut[0] is cut[1]
    assert len(made) == 1 + 3 * len(cut[0].frames)


def test_frames_that_were_chosen_are_shown_at_their_rate() -> None:
    frames = [Attachment(PICTURE)] * 3
    clips = [Work(Frames(frames, fps).clip(VideoSampling(), SETTINGS)) for fps in (4.0, None)]
    found = [(clip.times, clip.duration) for clip in (work.finish() for work in clips)]
    assert found == [((0.0, 0.25, 0.5), 0.75), ((0.0, 1 / 24, 2 / 24), 0.125)]
