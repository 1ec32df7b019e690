"""The HTTP application: OpenAI's chat completions, the history, and the page that uses both.

The engine's thread runs the model; routes only prepare, wait and pass on. A client that goes away
ends its answer, unless that is of a conversation that is kept.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import anyio
import mlx.core as mx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from ..errors import (
    GenerationError,
    SmolVLMError,
    quote,
)
from ..generation.options import Options
from ..generation.scheduler import Scheduler
from ..inputs.fetch import FetchLimits
from ..inputs.image import MAX_EDGE, STRANGERS
from ..inputs.media import Recent
from ..inputs.messages import Message, notes
from ..inputs.processor import Inputs, Processor
from ..inputs.settings import ImageOptions
from ..tasks.history import History
from ..tasks.live import Judge
from ..tasks.options import SERVE
from .answer import Answer, Keeping
from .assets import ASSET_ROUTES, ASSETS
from .budget import Budget, Spent
from .closing import Requests, Tracked
from .conversations import Conversations, EventStream
from .errors import ModelError, on_bug, on_error, told
from .fields import RequestError
from .openai import (
    Completion,
    Delta,
    Live,
    Model,
    ModelList,
    Seen,
    dump,
    event,
)
from .openapi import Health, Memory, document
from .request import ChatRequest
from .security import Guard
from .seen import Size, all_seen
from .start import EXAMPLES, PAGE_EXAMPLES, Start


def judges(most: int = 32) -> Callable[[str], Judge]:
    """A live camera's judge, by the id of its requests; of more cameras, the one that asked longest
    ago is forgotten."""
    return lru_cache(most)(lambda id: Judge())


READERS = 32  # requests whose media are decoded at once; the page has other threads
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
        parameters, weight_bytes: of the model, which the page tells.
        budget: for requests as a whole.
        parsing: so many bodies at once, each of which may take some hundred megabytes.
        created: when it was loaded, in seconds since 1970.
        requests: those under way.
        conversations: those that are kept, and their answers under way.
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
    parameters: int | None = None
    weight_bytes: int | None = None
    limits: FetchLimits = STRANGERS
    budget: Budget = field(default_factory=Budget)
    parsing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    recent: Recent = field(default_factory=Recent)
    judge_of: Callable[[str], Judge] = field(default_factory=judges)
    created: int = field(default_factory=lambda: int(time.time()))
    readers: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(READERS))
    requests: Requests = field(default_factory=Requests)

    def __post_init__(self) -> None:
        self.conversations = Conversations(self.history, self.model, self.requests)

    def routes(self) -> list[BaseRoute]:
        api = [
            Route("/models", self.models),
            Route("/models/{id:path}", self.one_model),
            Route("/chat/completions", self.complete, methods=["POST"]),
        ]
        return [
            *ASSET_ROUTES,
            Route("/page/start", self.page_start),
            Route("/tiles", self.tiles),
            Route("/health", self.health),
            Route("/openapi.json", self.openapi),
            Mount("/v1", routes=api),
            *api,  # for clients that are told an address without /v1
            *self.conversations.routes(),
        ]

    async def page_start(self, request: Request) -> Response:
        start = await anyio.to_thread.run_sync(self.start.to_json, self.options, self.image_options)
        return JSONResponse({**start, "about": self._about()})

    def _about(self) -> dict[str, object]:
        """What the page tells of the model, the questions that fit it, and to how many pixels of
        its longer side a picture is brought first: more of them are not seen."""
        edge = self.image_options.applied(self.processor.settings).longest_edge
        is_for_pages = self.processor.tokenizer.doctags_end is not None
        return {
            "model": self.model,
            "parameters": self.parameters,
            "bytes": self.weight_bytes,
            "memory": mx.get_active_memory(),
            "longest_edge": min(edge, MAX_EDGE),
            "examples": PAGE_EXAMPLES if is_for_pages else EXAMPLES,
        }

    async def tiles(self, request: Request) -> Response:
        """Tell what a picture or a video of a size is to the model."""
        asked = Size.parse(request.query_params, self.budget)
        seen = partial(asked.seen, self.processor, self.image_options, self.budget)
        return JSONResponse(dump(await anyio.to_thread.run_sync(seen)))

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

    async def complete(self, request: Request) -> Response:
        # Not by `body()`, which Starlette keeps until the answer's end.
        body = b"".join([piece async for piece in request.stream()])
        async with self.parsing:
            asked = await anyio.to_thread.run_sync(ChatRequest.parse, body, self.budget)
        del body
        if asked.live is not None and not asked.media:
            raise RequestError("the request has no picture", "live")
        coming = self.conversations.coming(asked.conversation)
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
            goes_on = bool(asked.continue_final_message)
            return messages, self.processor(messages, image_options, continue_final_message=goes_on)

        messages, inputs = await anyio.to_thread.run_sync(
            prepare, abandon_on_cancel=True, limiter=self.readers
        )
        if coming.is_stopped:
            raise RequestError("the answer was stopped before it began")
        answer, took = Answer(asked, messages), time.perf_counter() - started
        asked = answer.asked
        answer.submit(self.scheduler, inputs, options, schema, took, client_of(request))
        self.conversations.take(answer)
        completion = Completion(self.model, notes(messages[-1:]))
        if asked.stream:
            leave = partial(self.conversations.leave, answer)
            return EventStream(self._events(answer, completion), leave)
        return JSONResponse(await self._whole(request, answer, completion))

    async def _whole(
        self, request: Request, answer: Answer, completion: Completion
    ) -> dict[str, object]:
        await self._wait(request, answer)
        texts, live = [choice.text for choice in answer.choices], self._judged(answer)
        kept = await self._kept(answer)
        seen = self._seen(answer)
        return completion.whole(texts, answer.statistics, live, kept.places, seen, kept.notice)

    async def _wait(self, request: Request, answer: Answer) -> None:
        """Wait for the answer's end; a client that goes away meanwhile is one for him."""
        gone = GenerationError("nobody waits for the answer")

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.conversations.leave(answer)
            reader.cancel()

        async def read() -> None:
            async for _ in answer.read():
                pass

        reader, watcher = asyncio.ensure_future(read()), asyncio.ensure_future(watch())
        try:
            await asyncio.wait([reader])
            if reader.cancelled():
                raise gone
            if reader.exception() is not None:
                await self._kept(answer)  # its question is taken back before it is told
            reader.result()
        finally:
            watcher.cancel()
            reader.cancel()
            if answer.keeping is None:
                answer.cancel()

    async def _events(self, answer: Answer, completion: Completion) -> AsyncIterator[bytes]:
        try:
            for choice in answer.choices:
                yield event(completion.chunk(choice.index, Delta(role="assistant", content="")))
            async for choice, piece, is_over in answer.read():
                if piece:
                    yield event(completion.chunk(choice.index, Delta(content=piece)))
                if is_over:
                    yield event(completion.chunk(choice.index, Delta(), choice.job.statistics))
            kept = await self._kept(answer)
            used = answer.statistics if answer.asked.wants_usage() else None
            if used is not None or kept.notice is not None:
                live, seen = self._judged(answer), self._seen(answer)
                yield event(completion.last_chunk(used, live, kept.places, seen, kept.notice))
        except SmolVLMError as error:
            await self._kept(answer)
            yield event(told(error))
        yield b"data: [DONE]\n\n"

    async def _kept(self, answer: Answer) -> Keeping:
        """Wait until an answer that is kept has been, before its end is told."""
        if answer.keeping is None:
            return Keeping(None)
        return await asyncio.shield(answer.keeping)

    def _seen(self, answer: Answer) -> list[Seen] | None:
        """Return what the pictures of a conversation were to the model, nothing of others."""
        if answer.asked.conversation is None:
            return None
        job = answer.choices[0].job
        return all_seen(self.processor, answer.messages, job.inputs, job.statistics) or None

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


def client_of(request: Request) -> tuple[str, str]:
    """Return by what clients take turns: the address that a request comes from (behind a proxy on
    this machine, the one that it names), and among those at one address what each program calls
    itself. A token is that of the server and tells nobody apart, and a connection may be one of
    many."""
    address = request.client.host if request.client else ""
    return address, request.headers.get("user-agent", "")


def make_app(
    service: Service,
    hosts: list[str],
    token: str | None,
    origins: Sequence[str] = (),
    ticket: str | None = None,
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
                Guard,
                hosts=hosts,
                token=token,
                origins=origins,
                open_paths=[*ASSETS, "/health"],
                ticket=ticket,
            ),
        ],
        exception_handlers={
            SmolVLMError: on_error,
            HTTPException: on_error,
            Exception: on_bug,
        },
        lifespan=lifespan,
    )
