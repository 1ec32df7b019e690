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
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

from ..errors import HistoryError, NoConversationError, quote
from ..inputs.messages import Message
from .database import Watch, empty_log, opened
from .saving import (
    Saved,
    extend_message,
    forget_unused,
    set_leaf,
    take_back,
    utf8,
    write_head,
    write_messages,
)
from .stored import beginning, from_stored, known_of, title_of, to_stored
from .tree import Node, Places, Tree

BUSY_SECONDS = 5  # for others that use the file
UNDO_SECONDS = 60  # that what is deleted in the page can be restored; it shows Undo for less
MAX_NAME = 200  # characters
COMING_SECONDS = 10  # since when nothing has come to an answer that is not under way any more
THERE = "id NOT IN (SELECT id FROM deleted)"
OVERDUE = "SELECT id FROM deleted WHERE until <= ?"


@dataclass(frozen=True)
class Summary:
    """A conversation in a list. `updated` in seconds since 1970, `turns` counts questions."""

    id: str
    title: str
    model: str
    updated: float
    turns: int


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
        words: where it leaves all others, or how it ends.
        created: when it came to its end, in seconds since 1970.
    """

    end: int
    words: str
    created: float


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
            f"{folder}: cannot be made ({error.strerror}); `chat --no-history` keeps none"
        ) from error
    return folder


class History:
    """All conversations of a user. Every method is a transaction, from whatever thread or process;
    those that delete and forget are two.

    Args:
        timeout: seconds to wait for another process that writes.

    Raises:
        HistoryError: from every method: the file cannot be used; NoConversationError: it is not
            there.
    """

    def __init__(self, path: Path | None = None, timeout: float = BUSY_SECONDS):
        self.path, self._timeout = path or data_folder() / "history.sqlite3", timeout

    def save(
        self,
        id: str,
        messages: Sequence[Message],
        model: str = "",
        seen: Collection[int | None] | None = None,
    ) -> Saved:
        """Write a conversation: what of it is there stays, and what differs goes beside it. The
        leaf is then its end, unless another has gone on from there already, or it is none of those
        that were `seen`: somebody has chosen another way.

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
            write_head(database, id, title_of(messages), model, first)
            path = tree.find(new)
            if len(path) == len(new) and tree.goes_on(path, leaf):
                return Saved(path, leaf, leaf, [])
            known, path = len(path), write_messages(database, id, tree, path, rest, new)
            is_there = database.execute("SELECT 1 FROM messages WHERE id = ?", (leaf,)).fetchone()
            if seen is not None and leaf not in seen and is_there:
                return Saved(path, leaf, leaf, path[known:])
            turns = sum(message.role == "user" for message in rest)
            end = path[-1] if path else None
            set_leaf(database, id, end, turns)
        return Saved(path, end, leaf, path[known:])

    def extend(self, id: str, at: int, before: Message, answer: Message) -> bool:
        """Write an answer that still comes as far as it has come now, in the place where it is as
        it was `before`; where it is another now, or goes on, it stays as it is, and False is
        returned. Reads no tree."""
        with self._open(writes=True) as database:
            return extend_message(database, id, at, before, answer)

    def withdraw(
        self, id: str, messages: Sequence[Message], seen: Collection[int], own: Collection[int]
    ) -> None:
        """Go back to the end of these messages, unless another has gone on meanwhile: the leaf is
        none of those that were `seen`. A conversation of which nothing is left then, and that has
        no messages but one's `own`, is forgotten."""
        new = [to_stored(message) for message in _instructions(messages)[1]]
        with self._open(writes=True) as database:
            tree, leaf = _tree(database, id), _leaf(database, id)
            path = tree.find(new)
            if (leaf is not None and leaf not in seen) or len(path) < len(new):
                return
            if path or tree.nodes.keys() - {*own}:
                set_leaf(database, id, path[-1] if path else None, tree.turns(path))
                return
            database.execute("DELETE FROM conversations WHERE id = ?", (id,))
            forget_unused(database)
        empty_log(self.path)

    def take_back(self, id: str, saved: Saved) -> None:
        """Forget a question that is not answered, unless something comes after it: the leaf is
        where it was before, unless somebody has moved it. A conversation without any message is
        forgotten."""
        with self._open(writes=True) as database:
            take_back(database, id, _tree(database, id), _leaf(database, id), saved)
        empty_log(self.path)

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
        return Kept([from_stored(text, data) for text in texts], tree.places(leaf))

    def places(self, id: str, end: int | None = None) -> Places:
        """Where the messages of a conversation stand, up to one of them or its leaf."""
        with self._open() as database:
            leaf, _ = _head(database, id)
            return _tree(database, id).places(leaf if end is None else end)

    def leaf(self, id: str) -> int | None:
        """The id of the last message of a conversation; None before the first."""
        with self._open() as database:
            return _head(database, id)[0]

    def is_coming(self, id: str) -> bool:
        """Whether a conversation ends with a question, or with an answer that somebody is making:
        not a whole one, and written to until now."""
        with self._open() as database:
            leaf, _ = _head(database, id)
            query = "SELECT message, created FROM messages WHERE id = ?"
            text, written = database.execute(query, (leaf,)).fetchone() or ("", 0.0)
        last = known_of(text) or {}
        if last.get("interrupted"):
            return time.time() - written < COMING_SECONDS
        return last.get("role") == "user"

    def watch(self) -> Watch:
        """What tells when others write, from any thread."""
        private_folder(self.path.parent)
        return Watch(self.path)

    def branches(self, id: str) -> Sequence[Branch]:
        """All ways that a conversation went, the first to come to its end first."""
        with self._open() as database:
            leaf, _ = _head(database, id)
            tree = _tree(database, id)
        found = []
        for end in tree.ends():
            path = tree.path(end)
            parents = {at: tree.nodes[at].parent for at in path}
            forked = [at for at, to in parents.items() if to == leaf or len(tree.children(to)) > 1]
            words = beginning(tree.words((forked or path)[-1]))
            found.append(Branch(end, words, tree.nodes[end].created))
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
            _head(database, id)
            end = tree.newest_end(message)
            set_leaf(database, id, end, tree.turns(tree.path(end)))

    def list(self, limit: int = -1, words: str = "") -> list[Summary]:
        """The conversations, the latest first; with `words`, those that contain them in any branch,
        in upper or lower case."""
        with self._open() as database:
            database.create_function("folded", 1, _folded, deterministic=True)
            rows = database.execute(
                "SELECT id, coalesce(name, title), model, updated, turns FROM conversations WHERE "
                f"{THERE} AND (?1 = '' OR instr(folded(name), ?1) OR "
                "EXISTS (SELECT 1 FROM messages WHERE conversation = conversations.id AND "
                "instr(folded(words), ?1)) OR CASE WHEN json_valid(instructions) THEN "
                "instr(folded(json_extract(instructions, '$.content[0].text')), ?1) END) "
                "ORDER BY updated DESC LIMIT ?2",
                (utf8(words).casefold(), limit),
            ).fetchall()
            late = database.execute(OVERDUE, (time.time(),)).fetchall()
        if late:
            with suppress(HistoryError):  # it can be read, and is locked for those who write
                self.forget_overdue()
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

    def title(self, id: str) -> str:
        """What a conversation is called: by somebody, or its first words."""
        with self._open() as database:
            _head(database, id)
            query = "SELECT coalesce(name, title) FROM conversations WHERE id = ?"
            return str(database.execute(query, (id,)).fetchone()[0])

    def rename(self, id: str, name: str) -> str:
        """Call a conversation something else, whatever it is about; "" is its first words again.

        Returns:
            what it is called then.

        Raises:
            HistoryError: the name is too long.
        """
        name = " ".join(utf8(name).split())
        if len(name) > MAX_NAME:
            raise HistoryError(f"the name has {len(name)} characters; the limit is {MAX_NAME}")
        with self._open(writes=True) as database:
            _head(database, id)
            query = "UPDATE conversations SET name = ? WHERE id = ? RETURNING coalesce(name, title)"
            ((called,),) = database.execute(query, (name or None, id)).fetchall()
        return str(called)

    def delete(self, id: str) -> None:
        """Forget a conversation for good, and the pictures that are in no other."""
        self.discard(id, 0)
        self.forget_overdue()

    def discard(self, id: str, seconds: float) -> None:
        """Have a conversation forgotten after so many seconds, unless it is restored before. Until
        then it is not there for anybody, and takes nothing more."""
        with self._open(writes=True) as database:
            _head(database, id)
            query = "INSERT OR REPLACE INTO deleted (id, until) VALUES (?, ?)"
            database.execute(query, (id, time.time() + seconds))

    def restore(self, id: str) -> None:
        """Take back that a conversation was discarded.

        Raises:
            NoConversationError: it is forgotten already, or was never discarded.
        """
        with self._open(writes=True) as database:
            query = "DELETE FROM deleted WHERE id = ? AND until IS NOT NULL"
            if not database.execute(query, (id,)).rowcount:
                raise NoConversationError(f"conversation {quote(id)} cannot be restored any more")

    def forget_overdue(self) -> None:
        """Forget for good what was discarded, and not restored in its time."""
        with self._open(writes=True) as database:
            for (id,) in database.execute(OVERDUE, (time.time(),)).fetchall():
                database.execute("DELETE FROM conversations WHERE id = ?", (id,))
                database.execute("UPDATE deleted SET until = NULL WHERE id = ?", (id,))
            forget_unused(database)
        empty_log(self.path)

    def _open(self, writes: bool = False) -> AbstractContextManager[sqlite3.Connection]:
        private_folder(self.path.parent)
        return opened(self.path, self._timeout, writes)


def new_id() -> str:
    """A name for a new conversation."""
    return secrets.token_hex(4)


def _folded(text: object) -> str:
    return text.casefold() if isinstance(text, str) else ""


# ---- the tree and its leaf


def _instructions(messages: Sequence[Message]) -> tuple[Message | None, Sequence[Message]]:
    """A system message at the front, and the others."""
    has_some = bool(messages) and messages[0].role == "system"
    return (messages[0], messages[1:]) if has_some else (None, messages)


def _head(database: sqlite3.Connection, id: str) -> tuple[int | None, str | None]:
    """The leaf and the instructions of a conversation."""
    query = f"SELECT leaf, instructions FROM conversations WHERE id = ? AND {THERE}"
    row = database.execute(query, (id,)).fetchone()
    if row is None:
        raise NoConversationError(f"no conversation {quote(id)}; `smolvlm-mlx history` lists them")
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
