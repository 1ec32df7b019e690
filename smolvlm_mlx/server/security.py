"""What stands before the server's routes: who may ask, how much they may send, and how long they
may take.

`Guard` is ASGI middleware: exact Host and Origin (a page from elsewhere, or a name that was made to
point here, gets nothing), `Access` for all but the page itself, and limits of bodies, which are
read only where a route asks for them. Who is refused before his body has come has his connection
closed; `connections.py` has the rest of what connections may do.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import quote
from ..generation.scheduler import BusyError
from .access import Access, Added
from .assets import TALKS
from .budget import Budget
from .connections import REQUEST_SECONDS, SECURITY_HEADERS
from .openai import error_body

MAX_BODY_BYTES = Budget.body_bytes
MAX_BODIES_BYTES = 2**29  # of all requests that are being read and answered
SMALL_BODY_BYTES = 2**16  # such bodies are never too many
MAX_HEADERS = 100


class Guard:
    """Middleware around the whole application.

    Args:
        hosts: names with port that requests may call this server by, as in their Host header.
        token, ticket: as `Access` has them.
        open_paths: what needs no token: the files of the page, which hold nothing.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Iterable[str],
        token: str | None,
        origins: Iterable[str],
        open_paths: Iterable[str],
        ticket: str | None = None,
    ):
        self._app, self._open_paths = app, frozenset(open_paths)
        self._access = Access(token, ticket)
        self._hosts, self._cors = frozenset(host.lower() for host in hosts), frozenset(origins)
        # A name with the port of https is that of a proxy, which speaks it.
        secure = {f"https://{host}" for host in self._hosts if f"{host}:443" in self._hosts}
        self._origins = self._cors | secure | {f"http://{host}" for host in self._hosts}
        self._bodies = Bodies()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        origin, is_refused, added = headers.get("origin"), False, Added()
        body = Body(self._bodies, scope, headers, receive)

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    *SECURITY_HEADERS,
                    *self._cors_headers(origin),
                    *added,
                    *([(b"connection", b"close")] if is_refused or body.is_coming else []),
                ]
            await send(message)

        try:
            added += self._check(scope, headers, origin)
        except HTTPException as refused:
            is_refused = True
            kind = "authentication_error" if refused.status_code == 401 else "invalid_request_error"
            response = JSONResponse(
                error_body(refused.detail, kind), refused.status_code, refused.headers
            )
            return await response(scope, receive, secured)
        if scope["method"] == "OPTIONS" and origin in self._cors:
            return await JSONResponse({})(scope, receive, secured)
        try:
            await self._app(scope, body.receive, secured)
        finally:
            body.forget()

    def _check(self, scope: Scope, headers: Headers, origin: str | None) -> Added:
        """Return what the answer says beside what the application does."""
        if len(scope["headers"]) > MAX_HEADERS:
            raise HTTPException(431, f"the request has more than {MAX_HEADERS} headers")
        if not scope["path"].startswith("/"):
            raise HTTPException(400, "the request names a whole URL; name the path alone")
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            why = f"the host name {quote(', '.join(hosts))} is not allowed; --allow-host adds it"
            raise HTTPException(403, why)
        if origin is not None and origin not in self._origins:
            raise HTTPException(403, "this origin is not allowed; --allow-origin adds one")
        path = scope["path"]
        is_open = path in self._open_paths or path.startswith(TALKS)
        is_open = is_open or scope["method"] == "OPTIONS"
        added = [] if is_open else self._access.admit(scope, headers)
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers and "content-length" in headers:
            raise HTTPException(400, "the body has a length, and is sent in chunks; do one of them")
        if length.isdecimal() and int(length) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body has {length} bytes; the limit is {MAX_BODY_BYTES}")
        return added

    def _cors_headers(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        if origin is None or origin not in self._cors:
            return []
        return [
            (b"access-control-allow-origin", origin.encode()),
            (b"access-control-allow-headers", b"authorization, content-type"),
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"vary", b"origin"),
        ]


@dataclass
class Bodies:
    """How many bytes the requests have that are being read and answered."""

    size: int = 0


class Body:
    """The body of a request, read within limits when the application asks for it, and what comes
    after it: the client's leaving.

    Attributes:
        is_coming: it has not come to its end.
    """

    def __init__(self, bodies: Bodies, scope: Scope, headers: Headers, receive: Receive):
        self._bodies, self._receive, self._size = bodies, receive, 0
        self.is_coming = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        now = asyncio.get_running_loop().time()
        self._deadline = scope.get("state", {}).get("deadline", now + REQUEST_SECONDS)

    async def receive(self) -> Message:
        """Return its next part.

        Raises:
            HTTPException, BusyError: it is too large, late, or too much beside those of others.
        """
        if not self.is_coming:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            why = f"the request did not come within {REQUEST_SECONDS:g} s"
            raise HTTPException(408, why) from None
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "the body was not sent to its end")
        self._count(len(message.get("body", b"")))
        self.is_coming = message.get("more_body", False)
        return message

    def _count(self, size: int) -> None:
        self._size, self._bodies.size = self._size + size, self._bodies.size + size
        if self._size > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body has more than {MAX_BODY_BYTES} bytes")
        if self._bodies.size > MAX_BODIES_BYTES and self._size > SMALL_BODY_BYTES:
            raise BusyError("other requests fill the memory that there is for them; try again")

    def forget(self) -> None:
        """It has been answered."""
        self._bodies.size -= self._size
        self._size = 0
