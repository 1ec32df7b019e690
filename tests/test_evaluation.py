"""An evaluation scores each answer by its metric, asks each question once however often it is
stopped, and hides no failure."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

from smolvlm_mlx import Options, generate, load
from smolvlm_mlx.data.rows import Row, read_rows
from smolvlm_mlx.data.samples import make_sample
from smolvlm_mlx.errors import EvaluationError, GenerationError
from smolvlm_mlx.events import Work
from smolvlm_mlx.inputs.processor import Processor
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.tasks import evaluation
from smolvlm_mlx.tasks.evaluation import Answer, Result, Score, evaluate, evaluate_in_steps
from tests.support.rows import write_rows

import pytest
from PIL import Image

ROWS: list[dict[str, Any]] = [
    {"image": "red.png", "question": "What color?", "answer": "red", "category": "color"},
    {"question": "How many?", "answers": ["2", "two"], "category": "number"},
    {"question": "Which?", "choices": ["cat", "dog"], "answer": "dog", "category": "choice"},
    {"question": "Which one?", "choices": ["cat", "dog"], "answer": "A", "category": "choice"},
    {"image": "red.png", "question": "What shape?", "answer": "square", "category": "color"},
    {"messages": [{"role": "user", "content": "Say é."}, {"role": "assistant", "content": "é"}]},
]
QUESTIONS = ["What color?", "How many?", "Which?", "Which one?", "What shape?", "Say é."]
RIGHT = dict(zip(QUESTIONS, ["red", "two", "I think (B)", "A. cat", "square", "é"], strict=True))
SOME = {**RIGHT, "Which?": "A", "What shape?": "circle"}
Fake = Callable[..., list[str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    return write_rows(folder / "questions.jsonl", *ROWS)


@pytest.fixture(scope="module")
def processor(tiny: Path) -> Processor:
    return load(tiny)[1]


@pytest.fixture
def fake(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Checkpoints by name that reply what is given for each question, or raise it; returns the list
    of questions asked."""

    def fake(**models: dict[str, str | Exception]) -> list[str]:
        asked: list[str] = []

        def answer(model: str, processor: Processor, inputs: Any, options: Options) -> str:
            prompt = processor.tokenizer.decode(inputs.input_ids)
            (question,) = (question for question in QUESTIONS if question in prompt)
            asked.append(question)
            reply = models[model][question]
            if isinstance(reply, Exception):
                raise reply
            return f" {reply}\n"

        monkeypatch.setattr(
            evaluation, "load", lambda model, *_, **__: (Path(model).name, processor)
        )
        monkeypatch.setattr(evaluation, "generate", answer)
        return asked

    return fake


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# ---- scores


def test_scores_by_category(data: Path, fake: Fake, tmp_path: Path) -> None:
    fake(tiny=SOME)
    result = evaluate("tiny", data, tmp_path / "out.jsonl")
    assert result.score == Score(6, 4 / 6)
    assert result.categories == {
        "color": Score(2, 0.5),
        "number": Score(1, 1),
        "choice": Score(2, 0.5),
        "": Score(1, 1),
    }
    assert list(result.categories) == ["color", "number", "choice", ""]
    assert result.answers[1] == Answer("questions.jsonl:2", "number", "two", ("2", "two"), 1.0)
    assert result.answers[4] == Answer(
        "questions.jsonl:5", "color", "circle", ("square",), 0.0, image=True
    )


@pytest.mark.parametrize(
    ("metric", "scores"),
    [("auto", [1, 1, 1, 1, 1, 1]), ("exact", [1, 1, 0, 0, 1, 1]), ("choice", [1, 1, 1, 1, 1, 1])],
)
def test_auto_is_choice_where_there_are_choices(
    metric: str, scores: list[float], data: Path, fake: Fake, tmp_path: Path
) -> None:
    fake(tiny=RIGHT)
    assert [
        a.score for a in evaluate("tiny", data, tmp_path / "out.jsonl", metric=metric).answers
    ] == scores


# The ends are the roots of (mean - p)^2 = 1.96^2 p (1 - p) / count.
WILSON = [
    (10, 0.5, 0.236590, 0.763410),
    (4, 0.25, 0.045586, 0.699364),
    (6, 4 / 6, 0.299988, 0.903231),
]


@pytest.mark.parametrize(
    ("count", "mean", "low", "high"),
    [*WILSON, (10, 0.0, 0.0, 0.277540), (10, 1.0, 0.722460, 1.0), (1, 1, 0.206543, 1)],
)
def test_the_interval_is_wilsons(count: int, mean: float, low: float, high: float) -> None:
    found = Score(count, mean).interval
    assert found == pytest.approx((low, high), abs=1e-6)
    assert 0 <= found[0] < found[1] <= 1


