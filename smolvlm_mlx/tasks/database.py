"""The history's file: its tables, from version to version (`user_version`), and its opening."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from ..errors import HistoryError, reason

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
    # From lists of messages to trees. A branch, which was a conversation of its own, goes into its
    # origin, if that is there: what it begins with as that does (fewer than `parted`) is shared.
    # A system message at the front belongs to the conversation and is no part of the tree.
    """
ALTER TABLE conversations RENAME TO old_conversations;
ALTER TABLE messages RENAME TO old_messages;
ALTER TABLE uses RENAME TO old_uses;
CREATE TABLE conversations (
    id TEXT PRIMARY KEY, title TEXT NOT NULL, model TEXT NOT NULL,
    created REAL NOT NULL, updated REAL NOT NULL,
    instructions TEXT, turns INTEGER NOT NULL DEFAULT 0, leaf INTEGER);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
    parent INTEGER, message TEXT NOT NULL, words TEXT NOT NULL, created REAL NOT NULL);
CREATE INDEX messages_of ON messages (conversation);
CREATE TABLE uses (
    conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
    digest TEXT NOT NULL REFERENCES pictures, PRIMARY KEY (conversation, digest));
CREATE TABLE deleted (id TEXT PRIMARY KEY);
CREATE TABLE talks AS
    SELECT *, coalesce((SELECT min(number) FROM old_messages AS mine
        WHERE conversation = id AND (id = home OR NOT EXISTS (SELECT 1 FROM old_messages AS its
        WHERE its.conversation = home AND its.number = mine.number
        AND its.message = mine.message))), 1000000000) AS parted
    FROM (SELECT id, updated, CASE WHEN origin IN (SELECT id FROM old_conversations)
        THEN origin ELSE id END AS home FROM old_conversations);
CREATE TABLE moved AS
    SELECT row_number() OVER (
            ORDER BY conversation != home, updated, conversation, number) AS node,
        home, conversation, parted, number, message, words, updated
    FROM old_messages JOIN talks ON talks.id = conversation
    WHERE number >= parted AND NOT (number = 0
        AND CASE WHEN json_valid(message) THEN json_extract(message, '$.role') END IS 'system');
CREATE INDEX moved_at ON moved (conversation, number);
INSERT INTO conversations
    SELECT old.id, title, model, created, last.updated,
        (SELECT message FROM old_messages WHERE conversation = last.id AND number = 0
            AND CASE WHEN json_valid(message) THEN json_extract(message, '$.role') END = 'system'),
        (SELECT count(*) FROM old_messages WHERE conversation = last.id
            AND CASE WHEN json_valid(message) THEN json_extract(message, '$.role') END = 'user'),
        (SELECT node FROM moved, (SELECT max(number) AS number FROM old_messages
            WHERE conversation = last.id) AS end
            WHERE moved.number = end.number AND moved.conversation =
            CASE WHEN end.number >= last.parted THEN last.id ELSE last.home END)
    FROM old_conversations AS old JOIN talks AS last ON last.id = (SELECT id FROM talks
        WHERE home = old.id ORDER BY updated DESC, id = home LIMIT 1);
INSERT INTO messages
    SELECT node, home, (SELECT node FROM moved AS before
        WHERE before.number = moved.number - 1 AND before.conversation =
        CASE WHEN moved.number > moved.parted THEN moved.conversation ELSE moved.home END),
        message, words, updated
    FROM moved;
INSERT INTO uses SELECT DISTINCT home, digest FROM old_uses JOIN talks ON id = conversation;
DROP TABLE moved;
DROP TABLE talks;
DROP TABLE old_uses;
DROP TABLE old_messages;
DROP TABLE old_conversations;
""",
    # A conversation may have a name that somebody gave it. What is deleted can be restored `until`
    # a time, in seconds since 1970; what is forgotten has none.
    """
ALTER TABLE conversations ADD COLUMN name TEXT;
ALTER TABLE deleted ADD COLUMN until REAL;
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
        with suppress(FileExistsError):
            # Not a file that is there: where this process has it open, its locks end when any
            # descriptor of it is closed, and others take the log away.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        with closing(sqlite3.connect(path, timeout=timeout, isolation_level=None)) as database:
            version = _version(path, database)
            _write_ahead(database, timeout)
            for pragma in ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
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


class Watch:
    """Tells whether anybody has written to the file, from any thread, one at a time.

    Raises:
        HistoryError: it cannot be opened.
    """

    def __init__(self, path: Path):
        self._path, self._version = path, 0
        try:
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise HistoryError(f"{path}: {error}") from error

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
        database.execute(f"PRAGMA user_version = {number + 1}")


def _is_busy(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
