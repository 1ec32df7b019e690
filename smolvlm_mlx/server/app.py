"""The HTTP application: OpenAI's chat completions, the history, and the page that uses both.

The engine's thread runs the model; routes only prepare, wait and pass on. A client that goes away
ends its answer.
"""

import asyncio
import time
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
from starlette.routing import BaseRoute, Mount, Route

from ..errors import (
    ContextFullError,
    GenerationError,
    HistoryError,
    NoConversationError,
    PromptError,
    SmolVLMError,
    cut,
    quote,
)
from ..generation.options import Options
from ..generation.scheduler import BusyError, Scheduler
from ..inputs.fetch import FetchLimits
from ..inputs.image import STRANGERS
from ..inputs.media import Recent
from ..inputs.messages import Message, notes, to_json
from ..inputs.processor import Inputs, Processor
from ..inputs.settings import ImageOptions
from ..tasks.chat import oldest_turn
from ..tasks.history import History
from ..tasks.live import Judge
from ..tasks.options import CHAT
from .answer import Answer
from .assets import ASSET_ROUTES, ASSETS
from .fields import RequestError
from .openai import (
    Completion,
    Delta,
    Forget,
    Live,
    Model,
    ModelList,
    dump,
    error_body,
    event,
    finish_reason,
)
from .openapi import Conversation, ConversationList, Health, document
from .request import ChatRequest
from .security import Guard
from .start import Start


def judges(most: int = 32) -> Callable[[str], Judge]:
    """A live camera's judge, by the id of its requests; of more cameras, the one that asked longest
    ago is forgotten."""
    return lru_cache(most)(lambda id: Judge())


class ModelError(SmolVLMError):
    """A request names a model that is not served."""


# Of errors that are not the request's own.
STATUSES = {BusyError: 503, HistoryError: 500, NoConversationError: 404, ModelError: 404}


