"""The history's file: its tables, from version to version (`user_version`), and its opening."""

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from ..errors import HistoryError, reason
from .stored import known_of

Ids = dict[tuple[str, int | None, str], int]  # by conversation, parent and message

# To the disk itself, also on macOS, where a file's fsync is not enough; what is deleted is
# overwritten.
PRAGMAS = ("synchronous = FULL", "fullfsync = ON", "foreign_keys = ON", "secure_delete = ON")

# What makes a file of each version from one of the version before; 0 is none, or one of the time
# before versions were counted.
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
    # From lists of messages to trees, which `_grow_trees` makes of them. A conversation may have a
    # name that somebody gave it. What is deleted can be restored `until` a time, in seconds since
    # 1970; what is forgotten has none.
    """
ALTER TABLE conversations RENAME TO old_conversations;
ALTER TABLE messages RENAME TO old_messages;
ALTER TABLE uses RENAME TO old_uses;
CREATE TABLE conversations (
    id TEXT PRIMARY KEY, title TEXT NOT NULL, model TEXT NOT NULL,
    created REAL NOT NULL, updated REAL NOT NULL,
    instructions TEXT, turns INTEGER NOT NULL DEFAULT 0, leaf INTEGER, name TEXT);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
    parent INTEGER, message TEXT NOT NULL, words TEXT NOT NULL, created REAL NOT NULL);
CREATE INDEX messages_of ON messages (conversation);
CREATE TABLE uses (
    conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
    digest TEXT NOT NULL REFERENCES pictures, PRIMARY KEY (conversation, digest));
CREATE TABLE deleted (id TEXT PRIMARY KEY, until REAL);
""",
)


@contextmanager
def opened(path: Path, timeout: float, writes: bool) -> Iterator[sqlite3.Connection]:
    """A connection in a transaction, which is kept unless something is raised within.

    Args:
        timeout: seconds to wait for another that writes.

    Raises:
        HistoryError: the file cannot be used, or is of a newer version.
    """
    try:
        _create(path)
        with closing(sqlite3.connect(path, timeout=timeout, isolation_level=None)) as database:
            version = _version(path, database)
            _write_ahead(database, timeout)
            for pragma in PRAGMAS:
                database.execute(f"PRAGMA {pragma}")
            # A reader waits for no writer.
            database.execute("BEGIN IMMEDIATE" if writes or version < len(STEPS) else "BEGIN")
            with database:
                _bring_up_to_date(path, database)
                yield database
    except (sqlite3.Error, OSError) as error:
        hint = (
            "try again when no other program uses it" if _is_busy(error) else "move the file away"
        )
        raise HistoryError(f"{path}: {reason(error)}; {hint}, or `chat --no-history`") from error


def _create(path: Path) -> None:
    """Make the file for this user alone, if it is not there. One that is, is not opened: where this
    process has it open, its locks end when any descriptor of it is closed, and others take the log
    away."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


class Watch:
    """Tells whether anybody has written to the file, from any thread, one at a time.

    Raises:
        HistoryError: it cannot be opened.
    """

    def __init__(self, path: Path):
        self._path, self._version = path, 0
        try:
            _create(path)
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except (sqlite3.Error, OSError) as error:
            raise HistoryError(f"{path}: {reason(error)}") from error

    def has_changed(self) -> bool:
        """Whether it is another than it was when this was asked last; one that cannot be read is as
        it was."""
        before = self._version
        with suppress(sqlite3.Error):
            self._version = self._database.execute("PRAGMA data_version").fetchone()[0]
        return self._version != before

    def close(self) -> None:
        self._database.close()


def empty_log(path: Path) -> None:
    """Bring what was written into the file itself, so that what was deleted is nowhere; where
    others read, they do that at their end."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _write_ahead(database: sqlite3.Connection, timeout: float) -> None:
    """Give the file a log. For that, SQLite itself waits for no other that writes."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _version(path: Path, database: sqlite3.Connection) -> int:
    """The version of the file.

    Raises:
        HistoryError: it is a newer one.
    """
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if version > len(STEPS):
        raise HistoryError(
            f"{path}: written by a newer version of smolvlm-mlx (format {version}, and this one "
            f"knows {len(STEPS)}); install that, or `chat --no-history`"
        )
    return version


def _bring_up_to_date(path: Path, database: sqlite3.Connection) -> None:
    for number in range(_version(path, database), len(STEPS)):
        for statement in STEPS[number].split(";"):
            database.execute(statement)
        if number == 1:
            _grow_trees(database)
        database.execute(f"PRAGMA user_version = {number + 1}")


def _grow_trees(database: sqlite3.Connection) -> None:
    """Make trees of the lists in the old tables. A branch, which was a conversation of its own,
    goes into its origin, if that is there, and shares what it begins with as another does.

    A system message at the front is no part of the tree: the conversation has that of its newest
    branch, up to which it is shown, and those of its other branches go.
    """
    heads = database.execute("SELECT id, origin, updated FROM old_conversations").fetchall()
    origins = {id: origin for id, origin, _ in heads}
    talks = [(id, _home(origins, id), updated) for id, _, updated in heads]
    database.executemany(
        "INSERT INTO conversations (id, title, model, created, updated) SELECT id, title, model, "
        "created, updated FROM old_conversations WHERE id = ?",
        [(id,) for id, home, _ in talks if id == home],
    )
    ids: Ids = {}
    for id, home, updated in sorted(talks, key=lambda talk: (talk[0] != talk[1], talk[2], talk[0])):
        _move(database, ids, id, home, updated)
        used = "INSERT OR IGNORE INTO uses SELECT ?, digest FROM old_uses WHERE conversation = ?"
        database.execute(used, (home, id))
    for table in ("uses", "messages", "conversations"):
        database.execute(f"DROP TABLE old_{table}")


def _home(origins: Mapping[str, str | None], id: str) -> str:
    """The conversation into which one goes: its origin's, if that is there."""
    seen = set[str]()
    while (origin := origins[id]) in origins and origin is not None and id not in seen:
        seen.add(id)
        id = origin
    return id


def _move(database: sqlite3.Connection, ids: Ids, id: str, home: str, updated: float) -> None:
    """Bring a list into the tree of a conversation, which is shown up to its end if that is the
    newest so far."""
    query = "SELECT number, message, words FROM old_messages WHERE conversation = ? ORDER BY number"
    instructions, turns, leaf = None, 0, None
    for number, message, words in database.execute(query, (id,)).fetchall():
        role = (known_of(message) or {}).get("role")
        if number == 0 and role == "system":
            instructions = message
            continue
        at = ids.setdefault((home, leaf, message), len(ids) + 1)
        insert = "INSERT OR IGNORE INTO messages VALUES (?, ?, ?, ?, ?, ?)"
        database.execute(insert, (at, home, leaf, message, words, updated))
        turns, leaf = turns + (role == "user"), at
    database.execute(
        "UPDATE conversations SET updated = ?1, instructions = ?2, turns = ?3, leaf = ?4 "
        "WHERE id = ?5 AND updated <= ?1",
        (updated, instructions, turns, leaf, home),
    )


def _is_busy(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
