"""Encoded videos (path, URL or bytes) -> the frames that SmolVLM2 sees, and the words around them.

Sampling and words are those of transformers' processing_smolvlm.py and video_processing_smolvlm.py
(5.23).

Only this file, `animation` and `camera` know PyAV. Files are opened here and read from memory, in
formats that name no other files: ffmpeg never gets their path or an address to open.
"""

import io
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from PIL import Image

from ..errors import VideoError, quote
from ..events import Work
from .animation import as_video
from .fetch import FetchLimits, one_of, read_source
from .image import MAX_PIXELS
from .kinds import wrong_kind
from .prefetch import prefetch
from .rgb import to_rgb

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

VIDEO_OPTIONS = ("fps", "max_frames", "start", "end")  # that a video part may have
FALLBACK_FPS = 24.0  # of frames without one, as the reference has it
SKIPPED_SECONDS = 1  # at both ends of a long video
Frame = TypeVar("Frame")


@dataclass(frozen=True)
class VideoSampling:
    """How frames are chosen: `video_sampling` of preprocessor_config.json; `start` and `end` in
    seconds bound them."""

    fps: float = 1.0
    max_frames: int = 64
    longest_edge: int = 512  # of a frame, before it becomes a square tile
    with_times: bool = True  # SmolVLM2's words around the frames; the first family has frames alone
    start: float | None = None
    end: float | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, object], tile_size: int) -> "VideoSampling":
        """From preprocessor_config.json; without `video_sampling` (the first family) up to 50
        frames, evenly, no words."""
        given = raw.get("video_sampling")
        if not isinstance(given, Mapping):
            return cls(float("inf"), 50, tile_size, with_times=False)
        size = given.get("video_size", {})
        edge = size.get("longest_edge") if isinstance(size, Mapping) else size
        return cls(given.get("fps", 1), given.get("max_frames", 64), edge or tile_size).changed({})

    def changed(self, values: Mapping[str, object]) -> "VideoSampling":
        """With other values of fps, max_frames, start or end.

        Raises:
            VideoError: one is out of range.
        """
        known: dict[str, Any] = {
            key: values[key] for key in VIDEO_OPTIONS if values.get(key) is not None
        }
        changed = replace(self, **known)
        numbers = {"fps": changed.fps, "start": changed.start or 0.0, "end": changed.end or 0.0}
        for name, value in numbers.items():
            wrong = isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0
            if wrong or (name == "fps" and not value):
                raise VideoError(f"{name} is {quote(value)}, not a positive number")
        if type(changed.max_frames) is not int or changed.max_frames < 1:
            raise VideoError(
                f"max_frames is {quote(changed.max_frames)}, not a whole number above 0"
            )
        if changed.end is not None and changed.end <= (changed.start or 0.0):
            raise VideoError(f"end {changed.end} is not after start {changed.start or 0.0}")
        return changed


@dataclass(frozen=True)
class Clip(Generic[Frame]):
    """The frames of a video that a model sees. `note` says what is unusual about it, for people."""

    frames: tuple[Frame, ...]
    times: tuple[float, ...]  # of each frame, in seconds
    duration: float
    note: str = ""


def sample(count: int, fps: float, sampling: VideoSampling) -> list[int]:
    """Numbers of the frames to take of `count` that follow each other at `fps` (the reference's
    `sample_frames`)."""
    first, last = 0, count - 1
    duration = count / fps
    if sampling.start is not None or sampling.end is not None:
        first = min(int((sampling.start or 0.0) * fps), last)
        last = max(
            first,
            min(int((sampling.end if sampling.end is not None else duration) * fps), count) - 1,
        )
        duration = (last - first + 1) / fps
    elif (
        sampling.with_times and duration - 2 * SKIPPED_SECONDS > sampling.max_frames * sampling.fps
    ):
        skipped = int(SKIPPED_SECONDS * fps), min(int(count - SKIPPED_SECONDS * fps), last)
        first, last = skipped if skipped[0] < skipped[1] else (first, last)
    wanted = max(1, round(min(sampling.fps * duration, sampling.max_frames)))
    return [int(index) for index in np.unique(np.linspace(first, last, wanted, dtype=int))]


TO_NINETEEN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int) -> str:
    """Write a number from 0 to 999,999 in English words, with the commas and hyphens of num2words,
    with which the reference counts frames."""
    if number < 20:
        return TO_NINETEEN[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens - 2] + (f"-{TO_NINETEEN[ones]}" if ones else "")
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    count, rest = divmod(number, size)
    link = " and " if rest < 100 else ", "
    return f"{in_words(count)} {name}" + (link + in_words(rest) if rest else "")


def words(clip: Clip[Any], with_times: bool) -> list[str]:
    """The texts before each frame, and after the last."""
    if not with_times:
        return [""] * (len(clip.frames) + 1)
    stamps = [
        f"\nFrame from {int(second // 60):02d}:{int(second % 60):02d}:" for second in clip.times
    ]
    length = timedelta(seconds=int(clip.duration))
    intro = (
        f"You are provided the following series of {in_words(len(clip.frames))} frames "
        f"from a {length} [H:MM:SS] video.\n"
    )
    return [intro + stamps[0], *stamps[1:], "\n\n"]


