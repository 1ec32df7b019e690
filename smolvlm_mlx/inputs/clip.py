"""Which frames of a video SmolVLM2 sees, and the words around them.

Sampling and words are those of transformers' processing_smolvlm.py and video_processing_smolvlm.py (5.23).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Generic, TypeVar

import numpy as np

from ..errors import VideoError, short

FALLBACK_FPS = 24.0  # of frames without one, as the reference has it
SKIPPED_SECONDS = 1  # at both ends of a long video
V1_FRAMES = 50
Frame = TypeVar("Frame")


@dataclass(frozen=True)
class VideoSampling:
    """How frames are chosen: `video_sampling` of preprocessor_config.json; `start` and `end` in seconds bound them."""

    fps: float = 1.0
    max_frames: int = 64
    longest_edge: int = 512  # of a frame, before it becomes a square tile
    with_times: bool = True  # SmolVLM2's words around the frames; the first family has frames alone
    start: float | None = None
    end: float | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], tile_size: int) -> "VideoSampling":
        """From preprocessor_config.json; without `video_sampling` (the first family) up to 50 frames, evenly, no words."""
        given = raw.get("video_sampling")
        if not isinstance(given, Mapping):
            return cls(float("inf"), V1_FRAMES, tile_size, with_times=False)
        size = given.get("video_size", {})
        edge = size.get("longest_edge") if isinstance(size, Mapping) else size
        return cls(given.get("fps", 1), given.get("max_frames", 64), edge or tile_size).changed({})

    def changed(self, values: Mapping[str, Any]) -> "VideoSampling":
        """With other values of fps, max_frames, start or end.

        Raises:
            VideoError: one is out of range.
        """
        known = {key: values[key] for key in ("fps", "max_frames", "start", "end") if values.get(key) is not None}
        changed = replace(self, **known)
        numbers = {"fps": changed.fps, "start": changed.start or 0.0, "end": changed.end or 0.0}
        for name, value in numbers.items():
            wrong = isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0
            if wrong or (name == "fps" and not value):
                raise VideoError(f"{name} is {short(value)}, not a positive number")
        if type(changed.max_frames) is not int or changed.max_frames < 1:
            raise VideoError(f"max_frames is {short(changed.max_frames)}, not a whole number above 0")
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
    """Numbers of the frames to take of `count` that follow each other at `fps` (the reference's `sample_frames`)."""
    first, last = 0, count - 1
    duration = count / fps
    if sampling.start is not None or sampling.end is not None:
        first = min(int((sampling.start or 0.0) * fps), last)
        last = max(first, min(int((sampling.end if sampling.end is not None else duration) * fps), count) - 1)
        duration = (last - first + 1) / fps
    elif sampling.with_times and duration - 2 * SKIPPED_SECONDS > sampling.max_frames * sampling.fps:
        skipped = int(SKIPPED_SECONDS * fps), min(int(count - SKIPPED_SECONDS * fps), last)
        first, last = skipped if skipped[0] < skipped[1] else (first, last)
    wanted = max(1, round(min(sampling.fps * duration, sampling.max_frames)))
    return [int(index) for index in np.unique(np.linspace(first, last, wanted, dtype=int))]


def words(clip: Clip[Any], with_times: bool) -> list[str]:
    """The texts before each frame, and after the last."""
    if not with_times:
        return [""] * (len(clip.frames) + 1)
    from num2words import num2words

    stamps = [f"\nFrame from {int(second // 60):02d}:{int(second % 60):02d}:" for second in clip.times]
    length = timedelta(seconds=int(clip.duration))
    intro = (
        f"You are provided the following series of {num2words(len(clip.frames))} frames "
        f"from a {length} [H:MM:SS] video.\n"
    )
    return [intro + stamps[0], *stamps[1:], "\n\n"]


def from_frames(frames: Sequence[Frame], fps: float | None = None) -> Clip[Frame]:
    """A clip of frames that were chosen already, all of which are kept."""
    if not frames:
        raise VideoError("a video of no frames")
    rate = FALLBACK_FPS if fps is None else fps
    return Clip(tuple(frames), tuple(number / rate for number in range(len(frames))), len(frames) / rate)
