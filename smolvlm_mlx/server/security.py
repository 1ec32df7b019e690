"""What stands before the server's routes: who may ask, how much they may send, and how long they
may take.

`Guard` is ASGI middleware: exact Host and Origin (a page from elsewhere, or a name that was made to
point here, gets nothing), a bearer token for all but the page itself, and a limit on bodies.
`HeaderTimeoutProtocol` closes connections whose requests do not come: uvicorn itself would hold
them for ever.
"""

import asyncio
import hmac
from collections.abc import Iterable
from typing import Any

import anyio
import h11
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .budget import Budget
from .openai import error_body

HEADER_SECONDS, BODY_SECONDS = 10.0, 60.0
MAX_BODY_BYTES = Budget.body_bytes
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """Middleware around the whole application.

    Args:
        hosts: names with port that requests may call this server by, as in their Host header.
        token: None lets everyone in who can reach it.
        open_paths: what needs no token: the files of the page, which hold nothing.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Iterable[str],
        token: str | None,
        origins: Iterable[str],
        open_paths: Iterable[str],
    ):
        self._app, self._token, self._open_paths = app, token, frozenset(open_paths)
        self._hosts, self._cors = frozenset(host.lower() for host in hosts), frozenset(origins)
        self._origins = self._cors | {f"http://{host}" for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        origin = headers.get("origin")

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    *SECURITY_HEADERS,
                    *self._cors_headers(origin),
                ]
            await send(message)

        try:
            self._check(scope, headers, origin)
            if scope["method"] == "OPTIONS" and origin in self._cors:
                return await JSONResponse({})(scope, receive, secured)
            received = _after(await self._body(scope, headers, receive), receive)
        except HTTPException as refused:
            kind = "authentication_error" if refused.status_code == 401 else "invalid_request_error"
            response = JSONResponse(
                error_body(refused.detail, kind), refused.status_code, refused.headers
            )
            return await response(scope, receive, secured)
        await self._app(scope, received, secured)

    def _check(self, scope: Scope, headers: Headers, origin: str | None) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            raise HTTPException(403, "this host name is not allowed; --allow-host adds one")
        if origin is not None and origin not in self._origins:
            raise HTTPException(403, "this origin is not allowed; --allow-origin adds one")
        if self._token is None or scope["path"] in self._open_paths or scope["method"] == "OPTIONS":
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            given.encode(), self._token.encode()
        ):
            why = "no valid token; send the header: Authorization: Bearer TOKEN"
            raise HTTPException(401, why, {"www-authenticate": "Bearer"})

    async def _body(self, scope: Scope, headers: Headers, receive: Receive) -> bytes:
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body has {length} bytes; the limit is {MAX_BODY_BYTES}")
        body = bytearray()
        try:
            with anyio.fail_after(BODY_SECONDS):
                async for part in Request(scope, receive).stream():
                    body += part
                    if len(body) > MAX_BODY_BYTES:
                        raise HTTPException(413, f"the body has more than {MAX_BODY_BYTES} bytes")
            return bytes(body)
        except ClientDisconnect:
            raise HTTPException(400, "the body was not sent to its end") from None
        except TimeoutError:
            raise HTTPException(408, f"the body did not come within {BODY_SECONDS:g} s") from None

    def _cors_headers(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        if origin is None or origin not in self._cors:
            return []
        return [
            (b"access-control-allow-origin", origin.encode()),
            (b"access-control-allow-headers", b"authorization, content-type"),
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"vary", b"origin"),
        ]


def _after(body: bytes, receive: Receive) -> Receive:
    """Receives the body that was read, then whatever comes after it: the client's leaving."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_after() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_after


class HeaderTimeoutProtocol(H11Protocol):
    """HTTP/1.1 that waits HEADER_SECONDS for a request's headers, from the connection's first
    moment on."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        else:
            self._stop_waiting()

    def _wait(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
