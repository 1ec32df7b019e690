"""Conversations to batches: what is learned of them, and in which order."""

from itertools import chain
from pathlib import Path

from smolvlm_mlx.inputs.tiles import ImageOptions
from smolvlm_mlx import load
from smolvlm_mlx.data.rows import read_rows
from smolvlm_mlx.training.dataset import check, collate, make_example
from smolvlm_mlx.training.loop import loss_sum
from tests.support.checkpoints import load_for_training

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("mlx_lm_imported", "on_the_cpu")


def test_only_the_assistants_words_are_learned(shallow: Path) -> None:
    _, processor = load(shallow)
    picture = {"type": "image", "image": Image.new("RGB", (64, 64), "red")}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [picture, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A red one."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": [{"type": "text", "text": "Still red"}]},
    ]
    example = make_example(processor, messages, ImageOptions(split=False))
    learned = processor.tokenizer.decode(example.input_ids[example.is_answer], keep_special=True)
    assert learned == " A red one.<end_of_utterance> Still red<end_of_utterance>"


def test_a_batch_is_padded_without_changing_the_loss(shallow: Path, mixed_questions: Path) -> None:
    model, processor = load_for_training(shallow)
    dataset = check(processor, read_rows(mixed_questions), 4096)
    examples = [dataset._example(row) for row in (0, 2, 4)]
    assert len({len(example.input_ids) for example in examples}) == 3
    apart = sum(loss_sum(model, collate([example])).item() for example in examples)
    together = loss_sum(model, collate(examples))
    np.testing.assert_allclose(together.item(), apart, rtol=1e-5)


def test_an_epoch_has_every_row_once_and_its_own_order(shallow: Path, short_questions: Path) -> None:
    _, processor = load(shallow)
    dataset = check(processor, read_rows(short_questions), 4096)
    rng = np.random.default_rng
    first, second = dataset._order(2, rng((0, 0))), dataset._order(2, rng((0, 1)))
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(6))
    assert first != second
    assert first == dataset._order(2, rng((0, 0)))
    assert dataset.steps(2, 2) == 2
    batches = dataset.batches(2, 2, seed=0)
    assert [len(batches(step)) for step in range(4)] == [2, 1, 2, 1]  # the third begins the next epoch
