"""Fine-tuning learns the answers, and nothing else; goes on after a crash as if there had been
none."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from convert.random_checkpoint import make
from convert.tiny.conversations import write_questions
from smolvlm_mlx import Options, generate, load
from smolvlm_mlx.checkpoint.choices import Part
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.errors import TrainingError
from smolvlm_mlx.events import Work
from smolvlm_mlx.training.loop import Record, loss_sum
from smolvlm_mlx.training.plan import Method, Plan
from smolvlm_mlx.training.run import Run, draw_curve, prepare, write_curve
from tests.support.rows import SHORT, write_rows

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from PIL import Image

pytestmark = pytest.mark.usefixtures("mlx_lm_imported", "on_the_cpu")
PLAN = Plan(
    steps=6,
    batch_size=1,
    accumulate=2,
    max_tiles=2,
    validate_every=2,
    save_every=2,
    learning_rate=2e-3,
    validation_share=0.1,
)


@pytest.fixture(scope="module")
def quantized(shallow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints") / "8bit"
    convert(shallow, out, "8bit")
    return out


def losses(run: Run) -> list[tuple[float, float | None]]:
    return [(record.loss, record.validation_loss) for record in run.trainer.history]


# ---- what is trained


@pytest.mark.parametrize(
    "parts", [("decoder",), ("connector", "vision"), ("decoder", "connector", "vision")]
)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_only_the_chosen_parts_are_trained(
    method: Method, parts: tuple[Part, ...], shallow: Path, short_questions: Path, tmp_path: Path
) -> None:
    run = prepare(
        shallow, short_questions, tmp_path / "run", replace(PLAN, method=method, parts=parts)
    )
    prefixes = {"decoder": "language_model.", "connector": "connector.", "vision": "vision_model."}
    trained = dict(tree_flatten(run.model.trainable_parameters()))
    assert {
        part
        for part, prefix in prefixes.items()
        if any(name.startswith(prefix) for name in trained)
    } == {*parts}
    assert all(name.startswith(tuple(prefixes[part] for part in parts)) for name in trained)
    if method == "lora":
        assert {name.rpartition(".")[2] for name in trained} == {"lora_a", "lora_b"}


def test_what_is_trained_in_full_is_a_checkpoint(shallow: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", {"question": "a?", "answer": "a is 0"})
    plan = replace(PLAN, method="full", parts=("connector",), steps=1, validation_share=0)
    run = prepare(shallow, source, tmp_path / "out", plan)
    assert run.train() == tmp_path / "out" / "checkpoint"
    have, before = (
        load(folder, fuse=False)[0] for folder in (tmp_path / "out" / "checkpoint", shallow)
    )
    for name, weight in have.named_parameters().items():
        trained, untrained = (
            model.named_parameters()[name].astype(mx.bfloat16).astype(weight.dtype)
            for model in (run.model, before)
        )
        assert mx.array_equal(weight, trained), name
        is_same = mx.array_equal(weight, untrained).item()
        assert is_same == (not name.startswith("connector.")), name


@pytest.mark.parametrize(
    "method",
    [
        "lora",
        *(pytest.param(method, marks=pytest.mark.slow) for method in ("dora", "full", "qlora")),
    ],
)
def test_training_learns_a_few_answers_by_heart(
    method: str, shallow: Path, quantized: Path, tmp_path: Path
) -> None:
    rows = [{"question": f"{name}?", "answer": f"{name} is {n}"} for n, name in enumerate("ab")]
    source = write_rows(tmp_path / "rows.jsonl", *rows)
    plan = Plan(
        method="lora" if method == "qlora" else method,  # type: ignore[arg-type]
        rank=16,
        steps=18,
        batch_size=2,
        accumulate=1,
        learning_rate=2e-2 if method != "full" else 3e-3,
        validation_share=0,
    )
    base = quantized if method == "qlora" else shallow
    run = prepare(base, source, tmp_path / "out", plan)
    result = run.train()
    assert run.trainer.history[-1].loss < 0.05 < run.trainer.history[0].loss
    assert result is not None
    model, processor = load(result) if method == "full" else load(base, adapter=result)
    for row in rows:
        assert (
            generate(model, processor, row["question"], Options(max_tokens=40)).strip()
            == row["answer"]
        )


def test_training_learns_beside_quantized_weights(quantized: Path, tmp_path: Path) -> None:
    """In a few steps, which on a CPU are slow."""
    source = write_rows(tmp_path / "rows.jsonl", {"question": "a?", "answer": "a is 0"})
    plan = Plan(
        rank=16, steps=6, batch_size=1, accumulate=1, learning_rate=2e-2, validation_share=0
    )
    run = prepare(quantized, source, tmp_path / "out", plan)
    result = run.train()
    assert run.trainer.history[-1].loss < 0.6 * run.trainer.history[0].loss
    model, processor = load(quantized, adapter=result)
    plain, _ = load(quantized)
    learned, before = (
        generate(one, processor, "a?", Options(max_tokens=8)) for one in (model, plain)
    )
    assert learned != before


def test_the_best_weights_are_kept(shallow: Path, tmp_path: Path) -> None:
    """What is validated has the form of what is learned, and another end: its loss falls at first
    and rises as that is learned by heart; the result is from between."""
    for name, answer in (("rows", "It is white"), ("others", "It is black")):
        write_rows(tmp_path / f"{name}.jsonl", {"question": "What?", "answer": answer})
    plan = Plan(rank=16, steps=24, batch_size=1, accumulate=1, learning_rate=2e-2, validate_every=4)
    run = prepare(
        shallow,
        tmp_path / "rows.jsonl",
        tmp_path / "run",
        plan,
        validation=tmp_path / "others.jsonl",
    )
    result = run.train()
    best = run.trainer.best
    assert best is not None
    assert best.step < 24
    model, _ = load(shallow, adapter=result, fuse=False)
    (batch,) = run.validation.all(2)
    assert best.validation_loss == pytest.approx(
        loss_sum(model, batch).item() / batch.tokens, rel=1e-5
    )


# ---- what stands beside it

HISTORY = [
    Record(1, 2.5, None, 1e-4, 30),
    Record(2, 2.0, 2.25, 2e-4, 31),
    Record(3, 1.5, None, 0, 7),
]


def test_what_is_left_out_is_written_before_training(shallow: Path, tmp_path: Path) -> None:
    """Of both files, with letters as they are, into a folder that was not there."""
    row = {"question": "?", "answer": "!"}
    data = write_rows(tmp_path / "data.jsonl", row, {**row, "image": "ü.png"})
    others = write_rows(tmp_path / "others.jsonl", {"question": "?"}, row)
    out = tmp_path / "new" / "out"
    run = prepare(shallow, data, out, replace(PLAN, batch_size=2), validation=others)
    assert [row.where for row in run.skipped] == ["data.jsonl:2", "others.jsonl:1"]
    training = run.train_in_steps()
    next(training)
    training.close()
    text = (out / "left-out.jsonl").read_text("utf-8")
    assert [json.loads(line) for line in text.splitlines()] == [vars(row) for row in run.skipped]
    assert "ü.png" in text


def test_the_curve_is_a_line_a_step(tmp_path: Path) -> None:
    write_curve(HISTORY, tmp_path / "loss.csv")
    assert (tmp_path / "loss.csv").read_text().splitlines() == [
        "step,loss,validation_loss,learning_rate,tokens",
        "1,2.5,,0.0001,30",
        "2,2.0,2.25,0.0002,31",
        "3,1.5,,0,7",
    ]


@pytest.mark.parametrize("validated", [True, False])
def test_the_curve_shows_both_losses(
    validated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they were measured, thin and with dots; without a line for what was not."""
    kind = pytest.importorskip("matplotlib.figure").Figure
    drawn, save = list[Any](), kind.savefig

    def savefig(self: Any, *arguments: Any, **options: Any) -> None:
        drawn.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(kind, "savefig", savefig)
    history = [replace(each, validation_loss=None) for each in HISTORY]
    draw_curve(HISTORY if validated else history, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (840, 480))
    (axes,) = drawn[0].axes
    lines = [
        (line.get_label(), line.get_xydata().tolist(), line.get_marker()) for line in axes.lines
    ]
    training = ("training", [[1, 2.5], [2, 2], [3, 1.5]], "None")
    assert lines == [training, *[("validation", [[2, 2.25]], "o")] * validated]
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.texts] == [label for label, *_ in lines]
    assert not legend.get_frame_on()
    said = (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale())
    assert said == ("step", "loss (nats per token)", "log")


