"""The answers to one request while they are made: pushed by the engine's thread, read by the event
loop.

Knows nothing of HTTP.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

from ..errors import SmolVLMError
from ..events import End, Event, Reading, Statistics, Text
from ..generation.engine import Schema
from ..generation.options import Options
from ..generation.scheduler import Job, Scheduler
from ..inputs.messages import Message, TextPart
from ..inputs.processor import Inputs
from .request import ChatRequest


class Choice:
    """One of a request's answers: its job, its text so far, whether it is over, and came to its end
    by itself."""

    job: Job

    def __init__(self, index: int):
        self.index, self.text, self.over, self.ended = index, "", False, False


class Answer:
    """The answers to one request, and the conversation they belong to. The event loop is woken for
    their ends, and for pieces only if they are to be sent one by one.

    Args:
        messages: the conversation; the first answer goes on with it, or with its last message, if
            the request says so.

    Attributes:
        begun: the text of that message.
    """

    def __init__(self, asked: ChatRequest, messages: list[Message]):
        # Without what was parsed: its data: URLs need not be held until the answer's end.
        self.asked = asked.model_copy(update={"messages": []})
        goes_on = bool(asked.continue_final_message)
        self.begun, self.kept = messages[-1].text if goes_on else "", False
        self.messages = messages[:-1] if goes_on else messages
        self.choices = [Choice(index) for index in range(asked.n or 1)]
        self._events = deque[tuple[Choice, Event | SmolVLMError]]()
        self._error: SmolVLMError | None = None
        self._loop, self._woken = asyncio.get_running_loop(), asyncio.Event()

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

    def push(self, choice: Choice, event: Event | SmolVLMError) -> None:
        """Take the next event of an answer, or an error, which ends all of them."""
        self._events.append((choice, event))
        wakes = not isinstance(event, Reading | Text) or (
            self.asked.stream and isinstance(event, Text) and event.piece
        )
        if wakes and not self._woken.is_set() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._woken.set)

    async def read(self) -> AsyncIterator[tuple[Choice, str]]:
        """Yield text as it comes, with the choice that it belongs to; where that is over, it is its
        last.

        Raises:
            SmolVLMError: what ended an answer.
        """
        while not all(choice.over for choice in self.choices):
            await self._woken.wait()
            self._woken.clear()
            for choice, fresh in self._take().items():
                yield choice, fresh
            if self._error is not None:
                raise self._error

    def _take(self) -> dict[Choice, str]:
        """Return what was pushed since."""
        fresh = dict[Choice, str]()
        while self._events and self._error is None:
            choice, event = self._events.popleft()
            if isinstance(event, Text):
                choice.text += event.piece
                fresh[choice] = fresh.get(choice, "") + event.piece
            elif isinstance(event, End):
                choice.over, choice.ended = True, event.statistics.finish_reason == "stop"
                fresh.setdefault(choice, "")
            elif isinstance(event, SmolVLMError):
                self._error = event
        return fresh

    @property
    def statistics(self) -> list[Statistics]:
        return [choice.job.statistics for choice in self.choices]

    def message(self) -> Message:
        """Return the first answer, as far as it came, as the conversation's next message."""
        self._take()
        first = self.choices[0]
        text = (self.begun + first.text).rstrip()
        return Message("assistant", (TextPart(text),), interrupted=not first.ended)
