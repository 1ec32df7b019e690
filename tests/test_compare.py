"""How far apart two checkpoints are: nothing for the same, little for 8 bits, more for 2."""

import json
import math
from pathlib import Path

from convert.random_checkpoint import make
from smolvlm_mlx.checkpoint.choices import Recipe
from smolvlm_mlx.checkpoint.compare import compare, conversations
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.errors import CheckpointError

import pytest


def test_the_same_is_at_no_distance(tiny: Path) -> None:
    found = compare(tiny, tiny)
    assert [agreement.prompt for agreement in found] == list(conversations())
    assert all(agreement.top1 == 1 and abs(agreement.kl) < 1e-6 for agreement in found)
    assert all(agreement.tokens > 20 for agreement in found)


def test_fewer_bits_are_farther_away(tiny: Path, tmp_path: Path) -> None:
    distances = []
    for bits in (8, 4, 2):
        convert(tiny, tmp_path / f"{bits}", Recipe(bits=bits, embedding_bits=bits))
        found = compare(tiny, tmp_path / f"{bits}")
        assert all(0 <= agreement.top1 <= 1 and math.isfinite(agreement.kl) for agreement in found)
        distances.append(sum(agreement.kl for agreement in found) / len(found))
    assert 0 < distances[0] < 0.05
    assert distances[0] < distances[1] < distances[2]


def test_different_models_are_not_compared(tiny: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other")
    raw = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**raw, "image_mean": [0, 0, 0]}))
    # The same words: still comparable.
    assert compare(tiny, other)[0].kl == pytest.approx(0, abs=1e-6)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if token["content"] != "<end_of_utterance>"
    ]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        CheckpointError, match="are not the same model: their prompts or vocabularies differ"
    ):
        compare(tiny, other)
