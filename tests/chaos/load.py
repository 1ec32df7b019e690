"""Mixed load on a server that is a process of its own, with the bundled model, while things break.

    python -m tests.chaos.load --minutes 10

Most clients ask what is known, whole or streamed, and compare every answer; a quarter of them leave
in the middle. One engine error a minute is thrown in the server's process, the history is locked
for a while, and two clients send scan bombs and large pictures. Prints what was lost, mixed or
doubled for those who stayed, how fast /health was, and the memory at the end beside that of the
first minute.
"""

import argparse
import base64
import io
import json
import sqlite3
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from convert.tiny.conversations import make_question
from smolvlm_mlx import Options, generate, load
from tests.support.pictures import data_url
from tests.support.served import Served, serving_alone

import httpx2
import numpy as np
from PIL import Image

STAYING, LEAVING = 6, 2
# In the server's process: a step fails where the file is there, once.
BREAKS = """
import os
from smolvlm_mlx.generation.decoding import Decoder
step = Decoder.step
def broken(self):
    try:
        os.unlink({file!r})
    except FileNotFoundError:
        return step(self)
    raise RuntimeError("[metal::malloc] thrown by the load test")
Decoder.step = broken
"""
Body = dict[str, Any]


@dataclass
class Found:
    """What the clients that stayed saw.

    Attributes:
        ended: answers that an engine's error ended, which is right.
        wrong: by kind: lost, mixed or doubled.
        health: seconds that /health took.
        memory: (seconds, bytes) of the server's process.
    """

    answers: int = 0
    ended: int = 0
    left: int = 0
    refused: int = 0
    notices: int = 0
    wrong: dict[str, list[str]] = field(
        default_factory=lambda: {"lost": [], "mixed": [], "doubled": []}
    )
    health: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    thrown: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def judge(self, got: str, want: str) -> None:
        """Count an answer."""
        with self.lock:
            self.answers += 1
            if got != want:
                kind = "doubled" if want and want in got else "mixed"
                self.wrong[kind].append(f"{got!r}, not {want!r}")

    def lose(self, why: str) -> None:
        with self.lock:
            self.wrong["lost"].append(why)

    def count(self, name: str) -> None:
        with self.lock:
            setattr(self, name, getattr(self, name) + 1)


def known_answers() -> list[tuple[Body, str]]:
    """Requests with and without pictures, and their answers."""
    model, processor = load("tiny", "float32")
    kinds = ("what", "text", "two pictures", "earlier turn", "text alone")
    questions = [make_question(kind, Random(f"load {n}")) for kind in kinds for n in range(2)]
    return [
        (_body(each.messages), generate(model, processor, each.messages, Options(max_tokens=40)))
        for each in questions
    ]


def _body(messages: list[Body]) -> Body:
    parts = [{**each, "content": list(map(_part, each["content"]))} for each in messages]
    return {"max_tokens": 40, "messages": parts}


def _part(part: Body) -> Body:
    if part["type"] == "text":
        return part
    return {"type": "image_url", "image_url": {"url": data_url(part["image"])}}


def stay(served: Served, known: list[tuple[Body, str]], seed: int, until: float, f: Found) -> None:
    """Ask what is known, and compare. Busy is no loss: it is asked again."""
    rng, number = Random(seed), 0
    with served.client(**{"user-agent": f"staying {seed}"}) as client:
        while time.monotonic() < until:
            body, want = rng.choice(known)
            number += 1
            asked = {**body, "stream": rng.random() < 0.5}
            if rng.random() < 0.3:
                asked |= {"conversation": f"{seed:08x}{number:08x}"}
            try:
                _ask(client, asked, want, f)
            except (httpx2.HTTPError, ValueError, KeyError) as error:
                f.lose(f"{type(error).__name__}: {error}")


def _ask(client: httpx2.Client, asked: Body, want: str, f: Found) -> None:
    answer = client.post("/v1/chat/completions", json=asked)
    if answer.status_code == 503:
        f.count("refused")
        time.sleep(0.2)
        return
    lines = answer.text.splitlines() if asked["stream"] else [f"data: {answer.text}"]
    events = [line.removeprefix("data: ") for line in lines if line]
    if asked["stream"] and events.count("[DONE]") != 1:
        f.lose(f"{events.count('[DONE]')} ends: {events[-2:]}")
        return
    values = [json.loads(event) for event in events if event != "[DONE]"]
    if any("error" in value for value in values):
        error = values[-1]["error"]
        if error["type"] == "server_error" and "thrown by the load test" in error["message"]:
            f.count("ended")
        else:
            f.lose(str(error))
        return
    if any("notice" in value for value in values):
        f.count("notices")
    choices = [choice for value in values for choice in value["choices"]]
    texts = [(each.get("message") or each["delta"]).get("content", "") for each in choices]
    f.judge("".join(texts), want)


