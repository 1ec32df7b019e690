"""The newest frame of a camera, or of a video file that stands for one.

In goes a camera (its number or its device's name) or an encoded video; out come `Frame`s. A thread
reads every frame and keeps the newest alone: who looks seldom misses frames, and never sees old
ones. A file plays once, at its own pace, from the moment that somebody looks. Knows nothing about
models.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Lock, Thread
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

from PIL import Image

from ..errors import VideoError, cut, named, quote, reason
from .video_file import opened, play_timed, upright

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# ffmpeg's input device, how it names camera {}, and its options. Built-in Mac cameras refuse
# avfoundation's default rate of 29.97 frames a second.
DEVICES: dict[str, tuple[str, str, dict[str, str]]] = {
    "darwin": ("avfoundation", "{}:none", {"framerate": "30"}),
    "linux": ("v4l2", "/dev/video{}", {}),
}
ALLOWING = {
    "darwin": "allow this terminal the camera in System Settings, Privacy & Security",
    "linux": "whoever uses it has to be in the group `video`",
}
# Seconds without a frame, after which a camera is broken; meanwhile people are asked to allow it.
SILENCE = 30.0
LONGEST_PAUSE = 5.0  # seconds between two frames of a file, whatever its times say
POLL = 0.005  # seconds until a device that has no frame yet is asked again


@dataclass(frozen=True)
class Frame:
    """A frame, upright and in RGB, as the camera sees it: not mirrored."""

    image: Image.Image
    dropped: int = 0  # frames since the frame before that nobody saw
    seconds: float = 0.0  # that it took to make a picture of the frame


class Camera:
    """Iterate over it for the newest frame, each time there is a new one; close it, or use it as a
    context.

    Args:
        source: a camera's number, the name of its device, or the bytes of an encoded video (see
            `animation.as_video`).
        name: of the file that the video came from, which errors then name.

    Raises:
        VideoError: there is no such camera, it may not be used, or the file holds no video.
    """

    def __init__(self, source: str | bytes, name: str | None = None):
        self._source, self._file = source, name
        self._name = (
            "the video" if isinstance(source, bytes) else f"camera {quote(str(source), end=True)}"
        )
        self._guard = Lock()  # of the newest frame and of what was missed
        # Released when there is something new. A Condition that Ctrl-C interrupts may be left half
        # locked, a lock may not.
        self._news = Lock()
        self._frame: VideoFrame | None = None  # the newest, until it is taken
        self._missed = 0
        self._opened = self._over = False
        self._error: VideoError | None = None
        self._looking, self._closing = Event(), Event()
        self._thread = Thread(target=self._read, name="camera", daemon=True)
        self._thread.start()
        # Waiting, unlike opening, can be interrupted.
        self._wait_until(lambda: self._opened or self._over)
        if not self._opened:
            self.close()
            raise self._error or VideoError(f"{self._name} does not open; {_allowing()}")

    def __enter__(self) -> "Camera":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        while (newest := self.newest()) is not None:
            yield newest

    def newest(self) -> Frame | None:
        """The newest frame that was not taken yet, which may have to be waited for; None at the end
        of a file.

        Raises:
            VideoError: the camera fails, or the rest of the file cannot be decoded.
        """
        self._looking.set()
        if not self._wait_until(lambda: self._frame is not None or self._over):
            raise VideoError(f"{self._name} gave no frame for {SILENCE:.0f} seconds")
        with self._guard:
            frame, self._frame = self._frame, None
            missed, self._missed = self._missed, 0
        if frame is None:
            if self._error is not None:
                raise self._error
            return None
        started = perf_counter()
        return Frame(upright(frame), missed, perf_counter() - started)

    def close(self) -> None:
        """End the reading; a second time, nothing."""
        self._closing.set()
        self._looking.set()
        self._thread.join(1.0)  # a driver may hold the thread, which then ends with the program

    def _wait_until(self, ready: Callable[[], bool]) -> bool:
        deadline = monotonic() + SILENCE
        while not ready():
            if not self._news.acquire(timeout=max(deadline - monotonic(), 0.0)):
                return ready()
        return True

    # ---- in the thread

    def _read(self) -> None:
        try:
            if isinstance(self._source, bytes):
                with named(self._file), opened(self._source) as (file, stream):
                    self._play(file, stream)
            else:
                with _device(self._source, self._name) as file:
                    self._watch(file)
        except VideoError as error:
            self._error = error
        finally:
            self._over = True
            self._tell()

    def _play(self, file: "InputContainer", stream: "VideoStream") -> None:
        """The frames of a file, each when its time has come."""
        self._ready()
        self._looking.wait()
        due, last = monotonic(), 0.0
        for time, frame in play_timed(file, stream):
            due += min(max(time - last, 0.0), LONGEST_PAUSE)
            last = max(last, time)
            if self._closing.wait(max(due - monotonic(), 0.0)):
                return
            self._put(frame)

    def _watch(self, file: "InputContainer") -> None:
        """The frames of a device as they come."""
        import av

        self._ready()
        while not self._closing.is_set():
            # avfoundation says so when it has no frame yet; the first of a webcam may be half a
            # picture.
            with suppress(BlockingIOError, av.InvalidDataError):
                for frame in file.decode(video=0):
                    self._put(frame)
                    if self._closing.is_set():
                        return
                raise VideoError(f"{self._name} gives no more frames")
            self._closing.wait(POLL)

    def _ready(self) -> None:
        self._opened = True
        self._tell()

    def _put(self, frame: "VideoFrame") -> None:
        with self._guard:
            self._missed += self._frame is not None and self._looking.is_set()
            self._frame = frame
        self._tell()

    def _tell(self) -> None:
        # Otherwise the news before have not been heard yet, and these come with them.
        if self._news.locked():
            self._news.release()


@contextmanager
def _device(source: str, name: str) -> "Iterator[InputContainer]":
    """A camera; VideoError if it cannot be opened, or fails within the context."""
    import av

    if sys.platform not in DEVICES:
        raise VideoError("cameras are read on macOS and Linux; give a video file instead")
    format, pattern, options = DEVICES[sys.platform]
    try:
        with av.open(
            pattern.format(source) if source.isdecimal() else source, format=format, options=options
        ) as file:
            yield file
    except FileNotFoundError as error:
        raise VideoError(f"{name}: there is no such camera") from error
    except PermissionError as error:
        raise VideoError(f"{name}: permission denied; {_allowing()}") from error
    except (av.FFmpegError, ValueError, OSError) as error:
        why = f"{cut(reason(error))}; it has to be a camera that no other program uses"
        raise VideoError(f"{name}: {why}; {_allowing()}") from error


def _allowing() -> str:
    return ALLOWING.get(sys.platform, "")
