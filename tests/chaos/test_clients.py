"""Clients that do not do as clients do, hundreds of them: the others are answered as ever."""

import contextlib
import json
import random
import resource
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.http import TOKEN, Running, listening, question, serving
from tests.support.tally import Tally, tally

import httpx2
import pytest

MANY = 2200  # sockets, where this machine has as many
CHAT = "POST /v1/chat/completions HTTP/1.1"
RIGHT = f"Authorization: Bearer {TOKEN}"
HEALTHY = 5.0  # seconds in which /health has to answer, on a busy machine; 1 on an idle one


@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tiny, tmp_path_factory.mktemp("served")) as running:
        yield running


def sockets() -> int:
    """How many sockets there may be at this end of as many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > soft:
        with contextlib.suppress(ValueError, OSError):  # macOS has another limit, too
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard % 2**63, 8192), hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MANY, (soft % 2**63 - 100) // 2)


def begun(kind: str, port: int) -> bytes:
    """What a client says first."""
    lines = {
        "headers": ["GET /health HTTP/1.1"],
        "refused": [CHAT, "Content-Length: 1000000", "", ""],
        "body": [CHAT, RIGHT, "Content-Length: 1000000", "", ""],
        "chunks": [CHAT, RIGHT, "Transfer-Encoding: chunked", "", ""],
        "silent": [],
    }[kind]
    if not lines:
        return b""
    return "\r\n".join([lines[0], f"Host: 127.0.0.1:{port}", *lines[1:]]).encode()


class Dripping:
    """Sockets that send a byte now and then, from a thread of their own, and come again when they
    are closed."""

    def __init__(self, kind: str, port: int, count: int):
        self.opened, self._over = 0, threading.Event()
        self._kind, self._port, self._count = kind, port, count
        self._thread = threading.Thread(target=self._drip)

    def _connect(self) -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", self._port))
        self.opened += 1
        return connection

    def _drip(self) -> None:
        first, drip = begun(self._kind, self._port), b"1\r\n1\r\n"
        open: dict[socket.socket, bytes] = {self._connect(): first for _ in range(self._count)}
        while not self._over.wait(0.3):
            for connection, piece in [*open.items()]:
                try:
                    if piece:
                        connection.send(piece)
                    open[connection] = drip if self._kind != "silent" else b""
                except BlockingIOError:
                    continue
                except OSError:
                    connection.close()
                    del open[connection]
                    open[self._connect()] = first
        for connection in open:
            connection.close()

    def __enter__(self) -> "Dripping":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def look(server: Running, count: Tally, times: int, pause: float = 0.05) -> None:
    """Ask how the server is, each time over a new connection."""
    for _ in range(times):
        began = time.monotonic()
        try:
            with httpx2.Client(trust_env=False, verify=False, timeout=HEALTHY) as client:
                status = client.get(f"http://127.0.0.1:{server.port}/health").status_code
            took = time.monotonic() - began
            count.case(took < HEALTHY, "hung", f"/health took {took:.1f} s")
            count.case(status == 200, note=f"/health answered {status}")
        except httpx2.TimeoutException as error:
            count.case(False, "hung", repr(error))
        except httpx2.HTTPError as error:
            count.case(False, "lost", repr(error))
        time.sleep(pause)


@pytest.mark.parametrize("kind", ["headers", "refused", "body", "chunks", "silent"])
def test_dripping(kind: str, served: Running) -> None:
    with (
        tally(f"server, sockets that drip: {kind}") as count,
        listening(served.service, lifespan="off") as port,
    ):
        server = Running(port, served.scheduler, served.history, served.service)
        with Dripping(kind, port, sockets()) as dripping:
            while dripping.opened < sockets():
                time.sleep(0.01)
            look(server, count, 12)
            answer = server.complete(question("Hello", max_tokens=2))
            count.case(answer.status_code == 200, note=answer.text)
        look(server, count, 1)


def leave(server: Running, rng: random.Random, count: Tally) -> None:
    """Ask, and go away at some moment, of sending or of reading."""
    body = json.dumps(question("Hello", max_tokens=30, stream=rng.random() < 0.5)).encode()
    lines = [CHAT, f"Host: 127.0.0.1:{server.port}", RIGHT, f"Content-Length: {len(body)}", "", ""]
    whole = "\r\n".join(lines).encode() + body
    with (
        contextlib.suppress(ConnectionError),
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection,
    ):
        sent = rng.choice([rng.randrange(len(whole)), len(whole)])
        connection.sendall(whole[:sent])
        if rng.random() < 0.5:
            time.sleep(rng.random() * 0.05)
        if sent == len(whole) and rng.random() < 0.5:
            told = connection.recv(rng.choice([1, 4096]))
            count.case(b"HTTP/1.1 "[: len(told)] == told[:9], note=told)
        if rng.random() < 0.3:  # with a reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def test_leavers(served: Running, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(1)
    want = served.complete(question("Hello", max_tokens=5)).json()["choices"]
    with tally("server, clients that leave at any moment") as count:
        for number in range(200):
            leave(served, rng, count)
            if number % 20 == 0:
                answer = served.complete(question("Hello", max_tokens=5))
                count.case(answer.status_code == 200, "lost", answer.text)
                count.case(answer.json().get("choices") == want, note=answer.text)
        served.wait_until_idle()
        count.case(served.scheduler.occupancy == (0, 0), "hung", served.scheduler.occupancy)
        count.case("Traceback" not in caplog.text, note=caplog.text[-500:])
        look(served, count, 1)


def test_clients_that_never_read(served: Running) -> None:
    with tally("server, clients that never read") as count, contextlib.ExitStack() as opened:
        selector = opened.enter_context(selectors.DefaultSelector())
        for _ in range(30):
            connection = socket.create_connection(("127.0.0.1", served.port), timeout=60)
            opened.enter_context(connection)
            lines = ["GET /openapi.json HTTP/1.1", f"Host: 127.0.0.1:{served.port}", RIGHT, "", ""]
            asking = "\r\n".join(lines).encode() * 200
            with contextlib.suppress(BlockingIOError, ConnectionError):
                connection.setblocking(False)
                connection.send(asking)
            selector.register(connection, selectors.EVENT_READ)
        look(served, count, 12)
        answered = {key.fd for key, _ in selector.select(60)}
        count.case(bool(answered), "hung", "nobody was answered")
    look_after = served.complete(question("Hello", max_tokens=2))
    assert look_after.status_code == 200
