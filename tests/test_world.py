"""The world of the tiny checkpoint: a seed names a picture, every question has its right answer,
and some details need a tile."""

import hashlib
import json
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

from convert.tiny import conversations, multi_image, train
from convert.tiny.conversations import (
    MEASURED,
    make_conversation,
    make_question,
    question_about,
    write_questions,
)
from convert.tiny.pretraining import CLASSES, HUES, label_patches, label_tiles, make_batch
from convert.tiny.questions import listed
from convert.tiny.scenes import make_crowd, make_frames, make_scene, make_striped
from convert.tiny.world import COLORS, FORMS, SHAPES, Scene, Thing, draw
from smolvlm_mlx import Options, generate, load
from smolvlm_mlx.data.rows import read_rows
from smolvlm_mlx.data.samples import make_sample
from smolvlm_mlx.inputs.settings import ImageOptions, ImageSettings
from smolvlm_mlx.inputs.tiles import make_tiles
from smolvlm_mlx.training.loop import Settings

import numpy as np
import pytest

SETTINGS = ImageSettings(tile_size=64, longest_edge=128)
SCENE = Scene(
    (128, 128),
    (
        Thing("top left", "red", "large", (8, 8, 48, 48), "circle"),
        Thing("top right", "blue", "small", (90, 20, 106, 36), "star"),
        Thing("bottom left", "black", "small", (10, 80, 40, 95), text="K7"),
    ),
    background=3,
)


