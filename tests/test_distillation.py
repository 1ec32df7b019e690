"""A learned quantization: nearer to its source than rounding, the same after any stop, and all that
cannot be learned is a line before the work."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from smolvlm_mlx import device
from smolvlm_mlx.checkpoint.choices import RECIPES, Form, Recipe
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.checkpoint.hub import TINY
from smolvlm_mlx.checkpoint.reader import load
from smolvlm_mlx.errors import ConversionError, DataError, DeviceError, TrainingError
from smolvlm_mlx.quality.report import check
from smolvlm_mlx.training import distillation, lessons
from smolvlm_mlx.training.blocks import Batch, distance
from smolvlm_mlx.training.distillation import learn, learn_in_steps
from tests.support.checkpoints import weights_of
from tests.support.pictures import noise

import mlx.core as mx
import numpy as np
import pytest

SMALL = Recipe(bits=3, embedding_bits=4, group_size=32)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, on_the_cpu: None) -> None:
    """Few lessons, and short answers."""
    monkeypatch.setitem(lessons.TEXTS, "text", 6)
    monkeypatch.setattr(lessons, "PICTURES", {"picture": 2})
    monkeypatch.setattr(distillation, "TILES", 2)


def same(folder: Path, other: Path) -> bool:
    return all(
        (folder / name).read_bytes() == (other / name).read_bytes()
        for name in ("model.safetensors", "learning.csv")
    )


@pytest.fixture(scope="module")
def learned(shallow: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With a quantized tower; learned without a stop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(lessons.TEXTS, "text", 6)
        patch.setattr(lessons, "PICTURES", {"picture": 2})
        patch.setattr(distillation, "TILES", 2)
        out = tmp_path_factory.mktemp("learned") / "out"
        learn(shallow, out, Recipe(3, 32, 4, 4))
        yield out


def test_layers_are_learned_and_the_rest_is_rounded(
    shallow: Path, learned: Path, tmp_path: Path
) -> None:
    """Tower and decoder have other codes than by rounding; what stays a float is the same."""
    convert(shallow, tmp_path / "rounded", Recipe(3, 32, 4, 4))
    mine, theirs = weights_of(learned), weights_of(tmp_path / "rounded")
    assert mine.keys() == theirs.keys()
    equal = {name for name in mine if mx.array_equal(mine[name], theirs[name]).item()}
    quantized = {name.removesuffix(".scales") for name in mine if name.endswith(".scales")}
    other = {name for name in quantized if f"{name}.weight" not in equal}
    kept = {"connector.modality_projection.proj"}
    if "language_model.lm_head.weight" in mine:
        kept.add("language_model.embed_tokens")
    assert other == quantized - kept
    assert {name for name in mine if name.rpartition(".")[0] not in quantized} <= equal
    assert not (learned.parent / "out.learning").exists()


def test_it_loads_and_its_card_says_so(learned: Path) -> None:
    model, _ = load(learned)
    assert mx.isfinite(model(mx.array([[1, 2, 3]]))).all()
    assert "learned, not rounded" in (learned / "README.md").read_text()


def test_its_curve_is_beside_it(learned: Path) -> None:
    """A share for each block of tower and decoder, which are quantized, in their order."""
    first, *lines = (learned / "learning.csv").read_text().splitlines()
    assert first == "block,difference"
    curve = {name: float(value) for name, value in (line.split(",") for line in lines)}
    parts = ("vision_model.encoder.layers.", "language_model.layers.")
    counts = [sum(name.startswith(part) for name in curve) for part in parts]
    assert all(counts)
    assert [*curve] == [
        f"{part}{number}"
        for part, count in zip(parts, counts, strict=True)
        for number in range(count)
    ]
    assert all(0.001 < value < 1 for value in curve.values())


def test_the_distance_is_a_share_of_real_positions() -> None:
    source = mx.array([[[3.0, 4.0], [1.0, 1.0]]])
    student = source + mx.array([[[0.3, 0.4], [9.0, 9.0]]])
    assert distance([Batch(source, student, np.array([[True, False]]))]) == pytest.approx(0.1)


@pytest.mark.parametrize("stop", [1, 2, 4, 6])
def test_stopped_it_goes_on_to_the_same_bytes(
    stop: int, shallow: Path, learned: Path, tmp_path: Path
) -> None:
    out, recipe = tmp_path / "out", Recipe(3, 32, 4, 4)
    steps = learn_in_steps(shallow, out, recipe)
    for _ in range(stop):
        next(steps)
    steps.close()
    assert not out.exists()
    learn(shallow, out, recipe)
    assert same(out, learned)
    assert not (tmp_path / "out.learning").exists()


def begun(shallow: Path, out: Path) -> Path:
    """The folder of a run that was ended in the middle."""
    steps = learn_in_steps(shallow, out, SMALL)
    for reading in steps:
        if reading.what == "blocks" and reading.done == 2:
            break
    steps.close()
    return out.with_name(f"{out.name}.learning")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, empty])
def test_a_damaged_state_is_a_line(
    damage: Callable[[Path], None], shallow: Path, tmp_path: Path
) -> None:
    folder = begun(shallow, tmp_path / "out")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    assert len(files) >= 3
    for path in files:
        kept = path.read_bytes()
        damage(path)
        with pytest.raises(TrainingError, match=r"damaged.*delete"):
            learn(shallow, tmp_path / "out", SMALL)
        path.write_bytes(kept)
    learn(shallow, tmp_path / "out", SMALL)


def test_a_state_of_something_else_is_refused(shallow: Path, tmp_path: Path) -> None:
    folder = begun(shallow, tmp_path / "out")
    with pytest.raises(TrainingError, match=r"begun with another recipe; .*delete"):
        learn(shallow, tmp_path / "out", Recipe(4, 32, 4))
    about = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps({**about, "source": "0", "data": "1"}))
    with pytest.raises(TrainingError, match="another source and data"):
        learn(shallow, tmp_path / "out", SMALL)
    with pytest.raises(TrainingError, match="another recipe and data"):
        learn(shallow, tmp_path / "out", Recipe(4, 32, 4))
    for odd in ({"answers": 3}, {"answers": [["1"]]}, {"answers": [[-1]]}, {}):
        (folder / "about.json").write_text(json.dumps(about))
        (folder / "answers.json").write_text(json.dumps(odd))
        with pytest.raises(TrainingError, match="damaged"):
            learn(shallow, tmp_path / "out", SMALL)


def test_own_pictures_are_learned_from(shallow: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        noise(40, 30, seed=number).save(folder / f"{number}.png")
    (folder / "notes.md").write_text("not a picture")
    asked = lessons.lessons(folder)
    assert [prompt.kind for prompt in asked] == ["text"] * 6 + ["picture"] * 3
    learn(shallow, tmp_path / "own", SMALL, data=folder)
    learn(shallow, tmp_path / "built-in", SMALL)
    assert not same(tmp_path / "own", tmp_path / "built-in")


def test_rows_are_learned_from(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    noise(40, 30).save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "What is it?", "answer": "Noise."}
    rows.write_text(json.dumps(row) + "\n" + json.dumps({"question": "Why?", "answer": "So."}))
    asked = lessons.lessons(rows)
    assert [prompt.kind for prompt in asked[6:]] == ["picture", "text"]
    assert [prompt.image_options.max_tiles for prompt in asked[6:]] == [5, 5]


def test_of_many_pictures_some_are_taken_evenly(tmp_path: Path) -> None:
    for number in range(100):
        noise(8, 8).save(tmp_path / f"{number:03}.png")
    assert len(lessons.lessons(tmp_path)) == 6 + lessons.MOST


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (RECIPES["bf16"], "without bits"),
        ("bf16", "without bits"),
        ("mxfp4", "mxfp4 is not learned"),
        (Recipe(4, modules={"language_model.lm_head": Form(4, 16, "nvfp4")}), "nvfp4 is not"),
        ("huge", "not one of"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    recipe: Any, says: str, shallow: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match=says):
        learn(shallow, tmp_path / "out", recipe)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_written_over(shallow: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError, match="exists"):
        learn(shallow, tmp_path / "out", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_bad_data_is_refused_before_the_work(shallow: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        learn(shallow, tmp_path / "out", SMALL, data=tmp_path / "nowhere.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"question": "Why?"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:1"):
        learn(shallow, tmp_path / "out", SMALL, data=tmp_path / "rows.jsonl")
    assert not (tmp_path / "out.learning").exists()


def test_a_full_disk_is_told_before_the_work(
    shallow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    full = type(usage)(usage.total, usage.used, 20 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    monkeypatch.setattr(distillation, "Saved", None)
    with pytest.raises(ConversionError, match="20 MiB free, 32 MiB needed"):
        learn(shallow, tmp_path / "out", SMALL)


def test_more_memory_than_there_is_is_refused(
    shallow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "memory_limit", lambda: 10**5)
    with pytest.raises(DeviceError, match="GB by estimate"):
        learn(shallow, tmp_path / "out", SMALL)
    assert not (tmp_path / "out.learning").exists()


def test_by_the_command_line(shallow: Path, tmp_path: Path, call: Any) -> None:
    learning = ("--bits", "4", "--learn", "--json")
    code, out, _ = call("convert", shallow, tmp_path / "out", *learning)
    assert code == 0
    assert 0.001 < json.loads(out)["drift"] < 1
    for flags, says in (
        (["--learn"], "without bits"),
        (["--learn", "--layout", "huggingface"], "layout mlx"),
        (["--bits", "4", "--learn-data", tmp_path / "none"], "none"),
        (["--recipe", "mxfp4", "--learn"], "mxfp4 is not learned"),
    ):
        code, out, err = call("convert", shallow, tmp_path / "other", *flags)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert says in err


def test_ctrl_c_says_that_it_goes_on(
    shallow: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(distillation, "learn_block", interrupted)
    code, out, err = call("convert", shallow, tmp_path / "out", "--bits", "4", "--learn")
    assert (code, out) == (130, "")
    assert "smolvlm-mlx: the same command goes on\n" in err


@pytest.mark.slow
def test_predictions_stay_nearer_than_by_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lessons.TEXTS, "text", 48)
    convert(TINY, tmp_path / "rounded", "3bit")
    learn(TINY, tmp_path / "learned", "3bit")
    rounding, learning = (
        check(TINY, tmp_path / name, positions=500, kinds=("text",)).total.kl_mean
        for name in ("rounded", "learned")
    )
    assert learning < 0.7 * rounding


@pytest.mark.slow
def test_adapters_are_trained_on_it(
    learned: Path, mixed_questions: Path, tmp_path: Path, call: Any
) -> None:
    """QLoRA, and an answer with it."""
    few = ("--steps", 2, "--batch-size", 1, "--accumulate", 1, "--max-tiles", 1)
    code, _, err = call("finetune", mixed_questions, tmp_path / "run", "-m", learned, *few)
    assert code == 0
    assert "lora on 3 bits in groups of 32" in err
    adapter = tmp_path / "run" / "adapter"
    code, out, _ = call(
        "generate", "-m", learned, "--adapter", adapter, "--max-tokens", 3, "Hello?"
    )
    assert code == 0
    assert out
