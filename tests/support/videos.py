"""Encoded videos, and which of their frames were taken."""

import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any

from convert.tiny.world import Scene, draw
from smolvlm_mlx.inputs.video import VideoSampling, decode

import av
import numpy as np
from PIL import Image

TICK = Fraction(1, 1000)  # seconds


def _write(
    frames: Iterable[np.ndarray], times: Sequence[int] | None, output: Any, stream: Any
) -> None:
    if times is not None:
        stream.time_base = stream.codec_context.time_base = TICK
    for number, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
        if times is not None:
            frame.pts, frame.time_base = times[number], TICK
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


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
    ticks."""

    def drawn(number: int) -> np.ndarray:
        pixels = np.full((size[1], size[0], 3), number * 8 % 256, np.uint8)
        pixels[:, : size[0] // 4] = 255
        return pixels

    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.gop_size = gop
        _write(map(drawn, range(count)), times, output, stream)
    return file.getvalue()


def grays(data: bytes, sampling: VideoSampling | None = None) -> list[int]:
    """Which frames were taken, by their grays."""
    frames = decode(data, sampling or VideoSampling()).frames
    return [round(float(np.asarray(frame)[:, frame.width // 2 :].mean()) / 8) for frame in frames]


# The codecs that a container usually holds, of those that are tried.
CODECS = {
    "mp4": "libx264 libx265 mpeg4 mpeg2video libvpx-vp9 libsvtav1 mjpeg",
    "mov": "libx264 libx265 mpeg4 mpeg2video mjpeg prores",
    "matroska": "libx264 libx265 mpeg4 mpeg2video libvpx libvpx-vp9 libsvtav1 mjpeg",
    "webm": "libvpx libvpx-vp9 libsvtav1",
    "avi": "mpeg4 libx264 mpeg2video mpeg1video mjpeg msmpeg4 wmv2 libvpx",
    "mpegts": "libx264 libx265 mpeg4 mpeg2video mpeg1video",
    "mpeg": "mpeg2video mpeg1video mpeg4 libx264",
    "vob": "mpeg2video mpeg1video libx264",
    "flv": "libx264 flv",
    "asf": "wmv2 libx264 mpeg4 mpeg2video msmpeg4 mjpeg",
    "3gp": "mpeg4 libx264",
    "ivf": "libvpx libvpx-vp9 libsvtav1",
    "ogg": "libvpx",
    "h264": "libx264",
    "hevc": "libx265",
}
GOPS = ("closed", "open", "all key frames", "one key frame", "no key frames but the first")


def codec_options(codec: str, gop: str) -> tuple[int, dict[str, str]]:
    """The distance of key frames, and the encoder's options."""
    distance = {"all key frames": 1, "one key frame": 600}.get(gop, 12)
    b_frames = 0 if distance == 1 or gop == GOPS[-1] else 3
    opened, refreshed = int(gop == "open"), int(gop == GOPS[-1])
    common = f"keyint={distance}:min-keyint=1:scenecut=0:bframes={b_frames}:open-gop={opened}"
    if codec == "libx264":
        params = f"{common}:intra-refresh={refreshed}"
        return distance, {"preset": "veryfast", "x264-params": params}
    if codec == "libx265":
        params = f"{common}:log-level=none:pools=none:frame-threads=1"
        return distance, {"preset": "ultrafast", "x265-params": params}
    if codec in ("mpeg4", "mpeg2video", "mpeg1video"):
        options = {"bf": str(min(b_frames, 2)), "sc_threshold": "1000000000"}
        closed = {} if opened else {"flags": "+cgop", "mpv_flags": "+strict_gop"}
        return distance, options | closed
    if codec in ("libvpx", "libvpx-vp9"):
        # Its threads wait for each other by spinning, for minutes where cores are busy.
        return distance, {"deadline": "realtime", "cpu-used": "8", "threads": "1"}
    return distance, {"preset": "12", "svtav1-params": "lp=1"} if codec == "libsvtav1" else {}


def encode_numbers(
    count: int,
    container: str,
    codec: str,
    gop: str = "closed",
    *,
    rate: Any = 25,
    times: Sequence[int] | None = None,
    **format_options: str,
) -> bytes:
    """A video whose frames have their number in 8 bits at the top (see `read_number`); `times` in
    ticks."""
    file, formats = io.BytesIO(), {"mjpeg": "yuvj420p", "prores": "yuv422p10le"}
    with av.open(file, "w", format=container, options=format_options) as output:
        stream: Any = output.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, formats.get(codec, "yuv420p")
        stream.gop_size, stream.options = codec_options(codec, gop)
        _write(map(_drawn_number, range(count)), times, output, stream)
    return file.getvalue()


def _drawn_number(number: int) -> np.ndarray:
    pixels = np.full((48, 64, 3), 60 + number * 3 % 120, np.uint8)
    for bit in range(8):
        pixels[4:20, bit * 8 : bit * 8 + 8] = 235 if number >> bit & 1 else 20
    left = number * 5 % 54
    pixels[24:44, left : left + 10] = (200, 40, 90)
    return pixels


def read_number(frame: Image.Image) -> int:
    """The number of a frame of `encode_numbers`."""
    bits = np.asarray(frame)[8:16].reshape(8, 8, 8, 3).mean((0, 2, 3))
    return int(sum(1 << bit for bit in range(8) if bits[bit] > 128))


def decode_sequentially(data: bytes) -> list[np.ndarray]:
    """All frames, as they come without a seek: what a player shows."""
    frames = list[np.ndarray]()
    with av.open(io.BytesIO(data), "r") as file:
        for packet in file.demux(video=0):
            with suppress(av.InvalidDataError):
                frames += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
    return frames


def remux(
    data: bytes,
    container: str,
    change: Callable[[int, Any], bool] = lambda number, packet: True,
    *,
    seekable: bool = True,
    **options: str,
) -> bytes:
    """The packets of a video in another container: those to which `change`, which may change them,
    says yes. Not seekable, the container gets no index, no duration and no count of its frames, as
    from a pipe."""
    file = io.BytesIO()
    pipe = type("Pipe", (), {"write": lambda self, some: file.write(some)})
    target: Any = file if seekable else pipe()
    with (
        av.open(io.BytesIO(data), "r") as source,
        av.open(target, "w", format=container, options=options) as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and change(number, packet):
                packet.stream = stream
                output.mux(packet)
    return file.getvalue()


def with_empty(
    data: bytes, container: str, is_empty: Callable[[int], bool] = lambda number: True
) -> bytes:
    """A video some packets of which, by their number, hold zeros alone."""

    def empty(number: int, packet: Any) -> bool:
        if is_empty(number):
            memoryview(packet).cast("B")[:] = bytes(packet.size)
        return True

    return remux(data, container, empty)


def called_keys(data: bytes, container: str = "mp4") -> bytes:
    """A video each frame of which is called a key frame."""

    def lie(_: int, packet: Any) -> bool:
        packet.is_keyframe = True
        return True

    return remux(data, container, lie)


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
