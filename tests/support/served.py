"""`smolvlm-mlx serve` as a process of its own, with the bundled model."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.http import DIRECT

import httpx2

OPTIONS = "serve -m tiny --dtype float32 --port 0 --token t".split()


@dataclass
class Served:
    """A server, and where it answers."""

    process: "subprocess.Popen[str]"
    port: int
    page: str  # the line that it prints of it

    def client(self, **headers: str) -> httpx2.Client:
        return httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"authorization": "Bearer t", **headers},
            timeout=60,
            **DIRECT,
        )

    def post(self, body: bytes, part: int | None = None) -> socket.socket:
        """A connection that has sent a request for an answer, or only the first bytes of its
        body."""
        connection = socket.create_connection(("127.0.0.1", self.port), 60)
        lines = ["POST /v1/chat/completions HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        lines += ["Authorization: Bearer t", f"Content-Length: {len(body)}", "", ""]
        connection.sendall("\r\n".join(lines).encode() + body[:part])
        return connection


def read_all(connection: socket.socket) -> str:
    """What comes until the connection ends."""
    received = b""
    with connection:
        while piece := connection.recv(65536):
            received += piece
    return received.decode()


def environment(home: Path) -> dict[str, str]:
    """One whose files of a user are in this folder."""
    return {
        **os.environ,
        **dict.fromkeys(("XDG_DATA_HOME", "XDG_CACHE_HOME", "HOME"), str(home)),
    }


def launch(
    home: Path, changes: str = "", options: Sequence[str] = OPTIONS
) -> "subprocess.Popen[str]":
    """Start one, after these lines of Python in its process."""
    program = f"{changes}\nfrom smolvlm_mlx.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(home),
    )


@contextmanager
def serving_alone(
    home: Path, changes: str = "", options: Sequence[str] = OPTIONS
) -> Iterator[Served]:
    """One that answers; ended if it has not ended by itself."""
    with launch(home, changes, options) as process:
        try:
            assert process.stdout is not None
            page = process.stdout.readline()
            port = int(page.split()[1].partition("#")[0].rstrip("/").rpartition(":")[2])
            yield Served(process, port, page)
        finally:
            process.kill()
