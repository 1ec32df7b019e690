"""Placeholders are tiles times tokens, in the same order; the published token counts."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from convert.random_checkpoint import LONGEST_EDGE, TILE
from smolvlm_mlx.config import ModelConfig
from smolvlm_mlx.errors import CheckpointError, ImageError, PromptError
from smolvlm_mlx.files import read_json
from smolvlm_mlx.inputs.image import load_image
from smolvlm_mlx.inputs.messages import user_message
from smolvlm_mlx.inputs.processor import Processor
from smolvlm_mlx.inputs.prompt import FAMILY_TEMPLATE, ChatTemplate, image_text
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.inputs.tiles import make_tiles, normalize, plan_tiles
from smolvlm_mlx.inputs.tokenizer import special_tokens
from smolvlm_mlx.inputs.video import VideoSampling
from smolvlm_mlx.training.dataset import make_example
from tests.support.checkpoints import load_processor
from tests.support.family import FIRST, SECOND
from tests.support.messages import text

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def processor(tiny: Path) -> Processor:
    return load_processor(tiny)


def plain(colour: Any, size: tuple[int, int] = (20, 10)) -> dict[str, Any]:
    return {"type": "image", "image": Image.new("RGB", size, colour)}


def test_placeholders_are_tiles_times_tokens(processor: Processor) -> None:
    rng, image_id = random.Random(0), processor.tokenizer.added["<image>"]
    for _ in range(60):
        sizes = [(rng.randrange(1, 300), rng.randrange(1, 300)) for _ in range(rng.randrange(1, 4))]
        settings: dict[str, Any] = {
            "split": rng.choice([None, True, False]),
            "max_tiles": rng.choice([None, *range(1, 21)]),
            "longest_edge": rng.choice([None, 1, TILE, TILE + 1, 3 * TILE, 5 * TILE]),
        }
        inputs = processor(
            [{"role": "user", "content": [plain("red", size) for size in sizes]}],
            ImageOptions(**settings),
        )
        assert inputs.input_ids.dtype == np.int32
        assert inputs.tiles.shape[1:] == (TILE, TILE, 3)
        assert (inputs.input_ids == image_id).sum() == len(inputs.tiles) * processor.tokens_per_tile
        assert list(inputs.layouts) == [plan_tiles(size, inputs.settings) for size in sizes]
        assert len(inputs.tiles) == sum(layout.tiles for layout in inputs.layouts)
        if settings["max_tiles"] is not None:
            assert all(layout.tiles <= settings["max_tiles"] for layout in inputs.layouts)
        if settings["split"] is False:
            assert len(inputs.tiles) == len(sizes)
        assert inputs.settings.split == (True if settings["split"] is None else settings["split"])
        assert inputs.settings.longest_edge == (settings["longest_edge"] or LONGEST_EDGE)


def test_ids_follow_the_layouts(processor: Processor) -> None:
    inputs = processor([user_message("What?", [plain("red", (256, 128))["image"]])])
    picture = image_text(inputs.layouts[0], processor.tokens_per_tile)
    assert (inputs.layouts[0].rows, inputs.layouts[0].cols) == (2, 4)
    prompt = f"<|im_start|>User:{picture}What?<end_of_utterance>\nAssistant:"
    assert inputs.input_ids.tolist() == processor.tokenizer.encode_prompt(prompt, "\ufdd0")
    assert (
        processor.tokenizer.decode(inputs.input_ids.tolist(), skip_special_tokens=False) == prompt
    )


def test_order_of_interleaved_pictures(processor: Processor) -> None:
    messages: list[dict[str, Any]] = [
        {
            "role": "user",
            "content": [text("a"), plain("red"), text("b"), plain("lime"), plain("blue")],
        },
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": [plain("white"), text("d")]},
    ]
    inputs = processor(messages, ImageOptions(split=False))
    assert inputs.tiles[:, 0, 0].tolist() == [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [255, 255, 255],
    ]
    one = image_text(inputs.layouts[0], processor.tokens_per_tile)
    assert processor.tokenizer.decode(inputs.input_ids.tolist(), skip_special_tokens=False) == (
        f"<|im_start|>User: a{one}b{one}{one}<end_of_utterance>\nAssistant: c<end_of_utterance>\n"
        f"User:{one}d<end_of_utterance>\nAssistant:"
    )


def test_tiles_are_those_of_make_tiles_and_pixels_are_normalized(processor: Processor) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 200, 3), np.uint8)
    for options in (ImageOptions(), ImageOptions(split=False), ImageOptions(max_tiles=3)):
        inputs = processor([user_message("x", [noise])], options)
        tiled = make_tiles(load_image(noise), inputs.settings)
        np.testing.assert_array_equal(inputs.tiles, tiled.tiles)
        assert inputs.layouts == (tiled.layout,)
        assert inputs.pixel_values.dtype == np.float32
        np.testing.assert_array_equal(inputs.pixel_values, normalize(tiled.tiles, inputs.settings))


def test_no_pictures(processor: Processor) -> None:
    inputs = processor([user_message("Hello")], add_generation_prompt=False)
    assert (inputs.tiles.shape, inputs.layouts, inputs.pixel_values.shape) == (
        (0, TILE, TILE, 3),
        (),
        (0, TILE, TILE, 3),
    )
    prompt = processor.tokenizer.decode(inputs.input_ids.tolist(), skip_special_tokens=False)
    assert prompt == "<|im_start|>User: Hello<end_of_utterance>\n"
    empty = processor([user_message("")])
    assert processor.tokenizer.decode(empty.input_ids.tolist()) == "User: \nAssistant:"


@pytest.mark.parametrize(
    "template", ["<image>" + FAMILY_TEMPLATE, "User: Hi", FAMILY_TEMPLATE + "<image><image>"]
)
def test_templates_that_misplace_pictures(template: str, tiny: Path) -> None:
    processor = load_processor(tiny)
    processor.template = ChatTemplate(template)
    with pytest.raises(PromptError, match="the chat template placed"):
        processor([user_message("Hi", [plain("red")])])


CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": [plain("red"), text("What?")]},
    {"role": "assistant", "content": "Red."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes"},
]
UNTRAINABLE = {
    # The number of turns at the start, no answer but the last, words before an answer that are gone
    # once it is given.
    "counts": "{{ messages | length }}" + FAMILY_TEMPLATE,
    "forgets": "{% for m in messages %}{% for part in m.content %}{% if part.type == 'image' %}"
    "<image>{% elif m.role == 'user' or m is sameas messages[-1] %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endfor %}",
    "thinks": FAMILY_TEMPLATE.replace("'Assistant:'", "'Assistant: <think>'"),
}


@pytest.mark.parametrize("kind", UNTRAINABLE)
def test_a_template_that_cannot_be_trained_with_is_refused(kind: str, tiny: Path) -> None:
    processor = load_processor(tiny)
    processor.template = ChatTemplate(UNTRAINABLE[kind])
    with pytest.raises(
        PromptError, match=r"^message [24]: the chat template does not keep what comes"
    ):
        make_example(processor, CONVERSATION)


@pytest.mark.parametrize("end", ["<end_of_utterance>", "<end_of_utterance>\n\n", "|\n"])
def test_another_template_is_trained_with_up_to_its_ends(end: str, tiny: Path) -> None:
    """Of an answer without an end of its own all is learned, line breaks too."""
    processor = load_processor(tiny)
    other = FAMILY_TEMPLATE.replace("<end_of_utterance>\n", end)
    processor.template = ChatTemplate(other.replace("'Assistant:'", "'Assistant: '"))
    example = make_example(processor, CONVERSATION)
    ids = example.input_ids[example.loss_mask].tolist()
    learned = end.partition("\n")[0] if end.startswith("<") else end
    have = processor.tokenizer.decode(ids, skip_special_tokens=False)
    assert have == f"Red.{learned}Yes{learned}"


def test_placeholders_that_a_template_smuggles_in(tiny: Path) -> None:
    processor = load_processor(tiny)
    processor.template = ChatTemplate("{{ '<ima' }}{{ 'ge>' }}" + FAMILY_TEMPLATE)
    with pytest.raises(PromptError, match="placed 1 of 0"):
        processor([user_message("Hi")])


@pytest.mark.parametrize(
    "settings", [{"longest_edge": 0}, {"max_tiles": 0}, {"longest_edge": 1.5}, {"split": 1}]
)
def test_bad_settings(settings: Any, processor: Processor) -> None:
    with pytest.raises(ImageError, match="must be"):
        processor([user_message("Hi")], ImageOptions(**settings))


def test_files_that_do_not_fit_the_model(tiny: Path) -> None:
    config = ModelConfig.from_dict(read_json(tiny / "config.json"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json, 5 in config\.json"):
        Processor.from_folder(tiny, replace(config, image_token_id=5))
    other = replace(config, vision_config=replace(config.vision_config, image_size=128))
    with pytest.raises(CheckpointError, match="tiles of 64 pixels, the vision tower wants 128"):
        Processor.from_folder(tiny, other)


def test_a_tokenizer_without_a_token_for_pictures_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "copy")
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["added_tokens"] = [each for each in raw["added_tokens"] if each["content"] != "<image>"]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(
        CheckpointError, match=r"^tokenizer\.json: no <image> token; copy tokenizer"
    ):
        load_processor(folder)


def test_what_a_checkpoint_says_of_templates_and_videos_counts(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "copy")
    (folder / "chat_template.json").write_text('{"chat_template": "{{ bos_token }}"}')
    raw = json.loads((folder / "preprocessor_config.json").read_text())
    raw["video_sampling"] = {"fps": 2, "max_frames": 3, "video_size": {"longest_edge": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(raw))
    own = load_processor(folder)
    assert own.template.source == "{{ bos_token }}"
    assert own.template.special_tokens == special_tokens(folder) != {}
    assert own.sampling == VideoSampling(2, 3, 32)
    assert own.one_tile.given == {"split": False, "longest_edge": 32}
    bare = Processor(own.tokenizer, own.settings, 4)
    assert (bare.template.source, bare.template.special_tokens) == (FAMILY_TEMPLATE, {})
    assert bare.sampling == VideoSampling(longest_edge=own.settings.tile_size)


def test_settings_that_transformers_5_saved_are_read(tiny: Path, tmp_path: Path) -> None:
    """It has them in processor_config.json, which counts before the older file."""
    folder = shutil.copytree(tiny, tmp_path / "copy")
    older = folder / "preprocessor_config.json"
    saved = {"image_processor": {**json.loads(older.read_text()), "image_mean": [0.1, 0.2, 0.3]}}
    (folder / "processor_config.json").write_text(json.dumps(saved))
    assert load_processor(folder).settings.mean == (0.1, 0.2, 0.3)
    older.unlink()
    ours, theirs = load_processor(folder), load_processor(tiny)
    assert ours.settings == replace(theirs.settings, mean=(0.1, 0.2, 0.3))
    assert ours.sampling == theirs.sampling
    saved["image_processor"]["resample"] = "lanczos"
    (folder / "processor_config.json").write_text(json.dumps(saved))
    with pytest.raises(ImageError) as caught:
        load_processor(folder)
    assert str(caught.value) == (
        "processor_config.json: resample is 'lanczos', must be a number from 0 to 5"
    )


# ---- published counts


def picture_tokens(processor: Processor, split: bool = True) -> int:
    """How many tokens of a prompt the text of a 640x480 picture takes."""
    layout = plan_tiles((640, 480), replace(processor.settings, split=split))
    return len(
        processor.tokenizer.encode_prompt(image_text(layout, processor.tokens_per_tile), "\ufdd0")
    )


def test_published_count_of_the_model_card(family: Path) -> None:
    processor = load_processor(family / FIRST)
    inputs = processor([user_message("Describe this image", [Image.new("RGB", (640, 480))])])
    assert len(inputs.input_ids) == 1194
    # <|im_start|> User : Describe this image <end_of_utterance> ...
    assert picture_tokens(processor) == 1194 - 11


def test_published_counts_of_a_photo(family: Path) -> None:
    """1204 and 205 tokens (SmolVLM2-2.2B, split and not), 1304 (SmolVLM-Instruct), all with one
    504-character text that is not published: all three have to leave the same number of tokens for
    it."""
    second, first = (load_processor(family / name) for name in (SECOND, FIRST))
    rest = {
        1204 - picture_tokens(second),
        205 - picture_tokens(second, split=False),
        1304 - picture_tokens(first),
    }
    assert rest == {121}


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("generation_config.json", {"eos_token_id": 100_000}),
        ("generation_config.json", {"eos_token_id": [0, -1]}),
        ("config.json", {"eos_token_id": 100_000}),
        ("config.json", {"eos_token_id": [1, -1]}),
    ],
)
def test_an_end_that_is_no_token_of_the_model_is_told(
    file: str, change: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny, tmp_path / "copy")
    raw = read_json(tiny / file)
    (tmp_path / "copy" / file).write_text(json.dumps({**raw, **change}))
    config = ModelConfig.from_dict(read_json(tmp_path / "copy" / "config.json"))
    size = config.text_config.vocab_size
    said = rf"the end token (100000|-1) is not in the vocabulary of {size} tokens"
    with pytest.raises(CheckpointError, match=said):
        Processor.from_folder(tmp_path / "copy", config)


def test_an_end_of_the_tokenizer_that_the_model_has_not_is_told(tiny: Path) -> None:
    config = ModelConfig.from_dict(read_json(tiny / "config.json"))
    end = max(load_processor(tiny).tokenizer.end_ids)
    smaller = replace(config, text_config=replace(config.text_config, vocab_size=end))
    with pytest.raises(CheckpointError, match=f"the end token {end} is not in the vocabulary"):
        Processor.from_folder(tiny, smaller)


@pytest.mark.parametrize("beyond", [0, 1, 2**31, 2**32 - 1])
def test_a_token_that_the_model_has_not_is_told_where_it_is_used(
    beyond: int, tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "copy")
    raw = json.loads((folder / "tokenizer.json").read_text())
    config = ModelConfig.from_dict(read_json(folder / "config.json"))
    size = config.text_config.vocab_size
    id = size + beyond if beyond < 2 else beyond
    raw["model"]["vocab"]["z"] = id
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    processor = Processor.from_folder(folder, config)
    assert processor([user_message("a b")]).input_ids.max() < size
    said = f"a token of the prompt has number {id}, beyond the model's vocabulary of {size};"
    with pytest.raises(PromptError, match=said):
        processor([user_message("a z")])
