"""Iteration in a thread of its own, a few items ahead of whoever uses them."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
_END: Any = object()


def prefetch(items: Iterable[Item], most: int) -> Generator[Item]:
    """The items in order, up to `most` of them made before they are asked for. What `items` raises
    is raised at its place.

    Close it, where it may be left early and what `items` uses must not outlive that: this ends the
    thread.
    """
    source = iter(items)
    with ThreadPoolExecutor(1) as pool:
        try:
            waiting = deque(pool.submit(next, source, _END) for _ in range(most))
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(pool.submit(next, source, _END))
                yield item
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
