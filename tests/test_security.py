"""What stands before the routes, by itself: limits, deadlines, and what it lets through."""

import asyncio
from collections.abc import Callable
from itertools import product
from typing import Any

from smolvlm_mlx.generation.scheduler import BusyError
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.server import security
from smolvlm_mlx.server.app import Service, make_app
from smolvlm_mlx.server.security import Guard

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

HTTP: dict[str, Any] = {"type": "http", "method": "POST", "path": "/"}
HOST = (b"host", b"a:1")


async def length(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers with the length of the body, or why it is refused."""
    request = Request(scope, receive)
    try:
        response = Response(str(len(await request.body())))
    except HTTPException as refused:
        response = Response(refused.detail, refused.status_code)
    except BusyError as busy:
        response = Response(str(busy), 503)
    await response(scope, receive, send)


def answered(
    guard: Guard, receive: Callable[[], Any], *headers: tuple[bytes, bytes], **scope: Any
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body that a guard answers with."""
    sent = list[Any]()

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard({**HTTP, **scope, "headers": headers}, receive, send))
    start, *parts = sent
    return start["status"], dict(start["headers"]), b"".join(part["body"] for part in parts)


@pytest.mark.parametrize("hosts", [["a:1"], ["A:1"], ["b:1"], [], ["a:1", "a:1"]])
@pytest.mark.parametrize("origin", [None, "http://a:1", "https://friend", "http://evil"])
def test_who_may_ask(hosts: list[str], origin: str | None) -> None:
    """By method, path and token too: whom the application answers is told the length, 0."""
    guard = Guard(length, ["a:1"], "right", ["https://friend"], ["/open"])
    is_friend = origin == "https://friend"

    async def nothing() -> Any:
        return {"type": "http.request"}

    for method, path, token in product(
        ("GET", "OPTIONS"), ("/", "/open"), ("", "Bearer right", "bearer right", "Basic right")
    ):
        headers = [(b"host", host.encode()) for host in hosts]
        headers += [(b"authorization", token.encode())] if token else []
        headers += [(b"origin", origin.encode())] if origin else []
        status, got, body = answered(guard, nothing, *headers, method=method, path=path)
        if hosts not in (["a:1"], ["A:1"]) or origin == "http://evil":
            want = 403, b"is not allowed; --allow-"
        elif method == "OPTIONS" and is_friend:
            want = 200, b"{}"
        elif method == "GET" and path == "/" and not token.lower().startswith("bearer"):
            want = 401, b'"authentication_error"'
        else:
            want = 200, b"0"
        assert (status, want[1] in body) == (want[0], True), (method, path, token)
        assert got.get(b"access-control-allow-origin") == (b"https://friend" if is_friend else None)
        assert (got[b"cache-control"], b"www-authenticate" in got) == (b"no-store", status == 401)


OPEN = Guard(length, ["a:1"], None, (), ())
SENT = {True: (b"content-length", b"1000"), False: (b"transfer-encoding", b"chunked")}


def test_the_limits() -> None:
    assert security.MAX_BODY_BYTES == 64 * 2**20
    assert security.MAX_BODIES_BYTES == 512 * 2**20
    assert (security.SMALL_BODY_BYTES, security.MAX_HEADERS) == (2**16, 100)


