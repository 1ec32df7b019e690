"""Folders of pictures: every answer is what the picture would get alone, whatever is stopped,
doubled or broken."""

import contextlib
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from convert.tiny.scenes import make_scene
from convert.tiny.world import draw
from smolvlm_mlx import Options, generate, stream_generate
from smolvlm_mlx.errors import DataError, EngineError, GenerationError
from smolvlm_mlx.events import Work
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.inputs.media import attach
from smolvlm_mlx.inputs.messages import user_message
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.tasks import captions
from smolvlm_mlx.tasks.captions import TASKS, Captioner, Task, shorten
from smolvlm_mlx.tasks.folders import find_files
from smolvlm_mlx.tasks.lines import write_lines
from tests.support.checkpoints import Loaded
from tests.support.cli import check_refused
from tests.support.pictures import PICTURE, encoded, tall
from tests.support.places import ROOT
from tests.support.processes import Group
from tests.support.videos import encode_video

import mlx.core as mx
import numpy as np
import pytest

DESCRIBE = Task("Describe the picture.", 64)
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
SCHEMA = {
    "type": "object",
    "properties": {"n": DIGIT},
    "required": ["n"],
    "additionalProperties": False,
}


def draw_pictures(folder: Path, count: int, start: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        draw(make_scene(Random(f"caption {number}"))).save(folder / f"{number:04d}.png")
    return find_files([folder])[0]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_pictures(tmp_path_factory.mktemp("pictures"), 8)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "MOST_FILES", 5)


ALONE: dict[tuple[Path, Task], str] = {}


def alone(bundled: Loaded, path: Path, task: Task = DESCRIBE) -> str:
    """The answer about one picture, made once."""
    if (path, task) not in ALONE:
        ALONE[path, task] = answer_alone(bundled, path, task)
    return ALONE[path, task]


def answer_alone(bundled: Loaded, path: Path, task: Task) -> str:
    parts = [{"type": "image", "path": str(path)}, {"type": "text", "text": task.prompt}]
    return generate(
        *bundled, [{"role": "user", "content": parts}], Options(max_tokens=task.max_tokens)
    ).strip()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("small_windows")
def test_captions_are_those_of_each_picture_alone(
    bundled: Loaded, pictures: list[Path], tmp_path: Path
) -> None:
    work = Work(Captioner(*bundled, DESCRIBE).write_in_steps(pictures, tmp_path / "a.jsonl"))
    # Each window's lines are in the file at once.
    seen = [(step.done, step.total, len(read(tmp_path / "a.jsonl"))) for step in work]
    lines = work.result
    assert [line["path"] for line in lines] == [str(path) for path in pictures]
    assert [line["caption"] for line in lines] == [alone(bundled, path) for path in pictures]
    assert read(tmp_path / "a.jsonl") == lines
    assert seen == [(5, 8, 5), (8, 8, 8)]
    again = Captioner(*bundled, DESCRIBE).write_in_steps(pictures, tmp_path / "a.jsonl")
    assert [(step.done, step.total) for step in again] == [(8, 8)]


def test_a_batch_ends_one_by_one(bundled: Loaded, pictures: list[Path]) -> None:
    """Answers of several lengths, of pictures whose prompts have one length."""
    model, processor = bundled
    inputs = [processor(ask(path, DESCRIBE.prompt)) for path in pictures]
    length = max(
        (len(one.input_ids) for one in inputs), key=[len(one.input_ids) for one in inputs].count
    )
    same = [
        path for path, one in zip(pictures, inputs, strict=True) if len(one.input_ids) == length
    ]
    batch = [one for one in inputs if len(one.input_ids) == length]
    assert len(batch) > 3
    answers = Engine(model, processor).batch(batch, Options(max_tokens=64))
    assert [text.strip() for text, _ in answers] == [alone(bundled, path) for path in same]
    assert len({len(text) for text, _ in answers}) > 2
    assert all(reason == "stop" for _, reason in answers)
    short = Engine(model, processor).batch(batch, Options(max_tokens=3))
    assert all(reason == "length" for _, reason in short)
    assert all(answer[0].startswith(part[0]) for answer, part in zip(answers, short, strict=True))
    one = Engine(model, processor).batch(batch[:1], Options(max_tokens=1))
    assert answers[0][0].startswith(one[0][0])
    stopped = Engine(model, processor).batch(batch, Options(max_tokens=64, stop=(" in",)))
    assert [text for text, _ in stopped] == [text.partition(" in")[0] for text, _ in answers]


