"""Animated pictures are videos: every frame at its time, on white."""

from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import VideoError
from smolvlm_mlx.events import Work
from smolvlm_mlx.inputs import animation
from smolvlm_mlx.inputs.media import Video
from smolvlm_mlx.inputs.settings import ImageSettings
from smolvlm_mlx.inputs.video import VideoSampling, decode
from tests.support.cli import check_refused
from tests.support.pictures import encoded

import numpy as np
import pytest
from PIL import Image

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
OPTIONS: dict[str, dict[str, Any]] = {
    "GIF": {"disposal": 2},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100},
    "PNG": {},
}


def flag(kind: str, milliseconds: int = 500, mode: str = "RGBA") -> bytes:
    """Each colour for two frames, on the left; the right is clear but for a dot that moves."""
    frames = [Image.new(mode, (63, 47)) for _ in range(6)]
    for number, frame in enumerate(frames):
        frame.paste((*COLOURS[number // 2], 255), (0, 0, 30, 47))
        frame.putpixel((40 + number, 40), (9, 9, 9, 255))
    options: dict[str, Any] = {
        "duration": milliseconds,
        "save_all": True,
        "append_images": frames[1:],
    }
    return encoded(frames[0], kind, **options)


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_frame_comes_at_its_time_and_on_white(kind: str) -> None:
    video = Video(flag(kind))
    assert (video.size, video.duration) == ((63, 47), 3.0)
    clip = decode(video.data, VideoSampling(fps=2))
    assert clip.times == (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
    for number, frame in enumerate(clip.frames):
        pixels = np.asarray(frame).astype(int)
        assert np.abs(pixels[5, 5] - COLOURS[number // 2]).max() < 5
        assert pixels[5, 60].min() > 250


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_one_that_is_cut_off_is_one_line(kind: str, tmp_path: Path, call: Any) -> None:
    data = flag(kind)
    with pytest.raises(VideoError, match=r"damaged|no frames"):
        Video(data[: len(data) // 2])
    (tmp_path / "flag.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError, match=r"^'flag\.bin': .*damaged"):
        Video(tmp_path / "flag.bin")
    check_refused(call("live", tmp_path / "flag.bin", "-m", "tiny"), "flag.bin': the ")


def test_one_whose_frames_are_all_damaged_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    data = flag("WEBP")

    def damaged(_: Image.Image) -> None:
        raise OSError("damaged")

    monkeypatch.setattr(Image.Image, "load", damaged)
    said = "^no frame of the animation can be decoded, it may be damaged$"
    with pytest.raises(VideoError, match=said):
        Video(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_one_whose_last_frame_is_damaged_is_shown_without_it_and_says_so(
    kind: str, mode: str
) -> None:
    video = Video(flag(kind, mode=mode)[:-10] + b"\xff" * 10)
    note = "1 of 6 frames could not be decoded"
    assert (video.duration, video.note) == (2.5, note)
    Work(video.clip(VideoSampling(), ImageSettings(32, 32))).finish()
    assert video.note == note


def test_a_frame_is_shown_for_a_millisecond_at_least() -> None:
    video = Video(flag("WEBP", 0))
    assert video.duration == pytest.approx(0.006)


def test_one_of_too_large_frames_is_refused_before_one_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = flag("WEBP")
    monkeypatch.setattr("smolvlm_mlx.inputs.video_file.MAX_PIXELS", 63 * 47 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("a frame is decoded"))
    with pytest.raises(VideoError, match=f"frames of more than {63 * 47 - 1} pixels"):
        Video(data)


def test_one_of_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 6 * 63 * 47
    assert animation.MOST_PIXELS == 2**32
    monkeypatch.setattr(animation, "MOST_PIXELS", most)
    Video(flag("WEBP"))
    monkeypatch.setattr(animation, "MOST_PIXELS", most - 1)
    with pytest.raises(VideoError, match=f"of {most} pixels in all; the limit is {most - 1}"):
        Video(flag("WEBP"))
