"""An engine whose steps fail, clients that leave, a history that is locked: the others' answers are
exact, and the next request is answered."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from smolvlm_mlx.checkpoint.hub import TINY
from tests.chaos.load import Body, known_answers, report, run
from tests.support.http import Running, serving
from tests.support.tally import Tally, tally

import mlx.core as mx
import pytest

ROUNDS, CLIENTS = 30, 5
THROWN = "[metal::malloc] thrown by a test"


@contextmanager
def failing_at(number: int) -> Iterator[None]:
    """Evaluate arrays in the engine's thread so many times, fail once, and go on."""
    left = [number]

    def watched(evaluate: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arrays: Any) -> Any:
            if threading.current_thread().name == "engine":
                left[0] -= 1
                if left[0] == 0:
                    raise RuntimeError(THROWN)
            return evaluate(*arrays)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("eval", "async_eval"):
            patch.setattr(mx, name, watched(getattr(mx, name)))
        yield


def ask(server: Running, known: tuple[Body, str], may_fail: bool, count: Tally) -> bool:
    """Ask, and compare; whether it was answered."""
    body, want = known
    answer = server.complete(body)
    if answer.status_code == 200:
        got = answer.json()["choices"][0]["message"]["content"]
        count.case(got == want, "wrong", f"{got!r}, not {want!r}")
        return True
    error = answer.json()["error"]
    is_told = (answer.status_code, error["type"]) == (500, "server_error")
    count.case(may_fail and is_told and THROWN in error["message"], "lost", error)
    return False


def leave(server: Running, body: Body) -> None:
    with (
        server.client() as client,
        client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer,
    ):
        next(answer.iter_lines())


def test_one_failed_evaluation(tmp_path: Path) -> None:
    rng, known, failed = Random(1), known_answers(), 0
    with (
        tally("engine, a failed mx.eval") as count,
        serving(TINY, tmp_path) as server,
        ThreadPoolExecutor(CLIENTS + 1) as pool,
    ):
        for _ in range(ROUNDS):
            asked = [rng.choice(known) for _ in range(CLIENTS)]
            with failing_at(rng.randrange(1, 80)):
                gone = pool.submit(leave, server, rng.choice(known)[0])
                answered = list(pool.map(lambda each: ask(server, each, True, count), asked))
                gone.result()
            failed += answered.count(False)
            ask(server, rng.choice(known), False, count)
        server.wait_until_idle()
        count.case(failed > 0, "wrong", "nothing has failed")


def test_mixed_load(tmp_path: Path) -> None:
    with tally("server, mixed load") as count:
        for seconds in (15, 60):  # a busy machine does too little in the first
            folder = tmp_path / f"{seconds}"
            folder.mkdir()
            found = run(seconds, folder)
            print("\n".join(report(found)))
            for _ in range(found.answers + found.ended):
                count.case()
            for why in found.wrong["lost"]:
                count.case(False, "lost", why)
            for why in [*found.wrong["mixed"], *found.wrong["doubled"]]:
                count.case(False, "wrong", why)
            if found.answers and found.ended and found.notices:
                break
        count.case(found.answers > 0 < found.ended, "lost", "no answers, or no errors")
        count.case(found.notices > 0, "wrong", "a locked history was not told")
