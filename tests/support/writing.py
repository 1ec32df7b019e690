"""Commands that write files, with small inputs."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convert.tiny.conversations import write_questions
from smolvlm_mlx.inputs.media import Attachment
from smolvlm_mlx.inputs.messages import text_message, user_message
from smolvlm_mlx.tasks.history import History
from tests.support.pictures import noise
from tests.support.rows import write_rows


@dataclass(frozen=True)
class Writing:
    """A command line that writes into a folder.

    Attributes:
        arguments: for this folder; again after an error, they go on.
        stdin: the same.
        grows: files that may be there in part, and are gone on with.
    """

    arguments: Callable[[Path], list[object]]
    stdin: Callable[[Path], str] = lambda folder: ""
    grows: tuple[str, ...] = ()


def files_of(folder: Path) -> dict[str, bytes]:
    """What is in a folder and below, but for the state of a run."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "run" not in path.relative_to(folder).parts
    }


def writings(inputs: Path, base: Path) -> dict[str, Writing]:
    """The commands by name. `inputs` is a new folder, which also gets `history.sqlite3`; `base`: a
    checkpoint to train."""
    pictures = inputs / "pictures"
    pictures.mkdir(parents=True)
    for seed in range(3):
        noise(40, 30, seed).save(pictures / f"{seed}.png")
    rows = [{"question": f"What is {n}?", "answers": ["a"]} for n in range(3)]
    questions = write_rows(inputs / "questions.jsonl", *map(json.dumps, rows))
    lessons = write_questions(inputs / "lessons", 4, "unit", ("text alone",))
    talk = [user_message("Look.", [Attachment(noise(30, 20))]), text_message("assistant", "Yes.")]
    History(inputs / "history.sqlite3").save("a1", talk)
    tiny, short = ("-m", "tiny"), ("--max-tokens", 4)
    return {
        "caption": Writing(
            lambda out: ["caption", pictures, *tiny, *short, "-o", out / "a.jsonl"],
            grows=("a.jsonl",),
        ),
        "caption, csv": Writing(
            lambda out: ["caption", pictures, *tiny, *short, "-o", out / "a.csv"],
            grows=("a.jsonl",),
        ),
        "evaluate": Writing(
            lambda out: ["evaluate", questions, *tiny, *short, "-o", out], grows=("tiny.jsonl",)
        ),
        "document": Writing(
            lambda out: [
                *("document", *sorted(pictures.iterdir()), *tiny, *short),
                *("--output", "text", "-o", out / "a.txt"),
            ]
        ),
        "convert": Writing(lambda out: ["convert", "tiny", out / "c"]),
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
            lambda out: ["chat", *tiny, *short, "--no-history"],
            lambda out: f"Hello\n/save {out / 's.json'}\n",
        ),
    }
