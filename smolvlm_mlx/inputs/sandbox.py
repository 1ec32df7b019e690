"""Decoding where it can be ended: what may be made to do harm is decoded by other processes
(`decoder`), each within a time and a memory. They end with this one, however it ends, and Ctrl-C
ends them at once.

What they answer are the pixels of the direct way, and its errors.
"""

import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ..errors import ImageError, VideoError, quote
from .children import Failure, Reply, ask
from .fetch import FetchLimits
from .image import MAX_PIXELS, PIXELS_SETTING, Decoded, most_pixels
from .pdf import DPI, MAX_PAGE_PIXELS, MAX_SIDE
from .video import Clip, VideoSampling
from .wire import END

# Bytes that a process may need beside those that it began with.
PICTURE_MEMORY, PIXEL_MEMORY = 2**28, 24  # the second for each pixel that a picture may have
PAGE_MEMORY = 2**30
VIDEO_MEMORY = 2**31
VIDEO_TIMES = 4  # as long as a picture may take

Frame = TypeVar("Frame")


def decode_image(data: bytes, limits: FetchLimits, name: str, edge: int) -> Decoded:
    """As `image.decode_image`.

    Raises:
        ImageError: also if it takes too long, or too much memory.
    """
    most = most_pixels(limits)
    request = {
        "what": "picture",
        "pixels": limits.max_pixels,
        "name": name,
        "edge": edge,
        "setting": os.environ.get(PIXELS_SETTING),
        "memory": PICTURE_MEMORY + PIXEL_MEMORY * most,
    }
    (reply,) = ask(request, data, lambda why: ImageError(f"{name} {why}"), 3 * most)
    return Decoded(_picture(reply), reply.head.own, reply.text)


def decode_video(
    data: bytes, sampling: VideoSampling, convert: Callable[[Image.Image], Frame]
) -> Generator[tuple[Frame, int], None, Clip[Frame]]:
    """As `video.decode_in_steps`, of what `animation.as_video` makes of the data.

    Raises:
        VideoError: also if it takes too long, or too much memory.
    """
    request = {"what": "video", "sampling": asdict(sampling), "memory": VIDEO_MEMORY}
    frames: list[Frame] = []
    failure: Failure = lambda why: VideoError(f"the video {why}")  # noqa: E731
    with closing(ask(request, data, failure, 3 * MAX_PIXELS, times=VIDEO_TIMES)) as replies:
        for reply in replies:
            if reply.head.kind == END:
                break
            frames.append(convert(_picture(reply)))
            yield frames[-1], reply.head.own[0]
    times = tuple(np.frombuffer(reply.body, np.float64).tolist())
    # Where the times of the file proved untrue, frames came from the first again.
    return Clip(tuple(frames[-len(times) :]), times, reply.head.seconds, reply.text)


def count_pages(path: Path) -> int:
    """As `pdf.count_pages`.

    Raises:
        ImageError: also if it takes too long, or too much memory.
    """
    request = {"what": "pages", "path": str(path.absolute()), "memory": PAGE_MEMORY}
    (reply,) = ask(request, b"", _of_file(path, "the PDF"), 0)
    return reply.head.own[0]


def render_page(
    path: Path, number: int, dpi: float = DPI, max_pixels: int = MAX_PAGE_PIXELS
) -> Image.Image:
    """As `pdf.render_page`.

    Raises:
        ImageError: also if it takes too long, or too much memory.
    """
    request = {
        "what": "page",
        "path": str(path.absolute()),
        "number": number,
        "dpi": dpi,
        "pixels": max_pixels,
        "memory": PAGE_MEMORY,
    }
    failure = _of_file(path, f"page {number}")
    (reply,) = ask(request, b"", failure, 3 * (max_pixels + 2 * MAX_SIDE))
    return _picture(reply)


def _of_file(path: Path, what: str) -> Failure:
    return lambda why: ImageError(f"{quote(path, end=True)}: {what} {why}")


def _picture(reply: Reply) -> Image.Image:
    return Image.frombytes("RGB", (reply.head.width, reply.head.height), reply.body)