def test_without_matplotlib_there_is_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    draw_curve(HISTORY, tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


# ---- stopping and going on


class CrashError(Exception):
    pass


@pytest.fixture(scope="module")
def whole(shallow: Path, short_questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing stopped."""
    with mx.stream(mx.cpu):
        run = prepare(
            shallow,
            short_questions,
            tmp_path_factory.mktemp("whole") / "whole",
            replace(PLAN, dropout=0.1),
        )
        run.train()
    return run


@pytest.mark.parametrize("crash_at", [1, 3, pytest.param(5, marks=pytest.mark.slow)])
def test_a_crashed_run_goes_on_bit_by_bit(
    crash_at: int, whole: Run, shallow: Path, short_questions: Path, tmp_path: Path
) -> None:
    plan, expected = replace(PLAN, dropout=0.1), whole.out / "adapter"

    def crash() -> None:
        for record in prepare(
            shallow, short_questions, tmp_path / "crashed", plan
        ).train_in_steps():
            if record.step == crash_at:
                raise CrashError

    with pytest.raises(CrashError):
        crash()
    resumed = prepare(shallow, short_questions, tmp_path / "crashed", plan)
    resume = crash_at > 2  # the first state is that of step 2
    result = resumed.train(resume=resume)
    assert losses(resumed) == losses(whole)
    assert result is not None
    assert expected is not None
    for name in ("adapters.safetensors", "../loss.csv"):
        assert (result / name).read_bytes() == (expected / name).read_bytes()


def test_a_stopped_run_keeps_its_last_step(
    shallow: Path, short_questions: Path, tmp_path: Path
) -> None:
    run = prepare(shallow, short_questions, tmp_path / "run", PLAN)
    training = Work(run.train_in_steps())
    for record in training:
        if record.step == 3:
            run.stop()
    assert training.result is None
    assert [path.name for path in (tmp_path / "run/run").glob("state-*")] == ["state-0000003"]
    resumed = prepare(shallow, short_questions, tmp_path / "run", PLAN)
    assert resumed.train(resume=True) == tmp_path / "run/adapter"
    assert [record.step for record in resumed.trainer.history] == [1, 2, 3, 4, 5, 6]


def test_a_run_may_be_stopped_before_its_first_step(
    whole: Run, shallow: Path, short_questions: Path, tmp_path: Path
) -> None:
    plan = replace(PLAN, dropout=0.1)
    run = prepare(shallow, short_questions, tmp_path / "run", plan)
    run.stop()
    assert run.train() is None
    resumed = prepare(shallow, short_questions, tmp_path / "run", plan)
    resumed.train(resume=True)
    assert losses(resumed) == losses(whole)


def test_a_closed_run_leaves_what_was_saved_last(
    shallow: Path, short_questions: Path, tmp_path: Path
) -> None:
    training = prepare(shallow, short_questions, tmp_path / "run", PLAN).train_in_steps()
    assert [next(training).step for _ in range(3)] == [1, 2, 3]
    training.close()
    assert [path.name for path in (tmp_path / "run/run").glob("state-*")] == ["state-0000002"]
    assert not (tmp_path / "run/loss.csv").exists()


def test_a_finished_run_is_not_overwritten(
    shallow: Path, short_questions: Path, tmp_path: Path
) -> None:
    plan = replace(PLAN, steps=2)
    result = prepare(shallow, short_questions, tmp_path / "run", plan).train()
    again = prepare(shallow, short_questions, tmp_path / "run", plan)
    assert again.train(resume=True) == result  # there is nothing left to do
    with pytest.raises(TrainingError, match="--resume"):
        prepare(shallow, short_questions, tmp_path / "run", plan).train()
    with pytest.raises(TrainingError, match="nothing to resume"):
        prepare(shallow, short_questions, tmp_path / "other", plan).train(resume=True)
    changed = replace(plan, learning_rate=1e-3, rank=4)
    with pytest.raises(TrainingError, match=r"begun with .*rank 8.*learning_rate 0\.002"):
        prepare(shallow, short_questions, tmp_path / "run", changed).train(resume=True)
    other = write_questions(tmp_path / "other", 6, "others", SHORT)
    with pytest.raises(TrainingError, match=r"begun with data "):
        prepare(shallow, other, tmp_path / "run", plan).train(resume=True)
    with pytest.raises(TrainingError, match=r"begun with base "):
        prepare(make(tmp_path / "base", seed=1), short_questions, tmp_path / "run", plan).train(
            resume=True
        )
