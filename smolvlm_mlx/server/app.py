"""The HTTP application: OpenAI's chat completions, the history, and the page that uses both.

The engine's thread runs the model; routes only prepare, wait and pass on. A client that goes away
ends its answer.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ..errors import ContextFullError, GenerationError, HistoryError, PromptError, SmolVLMError, cut
from ..events import End, Event, Reading, Text
from ..generation.options import Options
from ..generation.scheduler import BusyError, Job, Scheduler
from ..inputs.image import STRANGERS
from ..inputs.media import Recent
from ..inputs.messages import Message, TextPart, notes, parse_messages, to_json
from ..inputs.processor import Inputs, Processor
from ..inputs.settings import ImageOptions
from ..tasks.chat import oldest_turn
from ..tasks.history import History
from ..tasks.live import Judge
from ..tasks.options import CHAT
from .assets import ASSET_ROUTES, ASSETS
from .openai import Completion, error_body, event
from .request import ChatRequest
from .security import Guard
from .start import Start

MAX_IMAGES = 16


def judges(most: int = 32) -> Callable[[str], Judge]:
    """A live camera's judge, by the id of its requests; of more cameras, the one that asked longest
    ago is forgotten."""
    return lru_cache(most)(lambda id: Judge())


@dataclass
class Service:
    """What the routes work with. A request names no files of this machine, and addresses elsewhere
    only with `allow_urls`; `options` and `image_options` are those of requests that say nothing."""

    scheduler: Scheduler
    processor: Processor
    model: str
    history: History | None
    image_options: ImageOptions
    options: Options = CHAT
    start: Start = field(default_factory=Start)
    allow_urls: bool = False
    recent: Recent = field(default_factory=Recent)
    judge_of: Callable[[str], Judge] = field(default_factory=judges)

    def routes(self) -> list[Route]:
        return [
            *ASSET_ROUTES,
            Route("/page/start", self.page_start),
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/chat/completions", self.complete, methods=["POST"]),
            Route("/conversations", self.list_conversations),
            Route("/conversations/{id}", self.conversation, methods=["GET", "DELETE"]),
        ]

    async def page_start(self, request: Request) -> Response:
        return JSONResponse(
            await anyio.to_thread.run_sync(self.start.to_json, self.options, self.image_options)
        )

    async def health(self, request: Request) -> Response:
        running, waiting = self.scheduler.occupancy
        status, code = ("failed", 503) if self.scheduler.failed else ("ok", 200)
        return JSONResponse(
            {"status": status, "model": self.model, "running": running, "waiting": waiting}, code
        )

    async def models(self, request: Request) -> Response:
        model = {"id": self.model, "object": "model", "created": 0, "owned_by": "local"}
        return JSONResponse({"object": "list", "data": [model]})

    async def list_conversations(self, request: Request) -> Response:
        words = request.query_params.get("words", "")
        found = (
            []
            if self.history is None
            else await anyio.to_thread.run_sync(self.history.list, 200, words)
        )
        return JSONResponse(
            {
                "kept": self.history is not None,
                "conversations": [vars(summary) for summary in found],
            }
        )

    async def conversation(self, request: Request) -> Response:
        if self.history is None:
            raise HistoryError("no history is kept (--no-history)")
        id = request.path_params["id"]
        if request.method == "DELETE":
            await anyio.to_thread.run_sync(self.history.delete, id)
            return Response(status_code=204)
        messages = await anyio.to_thread.run_sync(self.history.load, id)
        return JSONResponse({"id": id, "messages": to_json(messages)})

    async def complete(self, request: Request) -> Response:
        # Not by `body()`, which Starlette keeps until the answer's end.
        asked = ChatRequest.parse(b"".join([piece async for piece in request.stream()]))
        if len(asked.media) > MAX_IMAGES:
            raise PromptError(f"{len(asked.media)} images; the limit is {MAX_IMAGES} a request")
        if asked.live is not None and not asked.media:
            raise PromptError("live: the request has no picture")
        options, schema = asked.options(self.options), asked.schema_wanted()
        image_options = self.processor.one_tile if asked.wants_one_tile() else self.image_options
        limits = replace(STRANGERS, allow_urls=self.allow_urls)
        started = time.perf_counter()

        def prepare() -> tuple[list[Message], Inputs]:
            messages = parse_messages(asked.raw_messages(), limits, self.recent)
            return messages, self.processor(messages, image_options)

        messages, inputs = await anyio.to_thread.run_sync(prepare)
        request.state.messages = messages  # for `_on_error`, if they are too long
        answer = Answer(asked, messages)
        asked = answer.asked
        job = answer.job = Job(inputs, options, answer.push, schema)
        job.statistics.preprocess_seconds = time.perf_counter() - started
        self.scheduler.submit(job)
        completion = Completion(self.model, notes(messages[-1:]))
        if asked.stream:
            return StreamingResponse(
                self._events(answer, completion), media_type="text/event-stream"
            )
        text = await self._whole(request, answer)
        return JSONResponse({**completion.whole(text, job.statistics), **self._judged(answer)})

    async def _whole(self, request: Request, answer: "Answer") -> str:
        """The answer's text; a client that goes away meanwhile ends it."""

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            answer.push(GenerationError("nobody waits for the answer"))

        watcher = asyncio.ensure_future(watch())
        try:
            return "".join([piece async for piece in answer.read()])
        finally:
            watcher.cancel()
            answer.job.cancel()
            self._keep(answer)

    async def _events(self, answer: "Answer", completion: Completion) -> AsyncIterator[bytes]:
        try:
            yield event(completion.chunk({"role": "assistant", "content": ""}))
            async for piece in answer.read():
                yield event(completion.chunk({"content": piece}))
            yield event(completion.chunk({}, answer.job.statistics.finish_reason))
            self._keep(answer)
            if answer.asked.wants_usage():
                yield event(
                    {**completion.last_chunk(answer.job.statistics), **self._judged(answer)}
                )
            yield b"data: [DONE]\n\n"
        except SmolVLMError as error:
            yield event(error_body(str(error)))
        finally:
            answer.job.cancel()
            self._keep(answer)

    def _judged(self, answer: "Answer") -> dict[str, object]:
        """Return what a live camera is told beside the usage, nothing where none asks."""
        live = answer.asked.live
        if live is None:
            return {}
        judge = self.judge_of(live)
        judge.judge(answer.message().text, answer.job.inputs.tiles[-1])
        about = f"frame {judge.number} · {answer.job.statistics.describe_phases()}"
        return {
            "live": {
                "number": judge.number,
                "unchanged": judge.unchanged,
                "stuck": judge.is_stuck,
                "about": about,
            }
        }

    def _keep(self, answer: "Answer") -> None:
        """Put a conversation that has a name into the history, once, and before its end is told."""
        conversation = answer.asked.conversation
        if self.history is None or conversation is None or answer.kept:
            return
        answer.kept = True
        self.history.save(conversation, [*answer.messages, answer.message()], self.model)


