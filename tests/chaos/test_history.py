"""Several who write at once, on one conversation and on many, killed and locked out: no turn that
was reported as saved is missing in its conversation."""

import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

from smolvlm_mlx.errors import HistoryError, NoConversationError
from smolvlm_mlx.inputs.media import Attachment
from smolvlm_mlx.inputs.messages import Message
from smolvlm_mlx.tasks.history import History
from tests.support.pictures import noise
from tests.support.tally import tally

# Asks, edits and begins again as windows do; keeps an answer while it comes, takes a question back,
# and deletes with Undo, as servers do. A line for each turn that is saved.
WRITER = """
import random, sys
from dataclasses import replace
from pathlib import Path
from smolvlm_mlx.errors import HistoryError
from smolvlm_mlx.inputs.media import Attachment
from smolvlm_mlx.inputs.messages import text_message, user_message
from smolvlm_mlx.tasks.history import History

path, name, picture, *talks = sys.argv[1:]
history, rng, picture = History(Path(path)), random.Random(name), Attachment(bytes.fromhex(picture))

def say(*words):
    print(*words, flush=True)

def keep(messages):
    # The question, and the answer as far as it has come; returns whether the question stays.
    *asked, answer = messages
    saved = history.save(id, asked, "tiny")
    if rng.random() < 0.2:
        history.take_back(id, saved)
        return False
    at, come = None, None
    for end in range(3, len(answer.text), 3):
        more = replace(text_message("assistant", answer.text[:end]), interrupted=True)
        if at is None or not history.extend(id, at, come, more):
            at = history.save(id, [*asked, more], "tiny").path[-1]
        come = more
    return True

def begin():
    id = rng.choice(talks)
    try:
        messages = history.load(id)
        return id, messages[:len(messages) // 2 * 2]  # an answer may be another's to give
    except HistoryError:
        return id, []

id, messages = begin()
for number in range(100_000):
    if rng.random() < 0.1:
        id, messages = begin()
    before, asked = messages, f"{name}-{number}"
    if messages and rng.random() < 0.3:
        messages = messages[:2 * rng.randrange(len(messages) // 2)]
    media = [picture] if rng.random() < 0.3 else []
    messages = [*messages, user_message(asked, media), text_message("assistant", "answer " + asked)]
    say("try", id, asked)
    try:
        if rng.random() < 0.4 and not keep(messages):
            messages = before
            continue
        history.save(id, messages, "tiny")
        if rng.random() < 0.05:
            history.discard(id, 1000)
            history.restore(id)
    except HistoryError as error:
        say("error", str(error).replace("\\n", "NEWLINE"))
        messages = before
        continue
    say("saved")
"""

FINE = "locked|was deleted, and keeps no more|no conversation 'talk|cannot be restored any more"


class Writer:
    """A process that writes until it is killed, and what it said."""

    def __init__(self, path: Path, name: str, talks: list[str], picture: bytes):
        command = [sys.executable, "-c", WRITER, str(path), name, picture.hex(), *talks]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines += self.process.stdout

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


def account(writers: list[Writer]) -> tuple[dict[str, str], list[str]]:
    """The turns that were reported as saved with their conversations, and the errors."""
    saved, errors = dict[str, str](), list[str]()
    for writer in writers:
        tried: list[str] = []
        for line in writer.lines:
            word, *rest = line.split()
            if word == "try":
                tried = rest
            elif word == "saved":
                saved[tried[1]] = tried[0]
            else:
                errors.append(line)
    return saved, errors


def lock(path: Path, over: threading.Event, rng: random.Random) -> None:
    """Hold the file now and then, as a backup or another program does."""
    while not over.wait(rng.uniform(0, 0.5)):
        with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            over.wait(rng.uniform(0, 0.5))
            database.execute("ROLLBACK")


def test_several_writers(tmp_path: Path) -> None:
    path, rng, over = tmp_path / "history.sqlite3", random.Random(2), threading.Event()
    picture, history = Attachment(noise(30, 20)).data, History(path)
    history.list()
    many = [f"talk{number}" for number in range(8)]
    writers = [
        Writer(path, f"w{number}", many if number % 2 else ["talk0"], picture)
        for number in range(4)
    ]
    locker = threading.Thread(target=lock, args=(path, over, rng))
    locker.start()
    alive, end = [*writers], time.monotonic() + 25
    while time.monotonic() < end:
        time.sleep(rng.uniform(0.5, 3))
        alive.pop(rng.randrange(4)).kill()
        name = f"w{len(writers)}"
        alive.append(Writer(path, name, many if rng.random() < 0.5 else ["talk0"], picture))
        writers.append(alive[-1])
    for writer in alive:
        writer.kill()
    over.set()
    locker.join()
    saved, errors = account(writers)
    for talk in many:
        with suppress(NoConversationError):  # it was restored
            history.restore(talk)
    there = {
        (talk.id, message.text)
        for talk in history.list()
        for branch in history.branches(talk.id)
        for message in _at(history, talk.id, branch.end)
    }
    with tally("history, several writers") as count:
        for turn, talk in saved.items():
            count.case((talk, turn) in there, "lost", turn)
        for error in errors:
            fine = re.search(FINE, error) and "NEWLINE" not in error
            count.case(bool(fine), "wrong", error)
        with closing(sqlite3.connect(path)) as database:
            whole = database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            dangling = database.execute("PRAGMA foreign_key_check").fetchall()
        count.case(whole and not dangling, "wrong", f"the file is damaged: {dangling}")
        assert len(saved) > 100


def _at(history: History, id: str, end: int) -> list[Message]:
    history.move(id, end)
    return history.load(id)


def test_a_locked_file_is_an_error_in_time(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    history = History(path)
    history.list()
    with (
        tally("history, locked") as count,
        closing(sqlite3.connect(path, isolation_level=None)) as database,
    ):
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("BEGIN EXCLUSIVE")
        for _ in range(2):
            began = time.monotonic()
            try:
                history.delete("none")
                count.case(False, "wrong", "no error")
            except HistoryError as error:
                count.case("locked" in str(error), "wrong", error)
            count.case(time.monotonic() - began < 30, "hung", "30 s")
        database.execute("ROLLBACK")
