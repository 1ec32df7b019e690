"""config.json of every size of the family, with what each leaves out, and what hostile ones are
told."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smolvlm_mlx.config import ModelConfig, RopeScaling, TextConfig, VisionConfig
from smolvlm_mlx.errors import CheckpointError, quote
from tests.support.family import FAMILY, SOURCES, TEXT_256M, VISION_VIDEO
from tests.support.places import REAL_FILES

import numpy as np
import pytest
from safetensors.numpy import load_file

# (decoder width, layers, heads, key-value heads, MLP, rope), (vision width, layers, heads, MLP,
# patch, tile), (vocabulary, image id, tokens a tile)
SIGLIP_B, SO400M = (768, 12, 12, 3072, 16, 512), (1152, 27, 16, 4304, 14, 384)
NUMBERS = {
    "SmolVLM-256M-Instruct": ((576, 30, 9, 3, 1536, 1e5), SIGLIP_B, (49280, 49190, 64)),
    "SmolVLM-500M-Instruct": ((960, 32, 15, 5, 2560, 1e5), SIGLIP_B, (49280, 49190, 64)),
    "SmolVLM-Instruct": ((2048, 24, 32, 32, 8192, 273768.0), SO400M, (49155, 49153, 81)),
    "SmolVLM2-2.2B-Instruct": ((2048, 24, 32, 32, 8192, 130000.0), SO400M, (49280, 49190, 81)),
    "SmolVLM2-500M-Video-Instruct": ((960, 32, 15, 5, 2560, 1e5), SIGLIP_B, (49280, 49190, 64)),
    "SmolVLM2-256M-Video-Instruct": ((576, 30, 9, 3, 1536, 1e5), SIGLIP_B, (49280, 49190, 64)),
}


def numbers(config: ModelConfig) -> tuple[tuple[float, ...], ...]:
    text, vision = config.text_config, config.vision_config
    assert (text.head_dim, text.rms_norm_eps, vision.layer_norm_eps, vision.num_channels) == (
        64,
        1e-5,
        1e-6,
        3,
    )
    return (
        (
            text.hidden_size,
            text.num_hidden_layers,
            text.num_attention_heads,
            text.num_key_value_heads,
            text.intermediate_size,
            text.rope_theta,
        ),
        (
            vision.hidden_size,
            vision.num_hidden_layers,
            vision.num_attention_heads,
            vision.intermediate_size,
            vision.patch_size,
            vision.image_size,
        ),
        (text.vocab_size, config.image_token_id, config.tokens_per_tile),
    )


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("source", SOURCES)
def test_family(source: str, name: str) -> None:
    file = REAL_FILES / name / "config.json"
    raw = FAMILY[name] if source == "stand-in" else json.loads(file.read_text())
    assert numbers(ModelConfig.from_dict(raw)) == NUMBERS[name]


def test_published_parameter_counts() -> None:
    """The estimate leaves out biases and some norms; the published counts are exact."""
    for name, count in {
        "SmolVLM-Instruct": 2_246_272_880,
        "SmolVLM2-2.2B-Instruct": 2_246_784_880,
    }.items():
        assert ModelConfig.from_dict(FAMILY[name]).parameters == pytest.approx(count, rel=1e-3)


def test_parameters_are_those_of_the_weights(tiny: Path) -> None:
    """But the biases, the norms of the vision tower and the last norm."""
    config = ModelConfig.from_dict(json.loads((tiny / "config.json").read_text()))
    counted = {
        name: weights.size
        for name, weights in load_file(tiny / "model.safetensors").items()
        if not name.endswith("bias") and name != "model.text_model.norm.weight"
    }
    norms = [name for name in counted if "vision" in name and "norm" in name]
    assert len(norms) == 2 * config.vision_config.num_hidden_layers + 1
    assert config.parameters == sum(counted[name] for name in counted.keys() - norms)


def test_what_is_left_out_is_as_in_the_reference() -> None:
    """In transformers 5.23: configuration_llama.py, configuration_smolvlm.py, whose vision tower
    and connector are those of the first family."""
    assert asdict(TextConfig()) == {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
    }
    assert asdict(VisionConfig()) == {
        "hidden_size": 1152,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 32,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
    }
    config = ModelConfig(TextConfig(), VisionConfig(), "smolvlm")
    assert (config.image_token_id, config.scale_factor) == (128257, 2)
    assert RopeScaling("llama3") == RopeScaling("llama3", 1.0, 1.0, 4.0, 8192)


def changed(section: str | None = None, **values: Any) -> dict[str, Any]:
    raw = FAMILY["SmolVLM2-256M-Video-Instruct"]
    return {**raw, section: {**raw[section], **values}} if section else {**raw, **values}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}


def test_linear_scaling_makes_every_period_longer() -> None:
    raw = changed("text_config", rope_scaling={"type": "linear", "factor": 4}, head_dim=8)
    periods = ModelConfig.from_dict(raw).text_config.rope_periods
    assert periods == pytest.approx([4 * 100000 ** (i / 4) for i in range(4)])
    assert ModelConfig.from_dict(changed()).text_config.rope_periods is None


def test_llama3_scaling_makes_the_slow_periods_longer() -> None:
    """By its paper's code: a wave that turns more than `high` times in the trained length stays,
    one that turns less than `low` times is `factor` times as long, and between is a line."""
    raw = changed("text_config", rope_parameters=LLAMA3 | {"rope_theta": 500000.0})
    text = ModelConfig.from_dict(raw).text_config
    frequencies = 1 / 500000 ** (np.arange(32) / 32)
    turns = 1024 * frequencies / (2 * np.pi)
    smooth = (turns - 1) / 3
    between = (1 - smooth) * frequencies / 8 + smooth * frequencies
    want = np.where(turns > 4, frequencies, np.where(turns < 1, frequencies / 8, between))
    assert ((turns < 4) & (turns > 1)).any()
    assert text.rope_periods == pytest.approx(1 / want)


def test_llama3_goes_by_the_trained_length_where_that_is_given() -> None:
    scaling = {key: value for key, value in LLAMA3.items() if "original" not in key}
    for given, want in (({}, 8192), ({"original_max_position_embeddings": 64}, 64)):
        raw = changed("text_config", rope_scaling=scaling, **given)
        found = ModelConfig.from_dict(raw).text_config.rope_scaling
        assert found is not None
        assert found.original_max_position_embeddings == want


def test_scaling_at_its_older_place_counts_first() -> None:
    linear = {"type": "linear", "factor": 2}
    text = ModelConfig.from_dict(
        changed("text_config", rope_scaling=linear, rope_parameters=LLAMA3)
    ).text_config
    assert text.rope_scaling == RopeScaling("linear", 2.0, original_max_position_embeddings=8192)


@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
def test_rope_theta_may_be_in_rope_parameters(name: str) -> None:
    # Only rope_theta is taken from there.
    values = {"rope_theta": 273768.0, "rope_type": "default", "hidden_size": 7}
    text = ModelConfig.from_dict(changed("text_config", **{name: values})).text_config
    assert (text.rope_theta, text.hidden_size) == (273768.0, 576)


def test_null_is_the_class_default() -> None:
    text = ModelConfig.from_dict(
        changed("text_config", num_key_value_heads=None, head_dim=None)
    ).text_config
    assert (text.num_key_value_heads, text.head_dim) == (9, 64)
    assert (
        ModelConfig.from_dict(changed("text_config", rms_norm_eps=None)).text_config.rms_norm_eps
        == 1e-6
    )


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


ABSURD = [-1, 2**40, 10**9, 10**4000, True, "12", 1.5, math.nan, math.inf, [], {}, nested(100)]
COUNTS: list[tuple[str | None, str]] = [
    ("text_config", key) for key in TEXT_256M if key not in ("rms_norm_eps", "rope_theta")
]
COUNTS += [
    ("vision_config", key)
    for key in (*VISION_VIDEO, "intermediate_size", "num_hidden_layers", "num_channels")
]
COUNTS += [(None, "image_token_id"), (None, "scale_factor")]


LARGEST = [
    ("text_config", "vocab_size", 1_000_000),
    ("text_config", "max_position_embeddings", 1_000_000),
    ("text_config", "num_hidden_layers", 1000),
    ("text_config", "num_attention_heads", 1024),
    ("text_config", "head_dim", 4096),
    ("vision_config", "num_hidden_layers", 1000),
    ("vision_config", "num_attention_heads", 1024),
    ("vision_config", "image_size", 16384),
]


def refused(raw: dict[str, Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_dict(raw)
    message = str(caught.value)
    assert message.startswith("config.json: ")
    assert len(message.splitlines()) == 1
    assert len(message) < 2000
    return message


@pytest.mark.parametrize(("section", "key"), COUNTS)
def test_absurd_counts(section: str | None, key: str) -> None:
    for value in ABSURD:
        if value == 10**4000:  # too long to print whole, and printed short
            assert f"{key} is 1000" in refused(changed(section, **{key: value}))
        else:
            assert f"{key} is {quote(value)}, not an integer" in refused(
                changed(section, **{key: value})
            )


@pytest.mark.parametrize(("section", "key", "largest"), LARGEST)
def test_a_count_may_be_as_large_as_its_bound(section: str, key: str, largest: int) -> None:
    """How large all of it may be together is only asked of what is fine by itself."""
    beside, low = {"scale_factor": -1}, 0 if key == "head_dim" else 1
    assert key not in refused({**changed(section, **{key: largest}), **beside})
    above = refused({**changed(section, **{key: largest + 1}), **beside})
    assert f"{key} is {largest + 1}, not an integer from {low} to {largest}" in above


def test_a_layer_may_be_as_wide_as_the_largest_count() -> None:
    values = {"num_attention_heads": 1000, "num_key_value_heads": 1000, "num_hidden_layers": 1}
    text = ModelConfig.from_dict(changed("text_config", head_dim=1000, **values)).text_config
    assert text.num_attention_heads * text.head_dim == 1_000_000


def test_a_tile_may_be_one_patch() -> None:
    config = ModelConfig.from_dict(changed("vision_config", patch_size=512) | {"scale_factor": 1})
    assert (config.vision_config.patches_per_side, config.tokens_per_tile) == (1, 1)


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
def test_absurd_numbers(key: str) -> None:
    for value in [-1, 0, 10**4000, 1e300, 1e12, True, "1", math.nan, -math.inf, [], {}]:
        assert f"{key} is " in refused(changed("text_config", **{key: value}))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({}, "model_type is None"),
        (
            {"model_type": "llama"},
            "model_type is 'llama', not one of idefics3, smolvlm; choose a SmolVLM",
        ),
        ({"model_type": ["smolvlm"]}, r"model_type is ['smolvlm']"),
        ({"model_type": "x\n" * 9000}, r"model_type is 'x\nx\nx"),
        (changed(text_config=None), "text_config is not an object"),
        (changed(vision_config=[1]), "vision_config is not an object"),
        (changed("text_config", rope_scaling="linear"), "rope_scaling is not an object"),
        (changed("text_config", rope_parameters=[1]), "rope_parameters is not an object"),
        (
            changed("text_config", rope_scaling={"type": "yarn", "factor": 2}),
            "rope type 'yarn' (only default, linear, llama3)",
        ),
        (
            changed("text_config", rope_parameters={"full_attention": LLAMA3}),
            "rope_parameters by kinds of layers (only one for all)",
        ),
        (
            changed("text_config", rope_scaling={"type": "linear"}),
            "rope type 'linear' without factor",
        ),
        (
            changed("text_config", rope_scaling={"type": "linear", "factor": "2"}),
            "rope_scaling: factor is '2', not a positive number",
        ),
        (
            changed("text_config", rope_parameters={"rope_type": "llama3", "factor": 8}),
            "rope type 'llama3' without low_freq_factor; "
            "text_config: rope type 'llama3' without high_freq_factor",
        ),
        (
            changed("text_config", rope_scaling=LLAMA3 | {"high_freq_factor": 1}),
            "high_freq_factor 1 is not above low_freq_factor 1",
        ),
        (
            changed("text_config", rope_scaling=LLAMA3 | {"partial_rotary_factor": 0.5}),
            "partial_rotary_factor is 0.5 (only 1)",
        ),
        (changed("text_config", rope_parameters={"rope_type": ["yarn"]}), "rope type ['yarn']"),
        (changed("text_config", num_key_value_heads=2), "9 attention heads for 2 key-value heads"),
        (
            changed("text_config", num_attention_heads=900, num_key_value_heads=1, head_dim=None),
            "head_dim is 0",
        ),
        (changed("text_config", head_dim=63), "head_dim is 63"),
        (changed("text_config", num_attention_heads=1023, head_dim=1024), "1047552 wide"),
        (changed("text_config", attention_bias=True), "attention_bias or mlp_bias is set"),
        (changed("text_config", hidden_act="gelu"), "hidden_act 'gelu'"),
        (changed("text_config", hidden_act=["silu"]), "hidden_act is ['silu'], not a str"),
        (changed("text_config", attention_bias=1), "attention_bias is 1, not a bool"),
        (changed("vision_config", hidden_act="relu"), "hidden_act 'relu'"),
        (changed("vision_config", num_channels=1), "num_channels 1 (only 3)"),
        (
            changed("vision_config", num_attention_heads=7),
            "hidden_size 768 is not a multiple of 7 heads",
        ),
        (changed("vision_config", patch_size=513), "patch_size 513 exceeds image_size 512"),
        (changed(scale_factor=5), "32 patches a side, scale_factor 5"),
        (changed(image_token_id=49280), "image_token_id 49280 is beyond vocab_size 49280"),
        (
            changed("text_config", hidden_size=1_000_000, num_hidden_layers=1000),
            "parameters (the family has up to",
        ),
        (
            changed("vision_config", image_size=16384, patch_size=1),
            "parameters (the family has up to",
        ),
    ],
)
def test_misfits(raw: dict[str, Any], said: str) -> None:
    assert said in refused(raw)


def test_all_problems_at_once() -> None:
    raw = changed(
        "text_config", hidden_size=-1, rope_theta="big", vocab_size=None, num_hidden_layers=10**9
    )
    message = refused({**raw, "vision_config": 7, "scale_factor": 0})
    for said in (
        "hidden_size is -1",
        "rope_theta is 'big'",
        "num_hidden_layers is 1000000000",
        "vision_config is not",
    ):
        assert said in message
    assert "scale_factor is 0" in message
    assert "vocab_size" not in message
