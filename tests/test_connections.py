"""What a connection may do, and for how long: refusals, deadlines, and how many there are."""

import asyncio
import contextlib
import itertools
import json
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from smolvlm_mlx.server import connections
from smolvlm_mlx.server.connections import Connection, max_connections
from tests.support.http import TOKEN, Running, listening, question

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from uvicorn.server import ServerState

CHAT = "/v1/chat/completions"
RIGHT = f"Authorization: Bearer {TOKEN}"
NET = 60.0  # seconds, in which everything here has long happened


@pytest.fixture
def short(server: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server that does not wait long."""
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.2)
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.5)
    with listening(server.service, lifespan="off") as port:
        yield replace(server, port=port)


class Client:
    """A socket, and what came over it."""

    def __init__(self, port: int):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=NET)
        self.received = b""

    def send(self, *lines: str, body: bytes = b"") -> "Client":
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return self

    def until(self, end: bytes) -> bytes:
        while end not in self.received and (data := self.socket.recv(65536)):
            self.received += data
        return self.received

    def rest(self) -> bytes:
        """All that comes until the server closes."""
        with contextlib.suppress(ConnectionError):
            while data := self.socket.recv(65536):
                self.received += data
        return self.received

    def drip(self, piece: bytes) -> None:
        """Send on until it is no longer taken."""
        began = time.monotonic()
        while time.monotonic() - began < NET:
            try:
                self.socket.sendall(piece)
            except OSError:
                return
            with contextlib.suppress(OSError):
                self.received += self.socket.recv(65536, socket.MSG_DONTWAIT)
            time.sleep(0.01)
        raise AssertionError("it may be sent to for ever")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def asked(port: int, target: str = f"POST {CHAT}", *headers: str) -> list[str]:
    return [f"{target} HTTP/1.1", f"Host: 127.0.0.1:{port}", *headers]


def refusal(kind: str, port: int) -> tuple[int, list[str]]:
    """The status of what is refused, and how it begins."""
    path = asked(port, f"GET http://127.0.0.1:{port}/health", RIGHT)
    return {
        "token": (401, asked(port)),
        "host": (403, ["POST / HTTP/1.1", "Host: evil.example", RIGHT]),
        "origin": (403, asked(port, "GET /health", "Origin: http://evil.example")),
        "path": (404, asked(port, "POST /nowhere", RIGHT)),
        "method": (405, asked(port, f"DELETE {CHAT}", RIGHT)),
        "form": (400, path),
        "options": (405, asked(port, f"OPTIONS {CHAT}")),
        "preflight": (200, asked(port, "OPTIONS /", "Origin: https://friend.example")),
        "headers": (431, asked(port, f"POST {CHAT}", RIGHT, *["X: y"] * 100)),
        "page": (200, asked(port, "GET /health")),  # which is none, and reads no body either
    }[kind]


KINDS = "token host origin path method form options preflight headers page".split()
BODIES = {
    "whole": ("Content-Length: 5", b"12345"),
    "half": ("Content-Length: 500", b"12345"),
    "none yet": ("Content-Length: 500", b""),
    "chunks": ("Transfer-Encoding: chunked", b"5\r\n12345\r\n"),
    "expecting": ("Content-Length: 500\r\nExpect: 100-continue", b""),
    "nonsense": ("Transfer-Encoding: chunked", b"what?\r\n" * 3),
}


@pytest.mark.parametrize("body", BODIES)
def test_what_is_answered_before_its_body_ends_its_connection(
    body: str, short: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """To a client that waits, to one that sends on, and to one that asks again."""
    header, sent = BODIES[body]
    drip = b"1\r\n1\r\n" if body == "chunks" else b"1"

    def ask(kind: str, how: str) -> tuple[int, bytes]:
        status, lines = refusal(kind, short.port)
        with Client(short.port) as client:
            client.send(*lines, header, body=sent)
            if how == "again":
                client.send(*asked(short.port, "GET /v1/models", RIGHT))
            elif how == "drips":
                client.drip(drip)
            return status, client.rest()

    cases = list(itertools.product(KINDS, ("waits", "drips", "again")))
    with ThreadPoolExecutor(len(cases)) as pool:
        answers = list(pool.map(lambda case: ask(*case), cases))
    for (kind, how), (status, told) in zip(cases, answers, strict=True):
        is_nonsense = body == "nonsense" or (body, how) == ("chunks", "again")
        assert told.count(b"HTTP/1.1 ") == 1, (kind, how, told)
        assert int(told[9:12]) in ((status, 400) if is_nonsense else (status,)), (kind, how, told)
        assert b"connection: close" in told.lower(), (kind, how)
        assert b"100 Continue" not in told
    assert "Exception" not in caplog.text


@pytest.mark.parametrize("kind", ["path", "method", "options", "preflight", "page"])
def test_without_a_body_the_connection_stays(kind: str, short: Running) -> None:
    status, lines = refusal(kind, short.port)
    with Client(short.port) as client:
        client.send(*lines).until(b"\r\n\r\n")
        assert client.received.startswith(b"HTTP/1.1 %d " % status)
        client.send(*asked(short.port, "GET /v1/models", RIGHT, "Connection: close"))
        assert client.rest().count(b"HTTP/1.1 200 ") == 1 + (status == 200)


LENGTHS = {
    "two lengths": ["Content-Length: 5", "Content-Length: 6"],
    "no length": ["Content-Length: five"],
    "less than none": ["Content-Length: -5"],
    "length and chunks": ["Content-Length: 5", "Transfer-Encoding: chunked"],
    "unknown coding": ["Transfer-Encoding: gzip"],
    "chunks twice": ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    "white space": ["Content-Length : 5"],
    "more than may be": [f"Content-Length: {2**26 + 1}"],
    "much more": [f"Content-Length: {'9' * 19}"],
    "64 kB of headers": ["X: " + "y" * 2**16],
    "10,000 headers": ["X: y"] * 10_000,
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_a_length_that_makes_no_sense_is_refused(kind: str, short: Running) -> None:
    with Client(short.port) as client, contextlib.suppress(ConnectionError):
        client.send(*asked(short.port, f"POST {CHAT}", RIGHT, *LENGTHS[kind]), body=b"12345")
        client.drip(b"1")
    told = client.received
    assert told.count(b"HTTP/1.1 ") == 1
    assert told[9:12] in (b"400", b"413", b"431", b"501")
    assert b"connection: close" in told.lower()


NO_HTTP = {
    "words": [b"hello\r\n\r\n"],
    "TLS": [bytes.fromhex("16030100c0010000bc0303"), b"\r\n\r\n"],
    "no version": [b"GET /health\r\n\r\n"],
    "no host": [b"GET /health HTTP/1.1\r\n\r\n"],
    "a header without a colon": [b"GET /health HTTP/1.1\r\nHost\r\n\r\n"],
    "zeros": [b"\0" * 64 + b"\r\n\r\n"],
}


@pytest.mark.parametrize("kind", NO_HTTP)
def test_what_is_no_http_is_told_as_other_errors_are(kind: str, short: Running) -> None:
    with Client(short.port) as client:
        for piece in NO_HTTP[kind]:
            client.socket.sendall(piece)
        head, _, body = client.rest().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    for header in (b"content-type: application/json", b"x-content-type-options: nosniff"):
        assert header in head
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body) == {
        "error": {
            "message": "what came is no request of HTTP",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
    }


def test_a_client_that_asks_first_is_told_to_go_on(short: Running) -> None:
    body = json.dumps(question("Hello", max_tokens=1)).encode()
    headers = [RIGHT, f"Content-Length: {len(body)}", "Expect: 100-continue", "Connection: close"]
    with Client(short.port) as client:
        client.send(*asked(short.port, f"POST {CHAT}", *headers)).until(b"\r\n\r\n")
        assert client.received.startswith(b"HTTP/1.1 100 ")
        client.socket.sendall(body)
        assert b"HTTP/1.1 200 " in client.rest()


@pytest.mark.parametrize("same", [["Content-Length: 2"] * 2, ["Content-Length: 2, 2"]])
def test_the_same_length_twice_is_one(same: list[str], short: Running) -> None:
    """As the RFC allows, and h11 does."""
    with Client(short.port) as client:
        lines = asked(short.port, f"POST {CHAT}", RIGHT, "Connection: close", *same)
        told = client.send(*lines, body=b"{}").rest()
    assert told.startswith(b"HTTP/1.1 400 ")
    assert b"messages: " in told  # it was read


@pytest.mark.parametrize("count", [2, 20])
def test_requests_that_come_at_once_are_answered_in_order(count: int, short: Running) -> None:
    paths = list(itertools.islice(itertools.cycle(["/health", "/v1/models"]), count))
    ends: list[list[str]] = [[]] * (count - 1) + [["Connection: close"]]
    requests = [
        "\r\n".join([*asked(short.port, f"GET {path}", RIGHT, *end), "", ""])
        for path, end in zip(paths, ends, strict=True)
    ]
    with Client(short.port) as client:
        client.socket.sendall("".join(requests).encode())
        told = client.rest()
    bodies = [part.split(b"\r\n\r\n")[1] for part in told.split(b"HTTP/1.1 200 OK")[1:]]
    assert ["data" in json.loads(body) for body in bodies] == [path != "/health" for path in paths]


# ---- deadlines


@pytest.mark.parametrize(
    ("end", "drip", "status"),
    [
        ("", b"", b""),
        ("", b"z", b""),
        ("\r\nContent-Length: 5000\r\n\r\n", b"", b"408"),
        ("\r\nContent-Length: 5000\r\n\r\n", b"1", b"408"),
        ("\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n1\r\n", b"408"),
    ],
)
def test_a_request_has_to_come_in_time(
    end: str, drip: bytes, status: bytes, short: Running
) -> None:
    """However often a byte of it comes."""
    with Client(short.port) as client:
        begun = "\r\n".join(asked(short.port, f"POST {CHAT}", RIGHT)) + end
        client.socket.sendall(begun.encode())
        if drip:
            client.drip(drip)
        told = client.rest()
    assert told[9:12] == status
    assert (b"the request did not come within" in told) == bool(status)


SECONDS = 12345.0  # which no other timer has
ASKED = b"POST / HTTP/1.1\r\nHost: a:1\r\nContent-Length: 2\r\n\r\nhi"
Read = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def length(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse(str(len(await Request(scope, receive).body())))(scope, receive, send)


@contextlib.asynccontextmanager
async def connected(app: Any) -> AsyncIterator[tuple[Callable[[], Awaitable[Read]], ServerState]]:
    """What connects to a server in this loop, and what that knows."""
    options = connections.options()
    config = uvicorn.Config(app, lifespan="off", log_level="warning", **options)
    config.load()
    state = ServerState()
    protocol = partial(Connection, config=config, server_state=state, app_state={})
    loop = asyncio.get_running_loop()
    async with await loop.create_server(protocol, "127.0.0.1", 0) as listener:
        opened = list[Read]()

        async def connect() -> Read:
            opened.append(await asyncio.open_connection(*listener.sockets[0].getsockname()))
            return opened[-1]

        try:
            yield connect, state
        finally:
            for _, writer in opened:
                writer.transport.abort()
            await until(lambda: not state.connections)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(100_000):  # a net
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come")


@pytest.fixture
def deadlines(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.TimerHandle]:
    """Those of SECONDS."""
    deadlines, later = list[asyncio.TimerHandle](), asyncio.BaseEventLoop.call_later

    def watched(self: Any, delay: float, *arguments: Any, **more: Any) -> asyncio.TimerHandle:
        timer = later(self, delay, *arguments, **more)
        deadlines.extend([timer] if delay == SECONDS else [])
        return timer

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_later", watched)
    return deadlines


def test_the_limits() -> None:
    assert (connections.HEADER_SECONDS, connections.REQUEST_SECONDS) == (10, 60)
    assert (connections.IDLE_SECONDS, connections.LINGER_SECONDS) == (5, 2)
    assert (connections.DRAIN_SECONDS, connections.DRAIN_BYTES) == (20, 2**17)
    assert connections.MAX_CONNECTIONS == 512


def test_headers_are_waited_for_from_their_first_byte(
    deadlines: list[asyncio.TimerHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an answer, however long it takes, nor the time between requests counts; the deadline
    of all of a request begins when that of its headers does."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", SECONDS)
    pending, all_of_it = list[bool](), list[float]()  # while it is answered

    def states() -> list[bool]:
        return [not timer.cancelled() for timer in deadlines]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pending.extend(states())
        all_of_it.append(scope["state"]["deadline"] - connections.REQUEST_SECONDS)
        await length(scope, receive, send)

    async def talk() -> None:
        async with connected(app) as (connect, state):
            reader, writer = await connect()
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
    for began, timer in zip(all_of_it, deadlines, strict=False):
        assert 0 <= timer.when() - SECONDS - began < 1


# ---- what is sent at the wrong time


@pytest.mark.parametrize("more", [b"\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\0\xff" * 99])
def test_what_comes_after_the_last_request_is_not_looked_at(more: bytes) -> None:
    """While that is answered."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        await go_on.wait()
        await length(scope, receive, send)

    async def talk() -> bytes:
        async with connected(app) as (connect, _):
            reader, writer = await connect()
            writer.write(ASKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            await begun.wait()
            writer.write(more)
            for _ in range(20):
                await asyncio.sleep(0)
            go_on.set()
            return await reader.read()

    told = asyncio.run(talk())
    assert told.startswith(b"HTTP/1.1 200 ")
    assert told.count(b"HTTP/1.1 ") == 1


CHUNKS = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n"


@pytest.mark.parametrize("is_answering", [False, True])
def test_a_body_that_makes_no_sense_has_one_answer(
    is_answering: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Which may have begun, or not, and is told that nobody waits for it."""
    begun, ended = asyncio.Event(), list[str]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if is_answering:
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        begun.set()
        ended.append((await receive())["type"])
        if not is_answering:
            await PlainTextResponse("late")(scope, receive, send)

    async def talk() -> bytes:
        async with connected(app) as (connect, _):
            reader, writer = await connect()
            writer.write(CHUNKS)
            await begun.wait()
            writer.write(b"what?\r\n")
            with contextlib.suppress(ConnectionError):
                return await reader.read()
            return b""

    told = asyncio.run(talk())
    assert told[9:12] in ((b"200", b"") if is_answering else (b"400",))
    assert told.count(b"HTTP/1.1 ") <= 1
    assert ended == ["http.disconnect"]
    assert "ASGI" not in caplog.text or is_answering  # it did not end its answer, and that is told
    assert "Error" not in caplog.text


def test_any_answer_before_the_end_of_a_body_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also one that does not say so; then it lasts until the client goes, or the moment is over."""
    monkeypatch.setattr(connections, "LINGER_SECONDS", SECONDS)

    async def talk() -> None:
        async with connected(PlainTextResponse("no")) as (connect, state):
            reader, writer = await connect()
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n")
            writer.write(b"x" * 300_000)  # of which the server reads some, and then no more
            assert (await reader.read()).endswith(b"no")
            assert len(state.connections) == 1
            writer.close()
            await asyncio.wait_for(until_slowly(lambda: not state.connections), NET)

    asyncio.run(talk())


# ---- clients that do not read

MUCH = b"x" * 2**24  # more than the system holds of a connection


@pytest.mark.parametrize("pieces", [1, 2**10])
@pytest.mark.parametrize("keep", ["keep-alive", "close"])
def test_a_client_that_does_not_read_is_given_up(
    pieces: int, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an answer in one piece, and of one in many, which is told that it has nobody to go to."""
    monkeypatch.setattr(connections, "DRAIN_SECONDS", 0.2)
    ended = list[int]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def body() -> AsyncIterator[bytes]:
            for number in range(pieces):
                await asyncio.sleep(0)
                ended[:] = [number]
                yield MUCH[: len(MUCH) // pieces]

        await StreamingResponse(body())(scope, receive, send)

    async def talk() -> None:
        async with connected(app) as (connect, state):
            _, writer = await connect()
            writer.write(f"GET / HTTP/1.1\r\nHost: a\r\nConnection: {keep}\r\n\r\n".encode())
            await asyncio.wait_for(until_slowly(lambda: bool(ended)), NET)
            await asyncio.wait_for(
                until_slowly(lambda: not state.connections and not state.tasks), NET
            )
            writer.close()

    asyncio.run(talk())
    assert pieces == 1 or ended[0] < pieces - 1


def has_more(held: Sized, than: int) -> bool:
    return len(held) > than


async def until_slowly(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_a_client_that_reads_slowly_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it reads some in each of the times that it has."""
    monkeypatch.setattr(connections, "DRAIN_SECONDS", 0.5)
    monkeypatch.setattr(connections, "DRAIN_BYTES", 1)

    async def talk() -> int:
        async with connected(PlainTextResponse(MUCH)) as (connect, _):
            reader, writer = await connect()
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            got = 0
            while data := await reader.read(2**19):
                got += len(data)
                await asyncio.sleep(0.02)
            return got

    assert asyncio.run(talk()) > len(MUCH)


# ---- too many


@pytest.mark.parametrize(
    ("soft", "most"),
    [(256, 128), (1024, 512), (2**20, 512), (resource.RLIM_INFINITY, 512), (10, 5)],
)
def test_there_are_fewer_connections_than_descriptors(
    soft: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, soft))
    assert max_connections() == most
    assert connections.options()["backlog"] == max(1, most // 8)


BEGUN = {  # what keeps a connection waiting, and what ends that
    "nothing": (b"", ASKED),
    "half a header": (ASKED[:20], ASKED[20:]),
    "half a body": (ASKED[:-1], ASKED[-1:]),
    "idle": (ASKED, ASKED),
}


@pytest.mark.parametrize("kind", BEGUN)
def test_those_that_waited_longest_make_room(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that has an answer coming, nor the last that came."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 5)
    go_on = list[asyncio.Event]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = await Request(scope, receive).body()
        if body == b"go":
            go_on.append(asyncio.Event())
            await go_on[-1].wait()
        await PlainTextResponse(body)(scope, receive, send)

    async def open_one(connect: Any, state: ServerState, begun: bytes) -> Read:
        before = {*state.connections}
        reader, writer = await connect()
        await until(lambda: bool({*state.connections} - before))
        writer.write(begun)
        if begun == ASKED:
            await reader.readuntil(b"hi")
        for _ in range(20):
            await asyncio.sleep(0)
        return reader, writer

    async def talk() -> list[bool]:
        async with connected(app) as (connect, state):
            answered = await open_one(connect, state, ASKED.replace(b"hi", b"go"))
            begun, end = BEGUN[kind]
            waiting = [await open_one(connect, state, begun) for _ in range(9)]
            stays = list[bool]()
            for reader, writer in waiting:
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    writer.write(end)
                    await reader.readuntil(b"hi")
                    stays.append(True)
                    continue
                stays.append(False)
            go_on[0].set()
            await answered[0].readuntil(b"go")
            assert len(state.connections) == 5
            return stays

    assert asyncio.run(talk()) == [False] * 5 + [True] * 4


@pytest.mark.parametrize(
    ("there", "stay"),
    [
        (["much", "half", "refused"], ["much", "half"]),
        (["much", "much", "half"], ["much", "much"]),
        (["much", "much", "much"], ["much", "much"]),
    ],
)
def test_the_refused_make_room_first_and_last_those_that_do_not_read(
    there: list[str], stay: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever came first."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(connections, "LINGER_SECONDS", SECONDS)
    said = {
        "much": ASKED.replace(b"/ H", b"/much H"),
        "half": ASKED[:20],
        "refused": ASKED.replace(b"/ H", b"/refused H")[:-1],
    }
    answers: dict[str, Any] = {
        "/much": PlainTextResponse(MUCH),
        "/refused": PlainTextResponse("no"),
        "/": length,
    }

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answers[scope["path"]](scope, receive, send)

    async def talk() -> list[bool]:
        async with connected(app) as (connect, state):
            seen = list[Any]()
            for kind in there:
                _, writer = await connect()
                await until(partial(has_more, state.connections, len(seen)))
                seen += state.connections - {*seen}
                writer.write(said[kind])
                for _ in range(50):
                    await asyncio.sleep(0)
            reader, writer = await connect()
            writer.write(ASKED)
            assert (await reader.readuntil(b"\r\n\r\n2")).startswith(b"HTTP/1.1 200 ")
            return [each in state.connections for each in seen]

    stays = asyncio.run(talk())
    assert [kind for kind, is_there in zip(there, stays, strict=True) if is_there] == stay
    assert stays.count(False) == 1


def test_where_all_are_answered_a_new_one_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)
    go_on = list[asyncio.Event]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        go_on.append(asyncio.Event())
        await go_on[-1].wait()
        await length(scope, receive, send)

    async def talk() -> None:
        async with connected(app) as (connect, _):
            answered = []
            for number in range(3):
                answered.append(await connect())
                answered[-1][1].write(ASKED)
                await until(partial(has_more, go_on, number))
            reader, _ = await connect()
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            for each in go_on:
                each.set()
            for reader, _ in answered:
                await reader.readuntil(b"\r\n\r\n2")

    asyncio.run(talk())


@pytest.mark.parametrize("kind", BEGUN)
def test_the_server_ends_without_those_that_wait(
    kind: str, server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """However long they would have had: it says of none that it was waited for."""
    with listening(server.service, lifespan="off") as port:
        client = Client(port)
        begun = BEGUN[kind][0].replace(b"a:1", f"127.0.0.1:{port}\r\n{RIGHT}".encode())
        client.socket.sendall(begun.replace(b"POST /", b"POST /chat/completions"))
        if kind == "idle":
            client.until(b"}")
        with Client(port) as other:  # by whose answer the first has been looked at
            other.send(*asked(port, "GET /health", "Connection: close")).rest()
    assert client.rest().count(b"HTTP/1.1") == (kind == "idle")
    client.socket.close()
    assert "graceful" not in caplog.text


def test_many_that_drip_leave_the_others_alone(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 16)
    with listening(server.service, lifespan="off") as port, contextlib.ExitStack() as opened:
        for number in range(100):
            lines = asked(port, f"POST {CHAT}", *[RIGHT][: number % 2])
            client = opened.enter_context(Client(port))
            with contextlib.suppress(ConnectionError):
                client.send(*lines, "Content-Length: 500", body=b"1")
            if number % 10 == 0:
                with Client(port) as honest:
                    honest.send(*asked(port, "GET /health", "Connection: close"))
                    assert honest.rest().startswith(b"HTTP/1.1 200 ")
