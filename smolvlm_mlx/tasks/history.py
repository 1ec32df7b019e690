"""Conversations that survive, in SQLite: each finished turn is on the disk before `save` returns.

Several may write one conversation, as two windows and a terminal do. Each save gives what is kept a
new version, and names those that its keeper knows: what it does not know is never overwritten. It
goes on in a conversation of its own then, a branch.

Private to the user, and on this machine only. A picture or video is stored once, whatever
conversations it is in, and overwritten when the last of them is deleted.
"""

import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

from ..errors import HistoryError, NoConversationError, quote
from ..inputs.messages import Message
from .stored import from_stored, known_of, title_of, to_stored, words_of

# What makes a file of each version (`user_version`) from one of the version before; 0 is none, or
# one of the time before versions were counted.
STEPS = (
    """
CREATE TABLE IF NOT EXISTS conversations (
    id TEXT PRIMARY KEY, title TEXT NOT NULL, model TEXT NOT NULL,
    created REAL NOT NULL, updated REAL NOT NULL);
CREATE TABLE IF NOT EXISTS messages (
    conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
    number INTEGER NOT NULL, message TEXT NOT NULL, words TEXT NOT NULL,
    PRIMARY KEY (conversation, number));
CREATE TABLE IF NOT EXISTS pictures (digest TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS uses (
    conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
    digest TEXT NOT NULL REFERENCES pictures, PRIMARY KEY (conversation, digest));
ALTER TABLE conversations ADD COLUMN version TEXT NOT NULL DEFAULT '';
ALTER TABLE conversations ADD COLUMN origin TEXT;
ALTER TABLE conversations ADD COLUMN branch INTEGER NOT NULL DEFAULT 1;
""",
)
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
class Kept:
    """A conversation as it is kept: of which version."""

    messages: list[Message]
    version: str


