"""A camera described without end: one question about the newest frame, again and again.

    live = Live(*load("HuggingFaceTB/SmolVLM2-500M-Video-Instruct"), "What do you see?")
    with Camera("0") as camera:
        for description in live.watch(camera):
            print("".join(description.stream), description.statistics)

What stands before the picture in the prompt is computed once: its keys and values are kept. Knows
nothing of terminals or browsers.
"""

import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from ..events import End, Event, Statistics, Text
from ..generation.engine import Engine
from ..generation.options import Options
from ..generation.stream import Stream, TextStream
from ..inputs.camera import Frame
from ..inputs.image import Pixels
from ..inputs.messages import Message, user_message
from ..inputs.processor import Processor
from ..inputs.settings import ImageOptions
from ..model import SmolVLM

CLEAR = 8.0  # of 255: pictures that are further apart differ; a camera's noise is below 3
SAME = 3  # equal answers to clearly different pictures, in a row, that are worth a notice
# Bytes of image tokens that are kept; only a picture that stands still comes again.
IMAGE_CACHE_BYTES = 2**24


@dataclass
class Description:
    """A frame and the answer to it. Iterate over `stream` for the answer; the rest is complete when
    it has ended."""

    image: Image.Image  # as the model sees it: not mirrored
    number: int  # from 1
    dropped: int  # frames since the one before that nobody saw
    stream: TextStream = field(init=False)
    text: str = ""
    # The answer is that of the frame before, although the picture differs clearly.
    unchanged: bool = False
    stuck: bool = False  # that has now gone on for SAME answers; told once

    @property
    def statistics(self) -> Statistics:
        """What the answer took."""
        return self.stream.statistics


@dataclass
class Judge:
    """Compares each answer, and the picture it is about, with those before it."""

    number: int = 0  # of the last answer, from 1
    unchanged: bool = False  # it is the answer before, although the picture differs clearly
    same: int = 0  # equal answers to clearly different pictures so far, in a row
    _last: tuple[str, Pixels] | None = None  # an answer, and the last tile that clearly was another

    @property
    def is_stuck(self) -> bool:
        """Whether that is worth a notice."""
        return self.same >= SAME

    def judge(self, text: str, tile: Pixels) -> None:
        """Take the next answer; `tile` is (H, W, 3) uint8."""
        self.number, self.unchanged = self.number + 1, False
        if self._last is None or text != self._last[0]:
            self._last, self.same = (text, tile.copy()), 1
        elif difference(tile, self._last[1]) >= CLEAR:
            self._last, self.same, self.unchanged = (text, tile.copy()), self.same + 1, True


class Live:
    """A model with one question for every frame.

    Args:
        question_first: put the question before the picture, where it is read once and not for every
            frame. The family is trained on pictures that stand first, and so is this unless it is
            asked for: the order changes answers.
        split: cut frames into tiles as pictures are; off, a frame is one tile, as those of a video
            are.

    Raises:
        SmolVLMError: in `describe` and `watch`, if the question or the options cannot be used.
    """

    def __init__(
        self,
        model: SmolVLM,
        processor: Processor,
        prompt: str,
        options: Options | None = None,
        *,
        question_first: bool = False,
        split: bool = False,
    ):
        self.processor = processor
        self.prompt = prompt
        self.options = options or Options()
        self.image_options = ImageOptions(split=True) if split else processor.one_tile
        self._engine = Engine(model, processor, image_cache_bytes=IMAGE_CACHE_BYTES)
        self._question_first, self._number = question_first, 0
        self._judge = Judge()

    def messages(self, image: Image.Image) -> list[Message]:
        """What the model is asked about a frame."""
        message = user_message(self.prompt, [image])
        return [replace(message, parts=message.parts[::-1])] if self._question_first else [message]

    def describe(self, frame: Frame) -> Description:
        """The answer to one frame begins."""
        started = time.perf_counter()
        inputs = self.processor(self.messages(frame.image), self.image_options)
        stream = self._engine.stream(inputs, self.options)
        stream.statistics.preprocess_seconds = frame.seconds + time.perf_counter() - started
        self._number += 1
        description = Description(frame.image, self._number, frame.dropped)
        description.stream = TextStream(
            Stream(self._follow(description, inputs.tiles[-1], stream), stream.row)
        )
        return description

    def watch(self, frames: Iterable[Frame], every: float = 0.0) -> Iterator[Description]:
        """A description of each frame, which is asked for when the one before is over: of a
        camera's newest frame.

        Args:
            every: seconds from one look to the next, at least.
        """
        for frame in frames:
            begun = time.monotonic()
            description = self.describe(frame)
            try:
                yield description
            finally:
                description.stream.close()
            time.sleep(max(begun + every - time.monotonic(), 0.0))

    def _follow(self, description: Description, tile: Pixels, events: Stream) -> Generator[Event]:
        try:
            for event in events:
                if isinstance(event, Text):
                    description.text += event.piece
                if isinstance(event, End):
                    self._judge.judge(description.text, tile)
                    description.unchanged = self._judge.unchanged
                    description.stuck = self._judge.unchanged and self._judge.same == SAME
                yield event
        finally:
            events.close()


def difference(one: Pixels, other: Pixels) -> float:
    """How far two tiles (H, W, 3) of 8 bits are apart: the mean absolute difference of their
    values, 0 to 255."""
    return float(np.abs(one.astype(np.int16) - other).mean())
