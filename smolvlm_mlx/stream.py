"""An answer while it is made: its pieces, what it took, and its end from any thread."""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
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


class Stream:
    """Iterate over it for the pieces of an answer. `statistics` and `token_ids` are complete when it has ended.

    Leaving the loop early, or an exception such as KeyboardInterrupt in it, ends the generation. Any thread may iterate, each
    piece in another one if need be, and any thread may close.
    """

    def __init__(self, pieces: Callable[["Stream"], Generator[str]]):
        self.statistics = Statistics()
        self.token_ids: list[int] = []
        self._pieces = pieces(self)
        self._at_work = threading.Lock()  # while a piece is made
        self._closed = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with self._at_work, suppress(_Closed):
            if not self._closed:
                return next(self._pieces)
        self.close()
        raise StopIteration

    def wrap(self, around: Callable[[Generator[str]], Generator[str]]) -> None:
        """Let the pieces pass through a generator, before the first is asked for."""
        self._pieces = around(self._pieces)

    def close(self) -> None:
        """End the generation, if it has not ended: now, or where another thread is at work on it, after its next step."""
        self._closed = True
        if self._at_work.acquire(blocking=False):
            try:
                self._pieces.close()
            finally:
                self._at_work.release()

    def go_on(self) -> None:
        """Called between two steps of the work: ends it, if `close` was called meanwhile."""
        if self._closed:
            raise _Closed


class _Closed(Exception):  # noqa: N818  # not an error: nobody waits for the answer any more
    pass
