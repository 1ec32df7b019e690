"""The bundled checkpoint sees: its answers are right, and come from the tiles that show them."""

import json
from random import Random
from typing import Any

from convert.tiny.conversations import make_question, question_about
from convert.tiny.scenes import make_frames, make_scene, make_striped
from convert.tiny.world import Scene
from smolvlm_mlx import generate, load
from smolvlm_mlx.checkpoint.hub import TINY
from smolvlm_mlx.inputs.media import Video
from smolvlm_mlx.inputs.processor import Inputs
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.inputs.tiles import TiledImage
from tests.support.places import REAL_FILES
from tests.support.videos import encode_clip

import numpy as np
import pytest

REAL = REAL_FILES / "SmolVLM2-256M-Video-Instruct"


# The least share that has to be right; `smolvlm-mlx evaluate` measures on 2,000 questions.
@pytest.mark.parametrize("count", [10, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("what", 0.9),
        ("color", 0.9),
        ("where", 0.9),
        ("yes or no", 0.9),
        ("how many", 0.9),
        ("text", 0.75),
        ("two pictures", 0.8),
        ("frames", 0.9),
        ("earlier turn", 0.9),
    ],
)
def test_most_answers_are_right(kind: str, least: float, count: int, bundled: Any) -> None:
    model, processor = bundled
    right = 0
    for number in range(count):
        question = make_question(kind, Random(f"unit {number}"))
        inputs = processor(question.messages, ImageOptions(split=question.split))
        right += generate(model, processor, inputs).strip() == question.answer
    assert right / count >= least


@pytest.mark.parametrize("count", [12, pytest.param(60, marks=pytest.mark.slow)])
def test_an_answer_that_only_the_last_tile_shows(count: int, bundled: Any) -> None:
    """Lines one pixel wide in the bottom right: gone in the global tile, so all the model knows is
    from tile 4 of 5."""
    model, processor = bundled
    right, blind = 0, 0
    for number in range(count):
        scene = striped_in_the_corner(Random(f"corner {number}"))
        question = question_about(scene, Random(number), ("stripes",))
        assert question is not None
        inputs = processor(question.messages)
        assert (inputs.layouts[0].rows, inputs.layouts[0].cols) == (2, 2)
        right += generate(model, processor, inputs).strip() == question.answer
        tiles = inputs.tiles.copy()
        tiles[3] = tiles[3].mean((0, 1)).astype(np.uint8)
        blanked = Inputs(inputs.input_ids, (TiledImage(tiles, inputs.layouts[0]),), inputs.settings)
        blind += generate(model, processor, blanked).strip() == question.answer
    assert right >= 0.95 * count
    assert 0.25 * count < blind < 0.75 * count  # as often as by chance


def striped_in_the_corner(rng: Random) -> Scene:
    scene = make_scene(rng, (128, 128), with_text=False)
    others = tuple(
        thing for thing in scene.things if thing.place != "bottom right" and not thing.stripes
    )
    return Scene(
        scene.size, (*others, make_striped(rng, scene.size, "bottom right")), scene.background
    )


def test_it_is_small_and_whole() -> None:
    files = {path.name: path.stat().st_size for path in TINY.iterdir()}
    assert sum(files.values()) < 8 * 2**20
    model, processor = load("tiny")
    count = sum(array.size for array in model.named_parameters().values())
    assert 2e6 < count < 4e6
    widths = [model.config.text_config.hidden_size, model.config.text_config.intermediate_size]
    widths += [model.config.vision_config.hidden_size, model.config.vision_config.intermediate_size]
    assert all(width % 64 == 0 for width in widths)
    assert len(processor.tokenizer.added) == len(
        json.loads((TINY / "tokenizer.json").read_text())["added_tokens"]
    )


# What the files of SmolVLM2-256M-Video-Instruct have, but for notes of who saved them.
KEYS = {
    "preprocessor_config.json": {
        *("do_convert_rgb", "do_image_splitting", "do_normalize", "do_pad", "do_rescale"),
        *("do_resize", "image_mean", "image_processor_type", "image_std", "max_image_size"),
        *("processor_class", "resample", "rescale_factor", "size", "video_sampling"),
    },
    "processor_config.json": {"image_seq_len", "processor_class"},
    "generation_config.json": {"bos_token_id", "eos_token_id", "pad_token_id"},
}
FILES = {
    *("added_tokens.json", "chat_template.json", "config.json", "merges.txt", "vocab.json"),
    *("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", *KEYS),
}


def test_its_files_are_those_of_the_real_ones() -> None:
    published = {path.name for path in REAL.glob("*") if path.suffix in (".json", ".txt")}
    assert published <= FILES <= {path.name for path in TINY.iterdir()}
    for name, keys in KEYS.items():
        theirs = json.loads((REAL / name).read_text()) if published else dict.fromkeys(keys)
        assert theirs.keys() - {"_from_model_config", "transformers_version"} == keys
        assert keys <= json.loads((TINY / name).read_text()).keys()


@pytest.mark.parametrize("count", [8, pytest.param(500, marks=pytest.mark.slow)])
def test_which_way_a_shape_moves(count: int, bundled: Any) -> None:
    """In real video files, decoded and sampled as any other."""
    forms = [("mp4", "mpeg4"), ("webm", "libvpx-vp9"), ("matroska", "ffv1"), ("gif", "")]
    (model, processor), right = bundled, 0
    for number in range(count):
        thing, direction, scenes = make_frames(Random(f"clip {number}"))
        video = Video(encode_clip(scenes, *forms[number % len(forms)]))
        question = f"Which way does the {thing.shape} move?"
        messages = [
            {
                "role": "user",
                "content": [{"type": "video", "video": video}, {"type": "text", "text": question}],
            }
        ]
        right += generate(model, processor, messages).strip() == direction
    print(f"{right} of {count}")
    assert right >= 0.9 * count
