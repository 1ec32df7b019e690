"""Steps of training: batches that are one, layers that are computed again, the rate."""

from pathlib import Path
from typing import Any

from smolvlm_mlx.model import SmolVLM
from smolvlm_mlx.training.dataset import collate
from smolvlm_mlx.training.loop import Settings, Trainer, image_tokens_of, loss_sum
from tests.support.checkpoints import load_for_training
from tests.support.rows import examples_of

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

pytestmark = pytest.mark.usefixtures("mlx_lm_imported", "on_the_cpu")


def gradients_of(model: SmolVLM, batch: Any) -> dict[str, np.ndarray]:
    _, gradients = nn.value_and_grad(model, loss_sum)(model, batch, image_tokens_of(model, batch))
    return {name: np.array(array) for name, array in dict(tree_flatten(gradients)).items()}


def test_accumulated_batches_are_one_large_batch(
    shallow: Path, mixed_questions: Path, tmp_path: Path
) -> None:
    """Each token counts the same, in whichever batch it is."""
    weights = []
    for batches in ([[0, 2, 4]], [[0], [2, 4]]):
        model, processor = load_for_training(shallow)
        model.freeze()
        model.connector.unfreeze()
        made = [collate(examples_of(processor, mixed_questions, *rows)) for rows in batches]
        trainer = Trainer(model, Settings(steps=1, warmup=1), tmp_path / f"{len(batches)}")
        trainer.run(lambda step, made=made: made)  # type: ignore[misc]
        weights.append(np.array(model.connector.modality_projection.proj.weight))
    np.testing.assert_allclose(weights[0], weights[1], atol=2e-6)


def test_checkpointed_layers_have_the_same_gradients(shallow: Path, mixed_questions: Path) -> None:
    model, processor = load_for_training(shallow)
    batch = collate(examples_of(processor, mixed_questions, 0, 1))
    plain = gradients_of(model, batch)
    model.language_model.checkpointed = model.vision_model.encoder.checkpointed = True
    checkpointed = gradients_of(model, batch)
    assert plain.keys() == checkpointed.keys() == model.named_parameters().keys()
    for name, gradient in plain.items():
        np.testing.assert_allclose(checkpointed[name], gradient, atol=1e-5, err_msg=name)


def test_the_rate_rises_and_falls() -> None:
    schedule = Settings(steps=100, learning_rate=1.0, warmup=10).schedule()
    rates = [float(schedule(mx.array(step))) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.01 < rates[-1] < 0.02
