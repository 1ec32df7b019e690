"""The command line in a process of its own, and what it says when it refuses. In this process: the
fixture `call`."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.support.http import DIRECT
from tests.support.places import ROOT

import httpx2
import pytest
import uvicorn

KEY = {"x-page-key": "0123456789abcdef" * 2}  # as a page makes up
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "120"}


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-m", "smolvlm_mlx", *map(str, arguments)]
    options = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        **options,
    }
    return subprocess.Popen(command, cwd=ROOT, **{"env": ENVIRONMENT, **options})


def run(*arguments: object, **options: Any) -> tuple[int, str, str]:
    """In a process of its own: exit code, stdout, stderr."""
    text = options.pop("input", None)
    if text is not None:
        options["stdin"] = subprocess.PIPE
    process = start(*arguments, **options)
    out, err = process.communicate(None if text is None else text.encode(), timeout=60)
    return process.returncode, (out or b"").decode(), (err or b"").decode()


def check_refused(result: tuple[int, str, str], *parts: str) -> None:
    code, out, err = result
    assert (code, out) == (1, "")
    assert err.startswith("smolvlm-mlx: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert all(part in err for part in parts), err


def let_answer(monkeypatch: pytest.MonkeyPatch, ask: Callable[[httpx2.Client], None]) -> list[str]:
    """Let a server that a command starts in this process be asked once, as the page that it opens
    asks, and then end. Returns the addresses of pages that were opened."""
    opened: list[str] = []
    run = uvicorn.Server.run

    def answer(self: uvicorn.Server, sockets: list[socket.socket]) -> None:
        (host, port), ticket = sockets[0].getsockname(), "".join(opened).partition("#token=")[2]

        def client() -> None:
            base = f"http://{host}:{port}"
            with httpx2.Client(base_url=base, headers=KEY, timeout=60, **DIRECT) as asking:
                try:
                    # For a cookie, which the client has from then on.
                    given = {"authorization": f"Bearer {ticket}"} if ticket else {}
                    asking.get("/v1/models", headers=given)
                    ask(asking)
                finally:
                    self.should_exit = True

        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client)
            run(self, sockets)
            asked.result()

    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(uvicorn.Server, "run", answer)
    return opened
