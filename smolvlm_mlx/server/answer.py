"""The answers to one request while they are made: pushed by the engine's thread, read by the event
loop.

Knows nothing of HTTP.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial

from ..errors import SmolVLMError
from ..events import End, Event, Reading, Statistics, Text
from ..generation.engine import Schema
from ..generation.options import Options
from ..generation.scheduler import Job, Scheduler
from ..inputs.messages import Message, TextPart
from ..inputs.processor import Inputs
from ..tasks.stored import trimmed
from ..tasks.tree import Places
from .request import ChatRequest


class Choice:
    """One of a request's answers: its job, its text so far, whether it is over, and came to its end
    by itself."""

    job: Job

    def __init__(self, index: int):
        self.index, self.text, self.over, self.ended = index, "", False, False


@dataclass(frozen=True)
class Keeping:
    """How an answer is kept: where the messages of its conversation stand, or why it is not."""

    places: Places | None
    notice: str | None = None


class Answer:
    """The answers to one request, and the conversation they belong to. The event loop is woken for
    their ends, and for pieces only if they are to be sent one by one.

    Args:
        messages: the conversation; the first answer goes on with it, or with its last message, if
            the request says so.

    Attributes:
        begun: the text of that message.
        keeping: puts it into the history when it is over, whoever reads it; None: nobody does.
        after: the id of the message that the first answer stands after, once that is kept.
        is_left: the client that asked has gone.
    """

    keeping: "asyncio.Task[Keeping] | None" = None
    after: int | None = None
    is_left = False

    def __init__(self, asked: ChatRequest, messages: list[Message]):
        # Without what was parsed: its data: URLs need not be held until the answer's end.
        self.asked = asked.model_copy(update={"messages": []})
        goes_on = bool(asked.continue_final_message)
        self.begun = messages[-1].text if goes_on else ""
        self.messages = messages[:-1] if goes_on else messages
        self.choices = [Choice(index) for index in range(asked.n or 1)]
        self._events = deque[tuple[Choice, Event | SmolVLMError]]()
        self._error: SmolVLMError | None = None
        self._loop, self._readers = asyncio.get_running_loop(), set[asyncio.Event]()
        self._is_waking = False

    def submit(
        self,
        scheduler: Scheduler,
        inputs: Inputs,
        options: Options,
        schema: Schema | None,
        preprocess_seconds: float,
        client: tuple[str, ...] = (),
    ) -> None:
        """Have them made for a client. With a seed each has one of its own: the first that of the
        request, the others those that follow.

        Raises:
            BusyError, ClosingError, ContextFullError: none is made.
        """
        for choice in self.choices:
            seed = None if options.seed is None else (options.seed + choice.index) % 2**64
            choice.job = Job(
                inputs,
                replace(options, seed=seed),
                partial(self.push, choice),
                schema,
                Statistics(preprocess_seconds=preprocess_seconds),
                client,
            )
        try:
            for choice in self.choices:
                scheduler.submit(choice.job)
        except SmolVLMError:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Nobody waits for them."""
        for choice in self.choices:
            choice.job.cancel()

    def stop(self) -> None:
        """End them where they are."""
        self.cancel()
        for choice in self.choices:
            self.push(choice, End(choice.job.statistics))

    def push(self, choice: Choice, event: Event | SmolVLMError) -> None:
        """Take the next event of an answer, or an error, which ends all of them."""
        self._events.append((choice, event))
        is_sent = self.asked.stream or self.asked.conversation is not None
        wakes = not isinstance(event, Reading | Text) or (
            is_sent and isinstance(event, Text) and event.piece
        )
        if wakes and not self._is_waking and not self._loop.is_closed():
            self._is_waking = True
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_waking = False
        for woken in self._readers:
            woken.set()

    async def read(self, start: int = 0) -> AsyncIterator[tuple[Choice, str, bool]]:
        """Yield text as it comes, with the choice that it belongs to, and whether that is all of
        it. Several may read, each all of it.

        Args:
            start: characters of the first choice that are left out.

        Raises:
            SmolVLMError: what ended an answer.
        """
        sent = {choice: 0 if choice.index else start for choice in self.choices}
        over = set[Choice]()
        woken = asyncio.Event()
        self._readers.add(woken)
        try:
            while len(over) < len(self.choices):
                self._take()
                for choice in self.choices:
                    fresh, is_over = choice.text[sent[choice] :], choice.over and choice not in over
                    if fresh or is_over:
                        sent[choice] += len(fresh)
                        over |= {choice} if is_over else set()
                        yield choice, fresh, is_over
                if self._error is not None:
                    raise self._error
                if len(over) < len(self.choices):
                    await woken.wait()
                    woken.clear()
        finally:
            self._readers.discard(woken)

    def _take(self) -> None:
        """Take what was pushed since."""
        while self._events and self._error is None:
            choice, event = self._events.popleft()
            if choice.over:
                continue  # a step that was under way when it was stopped
            if isinstance(event, Text):
                choice.text += event.piece
            elif isinstance(event, End):
                choice.over, choice.ended = True, event.statistics.finish_reason == "stop"
            elif isinstance(event, SmolVLMError):
                self._error = event

    @property
    def has_failed(self) -> bool:
        """Whether it ended with an error before its first word."""
        return self._error is not None and not self.begun + self.choices[0].text

    @property
    def size(self) -> int:
        """Bytes of its pictures and videos, and of their tiles."""
        media = (held for message in self.messages for held in message.media)
        tiles = (picture.tiles for picture in self.choices[0].job.inputs.pictures)
        return sum(len(held.data) for held in media) + sum(each.nbytes for each in tiles)

    @property
    def statistics(self) -> list[Statistics]:
        return [choice.job.statistics for choice in self.choices]

    def message(self) -> Message:
        """Return the first answer, as far as it came, as the conversation's next message."""
        self._take()
        first = self.choices[0]
        text = trimmed(self.begun + first.text)
        return Message("assistant", (TextPart(text),), interrupted=not first.ended)