@pytest.mark.parametrize("together", [1, 2, 3])
def test_a_batch_is_as_large_as_its_keys_and_values_may_be(
    together: int,
    bundled: Loaded,
    pictures: list[Path],
    tmp_path: Path,
    asked: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (model, processor), task = bundled, Task(DESCRIBE.prompt, 1000)
    lengths = [len(processor(ask(path, task.prompt)).input_ids) for path in pictures]
    usual = max(lengths, key=lengths.count)
    files = [path for path, one in zip(pictures, lengths, strict=True) if one == usual]
    assert len(files) > 3
    cache = model.language_model.make_cache(usual + task.max_tokens)
    model.language_model.hidden_states(mx.array([[1]]), cache)
    one = sum(array.nbytes for layer in cache for array in layer.state)
    monkeypatch.setattr(captions, "CACHE_BYTES", one * together)
    Captioner(*bundled, task).write(files, tmp_path / "a.jsonl")
    whole, rest = divmod(len(files), together)
    assert asked == [together] * whole + [rest] * (rest > 0)


@pytest.mark.parametrize(
    ("room", "want"), [(3, [3, 6, 8]), (2.99, [2, 4, 6, 8]), (0.5, [1, 2, 3, 4, 5, 6, 7, 8])]
)
def test_a_window_is_as_large_as_its_pictures_may_be(
    room: float,
    want: list[int],
    bundled: Loaded,
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = 17 * 3 * bundled[1].settings.tile_size ** 2
    monkeypatch.setattr(captions, "WINDOW_BYTES", int(room * picture))
    steps = Captioner(*bundled, Task(DESCRIBE.prompt, 1)).write_in_steps(
        pictures, tmp_path / "a.jsonl"
    )
    assert [step.done for step in steps] == want


def test_a_batch_that_cannot_be(bundled: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = bundled
    two = [
        processor([{"role": "user", "content": text}]) for text in ("Hello", "Hello, how are you?")
    ]
    with pytest.raises(GenerationError, match="a batch has one length"):
        Engine(model, processor).batch(two, Options())
    text = replace(model.config.text_config, max_position_embeddings=two[0].input_ids.size)
    with monkeypatch.context() as patch:
        patch.setattr(model, "config", replace(model.config, text_config=text))
        with pytest.raises(GenerationError, match="a batch has one length, below"):
            Engine(model, processor).batch(two[:1], Options())
    kind = type(model.language_model)
    logits = kind.logits
    monkeypatch.setattr(kind, "logits", lambda self, hidden: logits(self, hidden) * float("nan"))
    with pytest.raises(GenerationError, match="not finite"):
        Engine(model, processor).batch(two[:1], Options())


def test_constrained_batches(bundled: Loaded, pictures: list[Path], tmp_path: Path) -> None:
    task = Task("How many shapes are there?", 40, SCHEMA)
    lines = Captioner(*bundled, task).write(pictures, tmp_path / "a.csv")
    assert all(type(line["n"]) is int for line in lines)
    inputs = bundled[1](ask(pictures[0], task.prompt))
    ((text, _),) = Engine(*bundled).batch([inputs], Options(max_tokens=40), schema=SCHEMA)
    assert json.loads(text)["n"] == lines[0]["n"]
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["n"]) for row in rows] == [
        (line["path"], str(line["n"])) for line in lines
    ]
    with pytest.raises(GenerationError, match="max_tokens 2: the shortest answer that fits the "):
        Captioner(*bundled, Task("How many?", 2, SCHEMA))


def ask(path: Path, text: str) -> list[dict[str, Any]]:
    return [
        {
            "role": "user",
            "content": [{"type": "image", "path": str(path)}, {"type": "text", "text": text}],
        }
    ]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("cuts", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_goes_on_where_it_was_cut_off(
    cuts: int, bundled: Loaded, pictures: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "a.jsonl"
    Captioner(*bundled, DESCRIBE).write(pictures[:6], out)
    whole, rng = out.read_bytes(), Random(0)
    for cut in (0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(cuts))):
        out.write_bytes(whole[:cut])
        Captioner(*bundled, DESCRIBE).write(pictures[:6], out)
        assert out.read_bytes() == whole


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize(
    ("whole", "piece", "again"),
    [("012", 0, 3), ("015", 0, 3), ("012", 9, 6), ("501", 9, 5), ("01234", 9, 1), ("", 9, 6)],
)
def test_a_window_with_a_cut_line_is_answered_again_as_a_whole(
    whole: str,
    piece: int,
    again: int,
    bundled: Loaded,
    pictures: list[Path],
    tmp_path: Path,
    asked: list[int],
) -> None:
    """Of 5 and 1 pictures; what is answered together stays together."""
    out, task = tmp_path / "a.jsonl", Task(DESCRIBE.prompt, 4)
    Captioner(*bundled, task).write(pictures[:6], out)
    assert sum(asked) == 6
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[int(number)] for number in whole) + lines[3][:piece])
    asked.clear()
    Captioner(*bundled, task).write(pictures[:6], out)
    assert sum(asked) == again
    assert out.read_bytes() == b"".join(lines)