def test_two_checkpoints_are_compared_question_by_question(
    data: Path, fake: Fake, tmp_path: Path
) -> None:
    fake(first=SOME, second=RIGHT)
    first, second = (evaluate(name, data, tmp_path / name) for name in ("first", "second"))
    assert first.agreement(second) == second.agreement(first) == 4 / 6
    # Of 0, 0, 1, 0, 1, 0.
    assert second.difference(first) == pytest.approx((1 / 3, 1.96 * (4 / 15 / 6) ** 0.5))
    assert first.difference(second)[0] == pytest.approx(-1 / 3)
    assert first.difference(first) == (0, 0)
    assert Result("one", first.answers[:1]).difference(Result("one", second.answers[:1])) == (0, 0)


def test_the_checkpoint_is_loaded_as_it_is_asked_for(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: Any, **named: Any) -> None:
        raise GenerationError(repr((arguments, named)))

    monkeypatch.setattr(evaluation, "load", load)
    with pytest.raises(GenerationError) as told:
        evaluate(
            "a", data, tmp_path / "a", adapter="b", dtype="float16", revision="c", memory="3GB"
        )
    assert str(told.value) == repr((("a", "float16", "c"), {"adapter": "b", "memory": "3GB"}))


# ---- stopped and going on


@pytest.mark.parametrize("crash_at", range(6))
@pytest.mark.parametrize("tail", [b"", b'{"where": "que', '{"where": "é'.encode()[:-1]])
def test_a_stopped_run_asks_only_what_is_missing(
    tail: bytes, crash_at: int, data: Path, fake: Fake, tmp_path: Path
) -> None:
    fake(tiny=RIGHT)
    whole = evaluate("tiny", data, tmp_path / "whole.jsonl")
    stopped = tmp_path / "stopped.jsonl"
    fake(tiny={**RIGHT, QUESTIONS[crash_at]: RuntimeError("crash")})
    with pytest.raises(RuntimeError, match="crash"):
        evaluate("tiny", data, stopped)
    stopped.write_bytes(stopped.read_bytes() + tail)
    asked = fake(tiny=RIGHT)
    work = Work(evaluate_in_steps("tiny", data, stopped))
    # Each answer is in the file at once.
    calls = [(step.done, step.total, stopped.read_bytes().count(b"\n") - 1) for step in work]
    assert work.result == whole
    assert asked == QUESTIONS[crash_at:]
    assert calls == [(done, 6, done) for done in range(crash_at + 1, 7)]
    assert stopped.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(("kept", "missing"), [(-1, 1), (-5, 1), (-1000, 6), (100, 6), (0, 6)])
def test_a_file_cut_off_anywhere(
    kept: int, missing: int, data: Path, fake: Fake, tmp_path: Path
) -> None:
    fake(tiny=RIGHT)
    file = tmp_path / "new" / "folder" / "out.jsonl"
    whole, text = evaluate("tiny", data, file), file.read_bytes()
    file.write_bytes(text[:kept])
    asked = fake(tiny=RIGHT)
    assert evaluate("tiny", data, file) == whole
    assert file.read_bytes() == text
    assert asked == QUESTIONS[6 - missing :]


def test_any_answer_can_be_read_again(fake: Fake, data: Path, tmp_path: Path) -> None:
    """Among them line ends that JSON leaves as they are, and halves of a pair."""
    odd = {**RIGHT, "What color?": "a\u2028b\x85c\r\nd", "Which?": "\ud800", "How many?": '"\\\x00'}
    fake(tiny=odd)
    first = evaluate("tiny", data, tmp_path / "out.jsonl")
    asked = fake(tiny=odd)
    assert evaluate("tiny", data, tmp_path / "out.jsonl") == first
    assert asked == []
    assert [answer.prediction for answer in first.answers] == [
        odd[question] for question in QUESTIONS
    ]
    assert '"é"' in (tmp_path / "out.jsonl").read_text("utf-8")  # as people read it


