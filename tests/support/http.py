"""The server in this process, and what is asked of it."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolvlm_mlx import load
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.scheduler import Job, Scheduler
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.model.language import LanguageModel
from smolvlm_mlx.server import connections
from smolvlm_mlx.server.app import Service, make_app
from smolvlm_mlx.tasks.history import History

import httpx2
import mlx.core as mx
import pytest
import uvicorn

TOKEN = "right token"
INSECURE = "smolvlm.test"  # another name of the server, from where browsers trust nothing
DIRECT: Any = {"trust_env": False, "verify": False}  # no proxies, and no time for certificates


def question(text: str, *urls: str, **more: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
        **more,
    }


def always(text: str) -> dict[str, Any]:
    """What makes this, in quotes, the answer."""
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"const": text}},
        }
    }


@dataclass
class Running:
    """A server in this process."""

    port: int
    scheduler: Scheduler
    history: History
    service: Service

    def client(self, **headers: str) -> httpx2.Client:
        return httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"authorization": f"Bearer {TOKEN}", **headers},
            timeout=60,
            **DIRECT,
        )

    def complete(self, body: dict[str, Any]) -> Any:
        with self.client() as client:
            return client.post("/v1/chat/completions", json=body)

    def wait_until_idle(self) -> None:
        wait_until(lambda: self.scheduler.occupancy == (0, 0))


def head(server: Running, length: int | str, path: str = "/v1/chat/completions") -> bytes:
    """The request line and headers of a POST with the token."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        f"Authorization: Bearer {TOKEN}",
    ]
    return "\r\n".join([*lines, f"Content-Length: {length}", "Connection: close", "", ""]).encode()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60  # a net
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def listening(service: Service, **options: Any) -> Iterator[int]:
    """The port of a thread that serves."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    port = listener.getsockname()[1]
    names = [f"{name}:{port}" for name in ("127.0.0.1", "localhost", INSECURE)]
    app = make_app(service, names, TOKEN, ["https://friend.example"])
    config = uvicorn.Config(
        app,
        log_level="warning",
        timeout_graceful_shutdown=1,
        **{**connections.options(), **options},
    )
    running = connections.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield port
    finally:
        running.should_exit = True
        thread.join(60)
        listener.close()
    assert not thread.is_alive()


@contextlib.contextmanager
def serving(checkpoint: Path, folder: Path) -> Iterator[Running]:
    """A server with a checkpoint, and its history in a folder."""

    scheduler = Scheduler(lambda: Engine(*load(checkpoint, "float32"), conversations=16))
    engine = scheduler.start()
    history = History(folder / "history.sqlite3")
    service = Service(
        scheduler,
        engine.processor,
        "tiny",
        history,
        ImageOptions(),
        parameters=engine.model.config.parameters,
        weight_bytes=engine.weight_bytes,
    )
    with listening(service) as port:
        yield Running(port, scheduler, history, service)


LONG = 100  # tokens


def slow_down(server: Running, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Let each token take 40 ms, those of a long answer more, and no answer end by itself; returns
    the jobs that come while it does."""
    jobs: list[Job] = []
    submit, logits = server.scheduler.submit, LanguageModel.logits
    ends = [*server.service.processor.tokenizer.end_ids]

    def watched(job: Job) -> None:
        jobs.append(job)
        submit(job)

    def slower(self: LanguageModel, hidden: mx.array) -> mx.array:
        longest = max((job.statistics.generated_tokens for job in jobs), default=0)
        time.sleep(0.04 if longest < LONG else 0.4)  # a busy machine has time to stop it
        values = logits(self, hidden)
        values[..., mx.array(ends)] = -100.0
        return values

    monkeypatch.setattr(server.scheduler, "submit", watched)
    monkeypatch.setattr(LanguageModel, "logits", slower)
    return jobs
