"""The messages of a conversation as the history has them: a tree. What goes on from the same
beginning shares it; an edited question or another answer stands beside the one before.

Knows nothing of files.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .stored import known_of

Raw = Mapping[str, Any]  # a message as `stored.to_stored` has it


@dataclass(frozen=True)
class Node:
    """A message in the tree.

    Attributes:
        parent: the id of the message before it; None for a first one.
        text: as it is stored.
        created: in seconds since 1970.
    """

    id: int
    parent: int | None
    text: str
    created: float


@dataclass(frozen=True)
class Place:
    """Where a message stands; `branches` are the ids of all that stand there, the first first."""

    id: int
    branches: list[int]


Places = list[Place]  # of the messages of a conversation


class Tree:
    """A conversation's messages by their ids."""

    def __init__(self, nodes: Iterable[Node]):
        self.nodes = {node.id: node for node in nodes}
        self._children: dict[int | None, list[int]] = {}
        for node in self.nodes.values():
            self._children.setdefault(node.parent, []).append(node.id)

    def children(self, parent: int | None) -> list[int]:
        """Return what goes on from a message, the first first; of None, what begins."""
        return self._children.get(parent, [])

    def path(self, end: int | None) -> list[int]:
        """Return the messages from the first to this one, which is the last."""
        path = list[int]()
        while end in self.nodes:
            path.append(end)
            end = self.nodes[end].parent
        return path[::-1]

    def places(self, end: int | None) -> Places:
        """Return where the messages up to one stand."""
        return [Place(at, self.children(self.nodes[at].parent)) for at in self.path(end)]

    def goes_on(self, path: Sequence[int], end: int | None) -> bool:
        """Return whether a message comes after the end of a path."""
        there = self.path(end)
        return len(there) > len(path) and there[: len(path)] == path

    def newest_end(self, id: int) -> int:
        """Return the last of the messages that go on from one, at each fork with the newest."""
        while children := self.children(id):
            id = children[-1]
        return id

    def ends(self) -> list[int]:
        """Return all messages after which nothing comes, the first first."""
        return [id for id in self.nodes if not self.children(id)]

    def find(self, messages: Sequence[Raw]) -> list[int]:
        """Return the path of as many of these messages, from the first on, as are there. An answer
        that was interrupted is one that goes on, if nothing comes after it."""
        path = list[int]()
        for message in messages:
            children = self.children(path[-1] if path else None)
            found = next((id for id in children if self._is(id, message)), None)
            if found is None and message is messages[-1]:
                found = self._further(children, message)
            if found is None:
                break
            path.append(found)
        return path

    def begun(self, parent: int | None, message: Raw) -> int | None:
        """Return an answer that was interrupted, and with which this one begins: it can be replaced
        without loss, if nothing goes on from it."""
        children = self.children(parent)
        ends = (id for id in children if not self.children(id))
        return next((id for id in ends if _continues(self._known(id), message)), None)

    def words(self, id: int) -> str:
        """Return the words of a message."""
        content = (self._known(id) or {"content": ()})["content"]
        return " ".join(part["text"] for part in content if part["type"] == "text")

    def turns(self, path: Iterable[int]) -> int:
        """Return how many of these messages are questions."""
        return sum((self._known(id) or {}).get("role") == "user" for id in path)

    def _known(self, id: int) -> Raw | None:
        return known_of(self.nodes[id].text)

    def _is(self, id: int, message: Raw) -> bool:
        known = self._known(id)
        if known is None or any(known[key] != message[key] for key in ("role", "content")):
            return False
        becomes_whole = bool(known.get("interrupted")) and not message.get("interrupted")
        return bool(self.children(id)) or not becomes_whole

    def _further(self, children: Sequence[int], message: Raw) -> int | None:
        """The newest answer that begins with this one, which was interrupted."""
        newest = reversed(children)
        return next((id for id in newest if _continues(message, self._known(id))), None)


def _said(message: Raw | None) -> str | None:
    """The words of an answer that is nothing else."""
    if message is None or message["role"] != "assistant" or len(message["content"]) != 1:
        return None
    part = message["content"][0]
    return str(part["text"]) if part["type"] == "text" else None


def _continues(short: Raw | None, long: Raw | None) -> bool:
    """Whether an answer that was interrupted is the beginning of another."""
    begun, said = _said(short), _said(long)
    if short is None or begun is None or said is None:
        return False
    return bool(short.get("interrupted")) and said.startswith(begun)


def dumped(message: Raw) -> str:
    """Return a message as it is stored."""
    return json.dumps(message, ensure_ascii=False)
