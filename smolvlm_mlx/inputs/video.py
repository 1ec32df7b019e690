"""Encoded videos (path, URL or bytes) -> the frames that SmolVLM2 sees, and the words around them.

Sampling and words are those of transformers' processing_smolvlm.py and video_processing_smolvlm.py
(5.23).
"""

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from ..errors import VideoError, quote
from ..events import Work
from .fetch import FetchLimits, one_of, read_source
from .image import is_url
from .kinds import wrong_kind
from .prefetch import prefetch
from .settings import MAX_SIDE_TILES
from .timeline import ROUNDING, Timeline
from .video_file import TimesError, VideoFile, upright

VIDEO_OPTIONS = ("fps", "max_frames", "start", "end")  # that a video part may have
MAX_NUMBER = 1e9  # seconds, or frames a second: what fits clocks and words
SKIPPED_SECONDS = 1.0  # at both ends of a long video
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
        edge = tile_size if edge in (None, 0) else edge
        if type(edge) is not int or not 1 <= edge <= MAX_SIDE_TILES * tile_size:
            raise VideoError(f"video_size is {quote(edge)}, not up to {MAX_SIDE_TILES} tiles")
        return cls(given.get("fps", 1), given.get("max_frames", 64), edge).changed({})

    def changed(self, values: Mapping[str, object]) -> "VideoSampling":
        """With other values of fps, max_frames, start or end.

        Raises:
            VideoError: one is out of range.
        """
        known: dict[str, Any] = {
            key: values[key] for key in VIDEO_OPTIONS if values.get(key) is not None
        }
        changed = replace(self, **known)
        least = {"fps": 1 / MAX_NUMBER, "start": 0.0, "end": 0.0}
        for name, value in {"fps": changed.fps, **known}.items():
            if name not in least or value == math.inf:
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and value > 0) and (name == "fps" or value != 0):
                raise VideoError(f"{name} is {quote(value)}, not a positive number")
            if not least[name] <= value <= MAX_NUMBER:
                raise VideoError(
                    f"{name} is {quote(value)}, not in {least[name]:g}..{MAX_NUMBER:g}"
                )
        if type(changed.max_frames) is not int or not 1 <= changed.max_frames < 2**31:
            raise VideoError(
                f"max_frames is {quote(changed.max_frames)}, not a whole number above 0"
            )
        if changed.end is not None and changed.end <= (changed.start or 0.0):
            raise VideoError(f"end {changed.end} is not after start {changed.start or 0.0}")
        return changed

    @property
    def is_part(self) -> bool:
        """Whether a part of the video is chosen."""
        return self.start is not None or self.end is not None

    def skips_ends(self, duration: float) -> bool:
        """Whether a second is left out at both ends of a whole video, as the reference does."""
        return self.with_times and duration - 2 * SKIPPED_SECONDS > self.max_frames * self.fps

    def count(self, duration: float) -> int:
        """How many frames are wanted of so many seconds."""
        return max(1, round(min(self.fps * duration, self.max_frames)))


@dataclass(frozen=True)
class Clip(Generic[Frame]):
    """The frames of a video that a model sees. `note` says what is unusual about it, for people."""

    frames: tuple[Frame, ...]
    times: tuple[float, ...]  # of each frame, in seconds
    duration: float
    note: str = ""


def choose(timeline: Timeline, sampling: VideoSampling) -> list[int]:
    """Numbers of the frames to take: by the reference's rule where the rate is constant (see
    `Timeline`), and elsewhere by the same rule on the clock. For a whole video of so many whole
    frames a second both choose the same, but for rounding.

    Raises:
        VideoError: a part is wanted that begins after the video's end.
    """
    if sampling.start and sampling.start >= timeline.duration:
        raise VideoError(
            f"the video ends after {timeline.duration:g} s, before start {sampling.start:g}"
        )
    if timeline.is_constant:
        return sample(len(timeline.times), timeline.fps, sampling)
    return sample_times(timeline, sampling)


def plan_clip(duration: float, sampling: VideoSampling, frame: Frame) -> Clip[Frame]:
    """What is to be expected of a video of which the length alone is known, in seconds: as many
    frames as are wanted, evenly, each of which is `frame` here. One that has fewer, or other times,
    gives others.

    Raises:
        VideoError: a part is wanted that begins after the video's end.
    """
    first = sampling.start or 0.0
    if first and first >= duration:
        raise VideoError(f"the video ends after {duration:g} s, before start {first:g}")
    end = duration if sampling.end is None else min(sampling.end, duration)
    count = sampling.count(end - first)
    if not sampling.is_part and sampling.skips_ends(duration):
        first, end = SKIPPED_SECONDS, duration - SKIPPED_SECONDS
    times = np.linspace(first, end, count)
    return Clip((frame,) * count, tuple(map(float, times)), duration)


