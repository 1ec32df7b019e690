"""What was said stays, whatever happens in the middle of writing it, and goes when it is told
to."""

import asyncio
import io
import json
import os
import re
import sqlite3
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from smolvlm_mlx import Options
from smolvlm_mlx.cli import history as history_command
from smolvlm_mlx.cli import main
from smolvlm_mlx.cli.gate import install
from smolvlm_mlx.cli.options import Loading
from smolvlm_mlx.cli.serve import load_service
from smolvlm_mlx.errors import HistoryError
from smolvlm_mlx.inputs.media import Attachment, Frames
from smolvlm_mlx.inputs.messages import Message, from_json, text_message, user_message
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.server.app import make_app
from smolvlm_mlx.server.start import Start
from smolvlm_mlx.tasks.history import History, Place, cache_folder, data_folder, new_id
from tests.support.http import question
from tests.support.kills import kill_saving
from tests.support.messages import media_of
from tests.support.pictures import data_url, noise
from tests.support.tally import tally

import httpx2
import platformdirs
import pytest
from typer.testing import CliRunner

PICTURE = Attachment(noise(30, 20), name="cat.png")


def asked(words: str, *pictures: Attachment) -> Message:
    return user_message(words, pictures)


TALK = [
    text_message("system", "Be brief."),
    asked("What is THIS?", PICTURE),
    text_message("assistant", "A cat."),
    asked("And [/etc/hosts]?"),
    replace(text_message("assistant", "Ünd"), interrupted=True),
]


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> History:
    monkeypatch.setattr("smolvlm_mlx.tasks.history.data_folder", lambda: tmp_path / "data")
    return History()


