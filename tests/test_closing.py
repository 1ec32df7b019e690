"""How the server ends: by SIGTERM and Ctrl-C at any moment, and where its engine is gone."""

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from smolvlm_mlx.tasks.history import History
from tests.support.http import question, wait_until
from tests.support.served import Served, launch, read_all, serving_alone

import pytest

GOES_ON = """
from smolvlm_mlx.generation.decoding import Row
Row.ended = property(lambda self: False)
"""
SHORT = GOES_ON + "from smolvlm_mlx.cli import serve; serve.GRACE_SECONDS = 0.3"
SAID = "the server is shutting down; ask again when it is back"
BUSY = (8, 4)


def endless(**more: object) -> bytes:
    """A question whose answer does not end by itself."""
    return json.dumps(question("Hello", max_tokens=100_000, **more)).encode()


def occupied(served: Served) -> tuple[int, int]:
    with served.client() as client:
        health = client.get("/health").json()
    return health["running"], health["waiting"]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_in_order(sent: signal.Signals, tmp_path: Path) -> None:
    """What is answered, what waits, a body that comes, idle connections, one that does not read."""
    with serving_alone(tmp_path, SHORT) as served:
        deaf = served.post(endless(stream=True))
        streams = [served.post(endless(stream=True)) for _ in range(6)]
        whole = [served.post(endless()) for _ in range(5)]
        half = served.post(endless(), part=10)
        idle = socket.create_connection(("127.0.0.1", served.port), 60)
        wait_until(lambda: occupied(served) == BUSY)
        started = time.monotonic()
        served.process.send_signal(sent)
        with ThreadPoolExecutor(12) as pool:
            streamed = list(pool.map(read_all, streams))
            others = list(pool.map(read_all, [*whole, half]))
        assert read_all(idle) == ""
        assert served.process.wait(60) == (0 if sent == signal.SIGTERM else 130)
        assert time.monotonic() - started < 10
        deaf.close()
        assert served.process.stderr is not None
        assert served.process.stderr.read().strip() == ""
    for text in streamed:
        assert SAID in text
        assert text.endswith("data: [DONE]\n\n\r\n0\r\n\r\n")
    for text in others:
        head, _, body = text.partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 503 ")
        assert "connection: close" in head
        assert json.loads(body)["error"] == {
            "message": SAID,
            "type": "server_error",
            "param": None,
            "code": None,
        }


def test_nothing_new_is_taken_while_answers_end(tmp_path: Path) -> None:
    with serving_alone(tmp_path, GOES_ON) as served, served.client() as kept:
        running = served.post(endless())
        wait_until(lambda: occupied(served) == (1, 0))
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: kept.get("/health").json()["status"] == "closing")
        with served.client() as new:
            for client in (kept, new):
                answer = client.post("/v1/chat/completions", json=question("Hello"))
                assert (answer.status_code, answer.headers["connection"]) == (503, "close")
                assert answer.json()["error"]["message"] == SAID
        running.close()  # so that nothing is under way
        assert served.process.wait(60) == 0


def test_answers_whose_clients_have_gone_are_kept_at_the_end(tmp_path: Path) -> None:
    """And who listens is not waited for."""
    id = "0123abcd"
    with serving_alone(tmp_path, SHORT) as served, served.client() as client:
        served.post(endless(stream=True, conversation=id)).close()
        wait_until(lambda: client.get(f"/conversations/{id}").status_code == 200)
        with client.stream("GET", f"/conversations/{id}/events") as news:
            lines = (line for line in news.iter_lines() if line.startswith("data: "))
            assert json.loads(next(lines)[6:])["answer"]["after"]
            next(lines)
            served.process.send_signal(signal.SIGTERM)
            assert "text" in json.loads([*lines][-1][6:])  # and an end in order
        assert served.process.wait(60) == 0
        assert served.process.stderr is not None
        assert served.process.stderr.read().strip() == ""
    (path,) = tmp_path.rglob("history.sqlite3")
    asked, answer = History(path).load(id)
    assert (asked.text, answer.interrupted) == ("Hello", True)
    assert answer.text


def test_ctrl_c_while_it_starts(tmp_path: Path) -> None:
    """While the engine's thread computes: Python's own end would abort."""
    changes = """
import signal, os
import mlx.core as mx
from smolvlm_mlx.generation import scheduler
def decoder(model):
    print("computing", flush=True)
    while True:
        mx.eval(mx.ones((400, 400)) @ mx.ones((400, 400)))
scheduler.Decoder = decoder
"""
    with launch(tmp_path, changes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "computing\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "\n"


def test_a_server_whose_engine_is_gone_ends(tmp_path: Path) -> None:
    """Answers under way are told, and the exit code is not 0."""
    changes = """
from smolvlm_mlx.generation.decoding import Decoder
step, steps = Decoder.step, []
def gone(self):
    steps.append(1)
    if len(steps) == 5:
        raise SystemExit
    return step(self)
Decoder.step = gone
"""
    with serving_alone(tmp_path, GOES_ON + changes) as served:
        streamed = read_all(served.post(endless(stream=True)))
        assert served.process.wait(60) == 1
        assert served.process.stderr is not None
        last = served.process.stderr.read().splitlines()[-1]
    assert "the engine has failed; start the server again" in streamed
    assert last == "smolvlm-mlx: the engine has failed; start the server again"
