"""Our numbers are the reference's: every family config, stage by stage, in float32."""

from pathlib import Path
from typing import Any

from smolvlm_mlx import Options, load, stream_generate
from smolvlm_mlx.generation.image_cache import encode_tiles
from smolvlm_mlx.generation.prefill import prefill
from smolvlm_mlx.inputs.messages import user_message
from smolvlm_mlx.inputs.settings import ImageOptions
from tests.parity.checkpoints import FAMILY, channels_first, make, picture, reference_model
from tests.support.messages import text

import mlx.core as mx
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.parity
ATOL = 1e-4


def image(seed: int) -> dict[str, Any]:
    return {"type": "image", "image": picture(seed, (320, 200))}


# name: (messages, processor settings)
CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "text": ([{"role": "user", "content": "What is the capital of France?"}], {}),
    "one split image": ([user_message("Describe this image", [picture(1)])], {"max_tiles": 7}),
    "two images": (
        [{"role": "user", "content": [image(2), text(" and "), image(3), text("?")]}],
        {"split": False},
    ),
    "five interleaved": (
        [
            {"role": "system", "content": "Answer briefly."},
            {
                "role": "user",
                "content": [text("First "), image(4), image(5), text("then"), image(6)],
            },
            {"role": "assistant", "content": "I see."},
            {"role": "user", "content": [image(7), text("and"), image(8), text("what changed?")]},
        ],
        {"split": False},
    ),
}


@pytest.mark.parametrize("name", FAMILY)
def test_logits_and_stages(name: str, tmp_path: Path) -> None:
    folder = make(name, tmp_path, "--layers", "2", "--dtype", "float32")
    model, processor = load(folder, dtype="float32")
    plain, _ = load(folder, dtype="float32", fuse=False)
    reference = reference_model(folder)
    for case, (messages, settings) in CASES.items():
        inputs = processor(messages, ImageOptions(**settings))
        ids = torch.from_numpy(inputs.input_ids.astype(np.int64))[None]
        tiles = channels_first(inputs.pixel_values)
        with torch.no_grad():
            want = reference(
                input_ids=ids, pixel_values=tiles if len(inputs.tiles) else None
            ).logits.numpy()
        pixel_values = mx.array(inputs.pixel_values) if len(inputs.tiles) else None
        for ours in (model, plain):
            have = np.array(ours(mx.array(inputs.input_ids)[None], pixel_values))
            np.testing.assert_allclose(have, want, rtol=0, atol=ATOL, err_msg=f"{name}, {case}")
        cache = model.language_model.make_cache(len(inputs.input_ids))
        last = prefill(
            model,
            mx.array(inputs.input_ids)[None],
            encode_tiles(model, inputs.tiles, inputs.settings),
            cache,
        )
        np.testing.assert_allclose(
            np.array(last), want[:, -1], rtol=0, atol=ATOL, err_msg=f"{name}, {case}, prefill"
        )
        if case == "one split image":
            compare_stages(plain, reference, inputs.pixel_values[:2])


def compare_stages(model: Any, reference: Any, pixel_values: np.ndarray) -> None:
    """Patch embeddings, image features and image tokens of two tiles."""
    tiles = channels_first(pixel_values)[0]
    tower = reference.model.vision_model
    config = tower.config
    side = config.image_size // config.patch_size
    with torch.no_grad():
        embeddings = tower.embeddings(tiles, torch.ones(len(tiles), side, side, dtype=torch.bool))
        features = tower(tiles).last_hidden_state
        tokens = reference.model.connector(features)
    ours = mx.array(pixel_values)
    stages = {
        "patch embeddings": (model.vision_model.embeddings(ours), embeddings),
        "image features": (model.vision_model(ours), features),
        "image tokens": (model.encode_images(ours), tokens),
    }
    for stage, (have, want) in stages.items():
        np.testing.assert_allclose(np.array(have), want.numpy(), rtol=0, atol=ATOL, err_msg=stage)


def test_whole_256m_generates_the_same_64_tokens(tmp_path: Path) -> None:
    folder = make("SmolVLM-256M-Instruct", tmp_path)
    model, processor = load(folder, dtype="float32")
    inputs = processor(
        [user_message("Describe this image", [picture(9)])], ImageOptions(max_tiles=4)
    )
    stream = stream_generate(model, processor, inputs, Options(max_tokens=64))
    list(stream)
    reference = reference_model(folder)
    with torch.no_grad():
        want = reference.generate(
            input_ids=torch.from_numpy(inputs.input_ids.astype(np.int64))[None],
            pixel_values=channels_first(inputs.pixel_values),
            max_new_tokens=64,
            do_sample=False,
        )[0, len(inputs.input_ids) :].tolist()
    assert stream.token_ids == want
    assert len(set(want)) > 1
