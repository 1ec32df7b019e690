"""Prompts that are built in, the source's answers to them, and the distance of predictions."""

from itertools import islice

from smolvlm_mlx import load
from smolvlm_mlx.generation.engine import generate
from smolvlm_mlx.generation.options import Options
from smolvlm_mlx.quality.divergence import CHUNK, Predictions, compare, divergence
from smolvlm_mlx.quality.examples import answer, keep_head, predict
from smolvlm_mlx.quality.prompts import KINDS, Prompt, built_in, prompts

import mlx.core as mx
import numpy as np
import pytest

COUNT = 12  # prompts


def said(prompt: Prompt) -> tuple[object, ...]:
    """A prompt's words and pictures."""
    (message,) = prompt.messages
    return (message.text, *(media.data for media in message.media))


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_sets_have_nothing_in_common_and_stay_as_they_are(kind: str) -> None:
    chosen, checked = (
        [said(each) for each in islice(prompts(kind, which), COUNT)]  # type: ignore[arg-type]
        for which in ("choose", "check")
    )
    if kind in ("text", "picture", "pictures", "document"):
        assert len({*chosen, *checked}) == 2 * COUNT
    assert chosen == [said(each) for each in islice(prompts(kind, "choose"), COUNT)]  # type: ignore[arg-type]


def test_answers_are_the_models_own() -> None:
    """Several side by side are those that it gives one by one."""
    model, processor = load("tiny")
    asked = built_in(dict.fromkeys(KINDS, 2), "choose")
    found = answer(model, processor, asked, 12)
    assert [example.kind for example in found] == [kind for kind in KINDS for _ in range(2)]
    for prompt, example in zip(asked, found, strict=True):
        inputs = processor(prompt.messages, prompt.image_options)
        alone = generate(model, processor, inputs, Options(max_tokens=12))
        ids = example.input_ids[example.is_answer].tolist()
        assert processor.tokenizer.decode(ids, True).strip() == alone.strip()
        assert example.input_ids[~example.is_answer].tolist() == inputs.input_ids.tolist()
        assert example.is_answer.tolist() == sorted(example.is_answer.tolist())
        positions = example.positions(model.config.image_token_id)
        counted = [id != model.config.image_token_id for id in example.input_ids[:-1]]
        assert positions.tolist() == np.flatnonzero(counted).tolist()


def test_the_distance_is_its_formula() -> None:
    """In pieces as at once, and without a table of all."""
    rng = np.random.default_rng(0)
    want, have = (rng.normal(size=(CHUNK + 3, 11)).astype(np.float32) * 3 for _ in range(2))
    following = rng.integers(0, 11, CHUNK + 3).astype(np.int32)

    def passes(x: mx.array) -> mx.array:
        assert len(x) <= CHUNK
        return x

    found = compare(
        Predictions(mx.array(want), passes), Predictions(mx.array(have), passes), following
    )
    p, q = (np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in (want, have))
    np.testing.assert_allclose(found.kl, (p * np.log(p / q)).sum(axis=-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        np.array(divergence(mx.array(want), mx.array(have))), found.kl, rtol=1e-4, atol=1e-6
    )
    assert found.changed.tolist() == (want.argmax(-1) != have.argmax(-1)).tolist()
    rows = np.arange(CHUNK + 3)
    np.testing.assert_allclose(found.source_loss, -np.log(p[rows, following]), rtol=1e-4)
    np.testing.assert_allclose(found.result_loss, -np.log(q[rows, following]), rtol=1e-4)


def test_a_head_is_enough_to_compare_with() -> None:
    """Logits of hidden states that are kept are those of the whole model."""
    model, processor = load("tiny", "float32")
    (example,) = answer(model, processor, built_in({"picture": 1}, "check"), 8)
    tiles = mx.array(example.prompt(processor).pixel_values)
    whole = model(mx.array(example.input_ids)[None], tiles)[0]
    (predictions,) = predict(model, processor, [example])
    positions = example.positions(model.config.image_token_id)
    keep_head(model)
    np.testing.assert_allclose(
        np.array(predictions.head(predictions.hidden_states)),
        np.array(whole)[positions],
        rtol=1e-4,
        atol=1e-4,
    )
