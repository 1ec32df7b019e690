"""What waits, in fair turns: each client's next one after the other's, however many one has."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

Waiting = TypeVar("Waiting")


class Turns(Generic[Waiting]):
    """Those of one client come in the order that they came in; clients take turns.

    A client is a path of names, such as its address and what it calls itself. Turns go around among
    addresses first, then among the names at one: who calls itself by many takes no turns from
    another address.
    """

    def __init__(self) -> None:
        self._own = deque[Waiting]()
        self._clients: dict[str, Turns[Waiting]] = {}  # the next to have its turn is first

    def __len__(self) -> int:
        return len(self._own) + sum(map(len, self._clients.values()))

    def __iter__(self) -> Iterator[Waiting]:
        yield from self._own
        for turns in self._clients.values():
            yield from turns

    def push(self, waiting: Waiting, client: Sequence[str] = ()) -> None:
        """Put one behind those of its client."""
        if client:
            self._clients.setdefault(client[0], Turns()).push(waiting, client[1:])
        else:
            self._own.append(waiting)

    def peek(self) -> Waiting:
        """Return the one whose turn it is.

        Raises:
            IndexError: nothing waits.
        """
        if self._own or not self._clients:
            return self._own[0]
        return next(iter(self._clients.values())).peek()

    def pop(self) -> Waiting:
        """Take out the one whose turn it is.

        Raises:
            IndexError: nothing waits.
        """
        if self._own or not self._clients:
            return self._own.popleft()
        name = next(iter(self._clients))
        turns = self._clients.pop(name)
        waiting = turns.pop()
        if len(turns):
            self._clients[name] = turns
        return waiting

    def shed(self, client: Sequence[str] = ()) -> Waiting | None:
        """Take out the last of whoever has most, where that is more than this client has with one
        that comes; nothing otherwise."""
        sizes = {name: len(turns) for name, turns in self._clients.items()}
        if not client or not sizes:
            return None
        most = max(sizes, key=lambda name: sizes[name])
        if sizes[most] > sizes.get(client[0], 0) + 1:
            return self._clients[most]._pop_last()
        own = self._clients.get(client[0])
        return None if own is None else own.shed(client[1:])

    def _pop_last(self) -> Waiting:
        if self._own or not self._clients:
            return self._own.pop()
        return max(self._clients.values(), key=len)._pop_last()

    def keep(self, is_wanted: Callable[[Waiting], bool]) -> None:
        """Leave out those that nobody waits for any more."""
        self._own = deque(filter(is_wanted, self._own))
        for turns in self._clients.values():
            turns.keep(is_wanted)
        self._clients = {name: turns for name, turns in self._clients.items() if len(turns)}
