"""What is said of recipes is what was measured, and what was measured is good."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from convert.quality import draw, table
from smolvlm_mlx.checkpoint.choices import RECIPES
from tests.support.places import ROOT

import numpy as np
import pytest

DOCS = ROOT / "docs"
ROWS: list[dict[str, Any]] = json.loads((DOCS / "quality.json").read_text())["results"]
BY_NAME = {row["name"]: row for row in ROWS}
QUANTIZED = [name for name, recipe in RECIPES.items() if recipe.quantizes]


def test_all_recipes_were_measured() -> None:
    names = [*RECIPES, *(f"as large as {name}" for name in QUANTIZED)]
    assert BY_NAME.keys() == {*names, "4bit learned", "3bit learned"}
    assert min(row["positions"] for row in ROWS) >= 2000


def test_docs_have_what_was_measured() -> None:
    docs, readme = (
        " ".join(path.read_text(encoding="utf-8").split())
        for path in (DOCS / "checkpoints.md", ROOT / "README.md")
    )
    assert " ".join(table(ROWS).split()) in docs
    four, three, learned_four, learned_three = (
        f"{BY_NAME[name]['kl_mean']:.2g}"
        for name in ("4bit", "3bit", "4bit learned", "3bit learned")
    )
    assert f"rounded are {four} nats away, 4 bits that were learned {learned_four}," in readme
    assert f"At 4 bits {learned_four} instead of {four} nats" in docs
    assert f"at 3 bits {learned_three} instead of {three}," in docs


def test_the_picture_is_of_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(ROWS, tmp_path / "quality.svg")
    drawn, kept = (
        path.read_text(encoding="utf-8")
        for path in (tmp_path / "quality.svg", DOCS / "quality.svg")
    )
    for pattern in (r">([^<>]*(?:bit|fp)[^<>]*)</text>", r"<use [^>]*(fill: #\w+)"):
        found = Counter(re.findall(pattern, kept))
        assert found == Counter(re.findall(pattern, drawn))
        assert found.total() >= len(QUANTIZED)


def test_the_points_of_the_picture_are_what_was_measured() -> None:
    """MB across and the logarithm of mean KL up, however wide the picture is."""
    kept = (DOCS / "quality.svg").read_text(encoding="utf-8")
    rows = [row for row in ROWS if row["name"] != "bf16"]
    rows.sort(key=lambda row: ["fixed", "mix", "learned"].index(row["series"]))
    points = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill', kept)[: len(rows)]
    measured = [(row["mb"], math.log(row["kl_mean"])) for row in rows]
    for values, places in zip(np.array(measured).T, np.array(points, float).T, strict=True):
        line = np.polyval(np.polyfit(values, places, 1), values)
        np.testing.assert_allclose(line, places, rtol=0, atol=0.5)


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_mix_beats_every_recipe_of_its_size(name: str) -> None:
    """By mean KL, with the same tower, of which words say nothing."""
    mix, vision = BY_NAME[f"as large as {name}"], RECIPES[name].vision_bits
    assert mix["mb"] <= BY_NAME[name]["mb"]
    for other in QUANTIZED:
        row = BY_NAME[other]
        if RECIPES[other].vision_bits == vision and row["mb"] <= BY_NAME[name]["mb"]:
            assert mix["kl_mean"] < row["kl_mean"], other


@pytest.mark.parametrize(("bits", "share"), [(4, 1 / 3), (3, 1 / 4)])
def test_what_is_learned_is_near(bits: int, share: float) -> None:
    learned, rounded = BY_NAME[f"{bits}bit learned"], BY_NAME[f"{bits}bit"]
    assert learned["mb"] == rounded["mb"]
    assert learned["kl_mean"] <= share * rounded["kl_mean"]