class Answer:
    """An answer under way, and the conversation it belongs to. The engine's thread pushes, the
    event loop reads; it is woken for the end, and for pieces only if they are to be sent one by
    one."""

    job: Job

    def __init__(self, asked: ChatRequest, messages: list[Message]):
        # Without what was parsed: its data: URLs need not be held until the answer's end.
        self.asked = asked.model_copy(update={"messages": []})
        self.messages, self.kept = messages, False
        self._text, self._over = "", False
        self._events = deque[Event | SmolVLMError]()
        self._loop, self._woken = asyncio.get_running_loop(), asyncio.Event()

    def push(self, event: Event | SmolVLMError) -> None:
        """The next event, or an error for the end."""
        self._events.append(event)
        wakes = not isinstance(event, Reading | Text) or (
            self.asked.stream and isinstance(event, Text) and event.piece
        )
        if wakes and not self._woken.is_set() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._woken.set)

    async def read(self) -> AsyncIterator[str]:
        """Its text as it comes."""
        while not self._over:
            await self._woken.wait()
            self._woken.clear()
            if fresh := self._take():
                yield fresh

    def _take(self) -> str:
        """What was pushed, without the space that the chat template has before an answer."""
        fresh = ""
        while self._events:
            event = self._events.popleft()
            if isinstance(event, SmolVLMError):
                raise event
            self._over = isinstance(event, End)
            fresh += event.piece if isinstance(event, Text) else ""
        fresh = fresh if self._text else fresh.lstrip()
        self._text += fresh
        return fresh

    def message(self) -> Message:
        with suppress(SmolVLMError):
            self._take()
        return Message("assistant", (TextPart(self._text.rstrip()),), interrupted=not self._over)


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse(error_body(error.detail), error.status_code, error.headers)
    if isinstance(error, BusyError):
        return JSONResponse(error_body(str(error), "server_busy"), 503, {"retry-after": "1"})
    message = cut(str(error), 300)
    if isinstance(error, ContextFullError):
        messages, forget = request.state.messages, None
        with suppress(PromptError):  # there is no second turn
            forget = len(messages[oldest_turn(messages)])
        return JSONResponse(error_body(message, code="context_length_exceeded", forget=forget), 400)
    return JSONResponse(error_body(message), 404 if isinstance(error, HistoryError) else 400)


def make_app(
    service: Service, hosts: list[str], token: str | None, origins: Sequence[str] = ()
) -> Starlette:
    """The application behind its guard."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(service.scheduler.close)

    return Starlette(
        routes=service.routes(),
        middleware=[
            Middleware(Guard, hosts=hosts, token=token, origins=origins, open_paths=ASSETS)
        ],
        exception_handlers={SmolVLMError: _on_error, HTTPException: _on_error},
        lifespan=lifespan,
    )
