"""Conversations to batches: what is learned of them, and in which order."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from smolvlm_mlx import load
from smolvlm_mlx.data.rows import read_rows
from smolvlm_mlx.errors import PromptError
from smolvlm_mlx.inputs.processor import Processor
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.training.dataset import Dataset, check, collate, make_example
from smolvlm_mlx.training.loop import loss_sum
from tests.support.checkpoints import load_for_training
from tests.support.rows import examples_of, write_rows
from tests.support.videos import encode_video

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
    learned = processor.tokenizer.decode(
        example.input_ids[example.loss_mask], skip_special_tokens=False
    )
    assert learned == " A red one.<end_of_utterance> Still red<end_of_utterance>"
    whole = processor.tokenizer.decode(example.input_ids[0], skip_special_tokens=False)
    assert whole.rstrip().endswith(" Still red<end_of_utterance>")  # nothing begins an answer


def test_what_has_no_answer_cannot_be_learned(shallow: Path) -> None:
    with pytest.raises(PromptError, match="no assistant's message to learn"):
        make_example(load(shallow)[1], [{"role": "user", "content": "What?"}])


def test_a_video_is_learned_as_its_frames_and_counted(tiny: Path, tmp_path: Path) -> None:
    _, processor = load(tiny)
    (tmp_path / "a.mp4").write_bytes(encode_video(20))
    row = {"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\nWhat?"}]}
    rows = read_rows(write_rows(tmp_path / "rows.jsonl", {**row, "answer": "Black."}))
    (usable,) = check(processor, rows, 4096).rows
    assert (usable.image, usable.video) == (False, True)
    assert usable.tiles > 0


def test_a_batch_is_padded_without_changing_the_loss(shallow: Path, mixed_questions: Path) -> None:
    model, processor = load_for_training(shallow)
    examples = examples_of(processor, mixed_questions, 0, 2, 4)
    assert len({example.input_ids.size for example in examples}) == 3
    apart = sum(loss_sum(model, collate([example])).item() for example in examples)
    together = loss_sum(model, collate(examples))
    np.testing.assert_allclose(together.item(), apart, rtol=1e-5)


PAIRS = ((0, 1), (2, 3), (4, 5))


def of_lengths(processor: Processor, folder: Path, counts: Sequence[int]) -> Dataset:
    """Rows whose answers have so many words."""
    rows = [{"question": f"{count}?", "answer": "so " * count} for count in counts]
    return check(processor, read_rows(write_rows(folder / "rows.jsonl", *rows)), 4096)


def test_what_is_validated_on_is_chosen_by_the_seed_and_asked_by_length(
    shallow: Path, tmp_path: Path
) -> None:
    dataset = of_lengths(load(shallow)[1], tmp_path, [5, 1, 4, 2, 8, 3, 7, 6])
    tokens, chosen = sorted(row.tokens for row in dataset.rows), []
    for seed in (0, 0, 1):
        rest, held_out = dataset.split(3, seed)
        assert (len(rest), len(held_out)) == (5, 3)
        assert sorted(row.tokens for row in (*rest.rows, *held_out.rows)) == tokens
        chosen.append(held_out.rows)
    assert chosen[0] == chosen[1] != chosen[2]
    # The same in each version: else no run that was begun would go on.
    wheres = [[row.row.where.rpartition(":")[2] for row in rows] for rows in chosen[1:]]
    assert wheres == [["2", "3", "8"], ["1", "5", "7"]]
    shapes = [batch.input_ids.shape for batch in dataset.all(3)]
    assert shapes == [(3, tokens[2]), (3, tokens[5]), (2, tokens[7])]


def test_a_row_of_just_as_many_tokens_is_kept(shallow: Path, tmp_path: Path) -> None:
    _, processor = load(shallow)
    (row,) = of_lengths(processor, tmp_path, [3]).rows
    rows = read_rows(tmp_path / "rows.jsonl")
    assert len(check(processor, rows, row.tokens)) == 1
    (skipped,) = check(processor, rows, row.tokens - 1).skipped
    assert skipped.reason == f"{row.tokens} tokens, more than {row.tokens - 1}"


def test_an_epoch_has_every_row_once_and_its_own_order(shallow: Path, tmp_path: Path) -> None:
    _, processor = load(shallow)
    dataset = of_lengths(processor, tmp_path, range(1, 7))

    def epochs() -> list[list[list[int]]]:
        """The rows of each batch, of the first epoch and the second: how often the answer says
        "so"."""
        batches = dataset.batches(2, 2, seed=0)
        steps = [batches(step) for step in range(4)]
        assert [len(step) for step in steps] == [2, 1, 2, 1]  # the third begins the next epoch
        decode = processor.tokenizer.decode
        found = [
            [[decode(ids).count("so") - 1 for ids in batch.input_ids] for batch in step]
            for step in steps
        ]
        return [found[0] + found[1], found[2] + found[3]]

    first, second = epochs()
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(6))
    assert first != second
    # Those of like lengths are side by side.
    for epoch in (first, second):
        assert {frozenset(batch) for batch in epoch} == {frozenset(pair) for pair in PAIRS}
    assert epochs() == [first, second]
    assert dataset.steps(2, 2) == 2


def test_rows_are_sorted_by_length_within_32_batches(shallow: Path, tmp_path: Path) -> None:
    """Pairs of 64 rows are neighbours, by a word; two more are in a pool of their own."""
    processor = load(shallow)[1]
    word = len(processor.tokenizer.encode_prompt(" so", "\ufdd0"))
    for count, sorted_whole in ((64, True), (66, False)):
        dataset = of_lengths(processor, tmp_path, range(1, count + 1))
        batches = dataset.batches(2, count, seed=0)(0)
        learned = [batch.loss_mask.sum(axis=1) for batch in batches]
        assert (all(long - short == word for short, long in learned)) == sorted_whole
