"""How good a conversion is: nothing changes in the same, little in 8 bits, much in 2; and what is
broken is never called good."""

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from convert.random_checkpoint import make
from smolvlm_mlx.checkpoint.choices import Recipe
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.checkpoint.reader import load
from smolvlm_mlx.data.rows import read_rows
from smolvlm_mlx.errors import AdapterError, CheckpointError, DataError
from smolvlm_mlx.events import Reading
from smolvlm_mlx.quality import report
from smolvlm_mlx.quality.prompts import KINDS
from smolvlm_mlx.quality.report import (
    FAIR,
    POOR,
    Figures,
    QualityReport,
    check,
    measure_source,
)
from tests.support.checkpoints import copy, weights_of

import mlx.core as mx
import pytest

FEW = 300  # positions


def test_the_same_is_at_no_distance(tiny: Path) -> None:
    found = check(tiny, tiny)
    assert found.total.positions >= 2000
    assert list(found.kinds) == list(KINDS)
    assert sum(figures.positions for figures in found.kinds.values()) == found.total.positions
    assert (found.verdict, found.left_out, found.skipped) == ("good", (), ())
    for figures in (found.total, *found.kinds.values()):
        assert (figures.kl_mean, figures.kl_median, figures.kl_p99) == pytest.approx(
            (0, 0, 0), abs=1e-6
        )
        assert figures.changed == 0
        assert figures.result_perplexity == pytest.approx(figures.source_perplexity)
        # Greedy answers are likelier than any other.
        assert 1 <= figures.source_perplexity < 300


def test_fewer_bits_are_farther_away(tiny: Path, tmp_path: Path) -> None:
    found, reference = [], measure_source(tiny, positions=FEW, kinds=("text", "picture"))
    for bits in (8, 4, 2):
        convert(tiny, tmp_path / f"{bits}", Recipe(bits=bits, embedding_bits=bits))
        found.append(reference.compared(*load(tmp_path / f"{bits}")))
    kls = [report.total.kl_mean for report in found]
    assert 0 < kls[0] < FAIR
    assert kls[0] < kls[1] < kls[2]
    assert found[0].total.changed < found[2].total.changed <= 1
    assert (found[0].verdict, found[2].verdict) == ("good", "poor")
    assert found[2].total.kl_median <= found[2].total.kl_p99
    assert found[2].total.result_perplexity > found[2].total.source_perplexity


def test_kinds_that_the_model_does_not_take_are_left_out(tiny_v1: Path) -> None:
    found = check(tiny_v1, tiny_v1, positions=FEW)
    assert found.left_out == ("video",)
    assert "video" not in found.kinds


def figures(kl: float, perplexity: float = 2.0) -> Figures:
    return Figures(1, 100, kl, kl, kl, 0.0, 2.0, perplexity)


@pytest.mark.parametrize(
    ("kls", "verdict", "worst"),
    [
        ((0.001, FAIR), "good", "picture"),
        ((0.001, FAIR * 1.01), "fair", "picture"),
        ((POOR, 0.001), "fair", "text"),
        ((0.001, POOR * 1.01), "poor", "picture"),
        ((0.001, math.nan), "broken", "picture"),
        ((math.inf, 0.001), "broken", "text"),
    ],
)
def test_the_worst_kind_decides(kls: tuple[float, float], verdict: str, worst: str) -> None:
    kinds = dict(zip(("text", "picture"), map(figures, kls), strict=True))
    report = QualityReport(figures(0.001), kinds)
    assert (report.verdict, report.worst) == (verdict, worst)
    said = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert said["verdict"] == verdict
    assert said["kinds"]["text"]["kl_mean"] == (kls[0] if math.isfinite(kls[0]) else None)


def test_a_perplexity_without_end_is_broken() -> None:
    assert QualityReport(figures(0.0, math.inf), {"text": figures(0.0)}).verdict == "broken"


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Path:
    """With one weight that is no number."""
    weights = weights_of(tiny)
    name = "language_model.layers.1.mlp.up_proj.weight"
    rows = mx.arange(weights[name].shape[0])[:, None] == 3
    weights[name] = mx.where(rows, mx.array(math.nan), weights[name])
    return copy(tiny, tmp_path / "broken", weights)


def test_what_is_no_number_is_broken(tiny: Path, broken: Path) -> None:
    found = check(tiny, broken, positions=FEW, kinds=("text",))
    assert found.verdict == "broken"
    assert found.to_json()["total"]["kl_mean"] is None


def test_broken_is_exit_code_1(broken: Path, tiny: Path, tmp_path: Path, call: Any) -> None:
    """Of a source that has a NaN, on answers of its owner: it makes none of its own."""
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "What is it?", "answer": "A red circle."}\n')
    code, out, _ = call("convert", broken, tmp_path / "out", "--check-data", data)
    assert code == 1
    assert "BROKEN" in out


def test_who_ends_a_check_keeps_the_result_and_is_told(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **options: object) -> Iterator[Reading]:
        yield Reading(0, 1, "prompts")
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "check_in_steps", interrupted)
    code, _, err = call("convert", "tiny", tmp_path / "out", "--check")
    assert code == 130
    assert f"{tmp_path / 'out'} is complete, and its comparison is not" in err
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("embedding_bits", [None, 2])
def test_of_rows_their_answers_count(
    tiny: Path, tmp_path: Path, embedding_bits: int | None
) -> None:
    """And what cannot be used is told."""
    convert(tiny, tmp_path / "2bit", Recipe(bits=2, embedding_bits=embedding_bits))
    data = tmp_path / "rows.jsonl"
    lines: list[dict[str, Any]] = [
        {"question": "What is it?", "answer": "A red circle."},
        {"question": "And this?"},
        {"image": "nothing.png", "question": "And this?", "answer": "Blue."},
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = check(tiny, tmp_path / "2bit", rows=read_rows(data))
    assert list(found.kinds) == ["text"]
    assert found.total.conversations == 1
    assert [where for where, _ in found.skipped] == ["rows.jsonl:2", "rows.jsonl:3"]
    assert found.total.kl_mean > 0.01
    data.write_text(json.dumps(lines[1]))
    with pytest.raises(DataError, match=r"no row can be compared on: rows\.jsonl:1: no answer"):
        check(tiny, tiny, rows=read_rows(data))


def test_rows_without_answers_are_refused(tiny: Path, tmp_path: Path, call: Any) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "What is it?"}\n')
    code, _, err = call("convert", tiny, tmp_path / "out", "--check-data", data)
    assert code == 1
    assert "no row can be compared on; rows.jsonl:1: no answer" in err
    assert not (tmp_path / "out").exists()


def test_figures_as_json(tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "check_in_steps", partial(report.check_in_steps, positions=FEW))
    code, out, _ = call("convert", "tiny", tmp_path / "out", "--bits", 8, "--check", "--json")
    said = json.loads(out)
    assert code == 0
    assert said["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert said["quality"]["verdict"] == "good"
    assert said["quality"]["total"]["positions"] >= FEW
    assert said["quality"]["kinds"].keys() <= set(KINDS)
    assert 0 < said["quality"]["total"]["kl_mean"] < FAIR


def test_revision_and_adapter_are_the_sources(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="revision 'v2'"):
        check(tiny, tiny, revision="v2")
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        check(tiny, tmp_path / "nothing", adapter=tmp_path)


def test_different_models_are_not_compared(tiny: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if token["content"] != "<end_of_utterance>"
    ]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="not the same model: their prompts differ"):
        check(tiny, other, positions=FEW, kinds=("text",))
