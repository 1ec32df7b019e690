"""Conversations that survive, in SQLite: each finished turn is on the disk before `save` returns.

A conversation is a tree of messages with a place in it, the leaf, up to which it is shown. What is
saved shares the beginning that is there and goes on beside the rest, so that nobody writes over
what another has said: not who edits a question or asks for another answer, nor several who write
one conversation at once, as two windows and a terminal do.

Private to the user, and on this machine only. A picture or video is stored once, whatever
conversations it is in, and overwritten when the last of them is deleted.
"""

import secrets
import sqlite3
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

from ..errors import HistoryError, NoConversationError, quote
from ..inputs.messages import Message
from .database import Watch, empty_log, opened
from .stored import beginning, from_stored, known_of, title_of, to_stored, words_of
from .tree import Node, Raw, Tree, dumped

BUSY_SECONDS = 5  # for others that use the file


@dataclass(frozen=True)
class Summary:
    """A conversation in a list. `updated` in seconds since 1970, `turns` counts questions."""

    id: str
    title: str
    model: str
    updated: float
    turns: int


@dataclass(frozen=True)
class Place:
    """Where a message stands; `branches` are the ids of all that stand there, the first first."""

    id: int
    branches: list[int]


Places = list[Place]  # of the messages of a conversation


@dataclass(frozen=True)
class Saved:
    """What was saved: the ids of its messages but the instructions, and whether the leaf moved."""

    path: list[int]
    has_moved: bool


@dataclass(frozen=True)
class Kept:
    """A conversation up to its leaf; instructions at the front have no place."""

    messages: list[Message]
    places: Places


@dataclass(frozen=True)
class Branch:
    """A way that a conversation went.

    Attributes:
        end: the id of its last message.
        words: where it leaves the way to the leaf, or how it ends.
        created: when it came to its end, in seconds since 1970.
        is_current: it ends at the leaf.
    """

    end: int
    words: str
    created: float
    is_current: bool


def data_folder() -> Path:
    """Where this user's conversations and inputs are kept."""
    return user_data_path("smolvlm-mlx", appauthor=False)


def cache_folder() -> Path:
    """Where what can be computed again is kept."""
    return user_cache_path("smolvlm-mlx", appauthor=False)


