"""Disks that fill, fail, vanish or are held by another, and processes that are killed: what a
command has written is whole, goes on with the same command, or is not there; and it says so."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import cycle
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import HistoryError
from smolvlm_mlx.files import lock
from smolvlm_mlx.inputs.messages import text_message, user_message
from smolvlm_mlx.tasks.history import History
from tests.support.cli import ENVIRONMENT, start
from tests.support.faults import CALLS, ERRORS, Act, at_call, closes, file_limit, short, vanishes
from tests.support.places import ROOT
from tests.support.tally import Tally, tally
from tests.support.writing import Writing, files_of, writings

import pytest

pytestmark = pytest.mark.usefixtures("on_the_cpu", "mlx_lm_imported", "kept_here")
MOST = 5  # calls of one kind that are failed, of one command
EVERY = range(1, 2**63)


@pytest.fixture(scope="module")
def commands(shallow: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Writing]:
    return writings(tmp_path_factory.mktemp("writing") / "inputs", shallow)


@pytest.fixture
def inputs(commands: dict[str, Writing]) -> Path:
    """Where the history of the commands is."""
    return Path(str(commands["document"].arguments(Path())[1])).parents[1]


@pytest.fixture
def kept_here(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("data_folder", "cache_folder"):
        monkeypatch.setattr(f"smolvlm_mlx.tasks.history.{name}", lambda: inputs)


class Bench:
    """Runs a command into new folders, and knows what it writes when nothing disturbs it."""

    def __init__(self, call: Any, writing: Writing, folder: Path):
        self.call, self.writing, self.folder = call, writing, folder
        folder.mkdir()
        with ExitStack() as counted:
            out = self.new()
            counts = {
                name: counted.enter_context(at_call(out, name, (), short)) for name in CALLS
            }
            code, err = self.run(out)
        assert code == 0, err
        self.whole, self.counts = files_of(out), {name: n for name, (n,) in counts.items()}

    def new(self) -> Path:
        out = self.folder / str(len(list(self.folder.iterdir())))
        out.mkdir()
        return out

    def run(self, out: Path) -> tuple[int, str]:
        """The exit code and stderr."""
        code, _, err = self.call(*self.writing.arguments(out), stdin=self.writing.stdin(out))
        return code, err

    def some(self, name: str) -> list[int]:
        """Calls that are failed, from the first to the last."""
        last = self.counts[name]
        return sorted({1 + (last - 1) * part // (MOST - 1) for part in range(MOST)} if last else ())

    def check(self, count: Tally, out: Path, code: int, err: str, note: object) -> None:
        """Count a run that was disturbed: what it says, what is there, and what comes of going
        on."""
        said = [line for line in err.splitlines() if line.startswith("smolvlm-mlx: ")]
        is_told = len(said) == (code != 0) and code in (0, 1) and "Traceback" not in err
        count.case(is_told, "wrong", f"{note}: {code}, {err[-300:]}")
        found = files_of(out) if out.exists() else {}
        if code == 0:
            count.case(found == self.whole, "lost", f"{note}: {sorted(found)}")
            return
        whole = {name: data for name, data in found.items() if name not in self.writing.grows}
        count.case(whole.items() <= self.whole.items(), "wrong", f"{note}: left {sorted(whole)}")
        out.mkdir(exist_ok=True)
        code, err = self.run(out)
        found = files_of(out)
        count.case((code, found) == (0, self.whole), "lost", f"{note}, again: {code}, {err[-300:]}")


@pytest.fixture(params=["caption", "caption, csv", "evaluate", "document", "convert", "finetune",
                        "history export", "/save"])
def bench(request: pytest.FixtureRequest, call: Any, commands: dict[str, Writing], tmp_path: Path) -> Bench:
    return Bench(call, commands[request.param], tmp_path / "out")


def disturb(bench: Bench, count: Tally, name: str, act: Callable[[Path], Act], note: str) -> None:
    for nth in bench.some(name):
        out = bench.new()
        with at_call(out, name, {nth}, act(out)):
            code, err = bench.run(out)
        out.parent.chmod(0o700)
        if out.exists():
            out.chmod(0o700)
        bench.check(count, out, code, err, f"{note} at {name} {nth}")


def test_each_call_fails_once(bench: Bench, request: pytest.FixtureRequest) -> None:
    errors = cycle(ERRORS.items())
    with tally(f"{request.node.callspec.id}: errors") as count:
        for name in CALLS:
            error, act = next(errors)
            disturb(bench, count, name, lambda out, act=act: act, error)


def test_short_writes(bench: Bench, request: pytest.FixtureRequest) -> None:
    with tally(f"{request.node.callspec.id}: short writes") as count:
        disturb(bench, count, "write", lambda out: short, "short")
