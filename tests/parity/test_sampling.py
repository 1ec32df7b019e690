"""What may be sampled, and how likely it is, are transformers'."""

import random

from smolvlm_mlx.generation.sampling import penalize, truncate

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import generation

pytestmark = pytest.mark.parity


def test_limits_are_transformers() -> None:
    rng = random.Random(0)
    for seed in range(400):
        temperature, top_p = rng.uniform(0.1, 3), rng.choice([1.0, rng.uniform(0.02, 0.999)])
        min_p = rng.choice([0.0, rng.uniform(0.001, 1)])
        top_k = rng.choice([0, rng.randrange(1, 600)])
        logits = np.random.default_rng(seed).normal(0, rng.uniform(0.5, 5), (2, 500))
        logits = logits.astype(np.float32)
        warpers = generation.LogitsProcessorList([generation.TemperatureLogitsWarper(temperature)])
        if top_k:
            warpers.append(generation.TopKLogitsWarper(top_k))
        if top_p < 1:
            warpers.append(generation.TopPLogitsWarper(top_p))
        if min_p:
            warpers.append(generation.MinPLogitsWarper(min_p))
        want = warpers(torch.zeros(2, 1, dtype=torch.long), torch.from_numpy(logits)).numpy()
        found = np.array(truncate(mx.array(logits), temperature, top_p, min_p, top_k))
        np.testing.assert_allclose(found, want, rtol=1e-5, err_msg=str(seed))


@pytest.mark.parametrize("penalty", [0.5, 1.2, 10.0])
def test_the_repetition_penalty_is_transformers(penalty: float) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 100, 150)
    logits = rng.standard_normal((1, 100)).astype(np.float32)
    process = generation.RepetitionPenaltyLogitsProcessor(penalty)
    want = process(torch.from_numpy(tokens)[None], torch.from_numpy(logits.copy())).numpy()
    found = penalize(mx.array(tokens), mx.array(logits), penalty)
    np.testing.assert_allclose(np.array(found), want, rtol=1e-6)