@pytest.mark.usefixtures("small_windows")
def test_beside_a_cut_line_only_what_failed_is_asked_again(
    bundled: Loaded, pictures: list[Path], tmp_path: Path, asked: list[int]
) -> None:
    """Not all of the window that the failed one is in."""
    out, task = tmp_path / "a.jsonl", Task(DESCRIBE.prompt, 4)
    Captioner(*bundled, task).write(pictures[:6], out)
    lines = out.read_bytes().splitlines(keepends=True)
    failed = json.loads(lines[2])
    failed = {name: failed[name] for name in ("path", "sha256", "run")} | {"error": "no memory"}
    done = [*lines[:2], json.dumps(failed).encode() + b"\n", *lines[3:5]]
    out.write_bytes(b"".join(done) + lines[5][:9])
    asked.clear()
    Captioner(*bundled, task).write(pictures[:6], out)
    assert sum(asked) == 2
    assert sorted(out.read_bytes().splitlines(keepends=True)) == sorted(lines)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each batch had."""
    sizes: list[int] = []
    together = Engine.batch

    def counting(self: Engine, batch: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(batch))
        return together(self, batch, *arguments, **options)

    monkeypatch.setattr(Engine, "batch", counting)
    return sizes


@pytest.mark.parametrize(("rows", "want"), [(1, 1), (2, 2), (2.99, 2), (0.1, 1)])
def test_no_more_are_asked_together_than_their_keys_and_values_have_room(
    rows: float,
    want: int,
    bundled: Loaded,
    pictures: list[Path],
    tmp_path: Path,
    asked: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In float32 with 4 layers and 3 key-value heads of 32, a token takes 3,072 bytes."""
    processor = bundled[1]
    prompts = [processor(ask(path, DESCRIBE.prompt)).input_ids.size for path in pictures]
    length = max(prompts, key=prompts.count)
    same = [path for path, prompt in zip(pictures, prompts, strict=True) if prompt == length]
    row = 3072 * (length + DESCRIBE.max_tokens)
    monkeypatch.setattr(captions, "CACHE_BYTES", int(rows * row))
    Captioner(*bundled, DESCRIBE).write(same, tmp_path / "a.jsonl")
    assert max(asked) == want
    assert sum(asked) == len(same) > 3


