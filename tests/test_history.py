"""What was said stays, whatever happens in the middle of writing it, and goes when it is told
to."""

import asyncio
import io
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
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
from smolvlm_mlx.errors import HistoryError, NoConversationError
from smolvlm_mlx.inputs.media import Attachment, Frames
from smolvlm_mlx.inputs.messages import Message, from_json, text_message, user_message
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.server.app import make_app
from smolvlm_mlx.server.start import Start
from smolvlm_mlx.tasks.database import opened
from smolvlm_mlx.tasks.history import History, cache_folder, data_folder, new_id
from tests.support.http import question
from tests.support.kills import kill_saving
from tests.support.messages import media_of
from tests.support.pictures import data_url, noise
from tests.support.tally import tally

import httpx2
import platformdirs
import pytest
from rich.cells import cell_len
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
        database.execute("UPDATE messages SET message = ? WHERE parent IS NULL", (message,))
    (_, first, *_) = history.load("a")
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
    history.save("a", TALK)
    history.save("a", [*TALK[:4], text_message("assistant", "No.")])
    assert words(history.load("a"))[-1] == "No."
    history.save("a", TALK[:3])  # which is there, and more of it
    assert words(history.load("a"))[-1] == "No."
    history.save("a", [asked("Nothing")])
    assert words(history.load("a")) == ["Nothing"]
    assert len(history.list()) == 1
    assert ways(history, "a") == {
        (*words(TALK)[1:4], "Ünd"),
        (*words(TALK)[1:4], "No."),
        ("Nothing",),
    }


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


def test_a_file_that_cannot_be_used_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(HistoryError) as caught:
        History(tmp_path).list()
    assert str(caught.value) == (
        f"{tmp_path}: unable to open database file; move the file away, or `chat --no-history`"
    )


def test_what_fails_halfway_leaves_all_as_it_was(history: History) -> None:
    history.save("a", TALK[:3], "before")
    changed(
        history,
        "CREATE TRIGGER full BEFORE INSERT ON uses BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    )
    for id in ("a", "b"):
        with pytest.raises(HistoryError, match="disk full; move the file away, or"):
            history.save(id, [asked("Other", PICTURE)], "after")
    changed(history, "DROP TRIGGER full")
    assert words(history.load("a")) == words(TALK[:3])
    assert [(summary.id, summary.model) for summary in history.list()] == [("a", "before")]
    assert media_of(history.load("a"))[0].data == PICTURE.data


def test_only_what_is_new_is_written(history: History) -> None:
    history.save("a", TALK[:2])
    changed(
        history,
        "CREATE TABLE written (words TEXT)",
        *(
            f"CREATE TRIGGER note_{kind} AFTER {kind} ON messages BEGIN INSERT INTO written VALUES "
            "(NEW.words); END"
            for kind in ("INSERT", "UPDATE")
        ),
    )

    def written() -> list[str]:
        found = changed(history, "SELECT words FROM written ORDER BY rowid")
        changed(history, "DELETE FROM written")
        return [words for (words,) in found]

    for messages, new in (
        (TALK, words(TALK[2:])),
        (TALK, []),
        ([*TALK[:4], text_message("assistant", "No.")], ["No."]),
        ([*TALK[:4], text_message("assistant", "Ünd so")], ["Ünd so"]),
        ([text_message("system", "Be long."), *TALK[1:4], text_message("assistant", "No.")], []),
        ([TALK[0], *TALK[2:]], words(TALK[2:])),
    ):
        history.save("a", messages)
        assert written() == new
        assert words(history.load("a")) == words(messages)


def test_names_are_eight_letters_and_numbers() -> None:
    names = {new_id() for _ in range(20)}
    assert len(names) == 20
    assert all(re.fullmatch("[0-9a-f]{8}", name) for name in names)


def test_folders_are_where_the_system_has_a_persons_own() -> None:
    places = platformdirs.PlatformDirs("smolvlm-mlx", appauthor=False)
    assert (data_folder(), cache_folder()) == (places.user_data_path, places.user_cache_path)


@pytest.mark.parametrize("first", ["save", "watch"])
def test_private(first: str, history: History) -> None:
    history.path = history.path.parent / "more" / history.path.name
    if first == "watch":
        history.watch().close()
    history.save("a", TALK)
    assert history.path.parent.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in history.path.parent.iterdir()} == {0o600}