LIMITS = FetchLimits(max_bytes=256 * 2**20, timeout=120.0)
# Demuxers that read one file and nothing else; no playlists, no concat.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif,asf,h264,hevc,ivf,"
    "apng,webp_pipe"
)
NEAR = 12  # frames ahead that are reached by decoding on, without a seek
# Frames decoded before one is converted, and converted before one is used: what is held in full.
AHEAD = 4


def read_video(part: object, limits: FetchLimits = LIMITS, name: str = "the file") -> bytes:
    """The encoded bytes of a video part, or of what it may hold: path, URL, data: URL, base64 text
    or bytes; an animated picture is one. `name` is for messages.

    Raises:
        FetchError, VideoError: it cannot be read.
    """
    key, source = one_of(part, ("video", "path", "url", "base64"), "a video part", VideoError)
    data = read_source(key, source, limits)
    if data is None:
        raise VideoError(
            f"a video cannot be of type {type(source).__name__}; give a path, URL or bytes"
        )
    if len(data) > limits.max_bytes:
        raise VideoError(f"a video of {len(data)} bytes; the limit is {limits.max_bytes}")
    if wrong := wrong_kind(data, "video"):
        raise VideoError(f"{name} {wrong}")
    return as_video(data)


@contextmanager
def opened(data: bytes) -> "Iterator[tuple[InputContainer, VideoStream]]":
    """An encoded video and its first stream; VideoError if it cannot be decoded, here or within the
    context."""
    import av

    options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
    try:
        with av.open(io.BytesIO(data), mode="r", options=options) as file:
            if not file.streams.video:
                raise VideoError(
                    f"the file holds {'sound but no' if file.streams.audio else 'no'} video"
                )
            stream = file.streams.video[0]
            if stream.codec_context is None:  # which PyAV's types do not tell
                raise VideoError("the video is of a kind that ffmpeg does not know")
            if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
                raise VideoError(f"frames of more than {MAX_PIXELS} pixels; make the video smaller")
            stream.thread_type = "AUTO"  # several threads decode
            yield file, stream
    except (av.FFmpegError, ValueError, OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise VideoError(f"the video cannot be decoded, it may be damaged: {quote(why)}") from error


def decode(data: bytes, sampling: VideoSampling) -> Clip[Image.Image]:
    """The sampled frames of an encoded video, upright and in RGB. See `decode_in_steps`."""
    return Work(decode_in_steps(data, sampling, lambda frame: frame)).finish()


def decode_in_steps(
    data: bytes, sampling: VideoSampling, convert: Callable[[Image.Image], Frame]
) -> Generator[tuple[Frame, int], None, Clip[Frame]]:
    """As `decode`, with frames as `convert` makes them: yields each as soon as it is there, and how
    many are wanted.

    Only packets are read to count the frames; decoding begins at the key frame before each frame
    that is wanted. What a damaged file still gives is used, and said in the clip's note. Decoding,
    `convert` and what is done with a frame go on side by side.

    Raises:
        VideoError: no frame can be decoded.
    """
    with opened(data) as (file, stream):
        times = _presentation_times(file, stream)
        if not times:
            raise VideoError("the video has no frames")
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else FALLBACK_FPS
        wanted = sample(len(times), fps, sampling)
        kept: dict[int, Frame] = {}
        # The thread of `decoded` ends before the file does.
        with closing(prefetch(_frames_at(file, stream, times, wanted), AHEAD)) as decoded:
            converted = ((index, convert(upright(frame))) for index, frame in decoded)
            with closing(prefetch(converted, AHEAD)) as frames:
                for index, frame in frames:
                    kept[index] = frame
                    yield frame, len(wanted)
    if not kept:
        raise VideoError("no frame of the video can be decoded, it may be damaged")
    missing = len(wanted) - len(kept)
    note = f"{missing} of {len(wanted)} frames could not be decoded" if missing else ""
    return Clip(tuple(kept.values()), tuple(index / fps for index in kept), len(times) / fps, note)


def _presentation_times(file: "InputContainer", stream: "VideoStream") -> list[int]:
    """When each frame is shown, in order, in the stream's time base; read from packets, without
    decoding."""
    import av

    times: list[int] = []
    with suppress(av.FFmpegError):  # cut off: what came before counts
        for packet in file.demux(stream):
            when = packet.pts if packet.pts is not None else packet.dts
            if packet.size and when is not None and not packet.is_discard:
                times.append(when)
    return sorted(times)


def _frames_at(
    file: "InputContainer", stream: "VideoStream", times: Sequence[int], wanted: Sequence[int]
) -> Iterator[tuple[int, "VideoFrame"]]:
    """(number, frame) of each frame that is wanted, as far as they can be decoded."""
    import av

    decoded: Iterator[VideoFrame] = iter(())
    position: int | None = None  # of the last decoded frame
    for index in wanted:
        target = times[index]
        if position is None or index - position > NEAR:
            file.seek(target, stream=stream, backward=True)
            decoded = file.decode(stream)
        try:
            frame = next(frame for frame in decoded if frame.pts is None or frame.pts >= target)
        except (StopIteration, av.FFmpegError):
            position = None
            continue
        position = index
        yield index, frame


def upright(frame: "VideoFrame") -> Image.Image:
    """A decoded frame in RGB, on white where it is transparent."""
    has_alpha = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
    image = (
        to_rgb(Image.fromarray(frame.to_ndarray(format="rgba"))) if has_alpha else frame.to_image()
    )
    turn = round(frame.rotation) % 360
    return image.rotate(turn, expand=True) if turn in (90, 180, 270) else image
