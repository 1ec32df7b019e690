"""Many clients of a server that is a process of its own, with the bundled model: every answer is
compared."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

from convert.tiny.conversations import make_question
from smolvlm_mlx import Options, generate, load
from tests.support.http import DIRECT
from tests.support.pictures import data_url

import httpx2
import pytest

Body = dict[str, Any]
CLIENTS = 8


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Its address and its process."""
    options = "-m tiny --dtype float32 --port 0 --token t".split()
    home = str(tmp_path_factory.mktemp("home"))
    environment = {**os.environ, "HOME": home, "XDG_DATA_HOME": home, "XDG_CACHE_HOME": home}
    with subprocess.Popen(
        [sys.executable, "-m", "smolvlm_mlx", "serve", *options],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[1].partition("#")[0]
        with connect(address) as client:
            deadline = time.monotonic() + 60
            while not is_there(client):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield address, process.pid
        process.terminate()


def connect(address: str) -> httpx2.Client:
    return httpx2.Client(
        base_url=address, headers={"authorization": "Bearer t"}, timeout=60, **DIRECT
    )


def is_there(client: httpx2.Client) -> bool:
    try:
        return bool(client.get("/health").json()["status"] == "ok")
    except httpx2.ConnectError:
        return False


def as_body(messages: list[Body]) -> Body:
    """A request, as OpenAI's API has it."""
    return {
        "max_tokens": 40,
        "messages": [
            {**message, "content": [as_openai(part) for part in message["content"]]}
            for message in messages
        ],
    }


def as_openai(part: Body) -> Body:
    return (
        part
        if part["type"] == "text"
        else {"type": "image_url", "image_url": {"url": data_url(part["image"])}}
    )


@pytest.fixture(scope="module")
def known() -> list[tuple[Body, str]]:
    """Requests with and without pictures, and their answers."""
    model, processor = load("tiny", "float32")
    kinds = ("what", "where", "text", "two pictures", "earlier turn", "text alone")
    questions = [
        make_question(kind, Random(f"crowd {number}")) for kind in kinds for number in range(2)
    ]
    answers = [
        generate(model, processor, q.messages, Options(max_tokens=40)).strip() for q in questions
    ]
    assert sum(a == q.answer for a, q in zip(answers, questions, strict=True)) > 0.8 * len(
        questions
    )
    return [(as_body(q.messages), answer) for q, answer in zip(questions, answers, strict=True)]


def crowd(address: str, known: list[tuple[Body, str]], least: int, seconds: float = 0) -> int:
    """Eight clients at once ask what is known, at least so often each; returns how many answers
    came."""
    deadline = time.monotonic() + seconds

    def ask(seed: int) -> int:
        rng, count = Random(seed), 0
        with connect(address) as client:
            while count < least or time.monotonic() < deadline:
                body, want = rng.choice(known)
                answer = client.post("/v1/chat/completions", json=body).json()
                assert answer["choices"][0]["message"]["content"].rstrip() == want
                count += 1
        return count

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(ask, range(CLIENTS)))


def test_eight_clients_at_once(served: tuple[str, int], known: list[tuple[Body, str]]) -> None:
    assert crowd(served[0], known, least=5) == 5 * CLIENTS


@pytest.mark.slow
def test_eight_clients_for_five_minutes(
    served: tuple[str, int], known: list[tuple[Body, str]]
) -> None:
    def resident() -> int:
        return int(Path(f"/proc/{served[1]}/statm").read_text().split()[1]) * 4096

    crowd(served[0], known, 1, 30)
    before = resident()
    count = crowd(served[0], known, 1, 300)
    print(f"{count} answers; {before / 1e6:.0f} MB before, {resident() / 1e6:.0f} MB after")
    assert count > 300
    assert resident() < before + 60e6