def words(messages: list[Message]) -> list[str]:
    return [message.text for message in messages]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main.app, ["history", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("named", [{"path": "cat.png"}, {"url": "https://a.example/cat.png"}])
def test_a_database_from_elsewhere_leads_nowhere(
    named: dict[str, str], history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.png").write_bytes(PICTURE.data)
    history.save("a", TALK)
    message = json.dumps({"role": "user", "content": [{"type": "image", **named}]})
    with closing(sqlite3.connect(history.path)) as database, database:
        database.execute("UPDATE messages SET message = ? WHERE number = 0", (message,))
    (first, *_) = history.load("a")
    assert (first.text, first.media) == ("", [])


def test_saved_and_loaded(history: History) -> None:
    history.save("a", TALK, "tiny")
    loaded = history.load("a")
    assert words(loaded) == words(TALK)
    assert [message.role for message in loaded] == [message.role for message in TALK]
    assert loaded[-1].interrupted
    (picture,) = media_of(loaded)
    assert (picture.data, picture.name) == (PICTURE.data, "cat.png")
    (summary,) = history.list()
    assert (summary.id, summary.title, summary.model, summary.turns) == (
        "a",
        "What is THIS?",
        "tiny",
        2,
    )
    assert abs(summary.updated - time.time()) < 60


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("road", ["chat", "serve"])
def test_without_a_history_nothing_is_kept(
    road: str, keeps: bool, tiny: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what was said, nor what was computed of its pictures."""
    for name in ("data_folder", "cache_folder"):
        folder = tmp_path / "home" / name
        monkeypatch.setattr(f"smolvlm_mlx.tasks.history.{name}", lambda folder=folder: folder)
    if road == "chat":
        (tmp_path / "cat.png").write_bytes(PICTURE.data)
        options = ["-m", tiny, "-n", 2, *([] if keeps else ["--no-history"])]
        assert call("chat", *options, stdin=f"What is {tmp_path}/cat.png?\n")[0] == 0
    else:
        service = load_service(str(tiny), Loading(), Options(), ImageOptions(), Start(), keeps)
        asked = question("What?", data_url(), max_tokens=2, conversation="0123456789abcdef")

        async def ask() -> bool:
            transport = httpx2.ASGITransport(make_app(service, ["a:1"], None))
            async with httpx2.AsyncClient(transport=transport, base_url="http://a:1") as client:
                answer = await client.post("/v1/chat/completions", json=asked)
                assert answer.status_code == 200
                return bool((await client.get("/conversations")).json()["kept"])

        assert asyncio.run(ask()) == keeps
        service.scheduler.close()
    kept = sorted(path.name for path in tmp_path.glob("home/*/*.sqlite3"))
    assert kept == (["features.sqlite3", "history.sqlite3"] if keeps else [])


def test_saved_again(history: History) -> None:
    place = history.save("a", TALK)
    place = history.save("a", [*TALK[:4], text_message("assistant", "No.")], known=place.known)
    assert words(history.load("a"))[-1] == "No."
    place = history.save("a", TALK[:3], known=place.known)
    assert len(history.load("a")) == 3
    place = history.save("a", [asked("Nothing")], known=place.known)
    assert words(history.load("a")) == ["Nothing"]
    assert len(history.list()) == 1


def test_the_latest_is_first_and_words_are_found(history: History) -> None:
    history.save("a", TALK)
    history.save("b", [asked("100% of ÄPFEL_")])
    assert [summary.id for summary in history.list()] == ["b", "a"]
    history.save("a", TALK)
    assert [summary.id for summary in history.list()] == ["a", "b"]
    assert [summary.id for summary in history.list(1)] == ["a"]
    for searched, found in {
        "this": "a",
        "äpfel": "b",
        "ünd": "a",
        "CAT.PNG": "a",
        "0%": "b",
        "_": "b",
        "%%": "",
    }.items():
        assert [summary.id for summary in history.list(words=searched)] == [*found]


def test_a_list_shows_what_a_conversation_now_is(history: History) -> None:
    known: tuple[str, ...] = ()
    for number, (said, title) in enumerate(
        {"Old\n words": "Old words", "x" * 60: "x" * 60, "y" * 61: "y" * 59 + "…"}.items()
    ):
        place = history.save("a", [asked(said)], f"model {number}", known)
        known = place.known
        (summary,) = history.list()
        assert (summary.title, summary.model) == (title, f"model {number}")


def changed(history: History, *statements: str) -> list[Any]:
    """Changes the file beside its owner; returns what the last statement finds."""
    with closing(sqlite3.connect(history.path)) as database, database:
        *_, found = [database.execute(statement).fetchall() for statement in statements]
    return found


def test_frames_without_a_file_are_refused(history: History) -> None:
    frames = Frames([Attachment(noise(30, 20))])
    with pytest.raises(HistoryError, match="a video of frames cannot be kept; give the file"):
        history.save("a", [user_message("What?", videos=frames)])
    assert history.list() == []


def test_what_fails_halfway_leaves_all_as_it_was(history: History) -> None:
    history.save("a", TALK[:3], "before")
    changed(
        history,
        "CREATE TRIGGER full BEFORE INSERT ON uses BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    )
    for id in ("a", "b"):
        with pytest.raises(HistoryError, match="disk full; go on with --no-history, or move the"):
            history.save(id, [asked("Other", PICTURE)], "after")
    changed(history, "DROP TRIGGER full")
    assert words(history.load("a")) == words(TALK[:3])
    assert [(summary.id, summary.model) for summary in history.list()] == [("a", "before")]
    assert media_of(history.load("a"))[0].data == PICTURE.data


def test_only_what_is_new_is_written(history: History) -> None:
    known = history.save("a", TALK[:2]).known
    changed(
        history,
        "CREATE TABLE written (number INTEGER)",
        "CREATE TRIGGER note AFTER INSERT ON messages BEGIN INSERT INTO written VALUES (NEW.number)"
        "; END",
    )

    def written() -> list[int]:
        found = changed(history, "SELECT number FROM written ORDER BY rowid")
        changed(history, "DELETE FROM written")
        return [number for (number,) in found]

    for messages, numbers in (
        (TALK, [2, 3, 4]),
        (TALK, []),
        ([*TALK[:4], text_message("assistant", "No.")], [4]),
        (TALK[:3], []),
        ([TALK[0], *TALK[2:]], [1, 2, 3]),
    ):
        known = history.save("a", messages, known=known).known
        assert written() == numbers
        assert words(history.load("a")) == words(messages)


def test_names_are_eight_letters_and_numbers() -> None:
    names = {new_id() for _ in range(20)}
    assert len(names) == 20
    assert all(re.fullmatch("[0-9a-f]{8}", name) for name in names)


def test_folders_are_where_the_system_has_a_persons_own() -> None:
    places = platformdirs.PlatformDirs("smolvlm-mlx", appauthor=False)
    assert (data_folder(), cache_folder()) == (places.user_data_path, places.user_cache_path)


def test_private(history: History) -> None:
    history.path = history.path.parent / "more" / history.path.name
    history.save("a", TALK)
    assert history.path.parent.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in history.path.parent.iterdir()} == {0o600}


def test_deleted_is_gone_from_the_file(history: History) -> None:
    history.save("a", TALK)
    history.save("b", [asked("Another", PICTURE), text_message("assistant", "secret words")])
    history.delete("b")
    assert media_of(history.load("a"))
    with closing(sqlite3.connect(history.path)) as database:
        assert database.execute("SELECT count(*) FROM pictures").fetchone() == (1,)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"secret words" not in history.path.read_bytes()
    history.delete("a")
    with closing(sqlite3.connect(history.path)) as database:
        tables = ("conversations", "messages", "pictures", "uses")
        assert [
            database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables
        ] == [0] * 4


def test_one_line_for_what_is_not_there(history: History, tmp_path: Path) -> None:
    history.save("abc", TALK)
    history.save("abd", TALK)
    assert history.find("abc") == "abc"
    for beginning, error in {
        "ab": "2 conversations begin with 'ab'",
        "x": "no conversations begin with 'x'",
        "": "no conversations begin with ''",
    }.items():
        with pytest.raises(HistoryError, match=error):
            history.find(beginning)
    for method in (history.load, history.delete):
        with pytest.raises(HistoryError, match="no conversation 'none';"):
            method("none")
    (tmp_path / "file").write_bytes(b"no database" * 200)
    with pytest.raises(HistoryError, match="file is not a database; go on with --no-history"):
        History(tmp_path / "file").list()
    with pytest.raises(HistoryError, match="cannot be made"):
        History(tmp_path / "file" / "history").list()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_conversation_cannot_command_the_terminal(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.save("abc", [asked("\x1b[31mred"), text_message("assistant", "\x9b2J[b]\ta")])
    assert run("show", "abc") == "User: \x1b[31mred\n\nAssistant: \x9b2J[b]\ta\n"
    assert "\x1b" not in run("list")
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr(sys, "stdout", shown := Terminal())
    install()
    history_command.show(id="abc", debug=False)
    assert shown.getvalue() == "User: [31mred\n\nAssistant: 2J[b]\ta\n"


def test_commands(history: History, tmp_path: Path) -> None:
    assert run() == "no conversations\n"
    first, second = new_id(), new_id()
    history.save(first, TALK)
    history.save(second, [asked("Other :cat: [b]")])
    assert [line.split()[0] for line in run().splitlines()[1:]] == [second, first]
    assert "Other :cat: [b]" in run("list")  # no emoji, no markup
    assert run("list", "-n", "1").count("\n") == 2
    assert first in run("search", "etc/hosts")
    assert run("show", first) == (
        "System: Be brief.\n\nUser: [cat.png] What is THIS?\n\nAssistant: A cat.\n\n"
        "User: And [/etc/hosts]?\n\nAssistant: Ünd (interrupted)\n"
    )
    run("export", first, str(tmp_path / "talk.json"))
    run("export", first, str(tmp_path / "talk.md"))
    exported = from_json(json.loads((tmp_path / "talk.json").read_text())["messages"])
    assert words(exported) == words(TALK)
    assert media_of(exported)[0].data == PICTURE.data
    assert (tmp_path / "talk.md").read_text() == run("show", first)
    with pytest.raises(HistoryError, match="exists already"):
        run("export", first, str(tmp_path / "talk.md"))
    with pytest.raises(HistoryError, match="ids of conversations, or --all"):
        run("delete")
    run("delete", first)
    assert [summary.id for summary in history.list()] == [second]
    for again in (first, new_id()):
        history.save(again, TALK)
    with pytest.raises(HistoryError, match="--all would delete 3 conversations; --yes does it"):
        run("delete", "--all")  # where nobody can be asked
    assert len(history.list()) == 3
    run("delete", second, second[:6])  # the same one
    assert second not in [summary.id for summary in history.list()]
    run("delete", "--all", "--yes")
    assert history.list() == []


@pytest.mark.parametrize(
    ("answer", "left"), [("y\n", 0), ("yes\n", 0), ("n\n", 2), ("", 2), ("\n", 2)]
)
def test_all_conversations_go_only_after_a_yes(
    answer: str,
    left: int,
    history: History,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for id in ("a", "b"):
        history.save(id, TALK)
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    with nullcontext() if left == 0 else pytest.raises(HistoryError, match="nothing is deleted"):
        history_command.delete(everything=True, debug=False)
    assert capsys.readouterr().err.startswith("delete 2 conversations? [y/N] ")
    assert len(history.list()) == left


def test_killed_while_writing(tmp_path: Path) -> None:
    with tally("history") as count:
        kill_saving(tmp_path / "history.sqlite3", 4, 0, count)


# ---- several who write


def turns(history: History) -> dict[str, list[str]]:
    """The words of each conversation, by title."""
    return {summary.title: words(history.load(summary.id)) for summary in history.list()}


def said(*texts: str) -> list[Message]:
    return [text_message(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]


BASE = ["q", "a"]
# What another has made of it meanwhile; what the first, who does not know that, then saves; what is
# there in the end.
MEANWHILE: dict[str, tuple[list[str], list[str], list[list[str]]]] = {
    "both go on": ([*BASE, "2", "b"], [*BASE, "3", "c"], [[*BASE, "2", "b"], [*BASE, "3", "c"]]),
    "edited here": ([*BASE, "2", "b"], ["Q", "A"], [[*BASE, "2", "b"], ["Q", "A"]]),
    "edited there": (["Q", "A"], [*BASE, "2", "b"], [["Q", "A"], [*BASE, "2", "b"]]),
    "edited in both": (["Q", "A"], ["R", "B"], [["Q", "A"], ["R", "B"]]),
    "taken back here": ([*BASE, "2", "b"], BASE[:1], [[*BASE, "2", "b"]]),
    "as it was": ([*BASE, "2", "b"], BASE, [[*BASE, "2", "b"]]),
    "the same": ([*BASE, "2", "b"], [*BASE, "2", "b"], [[*BASE, "2", "b"]]),
    "further than there": ([*BASE, "2"], [*BASE, "2", "b"], [[*BASE, "2", "b"]]),
    "taken back there": (BASE[:1], [*BASE, "2", "b"], [[*BASE, "2", "b"]]),
}


@pytest.mark.parametrize("kind", MEANWHILE)
def test_what_a_keeper_does_not_know_stays(kind: str, history: History) -> None:
    theirs, mine, left = MEANWHILE[kind]
    known = history.save("a", said(*BASE)).known
    history.save("a", said(*theirs), known=known)
    place = history.save("a", said(*mine), known=known)
    assert sorted(turns(history).values()) == sorted(left)
    # Whoever goes on from here does so in the place that was told, and again loses nothing.
    history.save(place.id, said(*mine, "end"), known=place.known)
    assert [*mine, "end"] in turns(history).values()
    remains = set(theirs) - {*turns(history)}
    assert remains <= {word for kept in turns(history).values() for word in kept}


def test_branches_are_found_again_and_numbered(history: History) -> None:
    known = history.save("a", said(*BASE)).known
    history.save("a", said(*BASE, "2"), known=known)
    # One who never learns where it went, and names no versions, still makes one branch only.
    for length in range(4):
        place = history.save("a", said(*BASE, *"xyzw"[: length + 1]))
    assert turns(history) == {"q": [*BASE, "2"], "q (2)": [*BASE, *"xyzw"]}
    # One who chose the name of the version may change what it wrote there.
    history.save("a", said(*BASE, *"xyzw", "0"), version="0123", known=place.known)
    again = history.save("a", said(*BASE, "V"), known=["0123"])
    assert again.id == place.id
    assert turns(history)["q (2)"] == [*BASE, "V"]
    # A branch of a branch is one of the first.
    history.save(again.id, said("other"))
    assert set(turns(history)) == {"q", "q (2)", "other (3)"}
    history.delete("a")
    assert turns(history).keys() == {"q (2)", "other (3)"}


def test_only_what_is_known_is_withdrawn(history: History) -> None:
    known = history.save("a", said(*BASE)).known
    later = history.save("a", said(*BASE, "2"), known=known).known
    history.withdraw("a", known)
    history.withdraw("none", known)
    assert turns(history) == {"q": [*BASE, "2"]}
    history.withdraw("a", later)
    assert turns(history) == {}


def test_threads_that_write_one_conversation_lose_nothing(history: History) -> None:
    def write(name: int) -> None:
        place, mine = Place("a"), list[str]()
        for number in range(6):
            mine += [f"{name}-{number}", "a"]
            place = history.save(place.id, said(*mine), known=place.known)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    expected = {f"{name}-{number}" for name in range(4) for number in range(6)}
    assert {word for kept in turns(history).values() for word in kept} == {*expected, "a"}
    assert len(history.list()) == 4


# ---- files of other versions, and damaged ones

BEFORE_VERSIONS = """
CREATE TABLE conversations (
    id TEXT PRIMARY KEY, title TEXT NOT NULL, model TEXT NOT NULL,
    created REAL NOT NULL, updated REAL NOT NULL);
CREATE TABLE messages (
    conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
    number INTEGER NOT NULL, message TEXT NOT NULL, words TEXT NOT NULL,
    PRIMARY KEY (conversation, number));
CREATE TABLE pictures (digest TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE uses (
    conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
    digest TEXT NOT NULL REFERENCES pictures, PRIMARY KEY (conversation, digest));
INSERT INTO conversations VALUES ('a', 'Before', 'tiny', 1.0, 2.0);
INSERT INTO messages VALUES ('a', 0,
    '{"role": "user", "content": [{"type": "image", "digest": "d", "name": "cat.png"},
      {"type": "text", "text": "Before"}]}', 'Before cat.png');
INSERT INTO messages VALUES ('a', 1, '{"role": "assistant", "content": "Yes."}', 'Yes.');
"""


def test_a_file_of_the_version_before_opens(history: History) -> None:
    history.path.parent.mkdir()
    with closing(sqlite3.connect(history.path)) as database, database:
        database.executescript(BEFORE_VERSIONS)
        database.execute("INSERT INTO pictures VALUES ('d', ?)", (PICTURE.data,))
        database.execute("INSERT INTO uses VALUES ('a', 'd')")
    (summary,) = history.list()
    assert (summary.title, summary.turns) == ("Before", 1)
    kept = history.read("a")
    assert words(kept.messages) == ["Before", "Yes."]
    assert media_of(kept.messages)[0].data == PICTURE.data
    place = history.save("a", [*kept.messages, asked("Now")], known=[kept.version])
    assert (place.id, words(history.load("a"))) == ("a", ["Before", "Yes.", "Now"])
    # Who read it before that, does not know it any more.
    assert history.save("a", said("Other"), known=[kept.version]).id != "a"


def test_a_file_without_a_log_waits_for_another_that_writes(history: History) -> None:
    history.path.parent.mkdir()
    with closing(sqlite3.connect(history.path, check_same_thread=False)) as other:
        other.executescript(BEFORE_VERSIONS)
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.3, other.rollback)
        timer.start()
        assert [talk.title for talk in history.list()] == ["Before"]
        timer.join()


def test_a_file_of_a_newer_version_is_refused_and_stays_as_it_is(history: History) -> None:
    history.path.parent.mkdir()
    with closing(sqlite3.connect(history.path)) as database, database:
        database.execute("CREATE TABLE other (x)")
        database.execute("PRAGMA user_version = 2")
    before = history.path.read_bytes()
    for use in (history.list, lambda: history.save("a", TALK), lambda: history.load("a")):
        with pytest.raises(HistoryError, match="a newer version of smolvlm-mlx"):
            use()
    assert history.path.read_bytes() == before
    assert [path.name for path in history.path.parent.iterdir()] == [history.path.name]


# What a newer version may have written, and what this one has of it.
NEWER: list[tuple[Any, str, str]] = [
    ({"role": "user", "content": "text alone", "mood": "glad"}, "user", "text alone"),
    (
        {"role": "user", "content": [{"type": "text", "text": "x", "bold": True}], "at": [1]},
        *("user", "x"),
    ),
    (
        {
            "role": "assistant",
            "content": [{"type": "audio", "digest": "DIGEST"}, {"type": "text", "text": "y"}],
        },
        *("assistant", "y"),
    ),
    ({"role": "user", "content": [{"type": "audio", "digest": 5}, 7]}, "user", ""),
    (
        {"role": "user", "content": [{"type": "image", "digest": "gone"}]},
        *("user", "[picture: can no longer be read]"),
    ),
]


def test_what_is_unknown_in_a_message_is_carried(history: History) -> None:
    known = history.save("a", said(*"01234")).known
    history.save("b", [asked("", PICTURE)])
    stored = [json.dumps(raw).replace("DIGEST", PICTURE.digest) for raw, _, _ in NEWER]
    with closing(sqlite3.connect(history.path)) as database, database:
        for number, text in enumerate(stored):
            database.execute(
                "UPDATE messages SET message = ? WHERE conversation = 'a' AND number = ?",
                (text, number),
            )
    kept = history.read("a")
    assert (kept.version,) == known
    assert [(m.role, m.text) for m in kept.messages] == [(role, text) for _, role, text in NEWER]
    history.save("a", [*kept.messages[:4], asked("more")], known=known)
    history.delete("b")
    there = changed(history, "SELECT message FROM messages WHERE conversation = 'a'")
    assert [text for (text,) in there][:4] == stored[:4]
    # Also a picture that only the newer version shows.
    assert changed(history, "SELECT digest FROM pictures") == [(PICTURE.digest,)]
    assert history.list()[0].turns == 4


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE pictures SET data = x'00ff'",
        "UPDATE pictures SET data = ''",
        "DELETE FROM uses",
        "DELETE FROM pictures",
    ],
)
def test_a_damaged_picture_is_named_in_its_place(damage: str, history: History) -> None:
    known = history.save("a", TALK).known
    changed(history, damage)
    messages = history.load("a")
    expected = ["Be brief.", "[cat.png: can no longer be read] What is THIS?", *words(TALK)[2:]]
    assert words(messages) == expected
    history.save("a", [*messages, asked("On")], known=known)
    assert words(history.load("a")) == [*expected, "On"]


def test_a_damaged_message_is_one_line_and_ends_no_list(history: History) -> None:
    history.save("b", TALK)
    for damage in ("{", "[]", "5", '{"role": "user"}', '{"role": 5, "content": "x"}', "null"):
        known = history.save(damage, said("x")).known
        update = "UPDATE messages SET message = ? WHERE conversation = ?"
        with closing(sqlite3.connect(history.path)) as database, database:
            database.execute(update, (damage, damage))
        with pytest.raises(HistoryError, match="a message of the conversation is damaged"):
            history.load(damage)
        history.save(damage, said("y"), known=known)
        assert words(history.load(damage)) == ["y"]
    assert len(history.list()) == 7


def test_a_reader_waits_for_no_writer(history: History) -> None:
    history.save("a", TALK)
    with closing(sqlite3.connect(history.path, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("UPDATE conversations SET title = 'Other'")
        assert words(history.load("a")) == words(TALK)
        assert [summary.title for summary in history.list()] == ["What is THIS?"]
        database.execute("ROLLBACK")


def test_a_locked_file_is_one_line(history: History) -> None:
    history.save("a", TALK)
    history = History(history.path, timeout=0.1)
    with closing(sqlite3.connect(history.path, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        for use in (lambda: history.save("a", TALK), lambda: history.delete("a")):
            with pytest.raises(HistoryError, match="locked; go on with --no-history, or try again"):
                use()
        database.execute("ROLLBACK")
    assert words(history.load("a")) == words(TALK)


def test_names_that_are_no_utf8_are_kept(history: History) -> None:
    odd = os.fsdecode(b"b\xff\x9b.png")
    talk = [asked(f"What is in {odd}?", Attachment(PICTURE.data, name=odd))]
    history.save("abc", talk, odd)
    (again,) = history.load("abc")
    assert (again.text, again.media[0].name) == (talk[0].text, odd)
    assert [each.id for each in history.list(words=odd)] == ["abc"]
    assert history.list(words="\udcfe") == []
