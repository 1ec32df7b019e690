"""`kill -9` at any moment: what was said to be written is there, and whole."""

from pathlib import Path
from typing import Any

from tests.support.kills import (
    kill_converting,
    kill_learning,
    kill_saving,
    kill_training,
    kill_writing,
)
from tests.support.tally import tally
from tests.support.writing import Bench, writings

import pytest


def test_history(tmp_path: Path) -> None:
    with tally("history, kill -9") as count:
        kill_saving(tmp_path / "history.sqlite3", 100, 1, count)


def test_conversion(tiny: Path, tmp_path: Path) -> None:
    with tally("conversion, kill -9") as count:
        kill_converting(tiny, tmp_path / "out", 100, 1, count)


def test_training(shallow: Path, mixed_questions: Path, tmp_path: Path) -> None:
    with tally("fine-tuning, kill -9") as count:
        kill_training(shallow, mixed_questions, tmp_path, 10, count)


def test_learning(shallow: Path, tmp_path: Path) -> None:
    with tally("learned quantization, kill -9") as count:
        kill_learning(shallow, tmp_path, 20, count)


@pytest.mark.usefixtures("on_the_cpu")
def test_writing(shallow: Path, call: Any, tmp_path: Path) -> None:
    commands = writings(tmp_path / "inputs", shallow)
    for name in ("caption", "evaluate", "document"):
        with tally(f"{name}, kill -9") as count:
            bench = Bench(call, commands[name], tmp_path / name)
            kill_writing(bench, 4, 1, count)