@pytest.fixture
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that many questions are about, where the questions are what is looked at."""
    monkeypatch.setattr(conversations, "picture_part", cache(multi_image.picture_part))


def digest(seed: str) -> str:
    sample = make_conversation(Random(seed))
    parts = [part for message in sample.messages for part in message["content"]]
    pixels = [
        part["image"].tobytes() if part["type"] == "image" else part["text"].encode()
        for part in parts
    ]
    return hashlib.sha256(b"".join(pixels)).hexdigest()


def test_a_seed_is_a_conversation() -> None:
    assert digest("a") == digest("a") != digest("b")


@pytest.mark.parametrize("form", list(FORMS))
def test_things_are_where_they_are_said_to_be(form: tuple[int, int]) -> None:
    for seed in range(60):
        for thing in make_scene(Random(seed), form).things:
            left, top, right, bottom = (
                edge * side for edge, side in zip(FORMS[form][thing.place], form * 2, strict=True)
            )
            assert left <= thing.box[0] < thing.box[2] <= right + 2
            assert top <= thing.box[1] < thing.box[3] <= bottom + 2


def test_shapes_have_their_colors() -> None:
    for color, rgb in COLORS.items():
        for shape in SHAPES:
            thing = Thing("top left", color, "large", (10, 10, 50, 50), shape)
            pixels = np.asarray(draw(Scene((128, 128), (thing,), background=1)))
            assert (pixels[34, 30] == rgb).all()
            assert not (pixels[100, 100] == rgb).all()


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize(
    ("kind", "right"),
    [
        ("what", {"a red circle", "a blue star", "the text K7", "nothing", "circle", "star"}),
        ("color", {"red", "blue", "black"}),
        ("how many", {"0", "1", "2"}),
        ("where", {"top left", "top right", "bottom left"}),
        ("text", {"K7"}),
        ("size", {"large", "small"}),
        ("yes or no", {"yes", "no"}),
        (
            "describe",
            {
                "A large red circle in the top left, a small blue star in the top right and the "
                "text K7 in the bottom left."
            },
        ),
    ],
)
def test_answers_about_a_known_scene(kind: str, right: set[str]) -> None:
    questions = [question_about(SCENE, Random(seed), (kind,)) for seed in range(200)]
    assert {question.answer for question in questions if question is not None} == right


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is in the bottom right?", "nothing"),
        ("What color is the star?", "blue"),
        ("Where is the text?", "bottom left"),
        ("How many shapes are there?", "2"),
        ("Is there any blue shape?", "yes"),
        ("Is there a red circle?", "yes"),
        ("Is the circle small or large?", "large"),
    ],
)
def test_a_question_has_one_answer(question: str, answer: str) -> None:
    asked = [
        question_about(SCENE, Random(seed), (kind,)) for seed in range(200) for kind in MEASURED[:7]
    ]
    answers = {
        q.answer
        for q in asked
        if q is not None and q.messages[0]["content"][-1]["text"] == question
    }
    assert answers == {answer}


@pytest.mark.usefixtures("drawn_once")
def test_no_question_has_two_answers() -> None:
    for number in range(12):
        scene, answers = make_scene(Random(f"scene {number}")), defaultdict(set)
        for seed in range(60):
            for kind in MEASURED[:8]:
                question = question_about(scene, Random(seed), (kind,))
                if question is not None:
                    answers[question.messages[0]["content"][-1]["text"]].add(question.answer)
        assert len(answers) > 10
        assert {asked: said for asked, said in answers.items() if len(said) > 1} == {}


def test_yes_and_no_are_as_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "picture_part", lambda scene: {"type": "image"})
    answers = [make_question("yes or no", Random(seed)).answer for seed in range(400)]
    assert 160 < answers.count("yes") < 240


def test_frames_move_the_way_they_are_said_to() -> None:
    for seed in range(40):
        _, direction, scenes = make_frames(Random(seed))
        boxes = np.array([scene.things[0].box for scene in scenes])
        steps = np.diff(boxes[:, :2], axis=0)
        axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}[direction]
        assert (steps[:, axis] * sign > 0).all()
        assert np.abs(steps[:, 1 - axis]).max() == 0
        assert 3 <= len(scenes) <= 5


def test_stripes_are_gone_in_the_global_tile() -> None:
    """So the answer is in one tile only: inside the square, the global tile is of one color."""
    for seed in range(20):
        striped = make_striped(Random(seed), (128, 128), "bottom right")
        tiled = make_tiles(draw(Scene((128, 128), (striped,), seed)), SETTINGS)
        tiles, layout = tiled.tiles, tiled.layout
        assert (layout.rows, layout.cols) == (2, 2)
        left, top, right, bottom = (int(edge) for edge in striped.box)
        inside = (slice(top - 64 + 2, bottom - 64 - 2), slice(left - 64 + 2, right - 64 - 2))
        along, across = (0, 1) if striped.stripes == "vertical" else (1, 0)
        assert tiles[3][inside].std(axis=across).max() > 30
        assert tiles[3][inside].std(axis=along).max() == 0
        whole = tiles[4][top // 2 + 4 : bottom // 2 - 4, left // 2 + 4 : right // 2 - 4]
        assert np.ptp(whole, axis=(0, 1)).max() <= 2


def test_a_crowd_is_listed_in_reading_order() -> None:
    crowd = make_crowd(Random(5))
    said = [name.strip() for row in listed(crowd).split(";") for name in row.split(",")]
    assert said == [thing.text or thing.name for thing in crowd.things]
    centers = [((t.box[0] + t.box[2]) // 43, (t.box[1] + t.box[3]) // 43) for t in crowd.things]
    assert centers == [(column, row) for row in range(3) for column in range(3)]


def test_patches_are_labelled_with_what_covers_them() -> None:
    tiled = make_tiles(draw(SCENE), SETTINGS)
    labels = label_tiles(SCENE, tiled.layout, 64)
    assert labels.shape == (*tiled.tiles.shape[:3], 2)
    classes = label_patches(labels[..., 0], 8).reshape(5, 8, 8)
    hues = label_patches(labels[..., 1], 8).reshape(5, 8, 8)
    assert CLASSES[classes[0, 3, 3]] == "circle"
    assert HUES[hues[0, 3, 3]] == "red"
    assert {CLASSES[label] for label in np.unique(classes[2])} == {"nothing", "K", "7"}
    assert CLASSES[classes[4, 1, 1]] == "circle"  # the global tile, half as large
    assert not classes[3].any()
    pixel_values, batch_classes, batch_hues = make_batch(0, SETTINGS, 8)
    assert batch_classes.shape == batch_hues.shape == (pixel_values.shape[0], 64)


def test_questions_are_written_to_be_evaluated(tmp_path: Path) -> None:
    rows = read_rows(write_questions(tmp_path, len(MEASURED), "unit"))
    samples = [make_sample(row) for row in rows]
    assert [sample.category for sample in samples] == [*MEASURED]
    for number, (kind, sample) in enumerate(zip(MEASURED, samples, strict=True)):
        question = make_question(kind, Random(f"unit {number}"))
        assert sample.answers == (question.answer,)
        assert sample.image_options == ImageOptions(split=None if question.split else False)
        assert json.loads(json.dumps(sample.messages)) == sample.messages


@pytest.mark.slow
def test_a_tiny_checkpoint_is_made_and_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of each stage: what comes out loads and answers, and a second run has nothing left
    to do."""
    short = Settings(steps=2, warmup=1, save_every=1)
    monkeypatch.setattr(
        train, "STAGES", tuple(replace(stage, settings=short) for stage in train.STAGES)
    )
    monkeypatch.setattr(train, "BATCH_SIZE", 2)
    pretrained: list[object] = []

    def pretrain(model: object, settings: object) -> dict[str, float]:
        pretrained.append(model)
        return {}

    monkeypatch.setattr(train, "pretrain", pretrain)
    out = tmp_path / "tiny"
    train.write_files(out)
    train.train(out)
    weights = (out / "model.safetensors").read_bytes()
    model, processor = load(out)
    generate(model, processor, "What is this?", Options(max_tokens=3), images=[draw(SCENE)])
    train.train(out)
    assert (out / "model.safetensors").read_bytes() == weights
    assert len(pretrained) == 1
