"""Answers that are made together: each row's tokens, and how much is computed for them."""

from typing import Any
from unittest.mock import Mock

from smolvlm_mlx import Options
from smolvlm_mlx.errors import GenerationError
from smolvlm_mlx.generation.decoding import Decoder, Row
from smolvlm_mlx.generation.prefill import make_cache, prefill
from smolvlm_mlx.generation.sampling import Sampler
from smolvlm_mlx.model import BatchKVCache, KVCache, ints
from smolvlm_mlx.model.language import LanguageModel
from tests.support.checkpoints import Loaded

import mlx.core as mx
import pytest


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each step that goes through the decoder's layers."""
    found, hidden_states = list[int](), LanguageModel.hidden_states

    def counted(self: Any, inputs: Any, *others: Any) -> mx.array:
        if inputs is not None:  # or it is a prompt
            found.append(inputs.shape[0])
        return hidden_states(self, inputs, *others)

    monkeypatch.setattr(LanguageModel, "hidden_states", counted)
    return found


def answers(
    loaded: Loaded, rows: list[Row], ids: list[list[int]], kv_bits: int | None = None
) -> list[list[int]]:
    """The tokens of rows that begin together, after prompts of one length."""
    decoder, cache = Decoder(loaded[0]), make_cache(loaded[0], 64, kv_bits)
    for row, prompt in zip(rows, ids, strict=True):
        row.begin(prompt, 99)
    decoder.add(rows, cache, prefill(loaded[0], mx.array(ids), None, cache))
    while not all(row.over for row in rows):
        decoder.step()
    return [row.token_ids for row in rows]


@pytest.mark.parametrize(
    ("lengths", "widths_of_steps"),
    [
        ([4], [1, 1, 1]),
        ([2, 5], [2, 2, 1, 1]),
        ([2, 3, 6], [3, 3, 3, 1, 1]),
        ([2, 4, 6, 8], [4, 4, 4, 4, 2, 2, 1]),
        ([1, 1, 1, 4], [1, 1, 1]),
    ],
)
def test_rows_that_are_over_are_not_computed_when_they_are_half(
    lengths: list[int], widths_of_steps: list[int], loaded: Loaded, widths: list[int]
) -> None:
    """The step after is under way with all that were there before."""
    rows = [Row(Options(max_tokens=length)) for length in lengths]
    ids = [[5, 9, 200, number] for number in range(len(rows))]
    together = answers(loaded, rows, ids)
    assert [len(tokens) for tokens in together] == lengths
    assert widths == widths_of_steps
    for length, prompt, tokens in zip(lengths, ids, together, strict=True):
        assert answers(loaded, [Row(Options(max_tokens=length))], [prompt]) == [tokens]


def test_rows_in_few_bits_come_and_go_as_well(loaded: Loaded) -> None:
    lengths, ids = (2, 7, 5, 2), [[5, 9, 200, number] for number in range(4)]
    together = answers(loaded, [Row(Options(max_tokens=each)) for each in lengths], ids, 8)
    for length, prompt, tokens in zip(lengths, ids, together, strict=True):
        assert answers(loaded, [Row(Options(max_tokens=length))], [prompt], 8) == [tokens]


