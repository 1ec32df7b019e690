"""The HTTP application: OpenAI's chat completions, the history, and the page that uses both.

The engine's thread runs the model; routes only prepare, wait and pass on. A client that goes away
ends its answer.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TypeVar
from weakref import WeakSet

import anyio
import mlx.core as mx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Receive, Scope, Send

from ..errors import (
    GenerationError,
    NoConversationError,
    SmolVLMError,
    cut,
    quote,
)
from ..generation.options import Options
from ..generation.scheduler import Scheduler
from ..inputs.fetch import FetchLimits
from ..inputs.image import STRANGERS
from ..inputs.media import Recent
from ..inputs.messages import Message, notes, to_json
from ..inputs.processor import Inputs, Processor
from ..inputs.settings import ImageOptions
from ..tasks.history import History
from ..tasks.live import Judge
from ..tasks.options import SERVE
from .answer import Answer
from .assets import ASSET_ROUTES, ASSETS
from .budget import Budget, Spent
from .closing import Requests, Tracked
from .errors import ModelError, on_bug, on_error, told
from .fields import RequestError
from .openai import (
    Completion,
    Delta,
    Live,
    Model,
    ModelList,
    dump,
    event,
)
from .openapi import Conversation, ConversationList, Health, Memory, document
from .request import ChatRequest
from .security import Guard
from .start import Start


def judges(most: int = 32) -> Callable[[str], Judge]:
    """A live camera's judge, by the id of its requests; of more cameras, the one that asked longest
    ago is forgotten."""
    return lru_cache(most)(lambda id: Judge())


Found = TypeVar("Found")
# Requests whose media are decoded at once, and those for which the history is asked, which may be
# locked; the page has other threads.
READERS, KEEPERS = 32, 8
SAVE_SECONDS = 5.0  # that an answer's end waits for the history
END_SECONDS = 2.0  # that the server's end waits for the step under way


@dataclass
class Service:
    """What the routes work with. A request names no files of this machine, and addresses elsewhere
    only with `allow_urls`.

    Attributes:
        model: its name here; `aliases` are others.
        options, image_options: of answers, where a request says nothing else.
        start: what the page begins with.
        limits: for pictures and videos of requests.
        budget: for requests as a whole.
        parsing: so many bodies at once, each of which may take some hundred megabytes.
        created: when it was loaded, in seconds since 1970.
        requests: those under way.
        answers: those that somebody waits for.
    """

    scheduler: Scheduler
    processor: Processor
    model: str
    history: History | None
    image_options: ImageOptions
    options: Options = SERVE
    start: Start = field(default_factory=Start)
    allow_urls: bool = False
    aliases: Sequence[str] = ()
    limits: FetchLimits = STRANGERS
    budget: Budget = field(default_factory=Budget)
    parsing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    recent: Recent = field(default_factory=Recent)
    judge_of: Callable[[str], Judge] = field(default_factory=judges)
    created: int = field(default_factory=lambda: int(time.time()))
    readers: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(READERS))
    keepers: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(KEEPERS))
    requests: Requests = field(default_factory=Requests)
    answers: WeakSet[Answer] = field(default_factory=WeakSet)

    def routes(self) -> list[BaseRoute]:
        api = [
            Route("/models", self.models),
            Route("/models/{id:path}", self.one_model),
            Route("/chat/completions", self.complete, methods=["POST"]),
        ]
        return [
            *ASSET_ROUTES,
            Route("/page/start", self.page_start),
            Route("/health", self.health),
            Route("/openapi.json", self.openapi),
            Mount("/v1", routes=api),
            *api,  # for clients that are told an address without /v1
            Route("/conversations", self.list_conversations),
            Route("/conversations/{id}", self.conversation, methods=["GET", "DELETE"]),
        ]

    async def page_start(self, request: Request) -> Response:
        return JSONResponse(
            await anyio.to_thread.run_sync(self.start.to_json, self.options, self.image_options)
        )

    async def health(self, request: Request) -> Response:
        state = self.scheduler.state()
        health = Health(
            status=state.status,
            model=self.model,
            running=state.running,
            waiting=state.waiting,
            idle_seconds=None if state.idle_seconds is None else round(state.idle_seconds, 3),
            errors=state.errors,
            last_error=state.last_error or None,
            memory=Memory(
                active=mx.get_active_memory(),
                peak=mx.get_peak_memory(),
                cache=mx.get_cache_memory(),
            ),
        )
        return JSONResponse(dump(health), 200 if state.status in ("ok", "failing") else 503)

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(document())

    async def models(self, request: Request) -> Response:
        return JSONResponse(dump(ModelList(object="list", data=self._models())))

    async def one_model(self, request: Request) -> Response:
        id = request.path_params["id"]
        for model in self._models():
            if model.id == id:
                return JSONResponse(dump(model))
        raise ModelError(f"no model {quote(id)}; /v1/models lists what there is")

    def _models(self) -> list[Model]:
        return [
            Model(id=name, object="model", created=self.created, owned_by="local")
            for name in dict.fromkeys(filter(None, [self.model, *self.aliases]))
        ]

    async def list_conversations(self, request: Request) -> Response:
        words = request.query_params.get("words", "")
        found = (
            []
            if self.history is None
            else await self._ask_history(partial(self.history.list, 200, words))
        )
        kept = self.history is not None
        return JSONResponse(dump(ConversationList(kept=kept, conversations=found)))

    async def conversation(self, request: Request) -> Response:
        if self.history is None:
            raise NoConversationError("no history is kept (--no-history)")
        id = request.path_params["id"]
        if request.method == "DELETE":
            await self._ask_history(partial(self.history.delete, id))
            for answer in self.answers:
                answer.is_deleted |= answer.conversation == id
            return Response(status_code=204)
        kept = await self._ask_history(partial(self.history.read, id))
        shown = Conversation(id=id, version=kept.version, messages=to_json(kept.messages))
        return JSONResponse(dump(shown))

    async def _ask_history(self, ask: Callable[[], Found]) -> Found:
        return await anyio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=self.keepers)

    async def complete(self, request: Request) -> Response:
        # Not by `body()`, which Starlette keeps until the answer's end.
        body = b"".join([piece async for piece in request.stream()])
        async with self.parsing:
            asked = await anyio.to_thread.run_sync(ChatRequest.parse, body, self.budget)
        del body
        if asked.live is not None and not asked.media:
            raise RequestError("the request has no picture", "live")
        options, schema = asked.options(self.options), asked.schema_wanted()
        image_options = asked.image_options(self.image_options)
        limits = replace(self.limits, allow_urls=self.allow_urls)
        started = time.perf_counter()

        def prepare() -> tuple[list[Message], Inputs]:
            spent = Spent(self.budget, self.processor.sampling)
            messages = asked.read(limits, self.recent, self.processor.one_tile, spent)
            request.state.messages = messages  # for `on_error`, if they are too long
            tiles = self.processor.count_tiles(messages, image_options)
            self.scheduler.check(tiles, schema, options.max_tokens)
            return messages, self.processor(messages, image_options)

        messages, inputs = await anyio.to_thread.run_sync(
            prepare, abandon_on_cancel=True, limiter=self.readers
        )
        answer, took = Answer(asked, messages), time.perf_counter() - started
        asked = answer.asked
        self.answers.add(answer)
        answer.submit(self.scheduler, inputs, options, schema, took, client_of(request))
        completion = Completion(self.model, notes(messages[-1:]))
        if asked.stream:
            return EventStream(self._events(answer, completion), answer)
        notice = await self._wait(request, answer)
        texts, live = [choice.text for choice in answer.choices], self._judged(answer)
        whole = completion.whole(texts, answer.statistics, live, answer.kept_as, notice)
        return JSONResponse(whole)

    async def _wait(self, request: Request, answer: Answer) -> str | None:
        """Wait for the answer's end; a client that goes away meanwhile is one. Returns what went
        wrong beside it."""

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            answer.push(answer.choices[0], GenerationError("nobody waits for the answer"))

        watcher = asyncio.ensure_future(watch())
        try:
            async for _ in answer.read():
                pass
        finally:
            watcher.cancel()
            answer.cancel()
            notice = await self._keep(answer)
        return notice

    async def _events(self, answer: Answer, completion: Completion) -> AsyncIterator[bytes]:
        try:
            for choice in answer.choices:
                yield event(completion.chunk(choice.index, Delta(role="assistant", content="")))
            async for choice, piece in answer.read():
                if piece:
                    yield event(completion.chunk(choice.index, Delta(content=piece)))
                if choice.over:
                    yield event(completion.chunk(choice.index, Delta(), choice.job.statistics))
            notice = await self._keep(answer)
            used = answer.statistics if answer.asked.wants_usage() else None
            if used is not None or notice is not None:
                judged, kept_as = self._judged(answer), answer.kept_as
                yield event(completion.last_chunk(used, judged, kept_as, notice))
        except SmolVLMError as error:
            await self._keep(answer)
            yield event(told(error))
        finally:
            answer.cancel()
            await self._keep(answer)
        yield b"data: [DONE]\n\n"

    def _judged(self, answer: Answer) -> Live | None:
        """Return what a live camera is told beside the usage, nothing where none asks."""
        if answer.asked.live is None:
            return None
        judge, job = self.judge_of(answer.asked.live), answer.choices[0].job
        judge.judge(answer.message().text, job.inputs.tiles[-1])
        return Live(
            number=judge.number,
            unchanged=judge.unchanged,
            stuck=judge.is_stuck,
            about=f"frame {judge.number} · {job.statistics.describe_phases()}",
        )

    async def _keep(self, answer: Answer) -> str | None:
        """Put a conversation that has a name into the history, once, and before its end is told;
        returns why it is not kept. Also where its client has gone, which cancels what it does."""
        conversation, history = answer.asked.conversation, self.history
        if history is None or conversation is None or answer.kept:
            return None
        answer.kept = True
        if answer.is_deleted:
            return "not kept in the history: the conversation was deleted meanwhile"
        messages, known = [*answer.messages, answer.message()], conversation.known

        def save() -> None:
            id, version = conversation.id, conversation.version
            answer.kept_as = history.save(id, messages, self.model, known, version).id

        try:
            with anyio.CancelScope(shield=True), anyio.fail_after(SAVE_SECONDS):
                await self._ask_history(save)
        except TimeoutError:
            return f"not kept in the history: it did not answer in {SAVE_SECONDS:g} s"
        except (SmolVLMError, UnicodeError) as error:
            return f"not kept in the history: {cut(str(error), 300)}"
        return None


def client_of(request: Request) -> tuple[str, str]:
    """Return by what clients take turns: the address that a request comes from (behind a proxy on
    this machine, the one that it names), and among those at one address what each program calls
    itself. A token is that of the server and tells nobody apart, and a connection may be one of
    many."""
    address = request.client.host if request.client else ""
    return address, request.headers.get("user-agent", "")


class EventStream(StreamingResponse):
    """A streamed answer: nobody waits for it when the response has ended, also one that never
    began."""

    def __init__(self, events: AsyncIterator[bytes], answer: Answer):
        passed_on = {"x-accel-buffering": "no"}  # by nginx, in between, as it comes
        super().__init__(events, headers=passed_on, media_type="text/event-stream")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


def make_app(
    service: Service, hosts: list[str], token: str | None, origins: Sequence[str] = ()
) -> Starlette:
    """The application behind its guard."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(service.scheduler.close, END_SECONDS)

    return Starlette(
        routes=service.routes(),
        middleware=[
            Middleware(Tracked, requests=service.requests),
            Middleware(
                Guard, hosts=hosts, token=token, origins=origins, open_paths=[*ASSETS, "/health"]
            ),
        ],
        exception_handlers={
            SmolVLMError: on_error,
            HTTPException: on_error,
            Exception: on_bug,
        },
        lifespan=lifespan,
    )
