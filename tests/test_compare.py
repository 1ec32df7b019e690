"""How far apart two checkpoints are: nothing for the same, little for 8 bits, more for 2."""

import io
import json
import math
from pathlib import Path

from convert.random_checkpoint import make
from smolvlm_mlx.checkpoint.choices import Recipe
from smolvlm_mlx.checkpoint.compare import compare, conversations
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.checkpoint.reader import load
from smolvlm_mlx.errors import AdapterError, CheckpointError
from smolvlm_mlx.inputs.settings import ImageOptions

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image


def test_the_same_is_at_no_distance(tiny: Path) -> None:
    found = compare(tiny, tiny)
    assert [agreement.prompt for agreement in found] == list(conversations())
    assert all(agreement.top1 == 1 and abs(agreement.kl) < 1e-6 for agreement in found)
    assert all(agreement.tokens > 20 for agreement in found)


def boxes(picture: Image.Image) -> dict[tuple[int, ...], tuple[int, ...]]:
    """By color, where it stands: its first column and row, and its last."""
    pixels, found = np.asarray(picture), dict[tuple[int, ...], tuple[int, ...]]()
    for color in {tuple(color) for color in pixels.reshape(-1, 3).tolist()} - {(255, 255, 255)}:
        is_here = (pixels == color).all(axis=-1)
        columns, rows = np.flatnonzero(is_here.any(axis=0)), np.flatnonzero(is_here.any(axis=1))
        found[color] = (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1]))
    return found


def test_the_pictures_are_what_the_answers_say() -> None:
    """And stay as they are, or distances of today and tomorrow would not be comparable."""
    pictures = {
        name: [Image.open(io.BytesIO(each.data)) for each in messages[0].media]
        for name, messages in conversations().items()
    }
    assert {name: len(some) for name, some in pictures.items()} == {
        "text": 0,
        "picture": 1,
        "chart": 1,
        "two pictures": 2,
    }
    (scene,), (chart,) = pictures["picture"], pictures["chart"]
    assert [picture.tobytes() for picture in pictures["two pictures"]] == [
        scene.tobytes(),
        chart.tobytes(),
    ]
    assert scene.size == chart.size == (320, 240)
    assert boxes(scene) == {(255, 0, 0): (30, 60, 150, 180), (0, 0, 255): (190, 80, 290, 180)}
    assert boxes(chart) == {
        (40, 60, 160): (30, 160, 80, 220),
        (40, 100, 160): (100, 100, 150, 220),
        (40, 140, 160): (170, 30, 220, 220),
        (40, 180, 160): (240, 130, 290, 220),
    }


def test_the_distance_is_its_formula(tiny: Path, tmp_path: Path) -> None:
    """At each position but those of image placeholders, of pictures that are one tile."""
    convert(tiny, tmp_path / "2bit", Recipe(bits=2))
    models = [load(folder)[0] for folder in (tiny, tmp_path / "2bit")]
    processor = load(tiny)[1]
    for found, messages in zip(
        compare(tiny, tmp_path / "2bit"), conversations().values(), strict=True
    ):
        inputs = processor(messages, ImageOptions(split=False), add_generation_prompt=False)
        assert len(inputs.tiles) == len(messages[0].media)
        tiles = mx.array(inputs.pixel_values) if len(inputs.tiles) else None
        is_text = inputs.input_ids != models[0].config.image_token_id
        want, have = (
            np.array(model(mx.array(inputs.input_ids)[None], tiles)[0].astype(mx.float32))[is_text]
            for model in models
        )
        p, q = (np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in (want, have))
        assert found.tokens == is_text.sum()
        assert found.kl == pytest.approx(float((p * np.log(p / q)).sum() / len(p)), rel=1e-3)
        alike = np.mean(want.argmax(axis=-1) == have.argmax(axis=-1))
        assert found.top1 == pytest.approx(alike, abs=1 / found.tokens)
        assert found.kl > 0.01


def test_fewer_bits_are_farther_away(tiny: Path, tmp_path: Path) -> None:
    distances = []
    for bits in (8, 4, 2):
        convert(tiny, tmp_path / f"{bits}", Recipe(bits=bits, embedding_bits=bits))
        found = compare(tiny, tmp_path / f"{bits}")
        assert all(0 <= agreement.top1 <= 1 and math.isfinite(agreement.kl) for agreement in found)
        distances.append(sum(agreement.kl for agreement in found) / len(found))
    assert 0 < distances[0] < 0.05
    assert distances[0] < distances[1] < distances[2]


def test_revision_and_adapter_are_the_references(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="revision 'v2'"):
        compare(tiny, tiny, "v2")
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        compare(tiny, tmp_path / "nothing", adapter=tmp_path)


def test_different_models_are_not_compared(tiny: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other")
    raw = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**raw, "image_mean": [0, 0, 0]}))
    # The same words: still comparable.
    assert compare(tiny, other)[0].kl == pytest.approx(0, abs=1e-6)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if token["content"] != "<end_of_utterance>"
    ]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        CheckpointError, match="are not the same model: their prompts or vocabularies differ"
    ):
        compare(tiny, other)
