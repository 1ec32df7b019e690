"""Cameras and files that stand for one: the newest frame alone, at a file's own pace, clear ends
and errors."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import VideoError
from smolvlm_mlx.inputs import camera
from smolvlm_mlx.inputs.camera import Camera, Frame
from tests.support.videos import encode_numbers, encode_video, sound, with_empty

import av
import numpy as np
import pytest


def number_of(frame: Frame | None) -> int:
    """Which frame of `encode_video` it is."""
    assert frame is not None
    return round(float(np.asarray(frame.image)[:, 32:].mean()) / 8)


def reading() -> list[threading.Thread]:
    """The threads of cameras."""
    return [thread for thread in threading.enumerate() if thread.name == "camera"]


def wait_for_end() -> None:
    for thread in reading():
        thread.join(60)
    assert reading() == []


# ---- files


def test_only_the_newest_frame_is_kept_and_the_others_are_counted() -> None:
    with Camera(encode_video(20, 100)) as source:
        first = source.newest()
        wait_for_end()
        last = source.newest()
        assert number_of(first) < number_of(last) == 19
        assert first is not None
        assert last is not None
        assert 2 + first.dropped + last.dropped == 20
        assert source.newest() is None
        assert source.newest() is None


def test_every_frame_is_taken_or_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(camera, "perf_counter", lambda: next(clock) ** 2)
    with Camera(encode_video(12, 50)) as source:
        frames = list(source)
    assert [frame.seconds for frame in frames] == [4 * n + 1 for n in range(len(frames))]
    numbers = [number_of(frame) for frame in frames]
    assert numbers == sorted(set(numbers))
    assert len(frames) + sum(frame.dropped for frame in frames) == 12
    image = frames[0].image
    assert image.size == (64, 48)
    assert Frame(image) == Frame(image, dropped=0, seconds=0.0)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each frame's time is waited for, in a pretended clock."""
    waits: list[float] = []

    class Pretended(threading.Event):
        """Somebody who looks is waited for, before anything is played."""

        looked = False

        def wait(self, timeout: float | None = None) -> bool:
            if timeout is None:
                Pretended.looked = super().wait()
                return Pretended.looked
            assert Pretended.looked
            waits.append(round(timeout, 6))
            return False

    monkeypatch.setattr(camera, "monotonic", lambda: 100 + sum(waits))
    monkeypatch.setattr(camera, "Event", Pretended)
    return waits


def test_a_file_plays_at_its_own_pace_from_the_first_look(waits: list[float]) -> None:
    with Camera(encode_video(6, 20)) as source:
        assert list(source)
    assert waits == [0, *[0.05] * 5]


def test_a_pause_is_bounded(waits: list[float]) -> None:
    with Camera(encode_video(3, 10, "matroska", times=[0, 3_600_000, 7_200_000])) as source:
        assert number_of(list(source)[-1]) == 2
    assert waits == [0, 5, 5]


def test_frames_that_are_decoded_in_another_order_keep_their_pace(waits: list[float]) -> None:
    """AVI has the times of decoding alone."""
    with Camera(encode_numbers(51, "avi", "libx264")) as source:
        assert list(source)
    assert sum(waits) == pytest.approx(2)


def test_a_file_of_which_nothing_can_be_decoded_is_one_line() -> None:
    with (
        Camera(with_empty(encode_numbers(5, "mp4", "mjpeg"), "matroska")) as source,
        pytest.raises(VideoError, match="no frame of the video can be decoded"),
    ):
        source.newest()


def test_close_ends_a_thread_that_waits_for_the_next_frame() -> None:
    with Camera(encode_video(3, 10, "matroska", times=[0, 4000, 8000])) as source:
        assert [thread.daemon for thread in reading()] == [True]  # a driver may never return
        assert number_of(source.newest()) == 0
    assert reading() == []
    assert source.newest() is None
    unseen = Camera(encode_video(3))
    unseen.close()
    assert reading() == []


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"nonsense" * 100, "cannot be decoded"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "cannot be decoded"),
        (sound(), "sound but no video"),
    ],
)
def test_no_video_is_one_line(data: bytes, error: str) -> None:
    with pytest.raises(VideoError, match=error) as caught:
        Camera(data)
    assert "\n" not in str(caught.value)
    with pytest.raises(VideoError, match=r"^'a/clip\.mp4': "):
        Camera(data, "a/clip.mp4")


# ---- devices


