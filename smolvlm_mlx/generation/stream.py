"""An answer while it is made: its pieces, what it took, and its end from any thread."""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Statistics:
    """What an answer took. Times in seconds, memory in bytes (MLX's own count of its arrays)."""

    finish_reason: Literal["stop", "length", "interrupted"] = "interrupted"
    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt, whose keys and values an earlier answer left
    image_tokens: int = 0
    tiles: int = 0
    generated_tokens: int = 0
    preprocess_seconds: float = 0.0
    vision_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    peak_memory: int = 0

    @property
    def first_token_seconds(self) -> float:
        return self.preprocess_seconds + self.vision_seconds + self.prefill_seconds

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed, the first token (which belongs to the prefill) not counted."""
        return (self.generated_tokens - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0


@dataclass
class Work:
    """What the generator of an answer fills, and looks at. It does not hold the `Stream`, which holds it."""

    statistics: Statistics = field(default_factory=Statistics)
    token_ids: list[int] = field(default_factory=list)
    is_closed: bool = False

    def go_on(self) -> None:
        """Called between two steps: ends the work if nobody waits for the answer any more."""
        if self.is_closed:
            raise _Closed


class _Closed(Exception):  # noqa: N818  # not an error
    pass


class Stream:
    """Iterate over it for the pieces of an answer. `statistics` and `token_ids` are complete when it has ended.

    Leaving the loop early, or an exception such as KeyboardInterrupt in it, ends the generation when the stream is let go. Any
    thread may iterate, each piece in another one if need be, and any thread may close.
    """

    def __init__(self, pieces: Callable[[Work], Generator[str]]):
        self._work = Work()
        self._pieces = pieces(self._work)
        self._at_work = threading.Lock()  # while a piece is made
        self._worker: int | None = None  # the thread that makes it

    @property
    def statistics(self) -> Statistics:
        return self._work.statistics

    @property
    def token_ids(self) -> list[int]:
        return self._work.token_ids

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if not self._work.is_closed:
            with self._at_work, suppress(_Closed):
                self._worker = threading.get_ident()
                try:
                    return next(self._pieces)
                finally:
                    self._worker = None
        self.close()
        raise StopIteration

    def wrap(self, around: Callable[[Generator[str]], Generator[str]]) -> None:
        """Let the pieces pass through a generator, before the first is asked for."""
        self._pieces = around(self._pieces)

    def close(self, wait: bool = False) -> None:
        """End the generation, if it has not ended: now, or where another thread is at work on it, after its next step.

        Args:
            wait: until it has, so that the model is free.
        """
        self._work.is_closed = True
        if self._at_work.acquire(blocking=wait and self._worker != threading.get_ident()):
            try:
                self._pieces.close()
            finally:
                self._at_work.release()
