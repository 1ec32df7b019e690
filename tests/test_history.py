"""What was said stays, whatever happens in the middle of writing it, and goes when it is told
to."""

import asyncio
import io
import json
import os
import random
import re
import sqlite3
import sys
import time
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
from smolvlm_mlx.errors import HistoryError, SmolVLMError
from smolvlm_mlx.inputs.media import Attachment, Frames
from smolvlm_mlx.inputs.messages import Message, from_json, text_message, user_message
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.server.app import make_app
from smolvlm_mlx.server.start import Start
from smolvlm_mlx.tasks.history import History, cache_folder, data_folder, new_id
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
    history.save("a", TALK)
    history.save("a", [*TALK[:4], text_message("assistant", "No.")])
    assert words(history.load("a"))[-1] == "No."
    history.save("a", TALK[:3])
    assert len(history.load("a")) == 3
    history.save("a", [asked("Nothing")])
    assert words(history.load("a")) == ["Nothing"]


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
    for number, (said, title) in enumerate(
        {"Old\n words": "Old words", "x" * 60: "x" * 60, "y" * 61: "y" * 59 + "…"}.items()
    ):
        history.save("a", [asked(said)], f"model {number}")
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
    history.save("a", TALK[:2])
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
        history.save("a", messages)
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
    rng = random.Random(0)
    with tally("history") as count:
        for number in range(4):
            talk = f"talk {number}"
            kill_saving(tmp_path / "history.sqlite3", talk, rng.uniform(0, 0.2), count)


def test_names_that_are_no_utf8_are_kept(history: History) -> None:
    odd = os.fsdecode(b"b\xff\x9b.png")
    talk = [asked(f"What is in {odd}?", Attachment(PICTURE.data, name=odd))]
    history.save("abc", talk, odd)
    (again,) = history.load("abc")
    assert (again.text, again.media[0].name) == (talk[0].text, odd)
    assert [each.id for each in history.list(words=odd)] == ["abc"]
    assert history.list(words="\udcfe") == []


@pytest.mark.parametrize(
    ("stored", "error"),
    [
        ('{"role": "user", "content": [{"type": "text", "text": "x", "new": [1]}]}', ""),
        ('{"role": "user", "content": [{"type": "image", "digest": "0"}]}', "does not know"),
        ('{"role": "user", "content": [{"digest": "0"}]}', "does not know"),
        ('{"role": "user", "content": [{"type": "audio", "digest": "@"}]}', "does not know"),
        ('{"role": "user", "content": [{"type": "image", "digest": "@", "new": 1}]}', ""),
        ('{"role": "user", "content": [{"type": "image", "digest": ["@"]}]}', "does not know"),
        ('{"role": "user", "content": [{"type": "audio"}]}', "is not 'text', 'image' or 'video'"),
        ('{"role": "user", "content": [5]}', "is not 'text', 'image' or 'video'"),
        ('{"role": "user", "content": 5}', "must be text or a non-empty list"),
        ('{"role": "user"}', "must be text or a non-empty list"),
        ("[5]", "not an object"),
        ("{", "is damaged"),
    ],
)
def test_what_other_versions_store(stored: str, error: str, history: History) -> None:
    history.save("abc", [asked("x", PICTURE)])
    with closing(sqlite3.connect(history.path)) as database, database:
        stored = stored.replace("@", PICTURE.digest)
        database.execute("UPDATE messages SET message = ?", (stored,))
    with pytest.raises(SmolVLMError, match=error) if error else nullcontext():
        assert [message.role for message in history.load("abc")] == ["user"]