def leave(served: Served, known: list[tuple[Body, str]], seed: int, until: float, f: Found) -> None:
    """Ask, and hang up at some moment."""
    rng = Random(seed)
    while time.monotonic() < until:
        body = {**rng.choice(known)[0], "max_tokens": 2000, "stream": rng.random() < 0.5}
        try:
            with served.post(json.dumps(body).encode()):
                time.sleep(rng.uniform(0, 0.5))
        except OSError:
            time.sleep(0.1)
        f.count("left")


def bother(served: Served, picture: bytes, until: float) -> None:
    """Send a picture that takes long to read, again and again."""
    url = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {"max_tokens": 4, "messages": [{"role": "user", "content": [part]}]}
    with served.client(**{"user-agent": "bothering"}) as client:
        while time.monotonic() < until:
            try:
                client.post("/v1/chat/completions", json=body)
            except httpx2.HTTPError:
                time.sleep(0.1)
            time.sleep(1)


def scan_bomb(scans: int = 400) -> bytes:
    """A progressive JPEG of 12 megapixels that says its last scan again and again."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(noise).resize((4000, 3000)).save(file, "JPEG", progressive=True, quality=20)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def large_picture() -> bytes:
    """A JPEG of 48 megapixels."""
    file = io.BytesIO()
    Image.new("RGB", (8000, 6000), "red").save(file, "JPEG")
    return file.getvalue()


def watch(served: Served, until: float, f: Found) -> None:
    """Ask /health, and look at the memory, five times a second."""
    started = time.monotonic()
    statm = Path(f"/proc/{served.process.pid}/statm")
    with served.client() as client:
        while time.monotonic() < until:
            asked = time.monotonic()
            try:
                client.get("/health")
            except httpx2.HTTPError as error:
                f.lose(f"/health: {error!r}")
            f.health.append(time.monotonic() - asked)
            if statm.exists():
                pages = int(statm.read_text().split()[1])
                f.memory.append((time.monotonic() - started, pages * 4096))
            time.sleep(0.2)


def break_things(file: Path, folder: Path, seconds: float, f: Found) -> None:
    """Once a minute an engine's error, and at half-time the history is locked until a
    notice says so."""
    started, locked = time.monotonic(), False
    every = min(60.0, seconds / 3)
    next_error = started + every / 2
    while (now := time.monotonic()) < started + seconds - 2:
        if now > next_error:
            file.touch()
            f.thrown += 1
            next_error += every
        is_due = not locked and now > started + seconds / 2
        if is_due and (history := next(folder.rglob("history.sqlite3"), None)):
            locked = True
            with closing(sqlite3.connect(history, 60, isolation_level=None)) as database:
                database.execute("BEGIN IMMEDIATE")
                while not f.notices and time.monotonic() < started + seconds - 2:
                    time.sleep(0.1)
        time.sleep(0.05)


def run(seconds: float, folder: Path) -> Found:
    """Bring the load on, for so long."""
    f, known, file = Found(), known_answers(), folder / "throw"
    pictures = [scan_bomb(), large_picture()]
    with serving_alone(folder, BREAKS.format(file=str(file))) as served:
        until = time.monotonic() + seconds
        with ThreadPoolExecutor(STAYING + LEAVING + 4) as pool:
            work = [pool.submit(stay, served, known, n, until, f) for n in range(STAYING)]
            work += [pool.submit(leave, served, known, n, until, f) for n in range(LEAVING)]
            work += [pool.submit(bother, served, each, until) for each in pictures]
            work += [pool.submit(watch, served, until, f)]
            work += [pool.submit(break_things, file, folder, seconds, f)]
            for each in work:
                each.result()
        served.process.terminate()
        if served.process.wait(30) != 0:
            f.lose(f"the server ended with {served.process.returncode}")
    return f


def report(f: Found) -> list[str]:
    """What was found, as lines."""
    p95 = statistics.quantiles(f.health, n=20)[-1]
    lines = [
        f"{f.answers} answers, {f.ended} ended by {f.thrown} engine errors, {f.refused} refused, "
        f"{f.left} clients left, {f.notices} notices of the history",
        ", ".join(f"{len(found)} {kind}" for kind, found in f.wrong.items()),
        f"/health: p95 {p95:.3f} s, at most {max(f.health):.3f} s of {len(f.health)}",
    ]
    if f.memory:
        end = f.memory[-1][0]
        first = max(size for at, size in f.memory if at <= min(60, end / 2))
        last = statistics.median(size for at, size in f.memory if at >= end * 0.9)
        lines.append(
            f"memory: {first / 1e6:.0f} MB in the first minute, {last / 1e6:.0f} MB at the end"
        )
    lines += [f"{kind}: {each}" for kind, found in f.wrong.items() for each in found[:5]]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    minutes: float = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder:
        found = run(minutes * 60, Path(folder))
    print("\n".join(report(found)))
    raise SystemExit(any(found.wrong.values()))


if __name__ == "__main__":
    main()
