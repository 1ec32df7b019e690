"""The quantization block, read and written, and the recipes."""

from typing import Any

from smolvlm_mlx.checkpoint.choices import RECIPES, Form, Recipe
from smolvlm_mlx.checkpoint.quantization import Quantization, quantize_modules
from smolvlm_mlx.errors import CheckpointError

import mlx.core as mx
import mlx.nn as nn
import pytest


def read(block: Any) -> Quantization | None:
    return Quantization.from_config({"quantization": block})


def test_no_block() -> None:
    assert Quantization.from_config({}) is None
    assert read(None) is None


def test_blocks_of_all_ages() -> None:
    old = read({"group_size": 64, "bits": 4})
    assert old == Quantization(Form(4))
    assert read({"bits": 8}) == Quantization(Form(8, 64))
    mixed = {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
        "language_model.lm_head": {"group_size": 32, "bits": 8},
        "model.language_model.embed_tokens": {"bits": 6},
        "vision_model.encoder.layers.0.mlp.fc2": False,
    }
    new = read(mixed)
    assert new is not None
    assert new.of("language_model.lm_head") == Form(8, 32)
    assert new.of("language_model.embed_tokens") == Form(6, 64)
    assert new.of("language_model.layers.0.mlp.up_proj") == Form(4, 64)
    assert Quantization.from_config({"quantization_config": mixed}) == new
    assert read(new.to_config()) == new


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({}, "quantization None is not MLX's; convert the original checkpoint"),
        ([], "quantization [] is not MLX's"),
        ("4bit", "quantization '4bit' is not MLX's"),
        ({"quant_method": "awq"}, "quantization 'awq' is not MLX's"),
        ({"mode": "fp4"}, "'quantization': mode 'fp4' is not one of affine, mxfp4, mxfp8, nvfp4"),
        ({"bits": 4, "a.b": {"mode": ["nvfp4"]}}, "'a.b': mode ['nvfp4'] is not one of"),
        ({"bits": 4, "a.b": {"mode": None}}, "'a.b': mode None is not one of"),
        ({"bits": 8, "mode": "mxfp4"}, "8 bits in groups of 32 (mxfp4: bits 4; groups 32)"),
        ({"mode": "nvfp4", "group_size": 64}, "4 bits in groups of 64 (nvfp4: bits 4; groups 16)"),
        ({"bits": 4, "group_size": 16}, "4 bits in groups of 16 (affine: "),
        (
            {"bits": 7},
            "'quantization': 7 bits in groups of 64 (affine: bits 2, 3, 4, 5, 6, 8; groups 32, 64, "
            "128)",
        ),
        ({"bits": 4.0}, "4.0 bits in groups of 64"),
        ({"bits": True}, "True bits"),
        ({"bits": "4"}, "'4' bits"),
        ({"bits": [4]}, "[4] bits"),
        ({"bits": 4, "group_size": 48}, "4 bits in groups of 48"),
        ({"bits": 4, "group_size": None}, "groups of None"),
        ({"bits": 4, "lm_head": {"bits": 10**9}}, "'lm_head': 1000000000 bits"),
        ({"bits": 4, "a\nb": {"bits": 5.5}}, r"'a\nb': 5.5 bits"),
    ],
)
def test_malformed_blocks(block: Any, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(block)
    assert said in str(caught.value)
    assert str(caught.value).startswith("config.json: ")
    assert "\n" not in str(caught.value)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.odd = nn.Embedding(4, 64), nn.Linear(48, 8)
        self.norm, self.line = nn.RMSNorm(64), nn.Linear(128, 8)


def test_modules_take_their_own_form() -> None:
    model = Small()
    quantize_modules(
        model, Quantization(Form(4), {"line": Form(8, 32)}), {"table", "line", "norm"}.__contains__
    )
    assert isinstance(model.table, nn.QuantizedEmbedding)
    assert (model.table.bits, model.table.group_size) == (4, 64)
    assert isinstance(model.line, nn.QuantizedLinear)
    assert (model.line.bits, model.line.group_size) == (8, 32)
    assert model.line.weight.shape == (8, 32)
    assert model.line.weight.dtype == mx.uint32
    assert type(model.odd) is nn.Linear
    assert type(model.norm) is nn.RMSNorm
    with pytest.raises(CheckpointError, match="odd: 48 inputs are no multiple of group_size 64"):
        quantize_modules(Small(), Quantization(Form(4)), {"odd"}.__contains__)


def test_recipes() -> None:
    layer = "language_model.layers.3.mlp.up_proj"
    head = "language_model.lm_head"
    table = "language_model.embed_tokens"
    tower = "vision_model.encoder.layers.0.mlp.fc1"
    projection = "connector.modality_projection.proj"
    positions = "vision_model.embeddings.position_embedding"
    bits = {
        name: [
            (form := recipe.form(module)) and form.bits
            for module in (layer, head, table, tower, projection, positions)
        ]
        for name, recipe in RECIPES.items()
    }
    assert bits == {
        "bf16": [None] * 6,
        "8bit": [8, 8, 8, None, None, None],
        "6bit": [6, 6, 6, None, None, None],
        "4bit": [4, 4, 4, None, None, None],
        "3bit": [3, 3, 3, None, None, None],
        "4bit-8bit-embeddings": [4, 8, 8, None, None, None],
        "8bit-vision": [8, 8, 8, 8, 8, None],
        "4bit-vision": [4, 4, 4, 4, 8, None],
        "mxfp8": [8, 8, 8, None, None, None],
        "mxfp4": [4, 4, 4, None, None, None],
        "nvfp4": [4, 4, 4, None, None, None],
    }
    assert [name for name, recipe in RECIPES.items() if not recipe.quantizes] == ["bf16"]
    assert Recipe(vision_bits=8).quantizes