@pytest.mark.parametrize(
    ("refused", "headers", "scope"),
    [
        (401, [HOST], {"path": "/closed"}),
        (403, [(b"host", b"b:1")], {}),
        (403, [HOST, (b"origin", b"http://evil")], {}),
        (400, [HOST], {"path": "http://a:1/"}),
        (400, [HOST], {"path": "*", "method": "OPTIONS"}),
        (400, [HOST, (b"content-length", b"3"), SENT[False]], {}),
        (413, [HOST, (b"content-length", b"67108865")], {}),
        (200, [HOST, (b"content-length", b"67108864")], {}),
        (431, [HOST] * 101, {}),
        (403, [HOST] * 100, {}),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_refusal_reads_nothing_and_ends_the_connection(
    refused: int, headers: list[tuple[bytes, bytes]], scope: dict[str, str], method: str
) -> None:
    reads = list[str]()

    async def receive() -> Any:
        reads.append("once")
        return {"type": "http.request", "body": b"x", "more_body": False}

    guard = Guard(length, ["a:1"], "right", (), ["/"])
    if (refused, method) == (401, "OPTIONS"):
        refused = 200  # which asks for nothing that a token keeps
    asked = {"path": "/", "method": method, **scope}
    status, got, _ = answered(guard, receive, *headers, **asked)
    assert (status, len(reads)) == (refused, int(refused == 200))
    assert got.get(b"connection") == (None if refused == 200 else b"close")


def test_a_preflight_with_a_body_is_answered_without_it() -> None:
    async def receive() -> Any:
        raise AssertionError

    guard = Guard(length, ["a:1"], "right", ["https://friend"], ())
    headers = [HOST, (b"origin", b"https://friend")]
    status, got, _ = answered(guard, receive, *headers, method="OPTIONS")
    assert (status, b"connection" in got) == (200, False)
    status, got, _ = answered(guard, receive, *headers, SENT[True], method="OPTIONS")
    assert (status, got[b"connection"]) == (200, b"close")


def test_bodies_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that are read and answered now; a small one is always let in."""
    monkeypatch.setattr(security, "MAX_BODIES_BYTES", 1000)
    monkeypatch.setattr(security, "SMALL_BODY_BYTES", 10)

    async def ask(guard: Guard, size: int, read: asyncio.Event, go_on: asyncio.Event) -> int:
        sent = list[Any]()

        async def receive() -> Any:
            return {"type": "http.request", "body": b"x" * size}

        async def send(message: Any) -> None:
            read.set()
            await go_on.wait()
            sent.append(message)

        await guard({**HTTP, "headers": [HOST, SENT[False]]}, receive, send)
        return int(sent[0]["status"])

    async def run() -> list[int]:
        guard, read, go_on, at_once = Guard(length, ["a:1"], None, (), ()), *events(3)
        at_once.set()
        first = asyncio.ensure_future(ask(guard, 600, read, go_on))
        await read.wait()
        meanwhile = [await ask(guard, size, read, at_once) for size in (400, 401, 10, 11, 400)]
        go_on.set()
        return [await first, *meanwhile, await ask(guard, 1000, read, at_once)]

    assert asyncio.run(run()) == [200, 200, 503, 200, 200, 200, 200]
    # The next two would be too many, but for the small one.
    monkeypatch.setattr(security, "MAX_BODIES_BYTES", 600)
    assert asyncio.run(run()) == [200, 503, 503, 200, 503, 503, 503]


def events(count: int) -> list[asyncio.Event]:
    return [asyncio.Event() for _ in range(count)]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(("size", "status"), [(1000, 200), (1001, 413)])
def test_a_body_may_be_as_large_as_the_limit(
    size: int, status: int, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "MAX_BODY_BYTES", 1000)
    parts = [b"x" * 600, b"x" * (size - 600), b"more"]

    async def receive() -> Any:
        return {"type": "http.request", "body": parts.pop(0), "more_body": len(parts) > 1}

    sent = (b"content-length", str(size).encode()) if told else SENT[False]
    got, headers, body = answered(OPEN, receive, HOST, sent)
    assert (got, headers[b"x-content-type-options"]) == (status, b"nosniff")
    assert (b"connection" in headers) == (status == 413)
    why = f"the body has {size} bytes; the limit is 1000" if told else "more than 1000 bytes"
    assert (body == b"1000") if status == 200 else (why.encode() in body)


def test_a_body_that_ends_before_its_end_is_refused() -> None:
    async def gone() -> Any:
        return {"type": "http.disconnect"}

    status, headers, body = answered(OPEN, gone, HOST, SENT[True])
    assert (status, headers[b"connection"]) == (400, b"close")
    assert body == b"the body was not sent to its end"


@pytest.mark.parametrize("state", [{}, {"state": {"deadline": 0.0}}])
def test_a_body_that_is_late_is_refused(state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the deadline of its request, or one of its own where it has none."""
    monkeypatch.setattr(security, "REQUEST_SECONDS", 0.05 if not state else 60.0)

    async def silent() -> Any:
        await asyncio.Event().wait()

    status, headers, body = answered(OPEN, silent, HOST, SENT[False], **state)
    assert (status, headers[b"connection"]) == (408, b"close")
    assert body.startswith(b"the request did not come within ")


def test_the_scheduler_ends_with_the_server() -> None:
    """Which an application is told beside its requests."""
    told = list[str]()

    class Scheduler:
        def close(self, seconds: float) -> None:
            told.append("closed")

    async def receive() -> Any:
        return {"type": "lifespan.shutdown" if told else "lifespan.startup"}

    async def send(message: Any) -> None:
        told.append(message["type"])

    nothing: Any = None
    scheduler: Any = Scheduler()
    service = Service(scheduler, nothing, "tiny", None, ImageOptions())
    asyncio.run(make_app(service, ["a:1"], None)({"type": "lifespan"}, receive, send))
    assert told == ["lifespan.startup.complete", "closed", "lifespan.shutdown.complete"]