@pytest.mark.parametrize("columns", [60, 80])
def test_a_conversation_is_a_line_of_the_list(
    columns: int, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As wide as a terminal, and whole in a pipe."""
    monkeypatch.setenv("COLUMNS", str(columns))
    titles = [f"{'long ' * 11}title", "圆" * 60]
    for id, title in zip("ab", titles, strict=True):
        history.save(id, [asked(title)])
    in_pipe = [line.rstrip() for line in run("list").splitlines()]
    assert [line.endswith(title) for line, title in zip(in_pipe[:0:-1], titles, strict=True)] == [
        True,
        True,
    ]
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in run("list").splitlines()]
    assert len(lines) == 3
    assert max(map(cell_len, lines)) < columns
    assert [line[-1] for line in lines[1:]] == ["…", "…"]


def everything(history: History) -> str:
    """What is in the file and its log."""
    files = history.path.parent.glob(f"{history.path.name}*")
    return " ".join(file.read_bytes().decode(errors="replace") for file in files)


def test_what_is_written_is_on_the_disk(history: History) -> None:
    history.save("a", TALK)
    with opened(history.path, 1, writes=True) as database:
        for name, value in {"synchronous": 2, "fullfsync": 1, "secure_delete": 1}.items():
            assert database.execute(f"PRAGMA {name}").fetchone() == (value,)


def test_what_cannot_be_forgotten_now_ends_no_list(history: History) -> None:
    for id in "ab":
        history.save(id, TALK)
    history.discard("b", -1)
    impatient = History(history.path, timeout=0)
    with closing(sqlite3.connect(history.path, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        assert [each.id for each in impatient.list()] == ["a"]
        database.execute("ROLLBACK")
    assert [each.id for each in impatient.list()] == ["a"]
    with pytest.raises(HistoryError, match="cannot be restored any more"):
        history.restore("b")


def test_deleted_is_gone_from_the_file(history: History) -> None:
    history.save("a", TALK)
    history.save("b", [asked("Another", PICTURE), text_message("assistant", "secret words")])
    with closing(history.watch()) as watch:  # with whom the log stays
        assert watch.has_changed()
        assert "secret words" in everything(history)
        history.delete("b")
        assert "secret words" not in everything(history)
        own = history.save("b2", [asked("A secret question")]).path
        assert "secret question" in everything(history)
        history.withdraw("b2", [], own, own)
        assert "secret question" not in everything(history)
    assert media_of(history.load("a"))
    with closing(sqlite3.connect(history.path)) as database:
        assert database.execute("SELECT count(*) FROM pictures").fetchone() == (1,)
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
    with pytest.raises(HistoryError, match="file is not a database; move the file away, or"):
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
    run("export", first, str(tmp_path / "talk.txt"))
    exported = from_json(json.loads((tmp_path / "talk.json").read_text())["messages"])
    assert words(exported) == words(TALK)
    assert media_of(exported)[0].data == PICTURE.data
    assert (tmp_path / "talk.txt").read_text() == run("show", first)
    with pytest.raises(HistoryError, match="exists already"):
        run("export", first, str(tmp_path / "talk.txt"))
    assert run("rename", first, " Two\nwords ") == "Two words\n"
    assert "Two words" in run("list")
    run("export", first, str(tmp_path / "talk.md"))
    assert (tmp_path / "talk.md").read_text().startswith("# Two words\n\n## Instructions\n")
    run("export", first, str(tmp_path / "talk.zip"))
    assert zipfile.ZipFile(tmp_path / "talk.zip").read("pictures/1-cat.png") == PICTURE.data
    with pytest.raises(HistoryError, match="ids of conversations, or --all"):
        run("delete")
    run("delete", first)
    assert [summary.id for summary in history.list()] == [second]
    for another in (new_id(), new_id()):
        history.save(another, TALK)
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


def test_other_programs_leave_the_log_of_a_file_in_use(history: History) -> None:
    look = "import sys\nfrom pathlib import Path\nfrom smolvlm_mlx.tasks.history import History\n"
    look += "print(History(Path(sys.argv[1])).list()[0].turns)"
    watch = history.watch()  # which stays open, as that of a server
    turns = [user_message(f"Question {number}") for number in range(4)]
    for number in range(1, 5):
        history.save("abcdef01", turns[:number])
        assert watch.has_changed()
        asked = [sys.executable, "-c", look, str(history.path)]
        assert subprocess.run(asked, capture_output=True, check=True).stdout == b"%d\n" % number
    assert history.load("abcdef01") == turns
    watch.close()


def test_killed_while_writing(tmp_path: Path) -> None:
    with tally("history") as count:
        kill_saving(tmp_path / "history.sqlite3", 4, 0, count)


# ---- a tree


def said(*texts: str) -> list[Message]:
    return [text_message(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]


def here(history: History, id: str = "a") -> list[str]:
    """The words of a conversation up to its leaf."""
    return words(history.load(id))


def ways(history: History, id: str) -> set[tuple[str, ...]]:
    """The words of each way that a conversation went; its leaf is then that of the last."""
    found = set()
    for branch in history.branches(id):
        history.move(id, branch.end)
        messages = history.load(id)
        found.add(tuple(words(messages[messages[0].role == "system" :])))
    return found


BASE = ["q", "a"]
# What another has made of it meanwhile, what one who does not know that saves, and all ways that it
# went then; the last is that up to the leaf.
MEANWHILE: dict[str, tuple[list[str], list[str], list[list[str]]]] = {
    "both go on": ([*BASE, "2", "b"], [*BASE, "3", "c"], [[*BASE, "2", "b"], [*BASE, "3", "c"]]),
    "edited here": ([*BASE, "2", "b"], ["Q", "A"], [[*BASE, "2", "b"], ["Q", "A"]]),
    "edited there": (["Q", "A"], [*BASE, "2", "b"], [["Q", "A"], [*BASE, "2", "b"]]),
    "edited in both": (["Q", "A"], ["R", "B"], [BASE, ["Q", "A"], ["R", "B"]]),
    "an earlier state": ([*BASE, "2", "b"], BASE[:1], [[*BASE, "2", "b"]]),
    "as it was": ([*BASE, "2", "b"], BASE, [[*BASE, "2", "b"]]),
    "the same": ([*BASE, "2", "b"], [*BASE, "2", "b"], [[*BASE, "2", "b"]]),
    "further than there": ([*BASE, "2"], [*BASE, "2", "b"], [[*BASE, "2", "b"]]),
    "another answer": (["q", "A"], [*BASE, "2"], [["q", "A"], [*BASE, "2"]]),
}


@pytest.mark.parametrize("kind", MEANWHILE)
def test_what_a_writer_does_not_know_stays(kind: str, history: History) -> None:
    theirs, mine, left = MEANWHILE[kind]
    history.save("a", said(*BASE))
    history.save("a", said(*theirs))
    history.save("a", said(*mine))
    assert here(history) == left[-1]
    assert ways(history, "a") == {tuple(way) for way in left}
    history.save("a", said(*mine, "end"))
    assert here(history) == [*mine, "end"]


def interrupted(*texts: str) -> list[Message]:
    *messages, last = said(*texts)
    return [*messages, replace(last, interrupted=True)]


def test_an_answer_that_goes_on_is_one(history: History) -> None:
    for text in ("", "Ha", "Hal"):
        history.save("a", interrupted("q", text))
        _, last = history.places("a")
        assert (here(history), last.branches) == (["q", text], [last.id])
        assert history.load("a")[-1].interrupted
    history.save("a", said("q", "Hallo "))
    assert (here(history), history.load("a")[-1].interrupted) == (["q", "Hallo"], False)
    # Who saves less of it, later, takes nothing away.
    history.save("a", interrupted("q", "Ha"))
    assert (here(history), history.load("a")[-1].interrupted) == (["q", "Hallo"], False)
    # What somebody went on from stays as it was.
    history.save("a", [*interrupted("q", "Ha"), *said("2")])
    history.save("a", said("q", "Hand"))
    assert ways(history, "a") == {("q", "Hallo"), ("q", "Ha", "2"), ("q", "Hand")}
    # That no more came is no other answer.
    history.save("b", interrupted("q", "Ha"))
    history.save("b", said("q", "Ha"))
    assert (ways(history, "b"), history.load("b")[-1].interrupted) == ({("q", "Ha")}, False)


def test_an_answer_is_kept_while_it_comes(history: History) -> None:
    first, more, most = (interrupted("q", text)[1] for text in ("Ha", "Hal", "Halb"))
    at = history.save("a", interrupted("q", "Ha")).path[-1]
    history.extend("a", at, first, more)
    history.extend("b", at, more, most)
    history.extend("a", at - 1, more, most)
    history.extend("a", at, first, most)  # it is another already
    assert (here(history), history.leaf("a")) == (["q", "Hal"], at)
    assert history.list(words="hal")[0].id == "a"
    history.save("a", [*interrupted("q", "Hal"), *said("2")])
    history.extend("a", at, more, most)
    assert here(history) == ["q", "Hal", "2"]


def test_branches_are_listed_and_opened(history: History) -> None:
    history.save("a", [text_message("system", "Be brief."), *said("q", "a", "2", "b")])
    history.save("a", said("q", "a", "2", "other answer"))
    history.save("a", said("q", "a", "edited", "c"))
    history.save("a", said("Q " * 50, "A"))
    found = history.branches("a")
    long = f"{'Q ' * 50}"[:59] + "…"
    assert [branch.words for branch in found] == ["b", "other answer", "edited", long]
    assert found[-1].end == history.leaf("a")
    history.move("a", found[0].end)
    assert here(history) == ["q", "a", "2", "b"]
    found = history.branches("a")
    assert [branch.words for branch in found][:3] == ["b", "other answer", "edited"]
    assert history.list()[0].turns == 2
    places = history.places("a")
    assert [len(place.branches) for place in places] == [2, 1, 2, 2]
    history.move("a", places[0].branches[1])
    assert here(history)[1:] == ["A"]
    history.move("a", places[0].id)  # the newest way beyond it
    assert here(history) == ["q", "a", "edited", "c"]
    for id, message in (("a", 99), ("none", places[0].id)):
        with pytest.raises(HistoryError, match=f"no message {message} in conversation '{id}'"):
            history.move(id, message)
    with pytest.raises(HistoryError, match="no conversation 'none'"):
        history.branches("none")


def test_instructions_are_of_the_conversation(history: History) -> None:
    for text in ("Be brief.", "Be long."):
        history.save("a", [text_message("system", text), *said("q", "a")])
        assert here(history) == [text, "q", "a"]
    assert [each.id for each in history.list(words="be LONG")] == ["a"]
    assert history.list(words="be brief") == []
    history.save("a", said("q", "a"))
    assert here(history) == ["q", "a"]
    assert len(history.branches("a")) == 1
    # Also where another has gone on meanwhile.
    history.save("a", said("q", "a", "2"))
    history.save("a", [text_message("system", "Be kind."), *said("q", "a")])
    assert here(history) == ["Be kind.", "q", "a", "2"]


def test_an_answer_comes_until_nothing_comes_to_it(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.save("a", said("q"))
    assert history.is_coming("a")
    first, more = (interrupted("q", text)[1] for text in ("Ha", "Hal"))
    at = history.save("a", interrupted("q", "Ha")).path[-1]
    now = time.time()
    assert history.is_coming("a")
    monkeypatch.setattr(time, "time", lambda: now + 11)
    assert not history.is_coming("a")
    history.extend("a", at, first, more)
    assert history.is_coming("a")
    history.save("a", said("q", "Halb"))
    assert not history.is_coming("a")


def test_a_question_that_is_not_answered_leaves_nothing(history: History) -> None:
    whole = said("q", "a", "2", "b")
    base = history.save("a", whole)
    for talk in (said("q", "a", "zwei"), said("Q"), said("q", "a", "2", "b", "3"), whole[:3]):
        history.take_back("a", history.save("a", talk))
        assert here(history) == ["q", "a", "2", "b"]
        assert ways(history, "a") == {("q", "a", "2", "b")}
    saved = history.save("a", said("Q"))
    history.save("a", said("Q", "A"))  # which another has answered
    history.take_back("a", saved)
    assert here(history) == ["Q", "A"]
    saved = history.save("a", said("Q", "A", "?"))
    history.move("a", base.path[-1])
    history.take_back("a", saved)
    assert here(history) == ["q", "a", "2", "b"]
    assert ways(history, "a") == {("q", "a", "2", "b"), ("Q", "A")}
    history.take_back("new", history.save("new", said("q")))
    assert [each.id for each in history.list()] == ["a"]


def test_a_way_that_somebody_chose_stays_the_way(history: History) -> None:
    base = history.save("a", said("q", "a", "2"))
    seen = {*base.path, base.leaf}
    other = history.save("a", said("q", "a", "zwei"))
    saved = history.save("a", said("q", "a", "2", "b"), "", seen)
    assert (saved.leaf, saved.before) == (other.leaf, other.leaf)
    assert here(history) == ["q", "a", "zwei"]
    assert [place.id for place in history.places("a", saved.path[-1])] == saved.path
    history.move("a", saved.path[-1])
    history.save("a", said("q", "a", "2", "c"), "", {saved.path[-1]})
    assert here(history) == ["q", "a", "2", "c"]
    # What was begun there is replaced, and the leaf is never at what is gone.
    history.save("b", interrupted("q", "Ha"))
    history.save("b", said("q", "Halb"), "", set())
    assert [message.text for message in history.load("b")] == ["q", "Halb"]


def test_a_deleted_conversation_does_not_come_back(history: History) -> None:
    history.save("a", said(*BASE))
    history.delete("a")
    with pytest.raises(HistoryError, match="conversation 'a' was deleted, and keeps no more"):
        history.save("a", said(*BASE, "2", "b"))
    assert history.list() == []


def test_a_name_stays_whatever_is_said(history: History) -> None:
    history.save("a", said(*BASE))
    assert history.rename("a", "  My\ncat ") == "My cat"
    history.save("a", said(*BASE, "2", "b"))
    assert [(each.title, each.turns) for each in history.list(words="my CAT")] == [("My cat", 2)]
    assert history.rename("a", " ") == history.title("a") == BASE[0]
    assert history.list(words="my cat") == []
    for id, name, error in (("none", "x", "no conversation"), ("a", "x" * 201, "limit is 200")):
        with pytest.raises(HistoryError, match=error):
            history.rename(id, name)


def test_what_is_discarded_is_nowhere_until_it_is_restored(history: History) -> None:
    ids = history.save("a", TALK).path
    history.discard("a", 60)
    assert not history.extend("a", ids[-1], TALK[-1], text_message("assistant", "More"))
    assert history.list() == history.list(words="cat") == []
    for use in (
        lambda: history.save("a", said("q", "c")),
        lambda: history.load("a"),
        lambda: history.move("a", ids[0]),
        lambda: history.rename("a", "b"),
        lambda: history.discard("a", 60),
    ):
        with pytest.raises(HistoryError, match="conversation 'a'"):
            use()
    history.forget_overdue()  # which it is not
    history.restore("a")
    assert words(history.load("a")) == words(TALK)
    assert media_of(history.load("a"))[0].data == PICTURE.data
    history.save("a", [*TALK, asked("More?")])
    assert history.list()[0].turns == 3
    with pytest.raises(HistoryError, match="cannot be restored any more"):
        history.restore("a")  # it is there


def test_what_is_overdue_can_be_restored_until_somebody_looks(history: History) -> None:
    for id in "ab":
        history.save(id, TALK)
        history.discard(id, -1)
    history.restore("a")
    assert [each.id for each in history.list()] == ["a"]  # which forgets the other
    with pytest.raises(HistoryError, match="cannot be restored any more"):
        history.restore("b")
    with pytest.raises(HistoryError, match="was deleted, and keeps no more"):
        history.save("b", TALK)
    with closing(sqlite3.connect(history.path)) as database:
        assert database.execute("SELECT DISTINCT conversation FROM messages").fetchall() == [("a",)]


def test_restoring_and_forgetting_at_once_keep_all_or_nothing(history: History) -> None:
    for number in range(12):
        id = f"talk{number}"
        history.save(id, TALK)
        history.discard(id, -1)
        outcomes: list[bool] = []

        def restore(id: str = id, outcomes: list[bool] = outcomes) -> None:
            try:
                history.restore(id)
                outcomes.append(True)
            except NoConversationError:
                outcomes.append(False)

        threads = [threading.Thread(target=work) for work in (restore, history.forget_overdue)]
        for thread in threads[:: 1 if number % 2 else -1]:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes == [id in [talk.id for talk in history.list()]]
        if outcomes[0]:
            assert words(history.load(id)) == words(TALK)


def test_what_is_taken_back_is_there_and_nothing_of_others_goes(history: History) -> None:
    seen = {*history.save("a", said(*BASE, "2", "b")).path}
    history.withdraw("a", said(*BASE), seen, seen)
    assert (here(history), history.list()[0].turns) == (BASE, 1)
    assert [branch.words for branch in history.branches("a")] == ["2"]
    seen.update(history.save("a", said(*BASE, "3")).path)
    history.save("a", said(*BASE, "3", "theirs"))
    for left in (BASE, [], ["unknown"]):
        history.withdraw("a", said(*left), seen, seen)
        history.withdraw("none", said(*left), seen, seen)
        assert here(history) == [*BASE, "3", "theirs"]
    history.move("a", min(seen))  # theirs, again
    mine = {*seen, *history.save("a", said("mine")).path}
    history.withdraw("a", [], mine, mine)
    assert here(history) == []
    assert ways(history, "a") == {(*BASE, "2", "b"), (*BASE, "3", "theirs"), ("mine",)}
    seen = {*history.save("b", said(*BASE)).path}
    history.withdraw("b", [], seen, ())  # none of which is one's own
    assert (here(history, "b"), ways(history, "b")) == ([], {(*BASE,)})
    history.withdraw("b", [], seen, seen)
    assert [each.id for each in history.list()] == ["a"]
    history.save("b", said("anew"))  # it was not deleted
    assert here(history, "b") == ["anew"]


def test_any_order_of_saves_and_moves_is_as_a_simple_model_has_it(history: History) -> None:
    rng, model, leaf = random.Random(5), set[tuple[str, ...]](), tuple[str, ...]()
    for _ in range(150):
        way = rng.choice([(), *sorted(model)])
        if way and rng.random() < 0.2:
            node = way[: rng.randint(1, len(way))]
            ids = {path: id for id, path in paths(history).items()}
            history.move("a", ids[node])
            leaf = tuple(here(history))
            assert leaf[: len(node)] == node
            assert leaf in model
            continue
        way = way[: rng.randint(0, len(way))] + tuple(rng.choices("xyz", k=rng.randint(1, 3)))
        history.save("a", said(*way))
        if leaf[: len(way)] != way:
            leaf = way
        model = {each for each in model if way[: len(each)] != each}
        if not any(each[: len(way)] == way for each in model):
            model.add(way)
        assert tuple(here(history)) == leaf
        assert set(paths(history).values()) >= model
    assert ways(history, "a") == model
    assert len(paths(history)) == len({way[:n] for way in model for n in range(1, len(way) + 1)})


def paths(history: History) -> dict[int, tuple[str, ...]]:
    """The words of the way to each message."""
    rows = changed(history, "SELECT id, parent, words FROM messages ORDER BY id")
    found: dict[int | None, tuple[str, ...]] = {None: ()}
    for id, parent, text in rows:
        found[id] = (*found[parent], text)
    return {id: path for id, path in found.items() if id is not None}


def test_threads_that_write_one_conversation_lose_nothing(history: History) -> None:
    def write(name: int) -> None:
        mine = list[str]()
        for number in range(6):
            mine += [f"{name}-{number}", "a"]
            history.save("a", said(*mine))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    whole = {tuple(w for n in range(6) for w in (f"{name}-{n}", "a")) for name in range(4)}
    assert ways(history, "a") == whole
    assert len(history.list()) == 1


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
    messages = history.load("a")
    assert words(messages) == ["Before", "Yes."]
    assert media_of(messages)[0].data == PICTURE.data
    history.save("a", [*messages, asked("Now")])
    assert here(history) == ["Before", "Yes.", "Now"]
    history.delete("a")
    assert changed(history, "SELECT * FROM pictures") == []


LISTS = """
ALTER TABLE conversations ADD COLUMN version TEXT NOT NULL DEFAULT '';
ALTER TABLE conversations ADD COLUMN origin TEXT;
ALTER TABLE conversations ADD COLUMN branch INTEGER NOT NULL DEFAULT 1;
DELETE FROM conversations;
PRAGMA user_version = 1;
"""


def write_lists(
    history: History, talks: dict[str, tuple[str | None, float, list[dict[str, Any]]]]
) -> None:
    """A file of the version with lists: conversations by id, each with the one that it is a branch
    of, when it was changed, and its messages."""
    history.path.parent.mkdir()
    with closing(sqlite3.connect(history.path)) as database, database:
        database.executescript(f"{BEFORE_VERSIONS} DELETE FROM messages; {LISTS}")
        database.execute("INSERT INTO pictures VALUES (?, ?)", (PICTURE.digest, PICTURE.data))
        for id, (origin, updated, messages) in talks.items():
            head = (id, f"title {id}", "tiny", updated - 1, updated, "", origin, 1)
            database.execute("INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?, ?, ?)", head)
            for number, message in enumerate(messages):
                text = json.dumps(message)
                row = (id, number, text, str(message["content"]))
                database.execute("INSERT INTO messages VALUES (?, ?, ?, ?)", row)
            database.execute("INSERT INTO uses VALUES (?, ?)", (id, PICTURE.digest))


def raw(*texts: str) -> list[dict[str, Any]]:
    return [
        {"role": ("user", "assistant")[n % 2], "content": text, "mood": "glad"}
        for n, text in enumerate(texts)
    ]


def test_branches_of_a_file_with_lists_go_into_their_origin(history: History) -> None:
    system = {"role": "system", "content": "Be brief."}
    write_lists(
        history,
        {
            "a": (None, 5.0, [system, *raw("q", "a", "2", "b")]),
            "b": ("a", 9.0, [system, *raw("q", "a", "3", "c", "4")]),
            "c": ("a", 4.0, raw("other", "d")),
            "d": ("a", 3.0, [system, *raw("q", "a", "2", "b")]),
            "e": ("gone", 2.0, raw("alone", "f")),
            "f": (None, 1.0, []),
            "g": ("a", 6.0, [system, *raw("q", "a", "3", "c", "5")]),
            "h": ("a", 7.0, raw("other", "d", "6")),
            "i": ("b", 6.5, [system, *raw("q", "a", "3")]),
        },
    )
    listed = [(each.id, each.title, each.turns, each.updated) for each in history.list()]
    assert listed == [
        ("a", "title a", 3, 9.0),
        ("e", "title e", 1, 2.0),
        ("f", "title f", 0, 1.0),
    ]
    assert here(history) == ["Be brief.", "q", "a", "3", "c", "4"]
    assert [len(place.branches) for place in history.places("a")] == [2, 1, 2, 1, 2]
    assert len(paths(history)) == 13  # each beginning is there once
    assert ways(history, "a") == {
        ("q", "a", "2", "b"),
        ("q", "a", "3", "c", "4"),
        ("q", "a", "3", "c", "5"),
        ("other", "d", "6"),
    }
    assert (here(history, "e"), here(history, "f")) == (["alone", "f"], [])
    (first, *_) = changed(history, "SELECT message FROM messages ORDER BY id")[0]
    assert json.loads(first)["mood"] == "glad"
    assert changed(history, "PRAGMA foreign_key_check") == []
    history.delete("e")
    history.delete("f")
    assert changed(history, "SELECT digest FROM pictures") == [(PICTURE.digest,)]
    history.delete("a")
    assert changed(history, "SELECT digest FROM pictures") == []


def test_branches_of_each_other_are_conversations(history: History) -> None:
    write_lists(history, {"a": ("b", 1.0, raw("q")), "b": ("a", 2.0, raw("q", "a"))})
    assert (here(history), here(history, "b")) == (["q"], ["q", "a"])


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
        database.execute("PRAGMA user_version = 3")
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
    ids = history.save("a", said(*"01234")).path
    history.save("b", [asked("", PICTURE)])
    stored = [json.dumps(raw).replace("DIGEST", PICTURE.digest) for raw, _, _ in NEWER]
    with closing(sqlite3.connect(history.path)) as database, database:
        for id, text in zip(ids, stored, strict=True):
            database.execute("UPDATE messages SET message = ? WHERE id = ?", (text, id))
        database.execute("INSERT INTO uses VALUES ('a', ?)", (PICTURE.digest,))
    messages = history.load("a")
    assert [(m.role, m.text) for m in messages] == [(role, text) for _, role, text in NEWER]
    history.save("a", [*messages[:4], asked("more")])
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
    history.save("a", TALK)
    changed(history, damage)
    messages = history.load("a")
    expected = ["Be brief.", "[cat.png: can no longer be read] What is THIS?", *words(TALK)[2:]]
    assert words(messages) == expected
    history.save("a", [*messages, asked("On")])
    assert words(history.load("a")) == [*expected, "On"]


def test_a_damaged_message_is_one_line_and_ends_no_list(history: History) -> None:
    history.save("b", TALK)
    for damage in ("{", "[]", "5", '{"role": "user"}', '{"role": 5, "content": "x"}', "null"):
        history.save(damage, said("x"))
        update = "UPDATE messages SET message = ? WHERE conversation = ?"
        with closing(sqlite3.connect(history.path)) as database, database:
            database.execute(update, (damage, damage))
        with pytest.raises(HistoryError, match="a message of the conversation is damaged"):
            history.load(damage)
        history.save(damage, said("y"))
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
            with pytest.raises(HistoryError, match="locked; try again"):
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