@dataclass(frozen=True)
class Place:
    """Where a conversation is kept, and the versions of it that its keeper knows."""

    id: str
    known: tuple[str, ...] = ()


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

    def save(
        self,
        id: str,
        messages: Sequence[Message],
        model: str = "",
        known: Sequence[str] = (),
        version: str | None = None,
    ) -> Place:
        """Write a conversation as it now is; what of it is there already stays.

        Args:
            known: versions that the caller has read, or has written, or may have. What is kept is
                replaced only if it is one of them, or if these messages go on from it. Where
                another has written meanwhile, they go into a branch, or into one that fits.
            version: what this state is to be called; else a new name.

        Returns:
            where it is kept now, which is not under `id` if it is a branch.
        """
        new = [to_stored(message) for message in messages]
        version = version or secrets.token_hex(8)
        with self._open(writes=True) as database:
            head = _room(database, id, new, known)
            if not head.is_ahead:
                _write_head(database, head, title_of(messages), model, version)
                same = _same(_messages(database, head.id), new)
                _write_messages(database, head.id, messages, same)
                _forget_unused(database)
        return Place(head.id, (version,))

    def load(self, id: str) -> list[Message]:
        """The messages of a conversation."""
        return self.read(id).messages

    def read(self, id: str) -> Kept:
        """A conversation and its version. In place of a picture or video that cannot be read any
        more stands its name."""
        with self._open() as database:
            texts, head = _messages(database, id), _head(database, id)
            pictures = (
                "SELECT digest, data FROM uses JOIN pictures USING (digest) WHERE conversation = ?"
            )
            data = dict(database.execute(pictures, (id,)).fetchall())
        if not texts or head is None:
            raise _not_there(id)
        return Kept([from_stored(text, data) for text in texts], head.version)

    def list(self, limit: int = -1, words: str = "") -> list[Summary]:
        """The conversations, the latest first; with `words`, those that contain them, in upper or
        lower case."""
        with self._open() as database:
            database.create_function("folded", 1, str.casefold, deterministic=True)
            rows = database.execute(
                "SELECT id, title, model, updated, (SELECT count(*) FROM messages WHERE "
                "conversation = id AND CASE WHEN json_valid(message) THEN "
                "json_extract(message, '$.role') END = 'user') FROM "
                "conversations WHERE ? = '' OR EXISTS (SELECT 1 FROM messages WHERE conversation = "
                "id AND instr(folded(words), ?)) ORDER BY updated DESC LIMIT ?",
                (_utf8(words), _utf8(words).casefold(), limit),
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
        """Forget a conversation, and the pictures that are in no other."""
        with self._open(writes=True) as database:
            if not database.execute("DELETE FROM conversations WHERE id = ?", (id,)).rowcount:
                raise _not_there(id)
            _forget_unused(database)

    def withdraw(self, id: str, known: Sequence[str]) -> None:
        """Forget a conversation, unless it is not there or another has gone on with it."""
        with self._open(writes=True) as database:
            head = _head(database, id)
            if head is not None and head.version in known:
                database.execute("DELETE FROM conversations WHERE id = ?", (id,))
                _forget_unused(database)

    @contextmanager
    def _open(self, writes: bool = False) -> Iterator[sqlite3.Connection]:
        private_folder(self.path.parent)
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            with closing(
                sqlite3.connect(self.path, timeout=self._timeout, isolation_level=None)
            ) as database:
                version = self._version(database)
                self._write_ahead(database)
                for pragma in (
                    "synchronous = FULL",
                    "foreign_keys = ON",
                    "secure_delete = ON",
                ):
                    database.execute(f"PRAGMA {pragma}")
                # A reader waits for no writer.
                database.execute("BEGIN IMMEDIATE" if writes or version < len(STEPS) else "BEGIN")
                with database:
                    self._bring_up_to_date(database)
                    yield database
        except (sqlite3.Error, OSError) as error:
            busy = _is_busy(error)
            hint = "try again when no other program uses it" if busy else "move the file away"
            raise HistoryError(
                f"{self.path}: {error}; go on with --no-history, or {hint}"
            ) from error

    def _write_ahead(self, database: sqlite3.Connection) -> None:
        """Give the file a log. For that, SQLite itself waits for no other that writes."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                database.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _version(self, database: sqlite3.Connection) -> int:
        """The version of the file.

        Raises:
            HistoryError: it is a newer one.
        """
        version = int(database.execute("PRAGMA user_version").fetchone()[0])
        if version > len(STEPS):
            raise HistoryError(
                f"{self.path}: written by a newer version of smolvlm-mlx (format {version}, and "
                f"this one knows {len(STEPS)}); install that, or go on with --no-history"
            )
        return version

    def _bring_up_to_date(self, database: sqlite3.Connection) -> None:
        for number in range(self._version(database), len(STEPS)):
            for statement in STEPS[number].split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {number + 1}")


def _is_busy(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def new_id() -> str:
    """A name for a new conversation."""
    return secrets.token_hex(4)


def _not_there(id: str) -> NoConversationError:
    return NoConversationError(f"no conversation {quote(id)}; `smolvlm-mlx history` lists them")


# ---- where a conversation goes


@dataclass(frozen=True)
class _Head:
    """A conversation's row. One that is `ahead` of what is to be saved is not written to."""

    id: str
    version: str
    origin: str | None  # which it is a branch of
    branch: int  # the number of the branch; 1 is the origin itself
    is_ahead: bool = False


def _head(database: sqlite3.Connection, id: str) -> _Head | None:
    query = "SELECT id, version, origin, branch FROM conversations WHERE id = ?"
    row = database.execute(query, (id,)).fetchone()
    return None if row is None else _Head(*row)


def _room(
    database: sqlite3.Connection, id: str, new: Sequence[object], known: Sequence[str]
) -> _Head:
    """Where messages can be written so that nothing is lost that their keeper does not know: the
    conversation, a branch of it, or a new one."""
    head = _head(database, id)
    if head is None:
        return _Head(id, "", None, 1)
    origin = head.origin or id
    query = (
        "SELECT id, version, origin, branch FROM conversations WHERE origin = ? OR id = ? "
        "ORDER BY branch"
    )
    family = [_Head(*row) for row in database.execute(query, (origin, origin))]
    for each in (head, *(other for other in family if other.id != id)):
        there = _messages(database, each.id)
        same = _same(there, new)
        if each.version in known or same == len(there):
            return each
        if same == len(new):
            return replace(each, is_ahead=True)
    return _Head(new_id(), "", origin, 1 + max(each.branch for each in family))


def _same(there: Sequence[str], new: Sequence[object]) -> int:
    """How many of the messages that are kept, from the first on, are these."""
    pairs = list(zip(there, new, strict=False))
    return next((n for n, (old, now) in enumerate(pairs) if known_of(old) != now), len(pairs))


def _write_head(
    database: sqlite3.Connection, head: _Head, title: str, model: str, version: str
) -> None:
    title += f" ({head.branch})" if head.branch > 1 else ""
    now = time.time()
    database.execute(
        "INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
        "title = excluded.title, model = excluded.model, updated = excluded.updated, "
        "version = excluded.version",
        (head.id, _utf8(title), _utf8(model), now, now, version, head.origin, head.branch),
    )


# ---- messages and pictures


def _messages(database: sqlite3.Connection, id: str) -> list[str]:
    rows = database.execute(
        "SELECT message FROM messages WHERE conversation = ? ORDER BY number", (id,)
    )
    return [row[0] for row in rows]


def _write_messages(
    database: sqlite3.Connection, id: str, messages: Sequence[Message], same: int
) -> None:
    """Write messages in place of all but the first `same`, which are there."""
    database.execute("DELETE FROM messages WHERE conversation = ? AND number >= ?", (id, same))
    database.executemany(
        "INSERT INTO messages VALUES (?, ?, ?, ?)",
        [
            (
                id,
                number,
                _utf8(json.dumps(to_stored(message), ensure_ascii=False)),
                _utf8(words_of(message)),
            )
            for number, message in enumerate(messages[same:], same)
        ],
    )
    pictures = {held.digest: held.data for message in messages for held in message.media}
    database.executemany("INSERT OR IGNORE INTO pictures VALUES (?, ?)", pictures.items())
    # Also of parts that only a newer version knows.
    database.execute("DELETE FROM uses WHERE conversation = ?", (id,))
    database.execute(
        "INSERT INTO uses SELECT DISTINCT conversation, digest FROM messages, "
        "json_each(CASE WHEN json_valid(message) THEN message END, '$.content') AS part "
        "JOIN pictures ON part.type = 'object' "
        "AND digest = json_extract(part.value, '$.digest') WHERE conversation = ?",
        (id,),
    )


def _forget_unused(database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM pictures WHERE digest NOT IN (SELECT digest FROM uses)")


def _utf8(text: str) -> str:
    """Text as SQLite takes it: halves of surrogate pairs, of names that are no UTF-8, are escaped,
    as they are in JSON."""
    return text.encode("utf-8", "backslashreplace").decode()