def sample(count: int, fps: float, sampling: VideoSampling) -> list[int]:
    """Numbers of the frames to take of `count` that follow each other at `fps` (the reference's
    `sample_frames`)."""
    first, last, duration = 0, count - 1, count / fps
    if sampling.is_part:
        first = min(int((sampling.start or 0.0) * fps + ROUNDING), last)
        end = duration if sampling.end is None else min(sampling.end, duration)
        last = max(first, min(int(end * fps + ROUNDING), count) - 1)
        duration = (last - first + 1) / fps
    elif sampling.skips_ends(duration):
        skipped = int(SKIPPED_SECONDS * fps), min(int(count - SKIPPED_SECONDS * fps), last)
        first, last = skipped if skipped[0] < skipped[1] else (first, last)
    frames = np.linspace(first, last, sampling.count(duration), dtype=int)
    return [int(number) for number in np.unique(frames)]


def sample_times(timeline: Timeline, sampling: VideoSampling) -> list[int]:
    """Numbers of the frames that are shown at evenly spread times."""
    first, end = 0.0, timeline.duration
    if sampling.is_part:
        first = min(sampling.start or 0.0, float(timeline.times[-1]))
        end = end if sampling.end is None else min(sampling.end, end)
    count = sampling.count(end - first)
    if not sampling.is_part and sampling.skips_ends(end):
        first, last = SKIPPED_SECONDS, end - SKIPPED_SECONDS
    else:
        # Up to when the last frame begins, or further, where that is shown for long.
        begins = float(timeline.times[timeline.shown(end - 2 * ROUNDING)])
        last = max(first, begins, end - (end - first) / count)
    return sorted({timeline.shown(second) for second in np.linspace(first, last, count)})


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
# Frames decoded before one is converted, and converted before one is used: what is held in full.
AHEAD = 4


def read_video(part: object, limits: FetchLimits = LIMITS, name: str = "the file") -> bytes:
    """The encoded bytes of a video part, or of what it may hold: path, URL, data: URL, base64 text
    or bytes; an animated picture is one (see `animation.as_video`). `name` is for messages.

    Raises:
        FetchError, VideoError: it cannot be read.
    """
    key, source = _held(part)
    data = read_source(key, source, limits)
    if data is None:
        raise VideoError(
            f"a video cannot be of type {type(source).__name__}; give a path, URL, bytes or open "
            "file, or its frames as one list"
        )
    if len(data) > limits.max_bytes:
        raise VideoError(f"a video of {len(data)} bytes; the limit is {limits.max_bytes}")
    if wrong := wrong_kind(data, "video"):
        raise VideoError(f"{name} {wrong}")
    return data


def is_strangers(part: object, limits: FetchLimits) -> bool:
    """Whether a video part came to a server, or leads to a URL."""
    return limits.max_pixels is not None or is_url(_held(part)[1])


def _held(part: object) -> tuple[str, object]:
    return one_of(part, ("video", "path", "url", "base64"), "a video part", VideoError)


def decode(data: bytes, sampling: VideoSampling) -> Clip[Image.Image]:
    """The sampled frames of an encoded video, upright and in RGB. See `decode_in_steps`."""
    return Work(decode_in_steps(VideoFile(data), sampling, lambda frame: frame)).finish()


def decode_in_steps(
    file: VideoFile, sampling: VideoSampling, convert: Callable[[Image.Image], Frame]
) -> Generator[tuple[Frame, int], None, Clip[Frame]]:
    """As `decode`, with frames as `convert` makes them: yields each as soon as it is there, and how
    many are wanted; from the first again, if the file's times prove untrue.

    What a damaged file still gives is used, and said in the clip's note. Decoding, `convert` and
    what is done with a frame go on side by side.

    Raises:
        VideoError: no frame can be decoded.
    """
    try:
        return (yield from _decode(file, sampling, convert))
    except TimesError:
        file.watch()
        return (yield from _decode(file, sampling, convert))


def _decode(
    file: VideoFile, sampling: VideoSampling, convert: Callable[[Image.Image], Frame]
) -> Generator[tuple[Frame, int], None, Clip[Frame]]:
    timeline = file.timeline
    wanted = choose(timeline, sampling)
    kept: dict[int, Frame] = {}
    # The thread of `decoded` ends before the file does.
    with closing(prefetch(file.frames(wanted), AHEAD)) as decoded:
        converted = ((number, convert(upright(frame))) for number, frame in decoded)
        with closing(prefetch(converted, AHEAD)) as frames:
            for number, frame in frames:
                kept[number] = frame
                yield frame, len(wanted)
    times = tuple(timeline.second(number) for number in kept)
    return Clip(tuple(kept.values()), times, timeline.duration, file.note)
