"""Commands that write files, with small inputs."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.tiny.conversations import write_questions
from smolvlm_mlx.inputs.media import Attachment
from smolvlm_mlx.inputs.messages import text_message, user_message
from smolvlm_mlx.tasks.history import History
from tests.support.cli import ENVIRONMENT
from tests.support.faults import CALLS, at_call, short
from tests.support.pictures import noise
from tests.support.places import ROOT
from tests.support.rows import write_rows
from tests.support.tally import Tally

# Of the commands.
NAMES = "caption|caption, csv|evaluate|document|convert|finetune|history export|/save".split("|")


@dataclass(frozen=True)
class Writing:
    """A command line that writes into a folder.

    Attributes:
        arguments: for this folder; again after an error, they go on.
        stdin: the same.
        grows: endings of files that may be there in part, and are gone on with.
    """

    arguments: Callable[[Path], list[object]]
    stdin: Callable[[Path], str] = lambda folder: ""
    grows: tuple[str, ...] = ()


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


def files_of(folder: Path) -> dict[str, bytes]:
    """What is in a folder and below, but for the state of a run."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "run" not in path.relative_to(folder).parts
    }


def writings(inputs: Path, base: Path) -> dict[str, Writing]:
    """The commands by name. `inputs` is a new folder, which also gets `history.sqlite3`; `base`: a
    checkpoint, which may be random."""
    pictures = inputs / "pictures"
    pictures.mkdir(parents=True)
    for seed in range(2):
        noise(40, 30, seed).save(pictures / f"{seed}.png")
    rows = [{"question": f"What is {n}?", "answers": ["a"]} for n in range(2)]
    questions = write_rows(inputs / "questions.jsonl", *map(json.dumps, rows))
    lessons = write_questions(inputs / "lessons", 4, "unit", ("text alone",))
    talk = [user_message("Look.", [Attachment(noise(30, 20))]), text_message("assistant", "Yes.")]
    History(inputs / "history.sqlite3").save("a1", talk)
    tiny, short = ("-m", base, "--max-tokens", 2), ("--max-tiles", 1)
    return {
        "caption": Writing(
            lambda out: ["caption", pictures, *tiny, *short, "-o", out / "a.jsonl"],
            grows=(".jsonl",),
        ),
        "caption, csv": Writing(
            lambda out: ["caption", pictures, *tiny, *short, "-o", out / "a.csv"],
            grows=(".jsonl",),
        ),
        "evaluate": Writing(
            lambda out: ["evaluate", questions, *tiny, "-o", out], grows=(".jsonl",)
        ),
        "document": Writing(
            lambda out: [
                *("document", pictures / "0.png", *tiny, *short),
                *("--output", "text", "-o", out / "a.txt"),
            ]
        ),
        "convert": Writing(lambda out: ["convert", base, out / "c"]),
        "finetune": Writing(
            lambda out: [
                *("finetune", lessons, out, "-m", base, "--steps", 2, "--batch-size", 2),
                *("--accumulate", 1, "--save-every", 1, "--validate-every", 1),
                *["--resume"] * bool(list(out.glob("run/state-*"))),
            ],
            grows=("left-out.jsonl", "loss.csv", "loss.png"),
        ),
        "history export": Writing(lambda out: ["history", "export", "a1", out / "h.json"]),
        "/save": Writing(
            lambda out: ["chat", *tiny, "--no-history"],
            lambda out: f"Hello\n/save {out / 's.json'}\n",
        ),
    }


MOST = 3  # calls of one kind, of one command: the first, the last and one between


class Bench:
    """Runs a command into new folders, and knows what it writes when nothing disturbs it.

    Args:
        call: the command line in this process, as the fixture of that name.
    """

    def __init__(self, call: Any, writing: Writing, folder: Path):
        self.call, self.writing, self.folder = call, writing, folder
        folder.mkdir()
        with ExitStack() as counted:
            out = self.new()
            counts = {name: counted.enter_context(at_call(out, name, (), short)) for name in CALLS}
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

    def start(self, out: Path, name: str = "write", nth: int = 0) -> subprocess.Popen[str]:
        """A process of its own, killed at this call."""
        command = [sys.executable, "-W", "ignore", "-m", "tests.support.faults"]
        arguments = map(str, (out, name, nth, *self.writing.arguments(out)))
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            env=ENVIRONMENT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(self.writing.stdin(out))
        process.stdin.close()
        process.stdin = None  # or communicate would flush it
        return process

    def some(self, name: str) -> list[int]:
        """Calls to disturb, from the first to the last."""
        last = self.counts[name]
        return sorted({1 + (last - 1) * part // (MOST - 1) for part in range(MOST)} if last else ())

    def check_told(self, count: Tally, code: int, err: str, note: object) -> None:
        """Count what a disturbed run says: nothing, or one line."""
        said = [line for line in err.splitlines() if line.startswith("smolvlm-mlx: ")]
        is_told = len(said) == code and "Traceback" not in err
        count.case(is_told, "wrong", f"{note}: {code}, {err[-300:]}")

    def check_left(self, count: Tally, out: Path, note: object) -> None:
        """Count what a run that did not end has left, beside hidden files, and what comes of going
        on."""
        found = {
            name: data
            for name, data in (files_of(out) if out.exists() else {}).items()
            if not is_hidden(name)
        }
        whole = {
            name: data for name, data in found.items() if not name.endswith(self.writing.grows)
        }
        count.case(whole.items() <= self.whole.items(), "wrong", f"{note}: left {sorted(whole)}")
        if found == self.whole:
            return
        out.mkdir(exist_ok=True)
        code, err = self.run(out)
        found = files_of(out)
        count.case((code, found) == (0, self.whole), "lost", f"{note}, again: {code}, {err[-300:]}")

    def check(
        self,
        count: Tally,
        out: Path,
        code: int,
        err: str,
        note: object,
        *,
        closed: bool = False,
    ) -> None:
        """Count a run that was disturbed: what it says, what is there, and what comes of going
        on. From a closed folder it cannot take away what is hidden; the next run does."""
        self.check_told(count, code, err, note)
        found = files_of(out) if out.exists() else {}
        hidden = {name for name in found if is_hidden(name)}
        count.case(closed or not hidden, "wrong", f"{note}: left {hidden}")
        if code == 0:
            visible = {name: data for name, data in found.items() if name not in hidden}
            count.case(visible == self.whole, "lost", f"{note}: {sorted(found)}")
        else:
            self.check_left(count, out, note)
