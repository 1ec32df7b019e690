"""Conversations that survive, in SQLite: each finished turn is on the disk before `save` returns.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path, user_data_path

from ..errors import HistoryError, NoConversationError, quote, reason
from ..inputs.fetch import FetchLimits
from ..inputs.media import Attachment, Frames, Video
from ..inputs.messages import Message, VideoPart, parse_messages, raw_message

SCHEMA = """
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
"""
TITLE_LENGTH = 60


@dataclass(frozen=True)
class Summary:
    """A conversation in a list. `updated` in seconds since 1970, `turns` counts questions."""

    id: str
    title: str
    model: str
    updated: float
    turns: int


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

    Raises:
        HistoryError: from every method: the file cannot be used; NoConversationError: it is not
            there.
    """

    def __init__(self, path: Path | None = None):
        self.path = path or data_folder() / "history.sqlite3"

    def save(self, id: str, messages: Sequence[Message], model: str = "") -> None:
        """Write a conversation as it now is; what of it is there already stays."""
        rows = [(_to_stored(message), _utf8(_words(message))) for message in messages]
        pictures = {held.digest: held.data for message in messages for held in message.media}
        now = time.time()
        with self._open() as database:
            database.execute(
                "INSERT INTO conversations VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE "
                "SET title = excluded.title, model = excluded.model, updated = excluded.updated",
                (id, _utf8(_title(messages)), _utf8(model), now, now),
            )
            there = _messages(database, id)
            pairs = zip(there, rows, strict=False)
            same = next(
                (n for n, (old, new) in enumerate(pairs) if old != new[0]),
                min(len(there), len(rows)),
            )
            database.execute(
                "DELETE FROM messages WHERE conversation = ? AND number >= ?", (id, same)
            )
            new = [(id, same + number, *row) for number, row in enumerate(rows[same:])]
            database.executemany("INSERT INTO messages VALUES (?, ?, ?, ?)", new)
            database.executemany("INSERT OR IGNORE INTO pictures VALUES (?, ?)", pictures.items())
            database.execute("DELETE FROM uses WHERE conversation = ?", (id,))
            database.executemany(
                "INSERT INTO uses VALUES (?, ?)", [(id, digest) for digest in pictures]
            )
            _forget_unused(database)

    def load(self, id: str) -> list[Message]:
        """The messages of a conversation."""
        with self._open() as database:
            texts = _messages(database, id)
            pictures = (
                "SELECT digest, data FROM uses JOIN pictures USING (digest) WHERE conversation = ?"
            )
            data = dict(database.execute(pictures, (id,)).fetchall())
        if not texts:
            raise NoConversationError(
                f"no conversation {quote(id)}; `smolvlm-mlx history` lists them"
            )
        return parse_messages([_from_stored(text, data) for text in texts])

    def list(self, limit: int = -1, words: str = "") -> list[Summary]:
        """The conversations, the latest first; with `words`, those that contain them, in upper or
        lower case."""
        with self._open() as database:
            database.create_function("folded", 1, str.casefold, deterministic=True)
            rows = database.execute(
                "SELECT id, title, model, updated, (SELECT count(*) FROM messages WHERE "
                "conversation = id AND json_extract(message, '$.role') = 'user') FROM "
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
        with self._open() as database:
            if not database.execute("DELETE FROM conversations WHERE id = ?", (id,)).rowcount:
                raise NoConversationError(
                    f"no conversation {quote(id)}; `smolvlm-mlx history` lists them"
                )
            _forget_unused(database)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        private_folder(self.path.parent)
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            with closing(sqlite3.connect(self.path, timeout=20, isolation_level=None)) as database:
                for pragma in (
                    "journal_mode = WAL",
                    "synchronous = FULL",
                    "foreign_keys = ON",
                    "secure_delete = ON",
                ):
                    database.execute(f"PRAGMA {pragma}")
                database.executescript(SCHEMA)
                database.execute("BEGIN IMMEDIATE")
                with database:
                    yield database
        except (sqlite3.Error, OSError) as error:
            raise HistoryError(
                f"{self.path}: {error}; go on with --no-history, or move the file away"
            ) from error


def new_id() -> str:
    """A name for a new conversation."""
    return secrets.token_hex(4)


def _messages(database: sqlite3.Connection, id: str) -> list[str]:
    rows = database.execute(
        "SELECT message FROM messages WHERE conversation = ? ORDER BY number", (id,)
    )
    return [row[0] for row in rows]


def _forget_unused(database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM pictures WHERE digest NOT IN (SELECT digest FROM uses)")


def _to_stored(message: Message) -> str:
    if any(
        isinstance(part, VideoPart) and isinstance(part.video, Frames) for part in message.parts
    ):
        raise HistoryError("a video of frames cannot be kept; give the file")
    raw = raw_message(message, lambda held: {"digest": held.digest, "name": held.name})
    return _utf8(json.dumps(raw, ensure_ascii=False))


def _from_stored(text: str, data: dict[str, bytes]) -> dict[str, Any]:
    """A message as `parse_messages` takes it: with pictures and videos where their digests were."""
    try:
        message: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HistoryError(f"the conversation is damaged ({reason(error)})") from error
    content = message.get("content") if isinstance(message, dict) else None
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict) and "digest" in part:
            held, name = data.get(str(part.pop("digest"))), part.pop("name", None)
            if held is None or part.get("type") not in ("image", "video"):
                raise HistoryError(
                    "the conversation holds what this version does not know; read it with the one "
                    "that wrote it"
                )
            kind = Attachment if part["type"] == "image" else Video
            part[part["type"]] = kind(held, FetchLimits(max_bytes=len(held)), name=name)
    return message


def _utf8(text: str) -> str:
    """Text as SQLite takes it: halves of surrogate pairs, of names that are no UTF-8, are escaped,
    as they are in JSON."""
    return text.encode("utf-8", "backslashreplace").decode()


def _words(message: Message) -> str:
    return " ".join([message.text, *(held.name for held in message.media)])


def _title(messages: Sequence[Message]) -> str:
    first = next((message.text for message in messages if message.role == "user"), "")
    line = " ".join(first.split())
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…"
