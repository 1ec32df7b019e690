"""What may be sampled, how likely it is, and which tokens a repetition penalty leaves, are
transformers'."""

from itertools import product
from random import Random

from convert.tiny.conversations import MEASURED, make_question
from smolvlm_mlx import Options, load, stream_generate
from smolvlm_mlx.checkpoint.hub import TINY
from smolvlm_mlx.generation.sampling import penalize, truncate
from smolvlm_mlx.inputs.settings import ImageOptions
from tests.parity.checkpoints import channels_first, reference_model
from tests.support.limits import COMBINATIONS, some_logits

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import generation

pytestmark = pytest.mark.parity


def reference(
    logits: np.ndarray, temperature: float, top_p: float, min_p: float, top_k: int
) -> np.ndarray:
    """What transformers' warpers leave, in the order in which its `generate` has them."""
    warpers = generation.LogitsProcessorList([generation.TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(generation.TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(generation.TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(generation.MinPLogitsWarper(min_p))
    ids = torch.zeros(len(logits), 1, dtype=torch.long)
    return np.asarray(warpers(ids, torch.from_numpy(logits)).numpy())


def test_sets_kept_by_1440_combinations_are_transformers() -> None:
    assert len(set(COMBINATIONS)) == 1440
    for seed, limits in enumerate(COMBINATIONS):
        logits = some_logits(seed)
        found = np.array(truncate(mx.array(logits), *limits))
        np.testing.assert_allclose(
            found, reference(logits, *limits), rtol=1e-5, err_msg=f"{limits} {seed}"
        )


@pytest.mark.parametrize("penalty", [0.5, 1.2, 10.0])
def test_the_repetition_penalty_is_transformers(penalty: float) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 100, 150)
    logits = rng.standard_normal((1, 100)).astype(np.float32)
    process = generation.RepetitionPenaltyLogitsProcessor(penalty)
    want = process(torch.from_numpy(tokens)[None], torch.from_numpy(logits.copy())).numpy()
    found = penalize(mx.array(tokens), mx.array(logits), penalty)
    np.testing.assert_allclose(np.array(found), want, rtol=1e-6)


def test_60_tokens_under_a_repetition_penalty_are_transformers() -> None:
    """Of words alone, and with a picture, whose placeholders are penalized too."""
    model, processor = load(TINY, "float32")
    processor.tokenizer.end_ids = frozenset()  # answers go on
    theirs = reference_model(TINY)
    theirs.generation_config.eos_token_id = None
    text = [{"role": "user", "content": "Which colors are there, and how many circles?"}]
    pictured = make_question(MEASURED[0], Random("penalty")).messages
    for messages, penalty in product((text, pictured), (0.9, 1.2, 3.0)):
        inputs = processor(messages, ImageOptions(split=False))
        assert (len(inputs.tiles) > 0) == (messages is pictured)
        batch = {"input_ids": torch.from_numpy(inputs.input_ids.astype(np.int64))[None]}
        if messages is pictured:
            batch["pixel_values"] = channels_first(inputs.pixel_values)
        with torch.no_grad():
            want = theirs.generate(
                **batch, max_new_tokens=60, do_sample=False, repetition_penalty=penalty
            )[0, len(inputs.input_ids) :].tolist()
        options = Options(max_tokens=60, repetition_penalty=penalty)
        stream = stream_generate(model, processor, inputs, options)
        list(stream)
        assert stream.token_ids == want, penalty
        assert len(want) == 60