@dataclass
class Service:
    """What the routes work with. A request names no files of this machine, and addresses elsewhere
    only with `allow_urls`.

    Attributes:
        model: its name here; `aliases` are others.
        options, image_options: of answers, where a request says nothing else.
        start: what the page begins with.
        limits: for pictures and videos of requests.
        created: when it was loaded, in seconds since 1970.
    """

    scheduler: Scheduler
    processor: Processor
    model: str
    history: History | None
    image_options: ImageOptions
    options: Options = CHAT
    start: Start = field(default_factory=Start)
    allow_urls: bool = False
    aliases: Sequence[str] = ()
    limits: FetchLimits = STRANGERS
    recent: Recent = field(default_factory=Recent)
    judge_of: Callable[[str], Judge] = field(default_factory=judges)
    created: int = field(default_factory=lambda: int(time.time()))

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
        running, waiting = self.scheduler.occupancy
        failed = self.scheduler.failed
        health = Health(
            status="failed" if failed else "ok",
            model=self.model,
            running=running,
            waiting=waiting,
        )
        return JSONResponse(dump(health), 503 if failed else 200)

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
            else await anyio.to_thread.run_sync(self.history.list, 200, words)
        )
        kept = self.history is not None
        return JSONResponse(dump(ConversationList(kept=kept, conversations=found)))

    async def conversation(self, request: Request) -> Response:
        if self.history is None:
            raise NoConversationError("no history is kept (--no-history)")
        id = request.path_params["id"]
        if request.method == "DELETE":
            await anyio.to_thread.run_sync(self.history.delete, id)
            return Response(status_code=204)
        messages = await anyio.to_thread.run_sync(self.history.load, id)
        return JSONResponse(dump(Conversation(id=id, messages=to_json(messages))))

    async def complete(self, request: Request) -> Response:
        # Not by `body()`, which Starlette keeps until the answer's end.
        asked = ChatRequest.parse(b"".join([piece async for piece in request.stream()]))
        if asked.live is not None and not asked.media:
            raise RequestError("the request has no picture", "live")
        options, schema = asked.options(self.options), asked.schema_wanted()
        image_options = asked.image_options(self.image_options)
        limits = replace(self.limits, allow_urls=self.allow_urls)
        started = time.perf_counter()

        def prepare() -> tuple[list[Message], Inputs]:
            messages = asked.read(limits, self.recent, self.processor.one_tile)
            request.state.messages = messages  # for `_on_error`, if they are too long
            tiles = self.processor.count_tiles(messages, image_options)
            self.scheduler.check(tiles, schema, options.max_tokens)
            return messages, self.processor(messages, image_options)

        messages, inputs = await anyio.to_thread.run_sync(prepare)
        answer = Answer(asked, messages)
        asked = answer.asked
        answer.submit(self.scheduler, inputs, options, schema, time.perf_counter() - started)
        completion = Completion(self.model, notes(messages[-1:]))
        if asked.stream:
            return StreamingResponse(
                self._events(answer, completion),
                headers={"x-accel-buffering": "no"},  # nginx, in between, passes on what comes
                media_type="text/event-stream",
            )
        await self._wait(request, answer)
        texts = [choice.text for choice in answer.choices]
        return JSONResponse(completion.whole(texts, answer.statistics, self._judged(answer)))

    async def _wait(self, request: Request, answer: Answer) -> None:
        """Wait for the answer's end; a client that goes away meanwhile is one."""

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
            self._keep(answer)

    async def _events(self, answer: Answer, completion: Completion) -> AsyncIterator[bytes]:
        try:
            for choice in answer.choices:
                yield event(completion.chunk(choice.index, Delta(role="assistant", content="")))
            async for choice, piece in answer.read():
                if piece:
                    yield event(completion.chunk(choice.index, Delta(content=piece)))
                if choice.over:
                    reason = finish_reason(choice.job.statistics)
                    yield event(completion.chunk(choice.index, Delta(), reason))
            self._keep(answer)
            if answer.asked.wants_usage():
                yield event(completion.last_chunk(answer.statistics, self._judged(answer)))
            yield b"data: [DONE]\n\n"
        except SmolVLMError as error:
            yield event(_told(error))
        finally:
            answer.cancel()
            self._keep(answer)

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

    def _keep(self, answer: Answer) -> None:
        """Put a conversation that has a name into the history, once, and before its end is told."""
        conversation = answer.asked.conversation
        if self.history is None or conversation is None or answer.kept:
            return
        answer.kept = True
        self.history.save(conversation, [*answer.messages, answer.message()], self.model)


def _told(error: SmolVLMError, forget: Forget | None = None) -> dict[str, object]:
    """Return what a client is told of an error: its code, and which part of the request it is
    about, where that is known."""
    codes = {ContextFullError: "context_length_exceeded", ModelError: "model_not_found"}
    kinds = {BusyError: "server_busy", HistoryError: "server_error"}
    kind, code = kinds.get(type(error), "invalid_request_error"), codes.get(type(error))
    param = error.param if isinstance(error, RequestError) else None
    return error_body(cut(str(error), 300), kind, code, param, forget)


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse(error_body(error.detail), error.status_code, error.headers)
    assert isinstance(error, SmolVLMError)
    forget = None
    if isinstance(error, ContextFullError):
        messages = request.state.messages
        with suppress(PromptError):  # there is no second turn
            forget = Forget(messages=len(messages[oldest_turn(messages)]))
    headers = {"retry-after": "1"} if isinstance(error, BusyError) else None
    return JSONResponse(_told(error, forget), STATUSES.get(type(error), 400), headers)


async def _on_bug(request: Request, error: Exception) -> Response:
    """Its traceback is for the server's log."""
    return JSONResponse(error_body("the server failed; its log says why", "server_error"), 500)


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
            Middleware(
                Guard, hosts=hosts, token=token, origins=origins, open_paths=[*ASSETS, "/health"]
            )
        ],
        exception_handlers={
            SmolVLMError: _on_error,
            HTTPException: _on_error,
            Exception: _on_bug,
        },
        lifespan=lifespan,
    )