def test_pictures_in_memory_are_the_same_the_next_time(fake: Fake, tmp_path: Path) -> None:
    """As rows of a folder or hub dataset have them."""

    def rows() -> list[Row]:
        return [
            Row(
                "set:1",
                {"image": Image.new("RGB", (64, 64)), "question": "What color?", "answer": "red"},
            )
        ]

    kept = rows()  # so that the next picture is elsewhere in memory
    fake(tiny=RIGHT)
    first = evaluate("tiny", kept, tmp_path / "out.jsonl")
    asked = fake(tiny=RIGHT)
    assert evaluate("tiny", rows(), tmp_path / "out.jsonl") == first
    assert asked == []


def test_weights_that_cannot_be_looked_at_are_left_to_who_loads_them(
    fake: Fake, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model.safetensors").symlink_to(tmp_path / "nowhere")
    fake(tiny=RIGHT)
    assert evaluate(tmp_path / "tiny", data, tmp_path / "out.jsonl").score.mean == 1
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["weights"] == ""


def test_another_part_of_a_dataset_is_other_data(fake: Fake, tmp_path: Path) -> None:
    """Its rows are at the same places, and mappings that are read from disk."""
    fake(tiny=RIGHT)
    parts = [
        [Row("set:1", MappingProxyType({"question": "Which?", "answer": answer}))]
        for answer in "ab"
    ]
    evaluate("tiny", parts[0], tmp_path / "out.jsonl")
    with pytest.raises(EvaluationError, match=r"\(data differ\)"):
        evaluate("tiny", parts[1], tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("model", {"model_path": "{folder}/../again/tiny"}),
        ("data", {"data": "{folder}/fewer.jsonl"}),
        ("metric", {"metric": "exact"}),
        ("options", {"options": Options(max_tokens=3)}),
        ("image_options", {"image_options": ImageOptions(split=False)}),
        ("dtype", {"dtype": "float32"}),
        ("revision", {"revision": "main"}),
        ("adapter", {"adapter": "an/adapter"}),
        ("weights", {}),
    ],
)
def test_another_runs_answers_are_not_taken(
    name: str, changed: dict[str, Any], data: Path, fake: Fake, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    weights, file = folder / "model.safetensors", tmp_path / "out.jsonl"
    weights.write_bytes(b"weights")
    write_rows(folder / "fewer.jsonl", *ROWS[1:])
    fake(tiny=RIGHT)
    evaluate(folder, data, file)
    before = file.read_bytes()
    said = json.loads(before.splitlines()[0])
    assert [len(said[part]) for part in ("weights", "data")] == [16, 16]
    if name == "weights":  # trained again into the same folder
        os.utime(weights, (1, 1))
    arguments: dict[str, Any] = {"model_path": folder, "data": data, "results": file}
    arguments |= {
        key: v.format(folder=folder) if isinstance(v, str) else v for key, v in changed.items()
    }
    with pytest.raises(
        EvaluationError, match=rf"results of another evaluation \((.*, )?{name}.* differ\)"
    ):
        evaluate(**arguments)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"my notes\nand a line without an end",
        b"a line without an end",
        b"\x89PNG\r\n\x1a\n\xff",
        b'[1]\n{"a": 1}',
        b'{"model": "tiny"}\n',
        b"null\n",
        b"\n\n",
        json.dumps(ROWS[0]).encode() + b"\n" + json.dumps(ROWS[1]).encode(),
    ],
)
def test_a_file_of_another_kind_stays_as_it_is(
    content: bytes, data: Path, fake: Fake, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_bytes(content)
    asked = fake(tiny=RIGHT)
    with pytest.raises(
        EvaluationError, match="mine: holds something else than an evaluation's results"
    ):
        evaluate("tiny", data, tmp_path / "mine")
    assert (tmp_path / "mine").read_bytes() == content
    assert asked == []


# ---- what cannot be asked

BAD = [
    ROWS[0],
    {**ROWS[0], "image": "missing.png"},
    {"question": "How many?", "category": "number"},
    {"answer": "two"},
    ROWS[4],
]


def test_what_cannot_be_asked_is_wrong(data: Path, fake: Fake, call: Any, tmp_path: Path) -> None:
    rows = write_rows(data.parent / "bad.jsonl", *BAD)
    with rows.open("a") as file:
        file.write("no JSON\n")
    asked = fake(tiny={**RIGHT, "What shape?": GenerationError("too long")})
    result = evaluate("tiny", rows, tmp_path / "tiny.jsonl")
    assert asked == ["What color?", "What shape?"]
    assert [answer.score for answer in result.answers] == [1, 0, 0, 0, 0, 0]
    assert result.categories == {"color": Score(3, 1 / 3), "number": Score(1, 0), "": Score(2, 0)}
    reasons = ["", "missing.png", "no answer", "neither messages", "too long", "no JSON"]
    for answer, reason in zip(result.answers, reasons, strict=True):
        assert bool(answer.error) == bool(reason)
        assert reason in answer.error
    code, out, err = call("evaluate", rows, "-m", "tiny", "--out", tmp_path)
    assert (code, table(out)[4]) == (1, ["all", "6", "16.7", "(3.0", "to", "56.4)"])
    assert err.splitlines() == [
        "5 rows could not be asked, and count as wrong for tiny:",
        *(f"  {answer.where}: {answer.error}" for answer in result.answers if answer.error),
    ]
    assert (
        json.loads(call("evaluate", rows, "-m", "tiny", "--out", tmp_path, "--json")[1])[0][
            "failed"
        ]
        == 5
    )


def test_what_failed_is_asked_again(fake: Fake, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[0], {**ROWS[0], "image": "later.png"})
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    asked = fake(tiny=RIGHT)
    for scores in ([1, 0], [1, 0]):
        result = evaluate("tiny", rows, tmp_path / "out.jsonl")
        assert [answer.score for answer in result.answers] == scores
    shutil.copy(tmp_path / "red.png", tmp_path / "later.png")
    assert evaluate("tiny", rows, tmp_path / "out.jsonl").score == Score(2, 1)
    assert evaluate("tiny", rows, tmp_path / "out.jsonl").failed == []
    assert len(asked) == 2


def test_a_picture_that_would_be_lost_is_told_and_not_asked(
    data: Path, fake: Fake, call: Any, tmp_path: Path
) -> None:
    """Understood where the column means one thing, as `image_path` does."""
    rows = write_rows(
        data.parent / "columns.jsonl",
        {"image_path": "red.png", "question": "What color?", "answer": "red"},
        {"bild": "red.png", "question": "What color?", "answer": "red"},
        {"question": "How many?", "anwser": "2"},
        {"question": "Which?", "choices": ["cat", "dog"], "answer": "bird"},
    )
    asked = fake(tiny=RIGHT)
    code, out, err = call("evaluate", rows, "-m", "tiny", "--out", tmp_path)
    assert (code, asked) == (1, ["What color?"])
    assert "1 of 4 rows have a picture." in out
    assert err.splitlines() == [
        "3 rows could not be asked, and count as wrong for tiny:",
        "  columns.jsonl:2: column 'bild' holds a picture that would be lost; rename it to image, "
        "or leave it out",
        "  columns.jsonl:3: column 'anwser' is not known; rename it to answer",
        "  columns.jsonl:4: answer 'bird' is neither one of the 2 choices nor the letter of one",
    ]
    (summary,) = json.loads(call("evaluate", rows, "-m", "tiny", "--out", tmp_path, "--json")[1])
    assert (summary["failed"], summary["images"], summary["videos"]) == (3, 1, 0)


def test_auto_is_the_metric_of_the_benchmark(fake: Fake, tmp_path: Path) -> None:
    """DocVQA's lets a letter be wrong, VQA's counts people, OCRBench's finds the words within."""
    picture = Image.new("RGB", (64, 64))
    docvqa = {"questionId": 1, "question": "What color?", "answers": ["reed"], "image": picture}
    answers = [{"answer": answer} for answer in ("2", "two", "3", "", "", "", "", "", "", "")]
    vqa = {"question": "How many?", "answers": answers, "image": picture, "answer_type": "number"}
    vqa["multiple_choice_answer"] = "2"
    ocr = {"question": "What shape?", "answer": ["quar"], "image": picture, "dataset": "IIIT5K"}
    ocr["question_type"] = "Regular Text Recognition"
    fake(tiny=RIGHT)
    rows = [Row(f"set:{number}", raw) for number, raw in enumerate((docvqa, vqa, ocr))]
    result = evaluate("tiny", rows, tmp_path / "auto.jsonl")
    assert [answer.score for answer in result.answers] == pytest.approx([0.75, 0.6, 1])
    assert list(result.categories) == ["", "number", "Regular Text Recognition"]
    exact = evaluate("tiny", rows, tmp_path / "exact.jsonl", metric="exact")
    assert [answer.score for answer in exact.answers] == [0, 1, 0]


def test_what_cannot_be_shown_counts_in_the_category_of_its_benchmark(
    fake: Fake, tmp_path: Path
) -> None:
    raw = {"image": "missing.png", "question": "Which?", "choices": ["cat", "dog"], "answer": 1}
    raw |= {"hint": "", "lecture": "", "category": "Animals", "subject": "natural science"}
    fake(tiny=RIGHT)
    result = evaluate("tiny", [Row("set:1", raw, tmp_path)], tmp_path / "out.jsonl")
    assert result.categories == {"natural science": Score(1, 0)}
    assert "missing.png" in result.failed[0].error
    assert result.shown == (1, 0)


def test_nobodys_words_are_within_no_answer(fake: Fake, tmp_path: Path) -> None:
    fake(tiny=RIGHT)
    row = Row("set:1", {"question": "Which?", "answers": ["", "bird"]})
    assert evaluate("tiny", [row], tmp_path / "out.jsonl", metric="contains").score.mean == 0


# ---- the command line


def test_two_checkpoints_side_by_side(data: Path, fake: Fake, call: Any, tmp_path: Path) -> None:
    fake(first=SOME, second=RIGHT)
    code, out, err = call(
        "evaluate", data, "-m", "first", "-m", "second", "--out", tmp_path / "new" / "out"
    )
    assert (code, err) == (0, "")
    assert table(out) == [
        ["category", "questions", "first", "second"],
        ["color", "2", "50.0", "100.0"],
        ["number", "1", "100.0", "100.0"],
        ["choice", "2", "50.0", "100.0"],
        ["-", "1", "100.0", "100.0"],
        "all 6 66.7 (30.0 to 90.3) 100.0 (61.0 to 100.0)".split(),
        "difference +33.3 ± 41.3".split(),
        "same answers 66.7".split(),
        "Per cent, with 95 per cent intervals. 2 of 6 rows have a picture.".split(),
    ]
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == [
        "first.jsonl",
        "second.jsonl",
    ]


def test_json_and_limit(data: Path, fake: Fake, call: Any, tmp_path: Path) -> None:
    asked = fake(first=SOME, second=RIGHT)
    code, out, err = call(
        "evaluate", data, "-m", "first", "-m", "second", "--out", tmp_path, "--limit", 3, "--json"
    )
    assert (code, err) == (0, "")
    assert asked == QUESTIONS[:3] * 2
    categories = {"color": {"count": 1, "mean": 1.0}, "number": {"count": 1, "mean": 1.0}}
    first, second = json.loads(out)
    assert first == {
        "model": "first",
        "count": 3,
        "mean": 2 / 3,
        "interval": list(Score(3, 2 / 3).interval),
        "failed": 0,
        "images": 1,
        "videos": 0,
        "categories": {**categories, "choice": {"count": 1, "mean": 0.0}},
        "agreement": 1.0,
    }
    assert (second["mean"], second["agreement"]) == (1.0, 2 / 3)


def test_no_such_metric(data: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no questions to ask"):
        evaluate("tiny", [], tmp_path / "out.jsonl")
    with pytest.raises(
        EvaluationError, match="metric 'nonsense' is not one of auto, vqa, vqav2, anls,"
    ):
        evaluate("tiny", data, tmp_path / "out.jsonl", metric="nonsense")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-m", "b", "--adapter", "x"], "--adapter belongs to one checkpoint"),
        (
            ["--out", "{data}"],
            "questions.jsonl/a.jsonl: cannot be written (File exists)",
        ),
        (
            ["--out", "{folder}/taken"],
            "{folder}/taken/a.jsonl: cannot be written (Is a directory)",
        ),
    ],
)
def test_errors_are_one_line(arguments: list[str], reason: str, data: Path, call: Any) -> None:
    (data.parent / "taken" / "a.jsonl").mkdir(parents=True, exist_ok=True)
    code, out, err = call(
        "evaluate",
        data,
        "-m",
        "a",
        *(argument.format(data=data, folder=data.parent) for argument in arguments),
    )
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("smolvlm-mlx: ")
    assert reason.format(data=data, folder=data.parent) in err


def test_a_real_checkpoint(tiny: Path, data: Path, call: Any, tmp_path: Path) -> None:
    arguments = (data, "-m", tiny, "--out", tmp_path, "--limit", 4, "-n", 5)
    code, out, err = call("evaluate", *arguments)
    assert (code, err) == (0, "")
    (file,) = tmp_path.iterdir()
    model, processor = load(tiny)
    samples = [make_sample(row) for row in read_rows(data)[:4]]
    want = [
        generate(model, processor, sample.messages, Options(max_tokens=5)).strip()
        for sample in samples
    ]
    assert [json.loads(line)["prediction"] for line in file.read_text().splitlines()[1:]] == want
    assert len({*want}) > 1
    assert call("evaluate", *arguments) == (code, out, err)
