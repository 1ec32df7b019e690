"""Disks that fill, fail, vanish or are held by another, and processes that are killed: what a
command has written is whole, goes on with the same command, or is not there; and it says so."""

import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import cache
from itertools import count as numbers
from itertools import cycle
from pathlib import Path
from typing import Any

from smolvlm_mlx.checkpoint import reader
from smolvlm_mlx.errors import HistoryError
from smolvlm_mlx.files import lock
from smolvlm_mlx.inputs.messages import text_message, user_message
from smolvlm_mlx.tasks import evaluation
from smolvlm_mlx.tasks.history import History
from tests.support.checkpoints import Loaded
from tests.support.faults import CALLS, ERRORS, Act, at_call, closes, file_limit, short, vanishes
from tests.support.pictures import noise
from tests.support.tally import Tally, tally
from tests.support.writing import NAMES, Bench, Writing, writings

import pytest
import typer

pytestmark = pytest.mark.usefixtures("on_the_cpu", "mlx_lm_imported", "kept_here", "loaded_once")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("writing") / "inputs"


@pytest.fixture(scope="module")
def commands(shallow: Path, inputs: Path) -> dict[str, Writing]:
    return writings(inputs, shallow)


@pytest.fixture
def kept_here(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("data_folder", "cache_folder"):
        monkeypatch.setattr(f"smolvlm_mlx.tasks.history.{name}", lambda: inputs)


load, load_once, build = reader.load, cache(reader.load), cache(typer.main.get_command)


@pytest.fixture
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """But what is trained, which changes; and the command line is built once."""

    def loaded(*arguments: Any, **options: Any) -> Loaded:
        return (load if "fuse" in options else load_once)(*arguments, **options)

    for module in (reader, evaluation):
        monkeypatch.setattr(module, "load", loaded)
    monkeypatch.setattr("typer.main.get_command", build)


@pytest.fixture(params=NAMES)
def bench(
    request: pytest.FixtureRequest, call: Any, commands: dict[str, Writing], tmp_path: Path
) -> Bench:
    return Bench(call, commands[request.param], tmp_path / "out")


def disturb(bench: Bench, count: Tally, name: str, act: Callable[[Path], Act], note: str) -> None:
    for nth in bench.some(name):
        out = bench.new()
        with at_call(out, name, {nth}, act(out)):
            code, err = bench.run(out)
        is_closed = out.exists() and not out.stat().st_mode & 0o200
        if is_closed:
            out.chmod(0o700)
        bench.check(count, out, code, err, f"{note} at {name} {nth}", closed=is_closed)


def test_each_call_fails_once(bench: Bench, request: pytest.FixtureRequest) -> None:
    errors = cycle(ERRORS.items())
    with tally(f"{request.node.callspec.id}: errors") as count:
        for name in CALLS:
            error, act = next(errors)
            disturb(bench, count, name, lambda out, act=act: act, error)  # type: ignore[misc]


def test_short_writes(bench: Bench, request: pytest.FixtureRequest) -> None:
    with tally(f"{request.node.callspec.id}: short writes") as count:
        disturb(bench, count, "write", lambda out: short, "short")


def test_a_disk_that_is_full(bench: Bench, request: pytest.FixtureRequest) -> None:
    """In the first byte of the largest file, and in its last."""
    largest = max(map(len, bench.whole.values()))
    with tally(f"{request.node.callspec.id}: full") as count:
        for size in (1, largest - 1):
            out = bench.new()
            with file_limit(size):
                code, err = bench.run(out)
            bench.check(count, out, code, err, f"{size} bytes")
            count.case(code == 1, "wrong", f"{size} bytes: {code}")


def test_a_folder_that_vanishes(bench: Bench, request: pytest.FixtureRequest) -> None:
    with tally(f"{request.node.callspec.id}: vanished") as count:
        disturb(bench, count, "write", vanishes, "vanished")
        disturb(bench, count, "replace", vanishes, "vanished")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_closed(bench: Bench, request: pytest.FixtureRequest) -> None:
    with tally(f"{request.node.callspec.id}: read-only") as count:
        disturb(bench, count, "write", closes, "closed")


HELD = {
    "caption": "a.jsonl",
    "caption, csv": "a.jsonl",
    "convert": "c",
    "finetune": "run",
}


@pytest.mark.parametrize("bench", [*HELD, "evaluate"], indirect=True)
def test_two_at_once(bench: Bench, request: pytest.FixtureRequest) -> None:
    """The second says so, and changes nothing."""
    name = request.node.callspec.id
    with tally(f"{name}: two at once") as count:
        out = bench.new()
        with lock(out / HELD.get(name, next(iter(bench.whole)))):
            code, err = bench.run(out)
            bench.check_told(count, code, err, "held")
            count.case("another run writes to it" in err, "wrong", err)
            count.case(not [path for path in out.iterdir() if path.name[0] != "."], "wrong", "held")
        bench.check_left(count, out, "held")


@pytest.mark.parametrize("bench", ["caption", "evaluate", "convert"], indirect=True)
def test_a_race(bench: Bench, request: pytest.FixtureRequest) -> None:
    """Of two processes that begin together at least one writes all."""
    with tally(f"{request.node.callspec.id}: race") as count:
        out = bench.new()
        processes = [bench.start(out) for _ in range(2)]
        ends = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
        count.case(0 in [code for _, code in ends], "wrong", ends)
        for err, code in ends:
            bench.check_told(count, code, err, "race")
            told = code == 0 or "another run writes to it" in err or "exists" in err
            count.case(told, "wrong", err)
        bench.check(count, out, 0, "", "race")


@pytest.mark.parametrize(
    "bench", ["caption", "caption, csv", "evaluate", "document", "convert", "/save"], indirect=True
)
def test_killed_while_writing(bench: Bench, request: pytest.FixtureRequest) -> None:
    """What it leaves is taken away by who writes there next."""
    with tally(f"{request.node.callspec.id}: kill -9") as count:
        for name in ("write", "replace"):
            for nth in bench.some(name)[-1:]:
                out = bench.new()
                process = bench.start(out, name, nth)
                _, err = process.communicate(timeout=60)
                note = f"killed at {name} {nth}"
                count.case(process.returncode == -signal.SIGKILL, "wrong", f"{note}: {err[-300:]}")
                bench.check_left(count, out, note)


# ---- databases


class Failing(sqlite3.Connection):
    """One whose calls fail from one of them on; it waits for nobody."""

    left = 2**62

    def _count(self) -> None:
        Failing.left -= 1
        if Failing.left < 0:
            raise sqlite3.OperationalError("database or disk is full")

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self._count()
        return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        self._count()
        return super().executemany(*arguments)

    def executescript(self, *arguments: Any) -> sqlite3.Cursor:
        self._count()
        return super().executescript(*arguments)


@pytest.fixture
def databases(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def impatient(path: Any, **options: Any) -> sqlite3.Connection:
        made: sqlite3.Connection = connect(path, **{**options, "timeout": 0.05, "factory": Failing})
        return made

    monkeypatch.setattr(sqlite3, "connect", impatient)
    monkeypatch.setattr(Failing, "left", 2**62)


@pytest.mark.usefixtures("databases")
def test_a_turn_is_in_the_history_or_is_not(tmp_path: Path) -> None:
    turns = [user_message("One?", []), text_message("assistant", "One.")]
    more = [*turns, user_message("Two?", []), text_message("assistant", "Two.")]
    with tally("history: errors") as count:
        for nth in numbers():
            history = History(tmp_path / f"{nth}.sqlite3")
            history.save("a", turns)
            Failing.left = nth
            try:
                history.save("a", more)
                kept = more
            except HistoryError:
                kept = turns
            is_over = Failing.left >= 0
            Failing.left = 2**62
            texts = [message.text for message in history.load("a")]
            count.case(texts == [message.text for message in kept], "lost", f"{nth}: {texts}")
            if is_over:
                break
    assert nth > 5


@pytest.mark.usefixtures("databases")
@pytest.mark.parametrize("name", ["history.sqlite3", "features.sqlite3"])
def test_trouble_with_a_database_costs_no_answer(
    name: str, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise(40, 30).save(tmp_path / "a.png")
    line = ("chat", "-m", "tiny", "--max-tokens", 4, "--image", tmp_path / "a.png")
    with tally(f"{name}: trouble") as count:
        answer = call(*line, "--no-history", stdin="Hello\n")[1]
        assert answer.strip()
        for trouble in ("locked", "damaged", "a folder"):
            folder = tmp_path / trouble
            folder.mkdir()
            for place in ("data_folder", "cache_folder"):
                monkeypatch.setattr(f"smolvlm_mlx.tasks.history.{place}", lambda at=folder: at)
            with closing(sqlite3.connect(":memory:")) as other:
                if trouble == "locked":
                    call(*line, stdin="Hello\n")
                    other.execute("ATTACH ? AS held", (str(folder / name),))
                    other.execute("PRAGMA held.locking_mode = EXCLUSIVE")
                    other.execute("BEGIN EXCLUSIVE")
                elif trouble == "damaged":
                    (folder / name).write_bytes(b"no database" * 1000)
                else:
                    (folder / name).mkdir()
                code, out, err = call(*line, stdin="Hello\n")
            count.case(out == answer, "lost", f"{trouble}: {out}")
            is_told = name in err or name.startswith("features")
            count.case(is_told and "Traceback" not in err and code in (0, 1), "wrong", err)