def test_one_that_is_left_goes_on_as_if_alone(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another, of another length, had come later."""
    kinds, hidden_states = list[tuple[int, type]](), LanguageModel.hidden_states

    def seen(self: Any, inputs: Any, cache: Any, *others: Any) -> mx.array:
        if inputs is not None:
            kinds.append((inputs.shape[0], type(cache[0])))
        return hidden_states(self, inputs, cache, *others)

    monkeypatch.setattr(LanguageModel, "hidden_states", seen)
    decoder, rows = Decoder(loaded[0]), [Row(Options(max_tokens=length)) for length in (6, 2)]
    ids = [[5, 9, 200, 31], [7, 7]]
    for row, prompt in zip(rows, ids, strict=True):
        row.begin(prompt, 99)
        cache = make_cache(loaded[0], 64)
        decoder.add([row], cache, prefill(loaded[0], mx.array([prompt]), None, cache))
        decoder.step()
    while not rows[0].over:
        decoder.step()
    assert kinds[0] == (1, KVCache)
    assert (2, BatchKVCache) in kinds
    assert kinds[-1] == (1, KVCache)
    assert {kind for width, kind in kinds if width == 1} == {KVCache}
    for row, prompt in zip(rows, ids, strict=True):
        alone = Row(row.options)
        assert answers(loaded, [alone], [prompt]) == [row.token_ids]


def test_a_constraint_chooses_until_its_answer_is_over(loaded: Loaded) -> None:
    """It is told how many tokens are left; not of what is computed beside others after it."""
    seen = list[int]()

    class Least:
        def begin(self, max_new_tokens: int) -> None:
            assert max_new_tokens == 2

        def choose(self, logits: mx.array, sampler: Sampler, left: int) -> int:
            seen.append(left)
            return ints(sampler(-logits))[0]

    lengths, ids = (2, 4, 4), [[5, 9, 200, number] for number in range(3)]
    rows = [Row(Options(max_tokens=length)) for length in lengths]
    rows[0] = Row(Options(max_tokens=2), constraint=Least())
    (first, *others) = answers(loaded, rows, ids)
    assert seen == [2, 1]
    assert first != answers(loaded, [Row(Options(max_tokens=2))], ids[:1])[0]
    assert others == answers(loaded, [Row(Options(max_tokens=4)) for _ in range(2)], ids[1:])


def test_a_constraint_that_cannot_go_on_ends_its_own_row(loaded: Loaded) -> None:
    class Stuck:
        def begin(self, max_new_tokens: int) -> None: ...

        def choose(self, logits: mx.array, sampler: Sampler, left: int) -> int:
            if left == 1:
                raise GenerationError("stuck")
            return 7

    ids = [[5, 9, 200, number] for number in range(2)]
    rows = [Row(Options(max_tokens=3), constraint=Stuck()), Row(Options(max_tokens=3))]
    found = answers(loaded, rows, ids)
    assert found[0] == [7, 7]
    assert str(rows[0].error) == "stuck"
    assert (len(found[1]), rows[1].error) == (3, None)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_end_their_own_row(
    temperature: float, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [[5, 9, 200, number] for number in range(3)]

    def made(bad: int | None) -> list[Row]:
        rows = [Row(Options(max_tokens=5, temperature=temperature, seed=each)) for each in range(3)]
        healthy = LanguageModel.logits

        def logits(self: LanguageModel, hidden: mx.array) -> mx.array:
            values = healthy(self, hidden)
            if len(values) == 3 and bad is not None:
                values[bad, 7] = float("nan")
            return values

        with monkeypatch.context() as patch:
            patch.setattr(LanguageModel, "logits", logits)
            answers(loaded, rows, ids)
        return rows

    want = [row.token_ids for row in made(None)]
    for bad in range(3):
        rows = made(bad)
        assert [row.error is not None for row in rows] == [each == bad for each in range(3)]
        assert [row.token_ids for row in rows] == [
            [] if each == bad else tokens for each, tokens in enumerate(want)
        ]


@pytest.mark.parametrize(
    ("penalties", "calls"), [((1.0, 1.0, 1.0), 4), ((1.0, 1.0, 1.3), 3 * 4), ((1.3, 1.0, 1.0), 12)]
)
def test_rows_that_are_chosen_alike_are_chosen_at_once(
    penalties: tuple[float, ...], calls: int, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Row(Options(max_tokens=4, repetition_penalty=each)) for each in penalties]
    argmax, async_eval = Mock(wraps=mx.argmax), Mock(wraps=mx.async_eval)
    monkeypatch.setattr(mx, "argmax", argmax)
    monkeypatch.setattr(mx, "async_eval", async_eval)
    answers(loaded, rows, [[5, 9, 200, number] for number in range(3)])
    assert argmax.call_count == calls
    assert async_eval.call_count == 4  # each step is under way at once


def test_rows_without_a_processor_share_their_sampler() -> None:
    for options in (Options(), Options(temperature=1.0), Options(repetition_context=9)):
        assert Row(options).sampler is Row(options).sampler is not None
    for each in (
        {"repetition_penalty": 1.1},
        {"repetition_penalty": 2.0},
        {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1},
    ):
        assert Row(Options(**each)).sampler is None  # type: ignore[arg-type]
    assert Row(Options(temperature=1.0, seed=1)).sampler is not Row(Options()).sampler
