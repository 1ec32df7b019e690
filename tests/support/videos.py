"""Encoded videos, and which of their frames were taken."""

import io
from fractions import Fraction
from typing import Any

from convert.tiny.world import Scene, draw
from smolvlm_mlx.inputs.video import VideoSampling, decode

import av
import numpy as np


def encode_video(
    count: int,
    fps: Any = 10,
    container: str = "mp4",
    codec: str = "mpeg4",
    *,
    size: tuple[int, int] = (64, 48),
    gop: int = 12,
    pix_fmt: str = "yuv420p",
    times: list[int] | None = None,
) -> bytes:
    """A video whose frame n has a gray of (n * 8) % 256 and a white bar on its left; `times` in
    ticks of 1/1000 s."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.gop_size = gop
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            pixels = np.full((size[1], size[0], 3), number * 8 % 256, np.uint8)
            pixels[:, : size[0] // 4] = 255
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def grays(data: bytes, sampling: VideoSampling | None = None) -> list[int]:
    """Which frames were taken, by their grays."""
    frames = decode(data, sampling or VideoSampling()).frames
    return [round(float(np.asarray(frame)[:, frame.width // 2 :].mean()) / 8) for frame in frames]


def encode_clip(scenes: list[Scene], container: str, codec: str) -> bytes:
    """A real video of the scenes, each shown for a second, ten frames a second."""
    frames, file = [draw(scene) for scene in scenes for _ in range(10)], io.BytesIO()
    if container == "gif":
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
        return file.getvalue()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=10)
        stream.width, stream.height = frames[0].width // 2 * 2, frames[0].height // 2 * 2
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_image(frame)))
        output.mux(stream.encode(None))
    return file.getvalue()


def sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream: Any = output.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()
