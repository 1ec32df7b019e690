"""Conversations that live in the server: an answer goes on though its client has gone, and whoever
has the conversation open sees what comes to it, from here, other clients and other programs.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote as quoted
from weakref import WeakSet

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from ..errors import HistoryError, NoConversationError, SmolVLMError, cut, quote
from ..generation.scheduler import BusyError
from ..inputs.messages import to_json
from ..tasks.database import Watch
from ..tasks.export import as_markdown, as_zip, file_name
from ..tasks.history import MAX_NAME, UNDO_SECONDS, History
from .answer import Answer, Keeping
from .closing import Requests
from .fields import RequestError
from .openai import Coming, News, dump, event
from .openapi import Conversation, ConversationList
from .request import ID
from .turn import Turn

KEEPERS = 8  # requests for which the history is asked, which may be locked, at once
SHOWN = 2  # conversations that are read at once as a whole, with their pictures
SAVE_SECONDS = 5.0  # that an answer's end waits for the history
KEEP_SECONDS = 3.0  # between the times that an answer under way is kept as far as it has come
MOST_LEFT = 8  # answers that go on though their clients have gone
MOST_LEFT_BYTES = 2**29  # of their pictures and videos, and of the tiles of these
MOST_STREAMS = 128  # of events
POLL_SECONDS = 0.25  # between looks at whether another program has written
ALIVE_SECONDS = 15.0  # after which a stream without news says something

NOTHING = object()  # has been told yet; a leaf may be None
STILL_HERE = b": still here\n\n"

Found = TypeVar("Found")


class Preparation:
    """A request whose answer has not begun, and whether it is still wanted."""

    def __init__(self, id: str | None):
        self.id, self.is_stopped = id, False


class Conversations:
    """What the history has, and the answers that are being made for it.

    Args:
        history: None keeps nothing, and answers end with their clients.
        model: which answers.
        requests: those under way; an answer counts as one until it is kept.
    """

    def __init__(self, history: History | None, model: str, requests: Requests):
        self.history, self._model, self._requests = history, model, requests
        self.keepers = anyio.CapacityLimiter(KEEPERS)
        self._showing = asyncio.Semaphore(SHOWN)
        self.answers = list[Answer]()  # under way, the newest last
        self._coming = WeakSet[Preparation]()
        self._listeners = set[asyncio.Event]()
        self._forgetting = set[asyncio.Task[None]]()
        self._watching: asyncio.Task[None] | None = None

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/conversations", self.list_all),
            Route("/conversations/{id}", self.one, methods=["GET", "POST", "DELETE"]),
            Route("/conversations/{id}/stop", self.stop, methods=["POST"]),
            Route("/conversations/{id}/title", self.rename, methods=["POST"]),
            Route("/conversations/{id}/restore", self.restore, methods=["POST"]),
            Route("/conversations/{id}/markdown", self.markdown),
            Route("/conversations/{id}/events", self.events),
        ]

    # ---- answers

    def coming(self, id: str | None) -> Preparation:
        """Note that an answer is being prepared."""
        coming = Preparation(id)
        self._coming.add(coming)
        return coming

    def take(self, answer: Answer) -> None:
        """Let the answer of a conversation that is kept go on by itself."""
        id = answer.asked.conversation
        if self.history is not None and id is not None:
            self.answers.append(answer)
            answer.keeping = asyncio.create_task(self._finish(id, answer, self.history))

    def leave(self, answer: Answer) -> None:
        """Take note that a client has gone. The answer ends, unless it is of a conversation, and
        not beyond the bounds of such."""
        if answer.keeping is None:
            return answer.cancel()
        answer.is_left = True
        left = [other for other in self.answers if other.is_left]
        size = sum(other.size for other in left)
        if len(left) > MOST_LEFT or size > MOST_LEFT_BYTES:
            answer.stop()

    async def _finish(self, id: str, answer: Answer, history: History) -> Keeping:
        """Read the answer to its end, however it comes to one, and keep it."""
        turn = Turn(history, id, answer, self._model)
        with anyio.CancelScope() as scope:
            self._requests.under_way.add(scope)
            over = asyncio.Event()
            keeping_up = asyncio.create_task(self._keep_up(turn, over))
            try:
                async for _ in answer.read():
                    pass
            except SmolVLMError:
                pass  # which its clients are told
            finally:
                answer.cancel()
                over.set()
                try:
                    with anyio.CancelScope(shield=True):
                        await keeping_up
                        keeping = await self._save(turn.end)
                finally:
                    self._requests.under_way.discard(scope)
                    self.answers.remove(answer)
        return keeping

    async def _keep_up(self, turn: Turn, over: asyncio.Event) -> None:
        """Keep the question at once, and the answer as far as it has come, until it is over."""
        await self._save(turn.begin)
        while not over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), KEEP_SECONDS)
                return
            await self._save(partial(turn.go_on, turn.answer.message()))

    async def _save(self, save: Callable[[], Keeping | None]) -> Keeping:
        try:
            with anyio.fail_after(SAVE_SECONDS):
                keeping = await self._ask(save)
            self._tell()
        except TimeoutError:
            return Keeping(None, f"not kept in the history: no answer in {SAVE_SECONDS:g} s")
        except (SmolVLMError, UnicodeError) as error:
            return Keeping(None, f"not kept in the history: {cut(str(error), 300)}")
        return keeping or Keeping(None)

    # ---- routes

    async def list_all(self, request: Request) -> Response:
        words, kept = request.query_params.get("words", ""), self.history is not None
        found = (
            [] if self.history is None else await self._ask(partial(self.history.list, 200, words))
        )
        return JSONResponse(dump(ConversationList(kept=kept, conversations=found)))

    async def one(self, request: Request) -> Response:
        id, history = _id_in(request), self._kept()
        if request.method == "DELETE":
            undo = request.query_params.get("undo", "false")
            if undo not in ("true", "false"):
                raise RequestError("must be true or false", "undo")
            await self._delete(id, history, undo == "true")
            return Response(status_code=204)
        if request.method == "POST":
            message = request.query_params.get("message", "")
            if not re.fullmatch("[0-9]{1,18}", message):
                raise RequestError("must be the number of a message", "message")
            await self._ask(partial(history.move, id, int(message)))
            self._tell()

        def show() -> Response:
            kept = history.read(id)
            shown = Conversation(id=id, messages=to_json(kept.messages), kept=kept.places)
            return JSONResponse(dump(shown))

        async with self._showing:
            return await self._ask(show)

    async def _delete(self, id: str, history: History, can_be_undone: bool) -> None:
        if not can_be_undone:
            try:
                await self._ask(partial(history.delete, id))
            finally:
                self._stop(id)  # after that, so that nothing of it is kept again
            return self._tell()
        self._stop(id)
        keeping = [each.keeping for each in self.answers if each.asked.conversation == id]
        if waited := [each for each in keeping if each is not None]:
            await asyncio.wait(waited)  # what came of it is restored, too
        await self._ask(partial(history.discard, id, UNDO_SECONDS))
        self._tell()
        forgetting = asyncio.create_task(self._forget_later(history))
        self._forgetting.add(forgetting)
        forgetting.add_done_callback(self._forgetting.discard)

    async def _forget_later(self, history: History) -> None:
        """Forget what was not restored. Where the server ends before, whoever lists the history
        next does it."""
        await asyncio.sleep(UNDO_SECONDS + 1)
        with suppress(SmolVLMError):
            await self._ask(history.forget_overdue)

    async def restore(self, request: Request) -> Response:
        """Take back a deletion that can be undone."""
        await self._ask(partial(self._kept().restore, _id_in(request)))
        self._tell()
        return Response(status_code=204)

    async def rename(self, request: Request) -> Response:
        id, title = _id_in(request), request.query_params.get("title")
        if title is None or len(title) > MAX_NAME:
            raise RequestError(f"must be a text of up to {MAX_NAME} characters", "title")
        title = await self._ask(partial(self._kept().rename, id, title))
        return JSONResponse({"title": title})

    async def markdown(self, request: Request) -> Response:
        """The conversation as a file: Markdown, in a zip with its pictures if it has any."""
        id, history = _id_in(request), self._kept()

        def make() -> tuple[str, bytes, str]:
            messages, title = history.load(id), history.title(id)
            if any(message.media for message in messages):
                return f"{file_name(title)}.zip", as_zip(messages, title), "application/zip"
            return f"{file_name(title)}.md", as_markdown(messages, title).encode(), "text/markdown"

        async with self._showing:
            name, data, kind = await self._ask(make)
        disposition = f"attachment; filename*=UTF-8''{quoted(name)}"
        return Response(data, headers={"content-disposition": disposition}, media_type=kind)

    async def stop(self, request: Request) -> Response:
        """End the answer under way; what came of it stays."""
        id = _id_in(request)
        if not self._stop(id):
            raise NoConversationError(f"no answer to conversation {quote(id)} is under way")
        return Response(status_code=204)

    async def events(self, request: Request) -> Response:
        """Tell what comes to a conversation as long as the client listens."""
        id, history = _id_in(request), self._kept()
        await self._ask(partial(history.leaf, id))
        if len(self._listeners) >= MOST_STREAMS:
            raise BusyError(f"{MOST_STREAMS} windows listen already; close some")
        woken = asyncio.Event()
        self._listeners.add(woken)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(history))
        return EventStream(self._news(id, history, woken), partial(self._listeners.discard, woken))

    def _kept(self) -> History:
        if self.history is None:
            raise NoConversationError("no history is kept (--no-history)")
        return self.history

    def _stop(self, id: str) -> bool:
        coming = [each for each in self._coming if each.id == id]
        for each in coming:
            each.is_stopped = True
        answers = [each for each in self.answers if each.asked.conversation == id]
        for answer in answers:
            answer.stop()
        return bool(coming or answers)

    async def _ask(self, ask: Callable[[], Found]) -> Found:
        return await anyio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=self.keepers)

    # ---- news

    def _tell(self) -> None:
        """Have all listeners look at what there is now."""
        for woken in self._listeners:
            woken.set()

    async def _watch(self, history: History) -> None:
        """Look at whether another program has written, as long as somebody listens."""
        watch: Watch | None = None
        while self._listeners:
            with suppress(HistoryError):  # it may be used again later
                if watch is None:
                    watch = await self._ask(history.watch)
            has_changed = watch is not None and await self._ask(watch.has_changed)
            if has_changed or self._requests.are_refused:
                self._tell()
            await asyncio.sleep(POLL_SECONDS)
        if watch is not None:
            watch.close()

    async def _news(self, id: str, history: History, woken: asyncio.Event) -> AsyncIterator[bytes]:
        """States rather than steps, so that who comes again has missed nothing: the leaf, and the
        answer under way as far as it has come, then what comes to that."""
        told: object = NOTHING
        while not self._requests.are_refused:
            woken.clear()
            try:
                leaf = await self._ask(partial(history.leaf, id))
            except NoConversationError:
                yield _news(deleted=True)
                return
            except HistoryError:  # it may be used again later
                yield STILL_HERE
                await asyncio.sleep(POLL_SECONDS)
                continue
            known = [each for each in self.answers if each.asked.conversation == id]
            answer = known[-1] if known else None
            if answer is not None and answer.after is not None:
                text = answer.begun + answer.choices[0].text
                yield _news(leaf=leaf, answer=Coming(after=answer.after, text=text))
                with suppress(SmolVLMError):  # what was made stays
                    async for choice, piece, _ in answer.read(len(text) - len(answer.begun)):
                        if choice.index == 0 and piece:
                            yield _news(text=piece)
                if answer.keeping is not None:
                    await asyncio.wait([answer.keeping])
                told = NOTHING  # the leaf is told anew, also where it is as it was before
                continue
            if leaf != told:
                told = leaf
                yield _news(leaf=leaf)
            try:
                async with asyncio.timeout(ALIVE_SECONDS):
                    await woken.wait()
            except TimeoutError:
                yield STILL_HERE


def _id_in(request: Request) -> str:
    """The conversation that a request's path names.

    Raises:
        NoConversationError: it has not the form of an id.
    """
    id = str(request.path_params["id"])
    if not re.fullmatch(ID, id):
        raise NoConversationError(f"no conversation {quote(id)}")
    return id


def _news(**fields: Any) -> bytes:
    return event(dump(News(**fields)))


class EventStream(StreamingResponse):
    """Server-sent events. When the response has ended, also one that never began, `end` is done."""

    def __init__(self, events: AsyncIterator[bytes], end: Callable[[], object]):
        passed_on = {"x-accel-buffering": "no"}  # by nginx, in between, as it comes
        super().__init__(events, headers=passed_on, media_type="text/event-stream")
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()
