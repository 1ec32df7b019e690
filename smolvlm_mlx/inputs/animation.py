"""Animated pictures that ffmpeg does not decode -> videos, which it does."""

import io
from collections.abc import Iterator
from contextlib import suppress

from PIL import Image

from ..errors import VideoError, quote
from .image import DECODER_ERRORS, identify
from .kinds import ANIMATION, kind_of
from .rgb import to_rgb
from .video_file import check_frame

MOST_PIXELS = 2**32  # of all frames: 35 minutes of 1080p at one a second


def as_video(data: bytes) -> tuple[bytes, str]:
    """A WebP or AVIF animation as a video without loss: the same frames, on white, at the same
    times; and what is to be said of it, if not all can be decoded. Everything else as it is.

    Raises:
        VideoError: it has no frame that can be decoded, or too many, or too large ones.
    """
    try:
        image = identify(data) if kind_of(data) is ANIMATION else None
    except DECODER_ERRORS as error:
        raise VideoError(
            f"the animation cannot be decoded, it may be damaged: {quote(error)}"
        ) from error
    if image is None or image.format not in ("WEBP", "AVIF"):
        return data, ""
    check_frame(*image.size)
    count = int(getattr(image, "n_frames", 1))
    pixels = image.width * image.height * count
    if pixels > MOST_PIXELS:
        raise VideoError(
            f"an animation of {pixels} pixels in all; the limit is {MOST_PIXELS}: make it a video"
        )
    video, decoded = _encoded(image)
    lost = count - decoded
    return video, f"{lost} of {count} frames could not be decoded" if lost else ""


def _encoded(image: Image.Image) -> tuple[bytes, int]:
    """The video, and how many frames it has."""
    from fractions import Fraction  # slow to import; av needs it

    import av

    file, when, count, tick = io.BytesIO(), 0, 0, Fraction(1, 1000)
    with av.open(file, "w", format="matroska") as video:
        for count, (picture, duration) in enumerate(_frames(image), 1):
            if count == 1:
                stream = video.add_stream("ffv1", rate=1 / (duration * tick))
                stream.width, stream.height, stream.pix_fmt = *image.size, "bgr0"
                stream.time_base = stream.codec_context.time_base = tick
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base, frame.duration = when, tick, duration
            video.mux(stream.encode(frame))
            when += duration
        if not count:
            raise VideoError("no frame of the animation can be decoded, it may be damaged")
        video.mux(stream.encode())
    return file.getvalue(), count


def _frames(image: Image.Image) -> Iterator[tuple[Image.Image, int]]:
    """Each frame, and for how many milliseconds it is shown; up to one that is damaged."""
    with suppress(*DECODER_ERRORS):
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()
            yield to_rgb(image), max(int(image.info.get("duration", 0)), 1)
