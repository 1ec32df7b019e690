"""An answer while it is made: its events, or its text alone, and its end from any thread."""

import threading
from collections.abc import Generator, Iterator

from ..events import Event, Statistics, Text
from .decoding import Row


class Stream(Iterator[Event]):
    """Iterate over it for the events of an answer; `statistics` and `token_ids` are complete when
    it has ended.

    Work up to the first event is done at once, so that what is wrong with the input is told by
    whoever made the stream. Leaving the loop early, or an exception such as KeyboardInterrupt in
    it, ends the generation when the stream is let go. Any thread may iterate, each event in another
    one if need be, and any thread may close.
    """

    def __init__(self, events: Generator[Event], row: Row):
        self.row, self._events = row, events
        self._first: Event | None = next(events)
        self._is_closed = False
        self._at_work = threading.Lock()  # while an event is made
        self._worker: int | None = None  # the thread that makes it

    @property
    def statistics(self) -> Statistics:
        return self.row.statistics

    @property
    def token_ids(self) -> list[int]:
        return self.row.token_ids

    def __next__(self) -> Event:
        if not self._is_closed:
            with self._at_work:
                self._worker = threading.get_ident()
                try:
                    event, self._first = self._first, None
                    return event or next(self._events)
                finally:
                    self._worker = None
        self.close()
        raise StopIteration

    def close(self, wait: bool = False) -> None:
        """End the generation, if it has not ended: now, or where another thread is at work on it,
        after its next step.

        Args:
            wait: until it has, so that the model is free.
        """
        self._is_closed = True
        if self._at_work.acquire(blocking=wait and self._worker != threading.get_ident()):
            try:
                self._events.close()
            finally:
                self._at_work.release()


class TextStream(Iterator[str]):
    """Iterate over it for the pieces of an answer's text; `events` has all that happens,
    `statistics` what it took."""

    def __init__(self, events: Stream):
        self.events = events

    @property
    def statistics(self) -> Statistics:
        return self.events.statistics

    @property
    def token_ids(self) -> list[int]:
        return self.events.token_ids

    def __next__(self) -> str:
        return next(event.piece for event in self.events if isinstance(event, Text) and event.piece)

    def close(self, wait: bool = False) -> None:
        """As `Stream.close`."""
        self.events.close(wait)
