"""The process that decodes what strangers made: it reads requests on its standard input, answers on
its standard output, and ends when its input does, whatever it is doing. Imports no MLX.

`sandbox` starts it, and ends it when it takes too long.
"""

import json
import os
import resource
import signal
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from ..errors import SmolVLMError
from .fetch import FetchLimits
from .image import PIXELS_SETTING, decode_here
from .wire import END, ERROR, ERRORS, FRAME, MOST_TEXT, NO_MEMORY, NUMBER, PICTURE, REQUEST, Head

if TYPE_CHECKING:
    from .video_file import VideoFile

Request = tuple[dict[str, Any], bytes]
Reply = tuple[Head, str, bytes]
PAUSE = 0.05  # seconds between two looks at the memory, where the system does not bound it


def main() -> None:
    """Answer requests until there are no more."""
    replies = os.fdopen(os.dup(1), "wb", 2**20)
    os.dup2(2, 1)  # what a library prints is no reply
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C on the terminal is for all its processes
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with suppress(OSError):  # where memory runs out, this process goes first
            Path("/proc/self/oom_score_adj").write_text("1000")
    requests = SimpleQueue[Request]()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    videos = Videos()
    while True:
        request, data = requests.get()
        _limit(request["memory"], request["seconds"])
        try:
            for head, text, body in _answered(request, data, videos):
                _write(replies, head, text, body)
        except MemoryError:
            os._exit(NO_MEMORY)
        del data
        _limit(None, None)


def _read(requests: "SimpleQueue[Request]") -> None:
    """Take requests in a thread of their own, which sees the end of whoever asks also in the middle
    of work."""
    with os.fdopen(0, "rb", 0) as file:
        while True:
            lengths = REQUEST.unpack(_exactly(file, REQUEST.size))
            words, data = (_exactly(file, length) for length in lengths)
            requests.put((json.loads(bytes(words)), bytes(data)))


def _exactly(file: BinaryIO, count: int) -> bytes | bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        read = file.readinto(view)  # type: ignore[attr-defined]
        if not read:
            os._exit(0)  # nobody asks any more
        view = view[read:]
    return data


def _write(file: BinaryIO, head: Head, text: str, body: bytes) -> None:
    words = text.encode("utf-8", "replace")[:MOST_TEXT]
    file.write(head._replace(text=len(words), size=len(body)).pack())
    file.write(words)
    file.write(body)
    file.flush()


# ---- limits


def _limit(memory: int | None, seconds: float | None) -> None:
    """Let this process have so many more bytes and seconds of computing; None: as it likes."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    cores = os.cpu_count() or 1
    _set(resource.RLIMIT_CPU, None if seconds is None else int(used + seconds * cores) + 1)
    if sys.platform == "linux":
        _set(resource.RLIMIT_AS, None if memory is None else _mapped() + memory)
    elif memory is not None:
        _watch(memory)


def _set(limit: int, most: int | None) -> None:
    """Set a limit, to no more than whoever started the program allows (`ulimit`)."""
    hard = resource.getrlimit(limit)[1]
    if most is None or most > hard != resource.RLIM_INFINITY:
        most = hard
    resource.setrlimit(limit, (most, hard))


def _mapped() -> int:
    """Bytes of addresses that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


_most_memory = 0


def _watch(memory: int) -> None:
    """As a limit of memory where the system has none that holds, such as macOS: a thread that ends
    the process."""
    global _most_memory

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes, on macOS

    def watch() -> None:
        while peak() < _most_memory:
            time.sleep(PAUSE)
        os._exit(NO_MEMORY)

    is_first = not _most_memory
    _most_memory = max(_most_memory, memory + (peak() if is_first else 0))
    if is_first:
        threading.Thread(target=watch, daemon=True).start()


# ---- work


class Videos:
    """Opens videos, and keeps the last one: first its first frame is wanted, then others."""

    def __init__(self) -> None:
        self._last: tuple[bytes, VideoFile, str] | None = None

    def open(self, data: bytes) -> "tuple[VideoFile, str]":
        """A video, and what was lost of an animation."""
        from .animation import as_video
        from .video_file import VideoFile

        if self._last is None or data != self._last[0]:
            self._last = None
            video, lost = as_video(data)
            self._last = data, VideoFile(video), lost
        return self._last[1:]


def _answered(request: dict[str, Any], data: bytes, videos: Videos) -> Iterator[Reply]:
    work = {"picture": _picture, "pages": _pages, "page": _page}
    try:
        if request["what"] == "video":
            yield from _video(request, data, videos)
        else:
            yield work[request["what"]](request, data)
    except SmolVLMError as error:
        kind = next(place for place, kind in enumerate(ERRORS) if isinstance(error, kind))
        yield Head(ERROR, own=(kind, 0)), str(error), b""


def _picture(request: dict[str, Any], data: bytes) -> Reply:
    given = request["setting"]
    os.environ.pop(PIXELS_SETTING, None)
    if given is not None:
        os.environ[PIXELS_SETTING] = given
    limits = FetchLimits(max_pixels=request["pixels"])
    decoded = decode_here(data, limits, request["name"], request["edge"])
    image = decoded.image
    return Head(PICTURE, *image.size, decoded.size), decoded.note, image.tobytes()


def _pages(request: dict[str, Any], data: bytes) -> Reply:
    from .pdf import count_pages

    return Head(NUMBER, own=(count_pages(Path(request["path"])), 0)), "", b""


def _page(request: dict[str, Any], data: bytes) -> Reply:
    from .pdf import render_page

    image = render_page(Path(request["path"]), request["number"], request["dpi"], request["pixels"])
    return Head(PICTURE, *image.size, image.size), "", image.tobytes()


def _video(request: dict[str, Any], data: bytes, videos: Videos) -> Iterator[Reply]:
    from .video import VideoSampling, decode_in_steps

    file, lost = videos.open(data)
    steps = decode_in_steps(file, VideoSampling(**request["sampling"]), _same)
    while True:
        try:
            image, count = next(steps)
        except StopIteration as end:
            clip = end.value
            break
        yield Head(FRAME, *image.size, (count, 0)), "", image.tobytes()
    note = ", ".join(filter(None, (lost, clip.note)))
    yield Head(END, seconds=clip.duration), note, array("d", clip.times).tobytes()


def _same(frame: Image.Image) -> Image.Image:
    return frame
