"""When the frames of a video are shown."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

REORDERED = 16  # most frames that one is shown after others that were decoded later
ROUNDING = 1e-6  # seconds


def unwrap(stamps: Iterable[float | None], step: float, longest: float = inf) -> Iterator[float]:
    """Seconds since the first of frames that say when they are shown, or do not.

    What says nothing comes a `step` after the frame before; so does what lies further back than
    codecs reorder frames, or more than `longest` ahead: there another count of time begins.
    """
    last, shift = -step, None
    for stamp in stamps:
        following = last + step
        if stamp is None:
            time = following
        else:
            if shift is None or not -REORDERED * step <= stamp + shift - last <= longest:
                shift = following - stamp
            time = stamp + shift
        last = max(last, time)
        yield time


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown.

    A rate is constant if each frame lies within half a frame of its place at that rate (the one
    that the file names, or the one that first and last frame have), and the last does not stay.

    Attributes:
        times: (n,) seconds since the first frame, ascending.
        fps: the constant rate, or the mean.
        duration: in seconds.
    """

    times: NDArray[np.float64]
    fps: float
    is_constant: bool
    duration: float

    @classmethod
    def of(cls, times: Sequence[float], fps: float, last: float, slack: float) -> "Timeline":
        """From times in any order, the rate that the file names, how long the last frame is shown
        (0: not known), and how many frames from its place at a constant rate one may be."""
        seconds = np.sort(np.asarray(times, np.float64))
        seconds -= seconds[0]
        count, end = len(seconds), float(seconds[-1])
        if _is_even(seconds, fps, slack) and last * fps < 2:
            return cls(seconds, fps, True, count / fps)
        mean = (count - 1) / end if end else fps
        last = last or float(end - seconds[-2:][0]) or 1 / mean
        if _is_even(np.append(seconds, end + last), mean, slack):
            return cls(seconds, mean, True, count / mean)
        return cls(seconds, count / (end + last), False, end + last)

    def shown(self, second: float) -> int:
        """The number of the frame that is on the screen at a time."""
        return max(int(np.searchsorted(self.times, second + ROUNDING, "right")) - 1, 0)

    def second(self, number: int) -> float:
        """When a frame is shown; at a constant rate its place, as the reference has it."""
        return number / self.fps if self.is_constant else float(self.times[number])


def _is_even(times: NDArray[np.float64], fps: float, slack: float) -> bool:
    return bool(np.all(np.abs(times * fps - np.arange(len(times))) < slack))
