"""The processes that decode: started when one is wanted, asked one thing at a time, ended when they
take too long, and started again.

Nothing that they say is believed: replies are as long as they may be, and hold nothing but numbers,
pixels and a line of text.
"""

import atexit
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from math import isfinite
from multiprocessing import spawn
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import SmolVLMError, quote
from .wire import END, ERROR, ERRORS, MOST_TEXT, NO_MEMORY, REPLY, REQUEST, Head

CHILDREN = 2  # processes that decode at the same time; who else asks waits
SECONDS = 30.0  # for a picture or a page, where SECONDS_SETTING says nothing else
SECONDS_SETTING = "SMOLVLM_DECODE_SECONDS"  # of the environment
WAIT_SECONDS = 120.0  # for a process that has nothing to do
LAST_SECONDS = 5.0  # for a process that says no more to be gone
CODE = "import sys; sys.path[:] = sys.argv[1:]; from smolvlm_mlx.inputs.decoder import main; main()"
PIPE = 2**20  # bytes, where the system lets choose

Failure = Callable[[str], SmolVLMError]  # makes an error of what went wrong


class Reply(NamedTuple):
    head: Head
    text: str
    body: bytearray


class DecoderError(Exception):
    """A process came to an end, or has to."""


class Clock:
    """What is left of the time that others may take."""

    def __init__(self, seconds: float):
        self._whole = self._left = seconds

    def wait(self, file: int, event: int) -> None:
        """Wait until a file can be read or written. Raises DecoderError when the time is over."""
        poll = select.poll()
        poll.register(file, event)
        started = time.monotonic()
        if not poll.poll(max(self._left, 0) * 1000):
            raise DecoderError(self.words)
        self._left -= time.monotonic() - started

    @property
    def words(self) -> str:
        return (
            f"takes more than {self._whole:g} s; make it smaller or simpler, or set "
            f"{SECONDS_SETTING} higher"
        )


