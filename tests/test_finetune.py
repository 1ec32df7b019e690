"""`smolvlm-mlx finetune`: what is refused, what is left out, what it will take, and what it
writes."""

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert.tiny.conversations import write_questions
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.errors import TrainingError
from smolvlm_mlx.training.plan import PRESETS, Plan
from smolvlm_mlx.training.run import prepare
from tests.support.cli import start
from tests.support.rows import write_rows

import pytest
from PIL import Image

GOOD = {"question": "What is it?", "answer": "A red square."}


@pytest.fixture
def finetune(call: Any) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: exit code, stdout, stderr."""
    return lambda *arguments: call("finetune", *arguments)


def test_bad_rows_are_counted_and_listed(tiny: Path, tmp_path: Path, finetune: Any) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "red.png").read_bytes()[:40])
    data = write_rows(
        tmp_path / "data.jsonl",
        GOOD,
        {**GOOD, "image": "red.png", "split": False},
        {**GOOD, "image": "absent.png"},
        {**GOOD, "image": "broken.png"},
        {**GOOD, "question": "long " * 500},
        {"question": "Nothing?", "answer": ""},
        {"messages": [{"role": "user", "content": "No answer"}]},
        '{"question": "cut',
        {"messages": []},
        [1, 2],
    )
    code, out, err = finetune(data, tmp_path / "out", "-m", tiny, "--steps", 1, "--max-tokens", 400)
    assert (code, out.strip()) == (0, str(tmp_path / "out/adapter"))
    assert "2 conversations" in err
    assert "8 rows are left out" in err
    with Image.open(tmp_path / "out/loss.png") as curve:
        curve.verify()
    left_out = [
        json.loads(line) for line in (tmp_path / "out/left-out.jsonl").read_text().splitlines()
    ]
    assert [row["where"] for row in left_out] == [f"data.jsonl:{number}" for number in range(3, 11)]
    reasons = (
        "absent.png",
        "broken.png",
        "tokens, more than 400",
        "answer",
        "answer",
        "JSON",
        "neither",
        "list",
    )
    for row, reason in zip(left_out, reasons, strict=True):
        assert reason in row["reason"]


def test_how_many_rows_have_a_picture_is_said_before_training(
    tiny: Path, tmp_path: Path, finetune: Any
) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    data = write_rows(
        tmp_path / "data.jsonl",
        GOOD,
        {**GOOD, "image_path": "red.png"},
        {**GOOD, "img": "red.png"},
        {**GOOD, "bild": "red.png"},
        {"question": "What is it?", "anwser": "A red square.", "image": "red.png"},
        {"image": "red.png", "conversations": [{"from": "human", "value": "<image><image>What?"}]},
    )
    code, _, err = finetune(data, tmp_path / "out", "-m", tiny, "--estimate")
    assert code == 0
    assert "2 of 3 rows have a picture\n" in err
    assert err.splitlines()[-4:] == [
        "3 rows are left out:",
        "  data.jsonl:4: column 'bild' holds a picture that would be lost; rename it to image, "
        "or leave it out",
        "  data.jsonl:5: column 'anwser' is not known; rename it to answer",
        "  data.jsonl:6: 2 <image> in the messages, but 1 image",
    ]


@pytest.mark.parametrize(
    ("rows", "options", "reason"),
    [
        ([], (), "no rows"),
        ([{"question": "?"}], (), "none of 1 rows can be used; data.jsonl:1: no answer"),
        (
            [GOOD],
            ("--rank", "0", "--learning-rate", "-1"),
            "rank is 0, less than 1; learning_rate is -1.0",
        ),
        ([GOOD], ("--resume",), "nothing to resume"),
        ([GOOD], ("--validation", "absent.jsonl"), "absent.jsonl"),
        ([GOOD], ("--learning-rate", "1e30", "--steps", "20"), "the loss is"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    rows: list[object],
    options: tuple[str, ...],
    reason: str,
    tiny: Path,
    tmp_path: Path,
    finetune: Any,
) -> None:
    data = write_rows(tmp_path / "data.jsonl", *rows)
    code, _, err = finetune(data, tmp_path / "out", "-m", tiny, *options)
    assert code == 1
    assert err.strip().splitlines()[-1].startswith("smolvlm-mlx: ")
    assert reason in err
    assert "Traceback" not in err
    assert not (tmp_path / "out/adapter").exists()


def test_what_is_given_goes_before_a_preset(
    tiny: Path, tmp_path: Path, finetune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is the default, which the preset has not."""
    seen: list[Plan] = []

    def prepare(model: str, data: str, out: Path, plan: Plan, **others: Any) -> None:
        seen.append(plan)
        raise TrainingError("enough")

    monkeypatch.setattr("smolvlm_mlx.training.run.prepare_in_steps", prepare)
    for options in (
        (),
        ("--preset", "16gb"),
        (
            "--preset",
            "16gb",
            "--rank",
            8,
            "--no-checkpoint-layers",
            "--train",
            "decoder, vision",
            "--train",
            "connector",
        ),
    ):
        assert finetune("data.jsonl", tmp_path / "out", "-m", tiny, *options)[0] == 1
    preset = PRESETS["16gb"]
    parts = ("decoder", "vision", "connector")
    assert seen == [
        Plan(),
        Plan(**preset),
        Plan(**{**preset, "rank": 8, "checkpoint_layers": False, "parts": parts}),
    ]


def test_a_plan_names_all_that_is_wrong() -> None:
    with pytest.raises(
        TrainingError,
        match="method 'magic' is not one of lora, dora, full; parts nose: choose from dec",
    ):
        Plan(method="magic", parts=("nose",))  # type: ignore[arg-type]


def test_full_training_of_a_quantized_checkpoint_is_refused(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "8bit", "8bit")
    data = write_rows(tmp_path / "data.jsonl", GOOD)
    with pytest.raises(TrainingError, match="quantized weights cannot be trained in full"):
        prepare(tmp_path / "8bit", data, tmp_path / "out", Plan(method="full"))


def test_ctrl_c_keeps_the_step_and_resume_goes_on(tiny: Path, tmp_path: Path) -> None:
    data = write_questions(tmp_path / "data", 12, "unit", ("color", "text"))
    options = "--steps 300 --batch-size 1 --max-tiles 1 --accumulate 1".split()
    arguments = [data, tmp_path / "out", "-m", tiny, *options]
    with start("finetune", *arguments) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(b"step "):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read().decode()
        assert process.wait(60) == 130
    assert "--resume goes on" in rest
    assert "Traceback" not in rest
    (state,) = (tmp_path / "out/run").glob("state-*")
    done = int(state.name.removeprefix("state-"))
    assert 1 <= done < 300
    history = list(csv.DictReader((tmp_path / "out/loss.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in history] == list(range(1, done + 1))


def test_the_estimate_comes_first_and_may_be_all(tiny: Path, tmp_path: Path, finetune: Any) -> None:
    code, _, err = finetune(
        write_rows(tmp_path / "d.jsonl", GOOD),
        tmp_path / "out",
        "-m",
        tiny,
        "--estimate",
        "--preset",
        "8gb",
    )
    assert code == 0
    assert "memory, by estimate: 0.0" in err
    assert not (tmp_path / "out").exists()
