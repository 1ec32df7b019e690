"""What training will take: by hand, as measured, and no more than the presets promise."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

from smolvlm_mlx import load
from smolvlm_mlx.checkpoint.choices import Form
from smolvlm_mlx.checkpoint.quantization import Quantization, quantize_modules
from smolvlm_mlx.config import ModelConfig
from smolvlm_mlx.generation.image_cache import tiles_at_once
from smolvlm_mlx.model import SmolVLM
from smolvlm_mlx.training.dataset import Batch
from smolvlm_mlx.training.loop import Settings, Trainer
from smolvlm_mlx.training.memory import Memory, estimate
from smolvlm_mlx.training.plan import PRESETS, Plan
from smolvlm_mlx.training.run import prepare
from tests.support.family import FAMILY
from tests.support.rows import write_rows

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image

# Decoder: 3 layers of width 10, 2 heads and 1 key-value head of 6, 20 inside. A layer keeps of a
# token 6 * 10 + 6 * (2 * 2 + 2 * 1) + 4 * 20 = 176 numbers and 2 probabilities for each token.
# Tower: 2 layers of width 8, 4 heads, 12 inside, 4 patches. A layer takes of a patch
# 10 * 8 + 3 * 12 + 2 * 4 * 4 = 148; in training 10 * 8 + 10 * 12 + 4 * 4 = 216 of 16 bits.
SMALL = ModelConfig.from_dict(
    {
        "model_type": "smolvlm",
        "image_token_id": 99,
        "scale_factor": 2,
        "text_config": {
            "hidden_size": 10,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 6,
            "intermediate_size": 20,
            "vocab_size": 100,
        },
        "vision_config": {
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 12,
            "image_size": 16,
            "patch_size": 8,
        },
    }
)
GIVEN: dict[str, Any] = {
    "weights": 5000,
    "trainable": 70,
    "tokens": 11,
    "tiles": 3,
    "answer_tokens": 7,
    "chunk": 2,
}
BY_HAND = Memory(
    weights=5000,
    trained=16 * 70,
    activations=2 * 11 * 5 * (176 + 22),
    logits=12 * 7 * 100,
    vision=2 * 2 * 4 * 148,
    pictures_apart=True,
)
CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"weights": 1}, {"weights": 1}),
    ({"trainable": 1}, {"trained": 16}),
    ({"tokens": 5}, {"activations": 2 * 5 * 5 * (176 + 10)}),
    ({"tiles": 1}, {"vision": 2 * 1 * 4 * 148}),
    ({"answer_tokens": 1}, {"logits": 12 * 100}),
    ({"chunk": 9}, {"vision": 2 * 3 * 4 * 148}),
    (
        {"trains_vision": True, "width": 4},
        {
            "activations": 2 * BY_HAND.activations,
            "vision": 4 * 3 * 4 * 4 * 156,
            "pictures_apart": False,
        },
    ),
    ({"width": 4}, {"activations": 2 * BY_HAND.activations, "vision": 2 * BY_HAND.vision}),
    ({"checkpointed": True}, {"activations": 2 * 11 * (3 * 10 + 3 * (176 + 22))}),
    ({"trains_vision": True}, {"vision": 2 * 3 * 4 * 4 * 216, "pictures_apart": False}),
    (
        {"trains_vision": True, "checkpointed": True},
        {
            "activations": 2 * 11 * (3 * 10 + 3 * (176 + 22)),
            "vision": 2 * 3 * 4 * (2 * 8 + 3 * 216),
            "pictures_apart": False,
        },
    ),
]


@pytest.mark.parametrize(("given", "other"), CHANGES, ids=lambda each: ", ".join(each))
def test_each_argument_counts_as_it_says(given: dict[str, Any], other: dict[str, Any]) -> None:
    assert estimate(SMALL, **{**GIVEN, **given}) == replace(BY_HAND, **other)


def test_pictures_that_come_first_share_the_memory_of_what_follows() -> None:
    apart = Memory(1, 20, 300, 4000, 50_000, pictures_apart=True)
    assert apart.total == 50_021
    assert replace(apart, vision=5).total == 4321
    assert replace(apart, pictures_apart=False).total == 54_321


@pytest.mark.usefixtures("mlx_lm_imported", "on_the_cpu")
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(("tokens", "tiles", "part"), [(300, 0, "decoder"), (200, 12, "vision")])
def test_a_step_takes_what_was_estimated(
    tokens: int, tiles: int, part: str, checkpointed: bool, tiny: Path, tmp_path: Path
) -> None:
    """Beside what is there before and after: hardly more, and not much less (both parts are not at
    work at once)."""
    model, processor = load(tiny, "float32", fuse=False)
    model.freeze()
    (model.vision_model if part == "vision" else model.language_model.layers[0]).unfreeze()
    model.language_model.checkpointed = model.vision_model.encoder.checkpointed = checkpointed
    rng, side = np.random.default_rng(0), model.config.vision_config.image_size
    input_ids = rng.integers(3, 250, (1, tokens)).astype(np.int32)
    input_ids[0, : tiles * model.config.tokens_per_tile] = model.config.image_token_id
    loss_mask = np.arange(tokens)[None] >= tokens - 50
    pictures = rng.integers(0, 256, (tiles, side, side, 3), np.uint8)
    batch = Batch(input_ids, loss_mask, pictures, processor.settings)
    # Several: in some, another thread lets go of an array before the next is made.
    trainer = Trainer(model, Settings(steps=4, warmup=1), tmp_path)
    mx.eval(model.parameters(), trainer.optimizer.state)
    gc.collect()  # models of other tests
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    trainer.run(lambda step: [batch])
    trainable = sum(a.size for a in dict(tree_flatten(model.trainable_parameters())).values())
    memory = estimate(
        model.config,
        weights=0,
        trainable=trainable,
        tokens=tokens,
        tiles=tiles,
        answer_tokens=50,
        width=4,
        checkpointed=checkpointed,
        trains_vision=part == "vision",
        chunk=1,
    )
    already = 3 * 4 * trainable  # all that is trained but its gradient
    assert 0.65 < (mx.get_peak_memory() - before) / (memory.total - already) < 1.15, memory


@pytest.mark.usefixtures("mlx_lm_imported", "on_the_cpu")
def test_a_run_is_estimated_by_its_longest_rows(tiny: Path, tmp_path: Path) -> None:
    Image.new("RGB", (256, 128), "red").save(tmp_path / "red.png")  # 9 tiles
    Image.new("RGB", (64, 64), "red").save(tmp_path / "small.png")  # 17
    rows: list[dict[str, str]] = [
        {"question": "What?", "answer": "Red.", "image": "red.png"},
        {"question": "What?", "answer": "Red.", "image": "small.png"},
        {"question": "What?", "answer": "Red."},
    ]
    source = write_rows(tmp_path / "rows.jsonl", *rows)
    plan = Plan(batch_size=2, checkpoint_layers=True, validation_share=0, parts=("vision",))
    run = prepare(tiny, source, tmp_path / "out", plan, dtype="bfloat16")
    lengths = sorted(row.tokens for row in run.training.rows)
    everything = tree_flatten(run.model.parameters())
    trained = tree_flatten(run.model.trainable_parameters())
    assert run.memory == estimate(
        run.model.config,
        weights=sum(array.nbytes for array in dict(everything).values()),
        trainable=sum(array.size for array in dict(trained).values()),
        tokens=2 * lengths[-1],
        tiles=9 + 17,
        answer_tokens=2 * lengths[-1],
        width=2,
        checkpointed=True,
        trains_vision=True,
        chunk=tiles_at_once(run.model),
    )
    long = write_rows(tmp_path / "long.jsonl", {"question": "What?", "answer": "so " * 700})
    plan = Plan(batch_size=4, validation_share=0)
    run = prepare(tiny, long, tmp_path / "out", plan, dtype="float32")
    given = {**GIVEN, "tokens": run.training.rows[0].tokens}
    assert run.memory.activations == estimate(run.model.config, width=4, **given).activations
    assert run.memory.logits == 12 * 512 * run.model.config.text_config.vocab_size  # of one row
    assert (run.memory.vision, run.memory.pictures_apart) == (0, True)


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
    quantize_modules(model, Quantization(Form(4)), lambda path: path.startswith("language_model."))
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
