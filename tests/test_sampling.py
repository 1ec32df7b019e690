"""Options name every problem; stop strings cut as in the whole text; samplers repeat."""

import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from smolvlm_mlx.errors import GenerationError
from smolvlm_mlx.generation.decoding import Row
from smolvlm_mlx.generation.detokenizer import StopStrings
from smolvlm_mlx.generation.options import Options
from smolvlm_mlx.generation.sampling import make_sampler, penalize, truncate
from tests.support.limits import COMBINATIONS, some_logits
from tests.support.places import ROOT

import mlx.core as mx
import numpy as np
import pytest

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("max_tokens", [1, 10**9], [0, -1]),
        ("temperature", [0, 0.0, 1e-6, 10], [-0.1, 10.01, NAN, INF, -INF]),
        ("top_p", [1e-9, 0.5, 1], [0, -0.1, 1.001, NAN]),
        ("top_k", [0, 1, 10**6], [-1]),
        ("min_p", [0, 1], [-0.1, 1.1, NAN]),
        ("repetition_penalty", [0.1, 1, 10], [0, 0.09, 10.1, -1, NAN]),
        ("repetition_context", [0, 1, 10**9], [-1]),
        ("presence_penalty", [-2, 0, 2], [-2.1, 2.1, NAN, INF]),
        ("frequency_penalty", [-2, 0, 2], [-2.1, 2.1, NAN, INF]),
        ("seed", [None, 0, 2**64 - 1], [-1, 2**64]),
        ("stop", [(), ("a",), ("a", "bc")], [("",), ("a", "")]),
        ("kv_bits", [None, 4, 8], [0, 2, 16]),
    ],
)
def test_options_at_their_edges(name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert getattr(Options(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(GenerationError, match=name):
            Options(**{name: value})


def test_options_untold() -> None:
    assert asdict(Options()) == {
        "max_tokens": 512,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "repetition_context": 0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": None,
        "stop": (),
        "kv_bits": None,
        "skip_special_tokens": None,
        "end_loops": False,
    }


def test_one_stop_string_is_not_its_letters() -> None:
    assert Options(stop="end") == Options(stop=("end",))  # type: ignore[arg-type]
    with pytest.raises(GenerationError, match="stop holds an empty text"):
        Options(stop="")  # type: ignore[arg-type]


def test_all_problems_at_once() -> None:
    with pytest.raises(GenerationError) as raised:
        Options(max_tokens=0, temperature=-1, top_p=0, seed=-5, kv_bits=3)  # type: ignore[arg-type]
    text = str(raised.value)
    assert "\n" not in text
    assert all(
        name in text
        for name in ("max_tokens 0", "temperature -1", "top_p 0", "seed -5", "kv_bits 3")
    )


def test_greedy_loads_no_sampler() -> None:
    code = """
import sys
from smolvlm_mlx.generation.sampling import make_sampler
from smolvlm_mlx.generation.options import Options
import mlx.core as mx
assert make_sampler(Options())(mx.array([[1.0, 3.0, 2.0]])).item() == 1
sys.exit(sorted(name for name in sys.modules if name.startswith(("mlx_lm", "transformers"))) or 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def draw(options: Options, count: int = 50, ids: Any = (1, 2, 3)) -> list[int]:
    logits = mx.array(np.random.default_rng(0).standard_normal((1, 100)).astype(np.float32))
    row = Row(options)
    row.begin(list(ids), count)
    return [row.choose(logits).item() for _ in range(count)]  # type: ignore[misc]  # whole numbers


@pytest.mark.parametrize(
    "settings",
    [{}, {"top_p": 0.8}, {"top_k": 5}, {"min_p": 0.2}, {"top_p": 0.9, "top_k": 9, "min_p": 0.01}],
    ids=str,
)
def test_a_seed_repeats(settings: Any) -> None:
    first = draw(Options(temperature=1.5, seed=7, **settings))
    assert draw(Options(temperature=1.5, seed=7, **settings)) == first
    assert draw(Options(temperature=1.5, seed=8, **settings)) != first
    assert len(set(first)) > 1


def test_without_a_seed_every_answer_is_another() -> None:
    """Also after one with a seed, and in threads, in each of which MLX's random numbers begin
    anew."""
    drawn = []
    for _ in range(5):
        draw(Options(temperature=1.5, seed=7))
        drawn.append(draw(Options(temperature=1.5)))
        with ThreadPoolExecutor(1) as pool:
            drawn.append(pool.submit(draw, Options(temperature=1.5)).result())
    assert len(set(map(tuple, drawn))) == 10


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_tokens_come_as_often_as_they_are_likely(temperature: float) -> None:
    choose, count = make_sampler(Options(temperature=temperature, seed=0)), 20_000
    tokens = np.array(choose(mx.broadcast_to(mx.array([0.0, 1.0, 2.0]), (count, 3))))
    shares = np.exp(np.arange(3) / temperature)
    found = np.bincount(tokens, minlength=3) / count
    np.testing.assert_allclose(found, shares / shares.sum(), atol=0.015)  # 4 deviations


def test_the_narrowest_sampler_is_greedy() -> None:
    greedy = draw(Options())
    assert len(set(greedy)) == 1
    for settings in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert draw(Options(temperature=1.0, seed=1, **settings)) == greedy


@pytest.mark.parametrize(
    "settings", [{"temperature": 1e-39}, {"temperature": 1.0, "top_p": 1e-46}], ids=str
)
def test_what_is_nearly_nothing_is_greedy(settings: Any) -> None:
    assert draw(Options(seed=1, **settings)) == draw(Options())


@pytest.mark.parametrize("top_k", [100, 101, 10**30])
def test_as_many_as_there_are_is_all(top_k: int) -> None:
    assert draw(Options(temperature=1.0, seed=1, top_k=top_k)) == draw(
        Options(temperature=1.0, seed=1)
    )


def test_top_k_keeps_k() -> None:
    logits = np.random.default_rng(0).standard_normal((1, 100)).astype(np.float32)
    best = set(np.argsort(logits[0])[-3:].tolist())
    assert set(draw(Options(temperature=5.0, top_k=3, seed=0), 200)) == best


def test_repetition_penalty_makes_repeats_unlikely() -> None:
    greedy = draw(Options(), 1)[0]
    assert draw(Options(repetition_penalty=10.0), 1, [greedy]) != [greedy]


@pytest.mark.parametrize("splits", [10_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_stop_strings_cut_as_in_the_whole_text(splits: int) -> None:
    """Random ones; few letters, so that stops overlap and nest."""
    rng = random.Random(0)
    for _ in range(splits):
        text = "".join(rng.choices("ab\n", k=rng.randrange(12)))
        stops = [
            "".join(rng.choices("ab\n", k=rng.randrange(1, 5))) for _ in range(rng.randrange(4))
        ]
        stop, at, pieces = StopStrings(stops), 0, []
        while at < len(text):
            size = rng.randrange(1, 4)
            pieces.append(stop.push(text[at : at + size]))
            at += size
        pieces.append(stop.flush())
        cut = min((text.find(each) for each in stops if each in text), default=len(text))
        assert "".join(pieces) == text[:cut], (text, stops)
        assert stop.found == any(each in text for each in stops)


def test_stop_strings_hold_back_no_more_than_they_must() -> None:
    stop = StopStrings(["<end>", "\n\n"])
    assert [stop.push(piece) for piece in ("a<", "e", "x", "\n", "b", "\n", "\n", "c")] == [
        *("a", "", "<ex", "", "\nb", "", "", "")
    ]
    assert stop.found
    assert stop.flush() == ""
    whole = StopStrings(["abab"])
    assert [whole.push(piece) for piece in ("x", "aba", "c", "ab", "a")] == [
        "x",
        "",
        "abac",
        "",
        "",
    ]
    assert whole.flush() == "aba"
    assert not whole.found
    assert StopStrings([]).push("anything") == "anything"


def test_a_token_costs_the_same_however_many_stop_strings_there_are() -> None:
    rng = random.Random(1)
    stops = ["".join(rng.choices("ab", k=60)) for _ in range(3000)]
    stop, began = StopStrings([*stops, "c"]), time.thread_time()
    said = "".join(stop.push(rng.choice(["a", "b", "ab"])) for _ in range(3000))
    said += stop.push("abc")
    assert said.strip("ab") == ""
    assert stop.found
    assert time.thread_time() - began < 5  # it takes hundredths; looking for each took hours


def test_stop_strings_within_and_behind_each_other() -> None:
    for stops, pieces, said in (
        (["abcd", "bc"], ["ab", "c", "x"], "a"),
        (["abcd", "bc"], ["ab", "cd"], ""),
        (["abcd", "bce"], ["abc", "e", "x"], "a"),
        (["aab"], ["a", "a", "a", "b"], "a"),
        (["abcde", "bcd", "c"], ["abcd"], "a"),
        (["a" * 9, "a" * 4 + "b"], ["a" * 8, "b"], "aaaa"),
    ):
        stop = StopStrings(stops)
        assert "".join([*map(stop.push, pieces), stop.flush()]) == said
        assert stop.found


def kept(logits: np.ndarray, temperature: float, top_p: float, min_p: float, top_k: int) -> Any:
    """transformers' rule in float64: temperature, then top_k, then top_p, then min_p, each of what
    the one before has left."""
    scores = (logits / np.float32(temperature)).astype(np.float64)  # as they tie in float32
    if top_k:
        scores[scores < np.sort(scores)[-min(top_k, scores.size)]] = -INF
    if top_p < 1:
        order = np.argsort(scores, kind="stable")
        shares = np.exp(scores[order] - scores.max())
        unlikely = np.cumsum(shares / shares.sum()) <= 1 - top_p
        scores[order[:-1][unlikely[:-1]]] = -INF
    scores[np.exp(scores - scores.max()) < min_p] = -INF
    return scores


def test_what_may_be_sampled_is_transformers_rule_in_1440_combinations() -> None:
    """A temperature changes what top_p keeps, and each limit sees what the one before has left."""
    for seed, limits in enumerate(COMBINATIONS):
        rows = some_logits(seed)
        found = np.array(truncate(mx.array(rows), *limits))[seed % 3]
        logits = rows[seed % 3]
        np.testing.assert_allclose(
            found, kept(logits, *limits), rtol=1e-5, err_msg=f"{limits} {seed}"
        )


def test_as_much_as_top_p_is_enough() -> None:
    for top_p, count in ((0.25, 1), (0.5, 2), (0.75, 3), (0.8, 4)):
        found = np.array(truncate(mx.zeros((1, 4)), 1.0, top_p, 0.0, 0))
        assert np.isfinite(found).sum() == count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
def test_one_of_one_is_always_the_same(temperature: float) -> None:
    for seed in range(4):
        assert draw(Options(temperature=temperature, top_k=1, seed=seed)) == draw(Options())


def test_among_equals_the_first_is_the_only_one() -> None:
    choose = make_sampler(Options(temperature=2.0, top_k=1, seed=0))
    assert {choose(mx.array([[0.0, 1.0, 1.0, 1.0]])).item() for _ in range(20)} == {1}


def tokens_by_hand(logits: np.ndarray, prompt: list[int], options: Options) -> Any:
    """Greedy tokens after a prompt, in plain Python: the formulas of arXiv:1909.05858 and of
    OpenAI's reference."""
    said: list[int] = []
    for row in logits:
        scores = row.astype(np.float64)
        for token in set([*prompt, *said][-options.repetition_context :]):
            penalty = options.repetition_penalty
            scores[token] *= penalty if scores[token] < 0 else 1 / penalty
        for token in set(said):
            scores[token] -= options.presence_penalty
            scores[token] -= options.frequency_penalty * said.count(token)
        said.append(int(scores.argmax()))
    return said


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"repetition_penalty": 2.0},
        {"repetition_penalty": 3.0, "repetition_context": 1},
        {"repetition_penalty": 3.0, "repetition_context": 7},
        {"repetition_penalty": 3.0, "repetition_context": 500},
        {"repetition_context": 7},
        {"presence_penalty": 0.8},
        {"presence_penalty": -0.5},
        {"frequency_penalty": 0.3},
        {"frequency_penalty": -0.3},
        {"presence_penalty": 0.4, "frequency_penalty": 0.2},
        {
            "repetition_penalty": 1.2,
            "repetition_context": 9,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.1,
        },
    ],
    ids=str,
)
def test_penalties_are_their_formulas_over_60_tokens(settings: Any) -> None:
    """Of what is in the prompt too, the repetition's; the others of the answer alone."""
    logits = np.random.default_rng(0).standard_normal((60, 12)).astype(np.float32)
    prompt, options = [1, 2, 3, 4, 5, 6] * 2, Options(**settings)
    row = Row(options)
    row.begin(prompt, 60)
    found = [row.choose(mx.array(each)[None]).item() for each in logits]
    assert found == tokens_by_hand(logits, prompt, options)
    if settings != {"repetition_context": 7}:  # of a penalty that there is not
        assert found != logits.argmax(axis=1).tolist()


def test_a_repetition_penalty_is_of_all_that_was_said() -> None:
    """Also of what was said long ago, once however often, and whichever sign its logit has."""
    rng = np.random.default_rng(0)
    for penalty in (0.5, 1.3, 10.0):
        logits = rng.standard_normal(100).astype(np.float32)
        tokens = rng.integers(0, 100, 300 if penalty > 1 else 30)
        want = logits.copy()
        for token in set(tokens.tolist()):
            want[token] *= penalty if want[token] < 0 else 1 / penalty
        found = penalize(mx.array(tokens), mx.array(logits)[None], penalty)
        np.testing.assert_allclose(np.array(found)[0], want, rtol=1e-6)
