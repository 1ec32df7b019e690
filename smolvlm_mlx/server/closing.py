"""How the server ends: at once it takes nothing new, for a while what is under way goes on, and
then that is told."""

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from anyio import CancelScope
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ServerError
from ..generation.scheduler import FAILED, ClosingError, Scheduler
from . import connections
from .openai import error_body

LAST_SECONDS = 1.0  # for the words that end an answer, to clients that may read them slowly
MOST_SECONDS = 3.5  # after the grace, for all else: a step or a file may hang
TICK_SECONDS = 0.02


class Requests:
    """The requests under way, and whether more are taken."""

    def __init__(self) -> None:
        self.are_refused = False
        self.under_way, self.coming = set[CancelScope](), set[CancelScope]()

    def refuse(self) -> None:
        """Take no more; those whose bodies are still coming are not taken either."""
        self.are_refused = True
        for scope in self.coming:
            scope.cancel()

    def cancel(self) -> None:
        """End those that have not ended by themselves."""
        for scope in self.under_way:
            scope.cancel()

    async def wait(self, seconds: float) -> None:
        """Wait until all have ended, so long at most."""
        deadline = time.monotonic() + seconds
        while self.under_way and time.monotonic() < deadline:
            await asyncio.sleep(TICK_SECONDS)


class Tracked:
    """Middleware around the whole application that keeps `Requests`; refuses all but /health when
    no more are taken."""

    def __init__(self, app: ASGIApp, requests: Requests):
        self._app, self._requests = app, requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            return await self._app(scope, receive, send)
        if self._requests.are_refused:
            return await _refusal()(scope, receive, send)
        requests, own, is_begun = self._requests, CancelScope(), False

        async def received() -> Message:
            message = await receive()
            if not message.get("more_body"):
                requests.coming.discard(own)
            return message

        async def sent(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            requests.coming.discard(own)  # what is answered is not to be answered otherwise
            await send(message)

        requests.coming.add(own)
        requests.under_way.add(own)
        try:
            with own:
                await self._app(scope, received, sent)
            if own.cancelled_caught and not is_begun:
                await _refusal()(scope, receive, send)
        finally:
            requests.coming.discard(own)
            requests.under_way.discard(own)


def _refusal() -> JSONResponse:
    error = error_body(str(ClosingError()), "server_error")
    return JSONResponse(error, 503, {"connection": "close", "retry-after": "5"})


class Server(connections.Server):
    """Ends as the requests under way need it, and where the engine has failed.

    Args:
        grace: seconds for answers under way; after Ctrl-C they have none.
        leave: ends the process at once, with the exit code for a signal.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        requests: Requests,
        scheduler: Scheduler,
        grace: float,
        leave: Callable[[int, FrameType | None], None],
    ):
        super().__init__(config)
        self._requests, self._scheduler, self._grace = requests, scheduler, grace
        self._leave = leave

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer until a signal comes.

        Raises:
            ServerError: the engine has failed.
        """
        super().run(sockets)
        if self._scheduler.failed:
            raise ServerError(FAILED)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server in order, but in time, and a second one at once."""
        super().handle_exit(sig, frame)
        if sig == signal.SIGINT:
            self._grace = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._leave)
        last = threading.Timer(self._grace + MOST_SECONDS, self._leave, (sig, None))
        last.daemon = True
        last.start()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._scheduler.failed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._requests.refuse()
        self._scheduler.refuse()
        await self._requests.wait(self._grace)
        self._scheduler.end()
        await self._requests.wait(LAST_SECONDS)
        # Those whose clients do not read are cut off, of which nobody needs to be told.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._requests.cancel()
        await super().shutdown(sockets)
