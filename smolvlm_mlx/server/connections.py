"""Connections of the server: each wait for a client has an end, and there are never so many that
the program runs out of descriptors.

uvicorn itself would wait for ever for a request that drips, for one that goes on after it was
refused, and for a client that does not read its answer; its own limit of connections answers 503
to everyone.
"""

import asyncio
import heapq
import json
import resource
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .openai import error_body

HEADER_SECONDS = 10.0  # for a request's headers, from its first byte on
REQUEST_SECONDS = 60.0  # for all of a request, from its first byte on
IDLE_SECONDS = 5  # between two requests
LINGER_SECONDS = 2.0  # in which a client that still sends may read that it was refused
DRAIN_SECONDS = 20.0  # in each of which a client has to read DRAIN_BYTES of what it is sent
DRAIN_BYTES = 2**17
READ_BYTES = 2**15  # that are read, and parsed, in one go
MAX_HEADER_BYTES = 2**15
MAX_CONNECTIONS = 512  # fewer where the program may have fewer descriptors

SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
QUEUE = 2048  # connections that the system holds until they are looked at


class Stage(Enum):
    """What a connection waits for."""

    IDLE = "the headers of a request"
    SENDING = "the rest of a request"
    ANSWERED = "an answer, which is made"
    READING = "the client, which does not read its answer"
    REFUSED = "the client, which sends though it was refused"


def max_connections() -> int:
    """Return how many connections there may be: half of the descriptors, at most."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, soft // 2)


def options() -> dict[str, Any]:
    """Return uvicorn's options for such connections."""
    return {
        "http": Connection,
        "ws": "none",
        "backlog": max(1, max_connections() // 8),  # asyncio accepts as many before it looks again
        "timeout_keep_alive": IDLE_SECONDS,
        "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
    }


class Buffer(threading.local):
    """What a thread's connections are read into, one after the other."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(READ_BYTES))


BUFFER = Buffer()


class Connection(H11Protocol, asyncio.BufferedProtocol):
    """HTTP/1.1 with deadlines. A request's own is `deadline` of its state, in the loop's time, for
    what reads its body."""

    def connection_made(self, transport: Any) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._waits: Callable[[], None] | None = None  # what is done if the present wait is long
        self.is_ended, self._is_idle, self._since = False, False, self.loop.time()
        self._socket = transport
        ending: Any = Ending(transport, self)
        super().connection_made(ending)
        if len(self.connections) > max_connections():
            self._make_room()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_ended = True
        self._stop_waiting()
        super().connection_lost(exc)

    # ---- what is read

    def get_buffer(self, sizehint: int) -> memoryview:
        return BUFFER.view

    def buffer_updated(self, count: int) -> None:
        self.data_received(bytes(BUFFER.view[:count]))

    def data_received(self, data: bytes) -> None:
        if self.is_ended or self.conn.their_state is h11.MUST_CLOSE:
            return  # whatever comes after the last request
        if self._is_idle:
            self._is_idle, self._since = False, self.loop.time()
        super().data_received(data)
        self._wait()

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:  # its task has not begun yet
            self.scope["state"]["deadline"] = self._since + REQUEST_SECONDS

    def send_400_response(self, msg: str) -> None:
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            # What answers it is told that nobody waits; it would answer once more.
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                return self.drop()
        body = json.dumps(error_body("what came is no request of HTTP")).encode()
        headers = [(b"content-type", b"application/json"), *SECURITY_HEADERS]
        length = [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        answer = h11.Response(status_code=400, headers=headers + length, reason=b"Bad Request")
        for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def eof_received(self) -> None:
        self._close()

    # ---- what is sent

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wait()

    def on_response_complete(self) -> None:
        if self._is_sending:
            self.end()
        self._is_idle, self._since = not self.conn.trailing_data[0], self.loop.time()
        super().on_response_complete()
        self._wait()

    def end(self) -> None:
        """Close it. Closed with bytes that were not read, TCP would take back what was just said:
        of a client that still sends, they are read for a moment, and thrown away."""
        if self.is_ended or self._socket.is_closing():
            return
        if not self._is_sending:
            return self._close()
        self.is_ended = True
        self._socket.resume_reading()
        with suppress(OSError):  # it has gone
            self._socket.write_eof()
        self._wait()

    def _close(self) -> None:
        self.is_ended = True
        self._socket.close()
        self._wait()

    def drop(self) -> None:
        """Close it at once, whatever was to be sent or read."""
        self.is_ended = True
        self._stop_waiting()
        self.connections.discard(self)
        self._socket.abort()

    def shutdown(self) -> None:
        """Go when the server does: after the answer that is made, at once if none is."""
        if self.stage is Stage.SENDING:
            self.drop()
        elif not self.is_ended:
            super().shutdown()

    # ---- deadlines

    @property
    def _is_sending(self) -> bool:
        """Whether a request has begun that has not come to its end, or makes no sense."""
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def _wait(self) -> None:
        """See to the deadline of what is waited for now; if it is the same as before, it stays."""
        if self._socket.is_closing() and not self._unsent:
            waits, seconds = None, 0.0
        elif self.is_ended and self._is_sending:
            waits, seconds = self.drop, LINGER_SECONDS
        elif self.is_ended or self.flow.write_paused:
            waits, seconds = self._drained, DRAIN_SECONDS
        elif self.conn.their_state is h11.IDLE and not self._is_idle:
            waits, seconds = self.transport.close, HEADER_SECONDS
        else:
            waits, seconds = None, 0.0
        if waits != self._waits:
            self._stop_waiting()
            self._waits, self._left = waits, self._unsent
            self._timer = self.loop.call_later(seconds, waits) if waits is not None else None

    def _stop_waiting(self) -> None:
        self._waits = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _unsent(self) -> int:
        return int(self._socket.get_write_buffer_size())

    def _drained(self) -> None:
        """Go on waiting for a client that reads, if slowly."""
        if self._left - self._unsent < DRAIN_BYTES:
            return self.drop()
        self._waits = None
        self._wait()

    # ---- too many

    @property
    def stage(self) -> Stage:
        if self._is_sending:
            return Stage.REFUSED if self.is_ended else Stage.SENDING
        if self.is_ended or self.flow.write_paused:
            return Stage.READING
        is_idle = self.cycle is None or self.cycle.response_complete
        return Stage.IDLE if is_idle else Stage.ANSWERED

    def _make_room(self) -> None:
        """Give up those that have waited longest for what their clients owe: several at once, for
        looking through all of them is long. Those without headers and those that send get half of
        the places at least. Where all have an answer coming, give up this one."""
        stages: dict[Stage, list[Any]] = {stage: [] for stage in Stage}
        for connection in self.connections:
            if connection is not self:
                stages[cast(Connection, connection).stage].append(connection)
        waiting = max(stages[Stage.IDLE], stages[Stage.SENDING], key=len)
        others = stages[Stage.REFUSED] or waiting or stages[Stage.READING] or [self]
        for one in heapq.nsmallest(max_connections() // 8 + 1, others, key=lambda one: one._since):
            one.drop()


class Ending:
    """The transport of a connection, which it closes in its own way."""

    def __init__(self, transport: Any, connection: Connection):
        self._transport, self._connection = transport, connection
        self.close = connection.end

    def is_closing(self) -> bool:
        return self._connection.is_ended or bool(self._transport.is_closing())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Server(uvicorn.Server):
    """Looks at few new connections at a time, and has many wait to be looked at: of two numbers of
    asyncio's, it has but one setting."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(QUEUE)