def test_what_is_there_is_not_asked_again(
    bundled: Loaded, pictures: list[Path], tmp_path: Path, asked: list[int]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, path in enumerate(pictures[:3]):
        shutil.copy(path, folder / f"{number}.png")
    shutil.copy(pictures[0], folder / "again.png")
    first = Captioner(*bundled, DESCRIBE).write(find_files([folder])[0], tmp_path / "a.jsonl")
    assert sum(asked) == 3
    assert first[0]["caption"] == first[3]["caption"]
    shutil.copy(pictures[4], folder / "new.png")
    (folder / "2.png").rename(folder / "moved.png")
    lines = Captioner(*bundled, DESCRIBE).write(find_files([folder])[0], tmp_path / "a.jsonl")
    assert sum(asked) == 4
    assert len(lines) == len(read(tmp_path / "a.jsonl")) == 5


def test_an_odd_picture_ends_no_run_and_its_line_says_what_is_odd(
    bundled: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(tall())
    (folder / "b.jpg").write_bytes(encoded(PICTURE, "JPEG", quality=95)[:-500])
    (folder / "c.jpg").write_bytes(encoded(PICTURE, "JPEG"))
    (folder / "clip.jpg").write_bytes(encode_video(2))
    (folder / "photo.mov").write_bytes(encoded(PICTURE, "PNG"))
    lines = Captioner(*bundled, DESCRIBE).write(find_files([folder])[0], tmp_path / "a.jsonl")
    assert "the limit of a side is 65535" in lines[0]["error"]
    assert [line.get("note") for line in lines[1:]] == ["its last bytes are missing", *[None] * 3]
    assert all(line["caption"] for line in lines[1:])
    shutil.copy(folder / "b.jpg", folder / "d.jpg")
    monkeypatch.setattr(captions, "MOST_FILES", 1)  # its answer is known when it is read
    files, short = [folder / f"{name}.jpg" for name in "bcd"], Task(DESCRIBE.prompt, 2)
    again = Captioner(*bundled, short).write(files, tmp_path / "b.jsonl")
    assert [line.get("note") for line in again] == [lines[1]["note"], None, lines[1]["note"]]


@pytest.fixture
def folder(pictures: list[Path], tmp_path: Path) -> Path:
    """Four pictures, a.png to d.png."""
    (tmp_path / "in").mkdir()
    for name, path in zip("abcd", pictures, strict=False):
        shutil.copy(path, tmp_path / "in" / f"{name}.png")
    return tmp_path / "in"


def write(bundled: Loaded, folder: Path, out: Path) -> list[dict[str, Any]]:
    return Captioner(*bundled, DESCRIBE).write(find_files([folder])[0], out)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_what_failed_is_asked_again(
    name: str, bundled: Loaded, folder: Path, tmp_path: Path, asked: list[int]
) -> None:
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[:100])
    assert ["error" in line for line in write(bundled, folder, tmp_path / name)] == [0, 1, 0, 0]
    assert "error" in write(bundled, folder, tmp_path / name)[1]
    assert sum(asked) == 3
    (folder / "b.png").write_bytes(whole)
    assert not any("error" in line for line in write(bundled, folder, tmp_path / name))
    assert sum(asked) == 4
    write(bundled, folder, tmp_path / f"new-{name}")  # as if it had never failed
    for ending in {".jsonl", Path(name).suffix}:
        resumed = (tmp_path / name).with_suffix(ending).read_bytes()
        assert resumed == (tmp_path / f"new-{name}").with_suffix(ending).read_bytes()


def test_what_was_changed_is_answered_again(
    bundled: Loaded, pictures: list[Path], folder: Path, tmp_path: Path, asked: list[int]
) -> None:
    out = tmp_path / "a.jsonl"
    before = write(bundled, folder, out)
    shutil.copy(pictures[5], folder / "b.png")
    os.utime(folder / "b.png", (1, 1))
    os.utime(folder / "c.png", (2, 2))  # the same bytes at another time
    lines = write(bundled, folder, out)
    assert sum(asked) == len(before) + 1
    assert [line["caption"] for line in lines] == [
        alone(bundled, path) for path in (pictures[0], pictures[5], pictures[2], pictures[3])
    ]
    assert [line["stat"][1] for line in lines[1:3]] == [1, 2]
    assert read(out) == lines
    assert write(bundled, folder, out) == lines
    assert sum(asked) == len(before) + 1


def test_a_file_of_equal_size_and_another_time_is_read(
    bundled: Loaded, pictures: list[Path], folder: Path, tmp_path: Path
) -> None:
    one, other = (path.read_bytes() for path in pictures[:2])
    size = max(len(one), len(other))  # bytes behind a PNG do not matter
    (folder / "a.png").write_bytes(one.ljust(size, b"\0"))
    write(bundled, folder, tmp_path / "a.jsonl")
    (folder / "a.png").write_bytes(other.ljust(size, b"\0"))
    os.utime(folder / "a.png", (1, 1))
    assert write(bundled, folder, tmp_path / "a.jsonl")[0]["caption"] == alone(bundled, pictures[1])


def test_lines_of_other_files_stay_while_the_files_are_there(
    bundled: Loaded, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.csv"
    write(bundled, folder, out)
    draw_pictures(tmp_path / "other", 1, start=20)
    (folder / "c.png").unlink()
    write(bundled, tmp_path / "other", out)
    names = [Path(line["path"]).name for line in read(tmp_path / "a.jsonl")]
    assert names == ["a.png", "b.png", "d.png", "0020.png"]
    with out.open(newline="") as file:
        assert [Path(row["path"]).name for row in csv.DictReader(file)] == names


@pytest.mark.parametrize("error", [MemoryError(), ValueError("odd"), ZeroDivisionError("zero")])
def test_an_unexpected_error_is_of_its_file(
    error: Exception,
    bundled: Loaded,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(path: str) -> Any:
        if path.endswith("b.png"):
            raise error
        return attach(path)

    monkeypatch.setattr(captions, "attach", failing)
    lines = write(bundled, folder, tmp_path / "a.jsonl")
    assert lines[1]["error"] == f"cannot be read: {error!r}"
    assert ["caption" in line for line in lines] == [True, False, True, True]
    monkeypatch.undo()  # there is memory now
    assert all("caption" in line for line in write(bundled, folder, tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    "error", [GenerationError("not finite"), EngineError("the answer could not be computed")]
)
def test_an_answer_that_fails_ends_no_other(
    error: Exception,
    bundled: Loaded,
    pictures: list[Path],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together = Engine.batch
    bad = bundled[1](ask(folder / "b.png", DESCRIBE.prompt)).tile_digests

    def failing(self: Engine, batch: Any, *arguments: Any, **options: Any) -> Any:
        if any(inputs.tile_digests == bad for inputs in batch):
            raise error
        return together(self, batch, *arguments, **options)

    monkeypatch.setattr(Engine, "batch", failing)
    lines = write(bundled, folder, tmp_path / "a.jsonl")
    assert lines[1]["error"] == str(error)
    assert [line.get("caption") for line in lines] == [
        alone(bundled, pictures[0]),
        None,
        alone(bundled, pictures[2]),
        alone(bundled, pictures[3]),
    ]
    monkeypatch.undo()
    again = write(bundled, folder, tmp_path / "a.jsonl")[1]
    assert again["caption"] == alone(bundled, pictures[1])


def test_a_prompt_as_long_as_the_context_is_said_of_its_file(
    bundled: Loaded, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = bundled
    length = len(processor(ask(folder / "a.png", DESCRIBE.prompt)).input_ids)
    for context in (length, length + 1):
        text = replace(model.config.text_config, max_position_embeddings=context)
        monkeypatch.setattr(model, "config", replace(model.config, text_config=text))
        out = tmp_path / f"{context}.jsonl"
        (line,) = Captioner(*bundled, DESCRIBE).write([folder / "a.png"], out)
        told = f"{length} tokens, more than the model's context; use --max-tiles"
        assert line.get("error") == (told if context == length else None)


def test_an_answer_without_an_end_is_said_of_each_file(
    bundled: Loaded, folder: Path, tmp_path: Path
) -> None:
    """A word that a pattern asks for somewhere, and that the model does not write."""
    unlikely = {**SCHEMA, "properties": {"n": {"type": "string", "pattern": "zqxj"}}}
    files = find_files([folder])[0]
    captioner = Captioner(*bundled, Task("How many?", 20, unlikely))
    lines = captioner.write(files, tmp_path / "a.jsonl")
    assert len(lines) == len(files)
    (error,) = {str(line["error"]) for line in lines}
    assert error.startswith("the answer did not come to its end, and how it could have fit")


def test_what_no_answer_fits_is_said_before_a_run(bundled: Loaded) -> None:
    endless = {**SCHEMA, "properties": {"n": {"$ref": "#"}}}
    with pytest.raises(GenerationError, match="the JSON schema cannot be used: nothing fits it"):
        Captioner(*bundled, Task("How many?", 20, endless))
    nothing = {**SCHEMA, "properties": {"n": {"type": "integer", "minimum": 5, "maximum": 1}}}
    with pytest.raises(GenerationError, match="the JSON schema cannot be used: Unsatisfiable"):
        Captioner(*bundled, Task("How many?", 20, nothing))


@pytest.mark.usefixtures("small_windows")
def test_a_full_disk_is_said_and_the_run_goes_on_later(
    bundled: Loaded, pictures: list[Path], tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    Captioner(*bundled, DESCRIBE).write(pictures[:6], tmp_path / "a.jsonl")
    whole = (tmp_path / "a.jsonl").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) - 10, limits[1]))
    try:
        with pytest.raises(DataError, match=r"b\.jsonl: cannot be written \(File too large"):
            Captioner(*bundled, DESCRIBE).write(pictures[:6], tmp_path / "b.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    Captioner(*bundled, DESCRIBE).write(pictures[:6], tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_bytes() == whole


def test_files_that_cannot_be_read(bundled: Loaded, pictures: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / ".hidden").mkdir(parents=True)
    shutil.copy(pictures[0], folder / ".hidden" / "a.png")
    shutil.copy(pictures[0], folder / "=SUM(1).PNG")
    (folder / "notes.txt").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes(pictures[0].read_bytes()[:100])
    (folder / "clip.mp4").write_bytes(encode_video(2))
    (folder / "bad.mp4").write_bytes(b"\0" * 100)
    odd = os.fsdecode(b"\xff.png")
    shutil.copy(pictures[0], folder / odd)
    files, passed_over = find_files([folder])
    assert [path.name for path in files] == sorted(
        ["=SUM(1).PNG", "bad.mp4", "clip.mp4", "cut.png", "empty.png", odd]
    )
    assert passed_over == {".txt": 1}
    lines = Captioner(*bundled, DESCRIBE).write(files, tmp_path / "a.csv")
    assert [Path(line["path"]).name for line in lines if "error" in line] == [
        "bad.mp4",
        "cut.png",
        "empty.png",
    ]
    assert read(tmp_path / "a.jsonl") == lines
    table = (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()
    assert table[0] == "path,caption,error"


def test_a_file_of_something_else(bundled: Loaded, pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    out.write_text('{"mine": 1}\n')
    with pytest.raises(DataError, match="holds something else than captions"):
        Captioner(*bundled, DESCRIBE).write(pictures, out)
    assert out.read_text() == '{"mine": 1}\n'
    out.unlink()
    Captioner(*bundled, DESCRIBE).write(pictures[:1], out)
    with pytest.raises(DataError, match="captions of another model, task or settings"):
        Captioner(*bundled, Task("What is this?")).write(pictures, out)
    (tmp_path / "table.csv").write_text("mine\n")
    with pytest.raises(DataError, match=r"table\.csv: holds something else than captions"):
        Captioner(*bundled, DESCRIBE).write(pictures, tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == "mine\n"
    with pytest.raises(DataError, match=r"written as \.jsonl or \.csv"):
        Captioner(*bundled, DESCRIBE).write(pictures, tmp_path / "a.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        Captioner(*bundled, DESCRIBE).write(pictures, tmp_path / "file" / "a.jsonl")


@pytest.mark.parametrize(
    ("text", "most", "want"),
    [
        ("Short.", 20, "Short."),
        ("One sentence. Another one that is long.", 20, "One sentence."),
        ("No sentence ends in here at all", 20, "No sentence ends in…"),
        ("Donaudampfschifffahrtsgesellschaft", 10, "Donaudamp…"),
        ("Two\nlines", 20, "Two lines"),
        ("Two\n lines", 9, "Two lines"),
        ("Two lines.", 9, "Two…"),
        ("Three lines", 5, "Thre…"),
        ("Three lines", 6, "Three…"),
        ("One. Two. Three", 9, "One. Two."),
        ("One. Two. Three", 8, "One."),
        ("3.5 metres are long enough. Yes they are", 30, "3.5 metres are long enough."),
    ],
)
def test_shorten(text: str, most: int, want: str) -> None:
    assert shorten(text, most) == want
    assert len(shorten(text, most)) <= most


@pytest.mark.parametrize(
    ("flags", "want"),
    [
        ([], TASKS["caption"]),
        (["--preset", "ocr"], TASKS["ocr"]),
        (["--prompt", "How many?"], Task("How many?")),
        (["--preset", "ocr", "--prompt", "Read it."], replace(TASKS["ocr"], prompt="Read it.")),
        (["--preset", "alt", "--prompt", "Tell."], replace(TASKS["alt"], prompt="Tell.")),
        (["--preset", "keywords", "--prompt", "?"], replace(TASKS["keywords"], prompt="?")),
        (["--preset", "ocr", "-n", "7"], replace(TASKS["ocr"], max_tokens=7)),
    ],
    ids=str,
)
def test_a_prompt_takes_the_place_of_the_presets_question_alone(
    flags: list[str], want: Task, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Task, int]] = []

    class Recorded(Captioner):
        def __init__(self, model: Any, processor: Any, task: Task, *more: Any):
            asked.append((task, more[-1].max_tokens))
            raise DataError("enough")

    monkeypatch.setattr(captions, "Captioner", Recorded)
    draw_pictures(tmp_path / "in", 1)
    command = ("caption", tmp_path / "in", "-m", "tiny", "--out", tmp_path / "a.jsonl")
    check_refused(call(*command, *flags), "enough")
    ((task, most),) = asked
    assert (replace(task, max_tokens=most), most) == (want, want.max_tokens)


def test_presets_and_schemas(tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TASKS["alt"].fields("word " * 60)["caption"].endswith("word…")
    assert len(TASKS["alt"].fields("word " * 60)["caption"]) < 125
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    asked: list[tuple[Any, ...]] = []

    class Recorded(Captioner):
        def __init__(self, model: Any, processor: Any, task: Task, *more: Any):
            asked.append((task.prompt, task.schema, more[-1].max_tokens))
            super().__init__(model, processor, task, *more)

    monkeypatch.setattr(captions, "Captioner", Recorded)
    draw_pictures(tmp_path / "in", 1)
    command = ("caption", tmp_path / "in", "-m", "tiny", "--out", tmp_path / "a.jsonl")
    assert call(*command, "--prompt", "How many?", "--schema", schema, "-n", 9)[0] == 0
    assert asked == [("How many?", SCHEMA, 9)]
    for text, error in [
        ("{", "no JSON schema that can be read"),
        ("[]", "schema of an object with properties"),
        ('{"type": "object", "properties": {"path": {}}}', "path are fields of every line"),
        ('{"type": "object", "properties": {"stat": {}}}', "stat are fields of every line"),
    ]:
        schema.write_text(text)
        check_refused(call(*command, "--preset", "alt", "--schema", schema), error)


def test_options_go_before_the_task(bundled: Loaded, tmp_path: Path) -> None:
    short = Captioner(*bundled, DESCRIBE, options=Options(max_tokens=3, end_loops=True))
    (picture,) = draw_pictures(tmp_path / "in", 1)
    (line,) = short.write([picture], tmp_path / "a.jsonl")
    assert (
        line["caption"]
        == alone(bundled, picture, Task(DESCRIBE.prompt, 3))
        != alone(bundled, picture)
    )
    assert short.run == Captioner(*bundled, Task(DESCRIBE.prompt, 3)).run
    assert short.run != Captioner(*bundled, DESCRIBE).run
    assert len(short.run) == 8
    turned = dict(reversed(SCHEMA.items()))
    runs = {Captioner(*bundled, Task("?", schema=each)).run for each in (SCHEMA, turned)}
    assert len(runs) == 1  # a schema is the same in any order
    with pytest.raises(GenerationError, match="max_tokens 2"):
        Captioner(*bundled, Task("How many?", 9, SCHEMA), options=Options(max_tokens=2))
    with pytest.raises(GenerationError, match="stop"):
        Captioner(*bundled, Task("How many?", schema=SCHEMA), options=Options(stop=("}",)))


# ---- the program


def command(files: Path, out: Path) -> list[str]:
    options = "-m tiny --dtype float32 -n 64".split()
    asked = [str(files), "--out", str(out), "--prompt", DESCRIBE.prompt]
    return [sys.executable, "-m", "smolvlm_mlx", "caption", *asked, *options]


def test_the_command_says_what_failed_and_was_passed_over(call: Any, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "a.jsonl"
    draw_pictures(folder, 2)
    (folder / "notes.txt").write_text("no picture")
    asked = ("caption", folder, "--out", out, "-m", "tiny", "--dtype", "float32", "-n", 9)
    assert call(*asked) == (0, "", f"{out}: 2 of 2 files\npassed over: 1 .txt\n")
    bad = draw_bad(folder, 12)
    code, stdout, stderr = call(*asked)
    assert (code, stdout) == (1, "")
    first, *lines = stderr.splitlines()
    assert first == f"{out}: 2 of 14 files; 12 failed:"
    assert all(
        line.startswith(f"  '{path}': ") for line, path in zip(lines, bad[:10], strict=False)
    )
    assert lines[10:] == [f"  and 2 more; their lines in {out} say why", "passed over: 1 .txt"]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.TXT").write_text("")
    check_refused(
        call("caption", tmp_path / "none", "--out", out, "-m", "tiny"), "(passed over: 1 .txt)"
    )


def draw_bad(folder: Path, count: int) -> list[Path]:
    """Files that are no pictures."""
    paths = [folder / f"bad{number:02d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(b"no" * (number + 1))
    return paths


# What `-m smolvlm_mlx` does, with so few files at a time that there is more than one time.
SMALL_WINDOWS = """
import sys
from smolvlm_mlx.tasks import captions
from smolvlm_mlx.__main__ import main
captions.MOST_FILES = 2
main()
"""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        open_ones = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [one.getsockname()[1] for one in open_ones]


@pytest.mark.skipif(mx.metal.is_available(), reason="two processes would share one GPU")
@pytest.mark.parametrize("count", [6, pytest.param(70, marks=pytest.mark.slow)])
def test_two_processes_give_what_one_gives(count: int, bundled: Loaded, tmp_path: Path) -> None:
    """The first file failed before: the process that does not ask about it must not keep that."""
    files = draw_pictures(tmp_path / "in", count)
    want = Captioner(*bundled, DESCRIBE, "tiny   float32").write(files, tmp_path / "one.jsonl")
    failed = {name: want[0][name] for name in ("path", "stat", "sha256", "run")}
    write_lines(tmp_path / "two.jsonl", [{**failed, "error": "no memory"}])
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                SMALL_WINDOWS,
                *command(tmp_path / "in", tmp_path / "two.jsonl")[3:],
            ],
            env={**os.environ, "MLX_HOSTFILE": str(hosts), "MLX_RANK": rank},
            cwd=ROOT,
        )
        for rank in "01"
    ]
    assert [process.wait(240) for process in processes] == [0, 0]
    have = read(tmp_path / "two.jsonl")
    assert [(line["path"], line.get("caption")) for line in have] == [
        (line["path"], line["caption"]) for line in want
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "hosts.json",
        "in",
        "one.jsonl",
        "two.jsonl",
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_keeps_its_own_lines_until_the_first_has_written_all(
    rank: int,
    bundled: Loaded,
    pictures: list[Path],
    tmp_path: Path,
    asked: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files, out, task = pictures[:2], tmp_path / "two.jsonl", Task(DESCRIBE.prompt, 4)
    seen: list[list[str]] = []
    monkeypatch.setattr(captions, "MOST_FILES", 1)
    lines = Captioner(*bundled, task).write(files, tmp_path / "one.jsonl")
    other = json.dumps([lines[1 - rank]]).encode()

    def gather(array: mx.array) -> mx.array:
        own = np.array(array)
        theirs = np.frombuffer(other, np.uint8)[None] if own.ndim == 2 else [len(other)]
        if own.ndim == 2:
            theirs = np.pad(theirs, ((0, 0), (0, own.size - len(other))))
        return mx.array(np.concatenate([theirs, own] if rank else [own, theirs]))

    def meet(array: mx.array) -> mx.array:
        seen.append([path.name for path in sorted(tmp_path.glob("two*"))])
        return array

    monkeypatch.setattr(mx.distributed, "init", lambda: Group(rank))
    monkeypatch.setattr(mx.distributed, "all_gather", gather)
    monkeypatch.setattr(mx.distributed, "all_sum", meet)
    assert Captioner(*bundled, task).write(files, out) == lines
    journal, written = f"two-{rank}.jsonl", [out.name] * (rank == 0)
    assert seen == [[journal, *written]]
    assert [path.name for path in tmp_path.glob("two*")] == written
    # What it had, when both were stopped, is not asked again.
    out.unlink(missing_ok=True)
    write_lines(tmp_path / journal, [lines[rank]])
    asked.clear()
    assert Captioner(*bundled, task).write(files, out) == lines
    assert asked == []
    other = b"[]"
    with pytest.raises(DataError, match="the machines do not see the same files; give all of"):
        Captioner(*bundled, task).write(files, out)


@pytest.mark.slow
def test_a_thousand_pictures_killed_twenty_times(bundled: Loaded, tmp_path: Path) -> None:
    draw_pictures(tmp_path / "in", 1000)
    subprocess.run(command(tmp_path / "in", tmp_path / "whole.jsonl"), check=True)
    out, rng, kills = tmp_path / "killed.jsonl", Random(1), 0
    while kills < 20:
        process = subprocess.Popen(command(tmp_path / "in", out))
        try:
            process.wait(rng.uniform(1, 5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        if process.wait() == 0:
            out.write_bytes(out.read_bytes()[: rng.randrange(len(out.read_bytes()))])
    subprocess.run(command(tmp_path / "in", out), check=True)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    lines = read(out)
    assert len({line["path"] for line in lines}) == 1000
    same = [line["caption"] == alone(bundled, Path(line["path"])) for line in lines]
    print(f"{sum(same)} of 1000 captions as alone")
    assert all(same)


@pytest.mark.slow
@pytest.mark.parametrize(("split", "least"), [(False, 3), (True, 1.5)])
def test_together_they_are_three_times_faster(
    split: bool, least: float, bundled: Loaded, tmp_path: Path
) -> None:
    """With one tile each. With five most of the time goes to tiles and prompts, which are no faster
    together."""
    files, options = draw_pictures(tmp_path / "in", 256), ImageOptions(split=split)

    def together(number: int) -> float:
        started = time.perf_counter()
        Captioner(*bundled, DESCRIBE, image_options=options).write(
            files, tmp_path / f"{number}.jsonl"
        )
        return time.perf_counter() - started

    def one_by_one() -> float:
        started = time.perf_counter()
        for path in files[:64]:
            messages = [user_message(DESCRIBE.prompt, [path])]
            "".join(
                stream_generate(
                    *bundled, messages, Options(DESCRIBE.max_tokens), image_options=options
                )
            )
        return (time.perf_counter() - started) * len(files) / 64

    together(0)
    ratios = sorted(one_by_one() / together(number) for number in range(1, 4))
    print("pictures a second, together to one by one:", [round(ratio, 2) for ratio in ratios])
    assert ratios[1] >= least
