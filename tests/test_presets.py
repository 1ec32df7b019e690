"""Random models of the family: the real shapes, ready to answer."""

import io
import json

from smolvlm_mlx import device
from smolvlm_mlx.checkpoint.presets import SIZES, random_model, random_picture, settings_of
from smolvlm_mlx.config import ModelConfig
from smolvlm_mlx.inputs.settings import ImageSettings
from smolvlm_mlx.model import SmolVLM
from tests.support.bundled import BUNDLED
from tests.support.family import FAMILY
from tests.support.places import REAL_FILES

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

# Of the SmolVLM2 checkpoints.
PARAMETERS = {"256M": 256_484_928, "500M": 507_482_304, "2.2B": 2_246_784_880}
FOLDERS = {
    "256M": "SmolVLM2-256M-Video-Instruct",
    "500M": "SmolVLM2-500M-Video-Instruct",
    "2.2B": "SmolVLM2-2.2B-Instruct",
}


@pytest.mark.parametrize("size", SIZES)
def test_random_models_have_the_real_shapes(size: str) -> None:
    config = SIZES[size]
    arrays = SmolVLM(config).named_parameters().values()  # not evaluated
    assert sum(array.size for array in arrays) == PARAMETERS[size]
    assert config == ModelConfig.from_dict(FAMILY[FOLDERS[size]])
    assert settings_of(config) == (
        ImageSettings(384, 1536) if size == "2.2B" else ImageSettings(512, 2048)
    )
    folder = REAL_FILES / FOLDERS[size]
    if folder.is_dir():
        assert config == ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
        raw = json.loads((folder / "preprocessor_config.json").read_text())
        assert settings_of(config) == ImageSettings.from_dict(raw)


def test_random_model_is_ready_to_answer() -> None:
    model = random_model(BUNDLED, mx.float16, bits=8)
    kinds = {array.dtype for array in model.named_parameters().values()}
    assert kinds == {mx.float16, mx.uint32}
    assert not model.training
    table = model.language_model.embed_tokens
    assert (table.bits, table.group_size) == (8, 64)
    assert type(model.connector.modality_projection.proj) is type(
        random_model(BUNDLED, mx.float16).connector.modality_projection.proj
    )
    joined = device.name() != "cpu"
    assert all(("qkv_proj" in layer.self_attn) == joined for layer in model.language_model.layers)


def test_a_random_picture_is_a_jpeg_of_its_own() -> None:
    random, like = np.random.default_rng(0), io.BytesIO()
    first, second = (random_picture((320, 200), random) for _ in range(2))
    assert first == random_picture((320, 200), np.random.default_rng(0)) != second
    picture = Image.open(io.BytesIO(first))
    assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (320, 200))
    Image.new("RGB", (8, 8)).save(like, "JPEG", quality=90)
    assert picture.quantization == Image.open(like).quantization  # type: ignore[attr-defined]
