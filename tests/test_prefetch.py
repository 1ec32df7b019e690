"""Items are made ahead of whoever uses them, so many and no more."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from smolvlm_mlx.inputs.prefetch import prefetch

import pytest


@pytest.mark.parametrize("most", [1, 3])
def test_so_many_are_made_before_they_are_asked_for(most: int) -> None:
    made = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for number in range(9):
            made.release()
            yield number

    ahead = prefetch(items(), most)
    assert next(ahead) == 0
    for _ in range(1 + most):
        assert made.acquire(timeout=60)
    assert not made.acquire(blocking=False)
    assert list(ahead) == list(range(1, 9))


def test_what_is_raised_comes_at_its_place() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("odd")

    ahead = prefetch(items(), 4)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="odd"):
        next(ahead)


def test_closed_it_makes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is impatient need not wait for what is made now: one more Ctrl-C ends the wait."""
    made, waits = list[int](), list[bool]()
    closed = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *arguments: Any, **options: Any) -> None:
            waits.append(options.get("wait", True))
            super().shutdown(wait=False, cancel_futures=options.get("cancel_futures", False))
            closed.set()
            super().shutdown(*arguments, **options)

    def items() -> Iterator[int]:
        for number in range(9):
            made.append(number)
            assert number == 0 or closed.wait(60)
            yield number

    monkeypatch.setattr("smolvlm_mlx.inputs.prefetch.ThreadPoolExecutor", Pool)
    before = {*threading.enumerate()}
    ahead = prefetch(items(), 4)
    assert next(ahead) == 0
    ahead.close()
    assert made in ([0], [0, 1])
    assert waits == [False, True]
    assert {*threading.enumerate()} <= before
