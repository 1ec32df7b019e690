"""Bodies that nobody means: each is answered, or refused in OpenAI's shape, and none holds the
others up."""

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smolvlm_mlx import Options, load
from smolvlm_mlx.events import End, Text
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.scheduler import Job, Scheduler
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.server.app import Service, make_app
from tests.support.bodies import flipped, mutated, slow
from tests.support.http import DIRECT, TOKEN, listening
from tests.support.tally import Tally, tally

import httpx2
import pytest

CASES, SECONDS = 20_000, 40.0  # whichever comes first
TOGETHER = 4
BYTES = 32 * 2**20  # of a slow body
HEALTH_SECONDS = 5.0  # a net, for busy machines: it is 0.3 on two idle cores
CPU_SECONDS = 4.0  # the same: it is less than 1


class Instant(Scheduler):
    """Lets the model make one answer of so many; the others are there at once."""

    often, asked = 20, 0

    def submit(self, job: Job) -> None:
        self.asked += 1
        if self.asked % self.often == 0:
            return super().submit(job)
        job.put(Text("x"))
        job.put(End(job.statistics))


@pytest.fixture(scope="module")
def service(tiny: Path) -> Iterator[Service]:
    """Answers are short where a request says nothing."""
    scheduler = Instant(lambda: Engine(*load(tiny, "float32")))
    processor = scheduler.start().processor
    yield Service(
        scheduler, processor, "tiny", None, ImageOptions(longest_edge=64), Options(max_tokens=1)
    )
    scheduler.close()


def problem(answer: Any) -> str:
    """What is wrong with an answer; "" if nothing is."""
    if answer.status_code == 200:
        if answer.headers["content-type"].startswith("text/event-stream"):
            return "" if answer.text.endswith("data: [DONE]\n\n") else "a stream without an end"
        return "" if answer.json()["choices"] else "no choices"
    if not 400 <= answer.status_code < 500:
        return f"status {answer.status_code}"
    error = answer.json()["error"]
    texts = (error["message"], error["type"], error["param"] or "", error["code"] or "")
    if not all(isinstance(text, str) for text in texts):
        return "another shape"
    return "" if len(error["message"]) < 400 and error["message"].isprintable() else "no short line"


async def ask(client: httpx2.AsyncClient, body: bytes, count: Tally) -> None:
    try:
        async with asyncio.timeout(60):
            answer = await client.post("/v1/chat/completions", content=body)
        wrong = problem(answer)
        count.case(not wrong, note=f"{wrong}: {answer.text[:300]} for {body[:600]!r}")
    except TimeoutError:
        count.case(False, "hung", body[:600])


async def fuzz(service: Service, count: Tally) -> None:
    rng, ends = random.Random(1), time.monotonic() + SECONDS
    app = make_app(service, ["server"], None)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:

        async def work() -> None:
            while count.cases < CASES and time.monotonic() < ends:
                await ask(client, mutated(rng), count)

        await asyncio.gather(*(work() for _ in range(TOGETHER)))


def test_mutated_requests(service: Service) -> None:
    with tally("requests, mutated") as count:
        asyncio.run(fuzz(service, count))


def test_slow_requests(service: Service) -> None:
    """At a server, of which others ask whether it is well meanwhile."""
    with tally("requests, slow") as count, listening(service) as port:
        health = Health(port)
        thread = threading.Thread(target=health.watch)
        thread.start()
        try:
            with client_of(port) as client:
                for name, body in slow(BYTES):
                    tried(client, health, count, name, body)
                    if len(body) < 2**20:
                        changed = flipped(body, random.Random(name))
                        tried(client, health, count, f"{name}, flipped", changed)
        finally:
            health.over = True
            thread.join()


def tried(client: httpx2.Client, health: "Health", count: Tally, name: str, body: bytes) -> None:
    health.slowest, began = 0.0, time.process_time()
    try:
        answer = client.post("/v1/chat/completions", content=body)
    except httpx2.TimeoutException:
        return count.case(False, "hung", name)
    wrong, took = problem(answer), time.process_time() - began
    count.case(not wrong, note=f"{name}: {wrong}")
    count.case(took < CPU_SECONDS, "hung", f"{name}: {took:.1f} s of CPU")
    count.case(health.slowest < HEALTH_SECONDS, "hung", f"{name}: /health {health.slowest:.1f} s")


class Health:
    """Asks for /health all the time."""

    def __init__(self, port: int):
        self.port, self.over, self.slowest = port, False, 0.0

    def watch(self) -> None:
        with client_of(self.port) as client:
            while not self.over:
                began = time.perf_counter()
                client.get("/health")
                self.slowest = max(self.slowest, time.perf_counter() - began)
                time.sleep(0.01)


def client_of(port: int) -> httpx2.Client:
    headers = {"authorization": f"Bearer {TOKEN}"}
    return httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60, **DIRECT)


def test_a_problem_is_told() -> None:
    """What the counts rest on."""
    fine = {"error": {"message": "x", "type": "x", "param": None, "code": None}}
    for status, value, told in (
        (200, {"choices": [1]}, ""),
        (200, {"choices": []}, "no choices"),
        (400, fine, ""),
        (500, fine, "status 500"),
        (400, {"error": {**fine["error"], "message": "a\nb"}}, "no short line"),
        (400, {"error": {**fine["error"], "param": 5}}, "another shape"),
    ):
        answer = httpx2.Response(status, content=json.dumps(value), headers={"content-type": "x"})
        assert problem(answer) == told
