"""What stands before the routes, by itself: limits, deadlines, and what it lets through."""

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.server import security
from smolvlm_mlx.server.app import Service, make_app
from smolvlm_mlx.server.security import Guard, HeaderTimeoutProtocol

import pytest
import uvicorn
from uvicorn.server import ServerState

HTTP: dict[str, Any] = {"type": "http", "method": "POST", "path": "/"}
HOST = (b"host", b"a:1")


async def length(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers with the length of the body."""
    message = await receive()
    assert not message["more_body"]
    body = str(len(message["body"])).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def answered(
    guard: Guard, receive: Callable[[], Any], *headers: tuple[bytes, bytes], **scope: str
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


def test_the_limits() -> None:
    assert (security.HEADER_SECONDS, security.BODY_SECONDS) == (10, 60)
    assert security.MAX_BODY_BYTES == 64 * 2**20


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(("size", "status"), [(1000, 200), (1001, 413)])
def test_a_body_may_be_as_large_as_the_limit(
    size: int, status: int, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "MAX_BODY_BYTES", 1000)
    parts = [b"x" * 600, b"x" * (size - 600)]

    async def receive() -> Any:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    lengths = [(b"content-length", str(size).encode())] if told else []
    got, headers, body = answered(OPEN, receive, HOST, *lengths)
    assert (got, headers[b"x-content-type-options"]) == (status, b"nosniff")
    why = f"the body has {size} bytes; the limit is 1000" if told else "more than 1000 bytes"
    assert (body == b"1000") if status == 200 else (why.encode() in body)


def test_a_body_that_ends_before_its_end_is_refused() -> None:
    async def gone() -> Any:
        return {"type": "http.disconnect"}

    status, _, body = answered(OPEN, gone, HOST)
    assert status == 400
    assert b"the body was not sent to its end" in body


def test_the_scheduler_ends_with_the_server() -> None:
    """Which an application is told beside its requests."""
    told = list[str]()

    class Scheduler:
        def close(self) -> None:
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


# ---- deadlines

SECONDS = 12345.0  # which no other timer has
ASKED = b"POST / HTTP/1.1\r\nHost: a:1\r\nContent-Length: 2\r\n\r\nhi"


@pytest.fixture
def deadlines(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.TimerHandle]:
    """Those by which the headers of a request have to be there."""
    deadlines, later = list[asyncio.TimerHandle](), asyncio.BaseEventLoop.call_later

    def watched(self: Any, delay: float, *arguments: Any, **more: Any) -> asyncio.TimerHandle:
        timer = later(self, delay, *arguments, **more)
        deadlines.extend([timer] if delay == SECONDS else [])
        return timer

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_later", watched)
    monkeypatch.setattr(security, "HEADER_SECONDS", SECONDS)
    return deadlines


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(100_000):  # a net
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come")


def test_only_headers_are_waited_for(deadlines: list[asyncio.TimerHandle]) -> None:
    """Neither an answer, however long it takes, nor the time between requests."""
    pending = list[bool]()  # while it is answered

    def states() -> list[bool]:
        return [not timer.cancelled() for timer in deadlines]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pending.extend(states())
        await length(scope, receive, send)

    async def talk() -> None:
        config = uvicorn.Config(app, lifespan="off", log_level="warning")
        config.load()
        state = ServerState()
        protocol = partial(HeaderTimeoutProtocol, config=config, server_state=state, app_state={})
        loop = asyncio.get_running_loop()
        async with await loop.create_server(protocol, "127.0.0.1", 0) as listener:
            reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
            await until(lambda: states() == [True])
            writer.write(ASKED)
            assert (await reader.readuntil(b"\r\n\r\n2")).startswith(b"HTTP/1.1 200 ")
            assert states() == [False]
            writer.write(ASKED[:20])
            await until(lambda: states() == [False, True])
            writer.write(ASKED[20:])
            await reader.readuntil(b"\r\n\r\n2")
            writer.write(ASKED[:20])
            await until(lambda: states() == [False, False, True])
            assert len(state.connections) == 1
            writer.close()
            await until(lambda: states() == [False] * 3 and not state.connections)

    asyncio.run(talk())
    assert pending == [False] * 3  # the first's, and both of the second