class Child:
    """A process that decodes. Raises OSError if it cannot be started."""

    def __init__(self) -> None:
        root = str(Path(__file__).parents[2])
        path = [each for each in sys.path if isinstance(each, str)]
        # Arithmetic is not needed; its threads would take memory.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        self._process = subprocess.Popen(
            [_python(), "-S", "-B", "-c", CODE, *path, root],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        if sys.platform == "linux":
            for pipe in (self._stdin, self._stdout):
                with suppress(OSError):  # the system may want smaller ones
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def send(self, request: bytes, data: bytes, clock: Clock) -> None:
        """Ask. Raises DecoderError."""
        for part in (REQUEST.pack(len(request), len(data)) + request, data):
            view = memoryview(part)
            while view:
                clock.wait(self._stdin.fileno(), select.POLLOUT)
                try:
                    view = view[os.write(self._stdin.fileno(), view) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    raise DecoderError(self._end(clock)) from None

    def receive(self, most: int, clock: Clock) -> Reply:
        """A reply of at most `most` bytes. Raises DecoderError."""
        head = Head.unpack(bytes(self._exactly(REPLY.size, clock)))
        if not (head.text <= MOST_TEXT and head.size <= most and is_sound(head)):
            raise DecoderError("cannot be decoded, it may be damaged: its decoder lost its way")
        text = self._exactly(head.text, clock).decode("utf-8", "replace")
        line = "".join(letter for letter in text if letter.isprintable())
        return Reply(head, line, self._exactly(head.size, clock))

    def _exactly(self, count: int, clock: Clock) -> bytearray:
        data, file = bytearray(count), self._stdout.fileno()
        view = memoryview(data)
        while view:
            clock.wait(file, select.POLLIN)
            read = os.readv(file, [view])
            if not read:
                raise DecoderError(self._end(clock))
            view = view[read:]
        return data

    def _end(self, clock: Clock) -> str:
        """Why it ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(LAST_SECONDS)
        code = self._process.poll()
        if code == NO_MEMORY:
            return "does not fit into memory; make it smaller"
        if code == -signal.SIGXCPU:
            return clock.words
        how = f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
        return (
            f"cannot be decoded: its decoder ended ({how}); it is damaged, or needs more memory "
            "than it may have"
        )

    def kill(self) -> None:
        """End it, and wait for that."""
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()

    def leave(self) -> None:
        """Let it be another process's, of which this one is a copy."""
        self._process.returncode = 0
        self._stdin.close()
        self._stdout.close()


def is_sound(head: Head) -> bool:
    """Whether a head agrees with itself."""
    if head.kind == ERROR:
        return head.own[0] < len(ERRORS) and not head.size
    if head.kind == END:
        return head.size % 8 == 0 and head.size > 0 and isfinite(head.seconds)
    return head.size == 3 * head.width * head.height


def _python() -> str:
    """The interpreter; a program that embeds one names it to `multiprocessing.set_executable`."""
    given = os.fsdecode(spawn.get_executable() or "")
    if not given or (getattr(sys, "frozen", False) and given == sys.executable):
        raise FileNotFoundError(0, "no Python to start; name it to multiprocessing.set_executable")
    return given


# ---- several


class Pool:
    """At most CHILDREN processes."""

    def __init__(self) -> None:
        self._free = threading.BoundedSemaphore(CHILDREN)
        self._idle: list[Child] = []
        self.children: set[Child] = set()

    @contextmanager
    def child(self) -> Iterator[Child]:
        """One that has nothing to do; unless what is done with it ends well, it is ended.

        Raises:
            DecoderError: all have something to do, for long.
        """
        if not self._free.acquire(timeout=WAIT_SECONDS):
            raise DecoderError("cannot be decoded now: all decoders are busy; try again later")
        try:
            child = self._taken()
            try:
                yield child
            except BaseException:
                child.kill()
                self.children.discard(child)
                raise
            self._idle.append(child)
        finally:
            self._free.release()

    def _taken(self) -> Child:
        with suppress(IndexError):  # no more; asked before, another thread may take the last one
            while not (child := self._idle.pop()).lives:
                child.kill()
                self.children.discard(child)
            return child
        child = Child()
        self.children.add(child)
        return child

    def close(self) -> None:
        """End all."""
        for child in tuple(self.children):  # threads may start others
            child.kill()

    def leave(self) -> None:
        """Begin again in a copy of this process; the children are the other's."""
        for child in self.children:
            child.leave()
        self.__init__()  # type: ignore[misc]


POOL = Pool()
atexit.register(POOL.close)
os.register_at_fork(after_in_child=POOL.leave)


def ask(
    request: dict[str, Any], data: bytes, failure: Failure, most: int, *, times: int = 0
) -> Generator[Reply, None, None]:
    """Ask a process that decodes, and yield its replies.

    Args:
        request: see `decoder`; its `memory` is how many bytes may be needed.
        failure: makes the error where a process ends or takes too long.
        most: bytes of a reply.
        times: there are several replies and an end, which have so many times the usual seconds.

    Raises:
        SmolVLMError: what the process found, or `failure`.
    """
    seconds = _seconds() * (times or 1)
    words, clock = json.dumps(request | {"seconds": seconds}).encode(), Clock(seconds)
    try:
        with POOL.child() as child:
            child.send(words, data, clock)
            while (reply := child.receive(most, clock)).head.kind != ERROR:
                yield reply
                if not times or reply.head.kind == END:
                    return
    except DecoderError as error:
        raise failure(str(error)) from None
    except OSError as error:
        why = f"cannot be decoded now: no process can be started ({error.strerror})"
        raise failure(why) from error
    raise ERRORS[reply.head.own[0]](reply.text)


def _seconds() -> float:
    given = os.environ.get(SECONDS_SETTING, str(SECONDS))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise SmolVLMError(f"{SECONDS_SETTING} is {quote(given)}, not a number of seconds")
    return seconds
