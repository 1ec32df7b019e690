"""What training will take: more with everything, and no more than the presets promise."""

from typing import Any

from smolvlm_mlx.checkpoint.quantization import Quantization, quantize_modules
from smolvlm_mlx.config import ModelConfig
from smolvlm_mlx.model import SmolVLM
from smolvlm_mlx.training.memory import estimate
from smolvlm_mlx.training.plan import PRESETS, Plan
from tests.support.family import FAMILY

import mlx.core as mx
import pytest


def test_an_estimate_grows_with_everything() -> None:
    config = ModelConfig.from_dict(
        {
            "model_type": "smolvlm",
            "text_config": {"vocab_size": 200000},
            "vision_config": {"image_size": 256},
        }
    )
    base: dict[str, Any] = {
        "weights": 1,
        "trainable": 10,
        "tokens": 500,
        "tiles": 5,
        "answer_tokens": 50,
        "chunk": 2,
    }
    smallest = estimate(config, **base).total
    for name in base:
        assert estimate(config, **{**base, name: base[name] * 8}).total >= smallest
    assert (
        estimate(config, **base, checkpointed=True).total
        < smallest
        < estimate(config, **base, width=4).total
    )
    assert estimate(config, **base, trains_vision=True).total > smallest


@pytest.mark.parametrize(
    ("name", "preset", "limit"),
    [
        ("SmolVLM2-256M-Video-Instruct", "8gb", 8),
        ("SmolVLM2-500M-Video-Instruct", "8gb", 8),
        ("SmolVLM2-2.2B-Instruct", "16gb", 16),
    ],
)
def test_the_presets_fit_with_half_the_machine_to_spare(name: str, preset: str, limit: int) -> None:
    """QLoRA on 4 bits with a picture in all its tiles; macOS lets a GPU have about two thirds of
    the memory."""
    config = ModelConfig.from_dict(FAMILY[name])
    plan = Plan(**PRESETS[preset])
    model = SmolVLM(config)
    model.set_dtype(mx.bfloat16)
    quantize_modules(model, Quantization(4, 64), lambda path: path.startswith("language_model."))
    memory = estimate(
        config,
        weights=sum(array.nbytes for array in model.named_parameters().values()),
        trainable=20_000_000,
        tokens=plan.max_tokens * plan.batch_size,
        tiles=plan.max_tiles or 17,
        answer_tokens=512,
        chunk=8,
        checkpointed=plan.checkpoint_layers,
    )
    assert memory.total < 0.5 * limit * 1e9
