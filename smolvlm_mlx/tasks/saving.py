"""What is written of a conversation when it is saved, and what of it is forgotten."""

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..inputs.messages import Message
from .stored import known_of, to_stored, words_of
from .tree import Raw, Tree, dumped


@dataclass(frozen=True)
class Saved:
    """What was saved.

    Attributes:
        path: the ids of its messages but the instructions.
        leaf: of the conversation now.
        before: its leaf until then.
        created: the end of the path that was not there.
    """

    path: list[int]
    leaf: int | None
    before: int | None
    created: list[int]


def write_head(
    database: sqlite3.Connection, id: str, title: str, model: str, instructions: Message | None
) -> None:
    """Write what is known of a conversation as a whole."""
    now = time.time()
    raw = None if instructions is None else to_stored(instructions)
    text = None if raw is None else utf8(dumped(raw))
    there = database.execute("SELECT instructions FROM conversations WHERE id = ?", (id,))
    (before,) = there.fetchone() or (None,)
    if before is not None and known_of(before) == raw:
        text = before  # with what a newer version has written beside it
    database.execute(
        "INSERT INTO conversations (id, title, model, created, updated, instructions) "
        "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE "
        "SET title = excluded.title, model = excluded.model, updated = excluded.updated, "
        "instructions = excluded.instructions",
        (id, utf8(title), utf8(model), now, now, text),
    )
    if instructions is not None:
        write_pictures(database, id, [instructions])


def write_messages(
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
        row = (utf8(dumped(raw)), utf8(words_of(message)), now)
        begun = tree.begun(parent, raw)
        query = "INSERT INTO messages (conversation, parent, message, words, created) VALUES "
        at = database.execute(f"{query} (?, ?, ?, ?, ?)", (id, parent, *row)).lastrowid
        # After that, so that what has changed has another id.
        database.execute("DELETE FROM messages WHERE id = ?", (begun,))
        assert at is not None
        path.append(at)
    write_pictures(database, id, messages)
    return path


def write_pictures(database: sqlite3.Connection, id: str, messages: Sequence[Message]) -> None:
    """Write the pictures and videos of messages, each once."""
    held = {held.digest: held.data for message in messages for held in message.media}
    database.executemany("INSERT OR IGNORE INTO pictures VALUES (?, ?)", held.items())
    uses = [(id, digest) for digest in held]
    database.executemany("INSERT OR IGNORE INTO uses VALUES (?, ?)", uses)


def extend_message(
    database: sqlite3.Connection, id: str, at: int, before: Message, answer: Message
) -> bool:
    """Write more of an answer in its place, if that is as it was before, nothing comes after and
    the conversation is not deleted; returns whether it is so."""
    old, new = (utf8(dumped(to_stored(message))) for message in (before, answer))
    done = database.execute(
        "UPDATE messages SET message = ?, words = ?, created = ? WHERE conversation = ? AND id = ? "
        "AND message = ? AND conversation NOT IN (SELECT id FROM deleted) AND NOT EXISTS (SELECT 1 "
        "FROM messages AS next WHERE next.conversation = messages.conversation AND "
        "next.parent = messages.id)",
        (new, utf8(words_of(answer)), time.time(), id, at, old),
    )
    return done.rowcount > 0


def take_back(
    database: sqlite3.Connection, id: str, tree: Tree, leaf: int | None, saved: Saved
) -> None:
    """Forget what was created, if nothing comes after it, and go back to where the leaf was."""
    gone = list[int]()
    for at in reversed(saved.created):
        if {*tree.children(at)} - {*gone}:
            break
        gone.append(at)
    database.executemany("DELETE FROM messages WHERE id = ?", [(at,) for at in gone])
    if not tree.nodes.keys() - {*gone}:
        database.execute("DELETE FROM conversations WHERE id = ?", (id,))
        forget_unused(database)
    elif leaf == saved.leaf and not tree.children(leaf):
        path = tree.path(saved.before)
        set_leaf(database, id, path[-1] if path else None, tree.turns(path))


def set_leaf(database: sqlite3.Connection, id: str, leaf: int | None, turns: int) -> None:
    query = "UPDATE conversations SET leaf = ?, turns = ? WHERE id = ?"
    database.execute(query, (leaf, turns, id))


def forget_unused(database: sqlite3.Connection) -> None:
    """Forget the pictures and videos that are in no conversation."""
    database.execute("DELETE FROM pictures WHERE digest NOT IN (SELECT digest FROM uses)")


def utf8(text: str) -> str:
    """Text as SQLite takes it: halves of surrogate pairs, of names that are no UTF-8, are escaped,
    as they are in JSON."""
    return text.encode("utf-8", "backslashreplace").decode()