def private_folder(folder: Path) -> Path:
    """The folder, made for this user alone if it is not there.

    Raises:
        HistoryError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise HistoryError(
            f"{folder}: cannot be made ({error.strerror}); go on with --no-history"
        ) from error
    return folder


class History:
    """All conversations of a user. Every method is one transaction, from whatever thread or
    process.

    Args:
        timeout: seconds to wait for another process that writes.

    Raises:
        HistoryError: from every method: the file cannot be used; NoConversationError: it is not
            there.
    """

    def __init__(self, path: Path | None = None, timeout: float = BUSY_SECONDS):
        self.path, self._timeout = path or data_folder() / "history.sqlite3", timeout

    def save(self, id: str, messages: Sequence[Message], model: str = "") -> Saved:
        """Write a conversation: what of it is there stays, and what differs goes beside it. The
        leaf is then its end, unless another has gone on from there already.

        An answer that was interrupted is replaced by one that begins with it, and instructions at
        the front by others: they belong to the conversation, whatever way it goes.

        Raises:
            NoConversationError: it was deleted, and does not come back.
        """
        first, rest = _instructions(messages)
        new = [to_stored(message) for message in rest]
        with self._open(writes=True) as database:
            if database.execute("SELECT 1 FROM deleted WHERE id = ?", (id,)).fetchone():
                raise NoConversationError(
                    f"conversation {quote(id)} was deleted, and keeps no more; begin another"
                )
            tree, leaf = _tree(database, id), _leaf(database, id)
            path = tree.find(new)
            if len(path) == len(new) and _is_below(tree, leaf, path):
                return Saved(path, False)
            _write_head(database, id, title_of(messages), model, first)
            path = _write_messages(database, id, tree, path, rest, new)
            turns = sum(message.role == "user" for message in rest)
            end = path[-1] if path else None
            _set_leaf(database, id, end, turns)
        return Saved(path, end != leaf)

    def extend(self, id: str, at: int, before: Message, answer: Message) -> None:
        """Write an answer that still comes as far as it has come now, in the place where it is as
        it was `before`; where it is another now, or goes on, it stays as it is. Reads no tree."""
        old, new = (_utf8(dumped(to_stored(message))) for message in (before, answer))
        with self._open(writes=True) as database:
            database.execute(
                "UPDATE messages SET message = ?, words = ? WHERE conversation = ? AND id = ? AND "
                "message = ? AND NOT EXISTS (SELECT 1 FROM messages AS next WHERE "
                "next.conversation = messages.conversation AND next.parent = messages.id)",
                (new, _utf8(words_of(answer)), id, at, old),
            )

    def withdraw(self, id: str, messages: Sequence[Message], seen: Collection[int]) -> None:
        """Go back to the end of these messages, unless another has gone on meanwhile: the leaf is
        none of those that were `seen`. A conversation of which nothing is left then, and that
        nobody else has written to, is forgotten."""
        new = [to_stored(message) for message in _instructions(messages)[1]]
        with self._open(writes=True) as database:
            tree, leaf = _tree(database, id), _leaf(database, id)
            path = tree.find(new)
            if (leaf is not None and leaf not in seen) or len(path) < len(new):
                return
            if path or tree.nodes.keys() - {*seen}:
                _set_leaf(database, id, path[-1] if path else None, tree.turns(path))
                return
            database.execute("DELETE FROM conversations WHERE id = ?", (id,))
            _forget_unused(database)

    def load(self, id: str) -> list[Message]:
        """The messages of a conversation, up to its leaf."""
        return self.read(id).messages

    def read(self, id: str) -> Kept:
        """A conversation. In place of a picture or video that cannot be read any more stands its
        name."""
        with self._open() as database:
            leaf, instructions = _head(database, id)
            tree = _tree(database, id)
            pictures = (
                "SELECT digest, data FROM uses JOIN pictures USING (digest) WHERE conversation = ?"
            )
            data = dict(database.execute(pictures, (id,)).fetchall())
        texts = [instructions] if instructions is not None else []
        texts += [tree.nodes[at].text for at in tree.path(leaf)]
        return Kept([from_stored(text, data) for text in texts], _places(tree, leaf))

    def places(self, id: str) -> Places:
        """Where the messages of a conversation stand."""
        with self._open() as database:
            leaf, _ = _head(database, id)
            return _places(_tree(database, id), leaf)

    def leaf(self, id: str) -> int | None:
        """The id of the last message of a conversation; None before the first."""
        with self._open() as database:
            return _head(database, id)[0]

    def watch(self) -> Watch:
        """What tells when others write, from any thread."""
        private_folder(self.path.parent)
        return Watch(self.path)

    def branches(self, id: str) -> Sequence[Branch]:
        """All ways that a conversation went, the first to come to its end first."""
        with self._open() as database:
            leaf, _ = _head(database, id)
            tree = _tree(database, id)
        here, found = set(tree.path(leaf)), []
        for end in tree.ends():
            path = tree.path(end)
            (first, *_) = [at for at in path if at not in here] or path[-1:]
            words = beginning(tree.words(first))
            found.append(Branch(end, words, tree.nodes[end].created, end == leaf))
        return found

    def move(self, id: str, message: int) -> None:
        """Show a conversation up to the newest end of the ways that go through a message.

        Raises:
            NoConversationError: it has no such message.
        """
        with self._open(writes=True) as database:
            tree = _tree(database, id)
            if message not in tree.nodes:
                raise NoConversationError(f"no message {message} in conversation {quote(id)}")
            end = tree.newest_end(message)
            _set_leaf(database, id, end, tree.turns(tree.path(end)))

    def list(self, limit: int = -1, words: str = "") -> list[Summary]:
        """The conversations, the latest first; with `words`, those that contain them in any branch,
        in upper or lower case."""
        with self._open() as database:
            database.create_function("folded", 1, _folded, deterministic=True)
            rows = database.execute(
                "SELECT id, title, model, updated, turns FROM conversations WHERE ?1 = '' OR "
                "EXISTS (SELECT 1 FROM messages WHERE conversation = conversations.id AND "
                "instr(folded(words), ?1)) OR CASE WHEN json_valid(instructions) THEN "
                "instr(folded(json_extract(instructions, '$.content[0].text')), ?1) END "
                "ORDER BY updated DESC LIMIT ?2",
                (_utf8(words).casefold(), limit),
            ).fetchall()
        return [Summary(*row) for row in rows]

    def find(self, beginning: str) -> str:
        """The id that begins so."""
        ids = [s.id for s in self.list() if beginning and s.id.startswith(beginning)]
        if len(ids) != 1:
            raise NoConversationError(
                f"{len(ids) or 'no'} conversations begin with {quote(beginning)}; `smolvlm-mlx "
                "history` lists them"
            )
        return ids[0]

    def delete(self, id: str) -> None:
        """Forget a conversation for good, and the pictures that are in no other."""
        with self._open(writes=True) as database:
            if not database.execute("DELETE FROM conversations WHERE id = ?", (id,)).rowcount:
                raise _not_there(id)
            database.execute("INSERT OR IGNORE INTO deleted VALUES (?)", (id,))
            _forget_unused(database)
        empty_log(self.path)

    def _open(self, writes: bool = False) -> AbstractContextManager[sqlite3.Connection]:
        private_folder(self.path.parent)
        return opened(self.path, self._timeout, writes)


def new_id() -> str:
    """A name for a new conversation."""
    return secrets.token_hex(4)


def _not_there(id: str) -> NoConversationError:
    return NoConversationError(f"no conversation {quote(id)}; `smolvlm-mlx history` lists them")


def _folded(text: object) -> str:
    return text.casefold() if isinstance(text, str) else ""


# ---- the tree and its leaf


def _instructions(messages: Sequence[Message]) -> tuple[Message | None, Sequence[Message]]:
    """A system message at the front, and the others."""
    has_some = bool(messages) and messages[0].role == "system"
    return (messages[0], messages[1:]) if has_some else (None, messages)


def _head(database: sqlite3.Connection, id: str) -> tuple[int | None, str | None]:
    """The leaf and the instructions of a conversation."""
    query = "SELECT leaf, instructions FROM conversations WHERE id = ?"
    row = database.execute(query, (id,)).fetchone()
    if row is None:
        raise _not_there(id)
    leaf, instructions = row
    return leaf, instructions


def _leaf(database: sqlite3.Connection, id: str) -> int | None:
    row = database.execute("SELECT leaf FROM conversations WHERE id = ?", (id,)).fetchone()
    return None if row is None else row[0]


def _tree(database: sqlite3.Connection, id: str) -> Tree:
    """The messages of a conversation; none, if it is not there."""
    rows = database.execute(
        "SELECT id, parent, message, created FROM messages WHERE conversation = ? ORDER BY id",
        (id,),
    )
    return Tree(Node(*row) for row in rows)


def _places(tree: Tree, leaf: int | None) -> Places:
    return [Place(at, tree.children(tree.nodes[at].parent)) for at in tree.path(leaf)]


def _is_below(tree: Tree, leaf: int | None, path: Sequence[int]) -> bool:
    """Whether the leaf is beyond the end of a path."""
    there = tree.path(leaf)
    return len(there) > len(path) and there[: len(path)] == path


def _set_leaf(database: sqlite3.Connection, id: str, leaf: int | None, turns: int) -> None:
    query = "UPDATE conversations SET leaf = ?, turns = ? WHERE id = ?"
    database.execute(query, (leaf, turns, id))


def _write_head(
    database: sqlite3.Connection, id: str, title: str, model: str, instructions: Message | None
) -> None:
    now = time.time()
    raw = None if instructions is None else to_stored(instructions)
    text = None if raw is None else _utf8(dumped(raw))
    there = database.execute("SELECT instructions FROM conversations WHERE id = ?", (id,))
    (before,) = there.fetchone() or (None,)
    if before is not None and known_of(before) == raw:
        text = before  # with what a newer version has written beside it
    database.execute(
        "INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?, 0, NULL) ON CONFLICT (id) DO UPDATE "
        "SET title = excluded.title, model = excluded.model, updated = excluded.updated, "
        "instructions = excluded.instructions",
        (id, _utf8(title), _utf8(model), now, now, text),
    )
    if instructions is not None:
        _write_pictures(database, id, [instructions])


def _write_messages(
    database: sqlite3.Connection,
    id: str,
    tree: Tree,
    path: list[int],
    messages: Sequence[Message],
    new: Sequence[Raw],
) -> list[int]:
    """Write messages after those of a path that are there; returns the whole path."""
    path, now = [*path], time.time()
    for message, raw in zip(messages[len(path) :], new[len(path) :], strict=True):
        parent = path[-1] if path else None
        row = (_utf8(dumped(raw)), _utf8(words_of(message)), now)
        begun = tree.begun(parent, raw)
        query = "INSERT INTO messages (conversation, parent, message, words, created) VALUES "
        at = database.execute(f"{query} (?, ?, ?, ?, ?)", (id, parent, *row)).lastrowid
        # After that, so that what has changed has another id.
        database.execute("DELETE FROM messages WHERE id = ?", (begun,))
        assert at is not None
        path.append(at)
    _write_pictures(database, id, messages)
    return path


def _write_pictures(database: sqlite3.Connection, id: str, messages: Sequence[Message]) -> None:
    held = {held.digest: held.data for message in messages for held in message.media}
    database.executemany("INSERT OR IGNORE INTO pictures VALUES (?, ?)", held.items())
    uses = [(id, digest) for digest in held]
    database.executemany("INSERT OR IGNORE INTO uses VALUES (?, ?)", uses)


def _forget_unused(database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM pictures WHERE digest NOT IN (SELECT digest FROM uses)")


def _utf8(text: str) -> str:
    """Text as SQLite takes it: halves of surrogate pairs, of names that are no UTF-8, are escaped,
    as they are in JSON."""
    return text.encode("utf-8", "backslashreplace").decode()