class Device:
    """Stands for av.open and for what it gives: a call of `decode` gives the frames of the next
    turn, and raises its error."""

    def __init__(self, *turns: list[Any]):
        self.turns = list(turns)
        self.opened: tuple[str, str, dict[str, str]] = ("", "", {})
        self.is_closed = False

    def __call__(self, name: str, **options: Any) -> "Device":
        self.opened = (name, options["format"], options["options"])
        return self

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *error: object) -> None:
        self.is_closed = True

    def decode(self, video: int) -> Iterator[av.VideoFrame]:
        turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        for gray in turn:
            if isinstance(gray, Exception):
                raise gray
            yield av.VideoFrame.from_ndarray(np.full((48, 64, 3), gray * 8, np.uint8), "rgb24")


NOT_YET = av.error.BlockingIOError(35, "Resource temporarily unavailable")
BROKEN = av.error.InvalidDataError(1094995529, "Invalid data found")


def test_a_device_that_is_not_ready_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(
        [NOT_YET], [BROKEN], [3, NOT_YET], [NOT_YET], [4, 5, OSError(19, "No such device")]
    )
    monkeypatch.setattr(av, "open", device)
    with Camera("1") as source:
        wait_for_end()
        assert number_of(source.newest()) == 5
        with pytest.raises(VideoError, match="camera '1': No such device; it has to be"):
            source.newest()
    assert camera.POLL < 1 / 60  # seconds: no frame of a quick camera is missed
    assert device.opened == {
        "linux": ("/dev/video1", "v4l2", {}),
        "darwin": ("1:none", "avfoundation", {"framerate": "30"}),
    }.get(sys.platform, device.opened)


def test_a_device_that_ends_or_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "open", Device([7]))
    with Camera("front") as source:
        wait_for_end()
        assert number_of(source.newest()) == 7
        with pytest.raises(VideoError, match="camera 'front' gives no more frames"):
            source.newest()
    monkeypatch.setattr(av, "open", Device([NOT_YET]))
    with Camera("0") as source:
        monkeypatch.setattr(camera, "SILENCE", 0.05)
        with pytest.raises(VideoError, match="camera '0' gave no frame for 0 seconds"):
            source.newest()
    assert reading() == []


def test_cameras_that_do_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(error: Exception) -> str:
        def fail(*arguments: Any, **options: Any) -> None:
            raise error

        monkeypatch.setattr(av, "open", fail)
        with pytest.raises(VideoError) as caught:
            Camera("77")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert refuse(av.error.FileNotFoundError(2, "No such file", "/dev/video77")) == (
        "camera '77': there is no such camera"
    )
    assert refuse(av.error.PermissionError(13, "Permission denied")).startswith(
        "camera '77': permission denied; "
    )
    assert "no other program uses" in refuse(av.error.OSError(16, "Device or resource busy"))
    assert "no container format 'v4l2'" in refuse(ValueError("no container format 'v4l2'"))
    monkeypatch.setattr(camera, "DEVICES", {})
    with pytest.raises(
        VideoError, match="cameras are read on macOS and Linux; give a video file instead"
    ):
        Camera("0")


def test_a_camera_that_does_not_open_in_time_is_closed_when_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, allowed = Device([NOT_YET]), threading.Event()

    def ask(name: str, **options: Any) -> Device:
        assert allowed.wait(60)
        return device(name, **options)

    monkeypatch.setattr(av, "open", ask)
    monkeypatch.setattr(camera, "SILENCE", 0.01)
    name = "Front camera " * 20
    said = rf"^camera '\.\.\..*{name[-60:]}' does not open; {camera.ALLOWING[sys.platform]}$"
    with pytest.raises(VideoError, match=said):
        Camera(name)
    allowed.set()
    wait_for_end()
    assert device.is_closed


@pytest.mark.skipif(sys.platform != "linux", reason="cameras are files on Linux")
def test_what_is_no_camera(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="there is no such camera"):
        Camera(str(tmp_path / "video9"))
    (tmp_path / "video9").write_bytes(encode_video(3))
    # A path that is given as a device is not read.
    with pytest.raises(VideoError, match="it has to be a camera"):
        Camera(str(tmp_path / "video9"))


@pytest.mark.skipif("lavfi" not in av.formats_available, reason="this PyAV has no pretended camera")
def test_a_device_of_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "DEVICES", {sys.platform: ("lavfi", "{}", {})})
    with Camera("testsrc=size=64x48:rate=60,realtime") as source:
        frames = [source.newest() for _ in range(3)]
        pictures = [frame.image for frame in frames if frame is not None]
        assert [picture.size for picture in pictures] == [(64, 48)] * 3
    assert reading() == []
