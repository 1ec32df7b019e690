"""Interchange with mlx-vlm: each reads what the other converts, and computes the same logits.

Not covered: checkpoints with tied embeddings and no lm_head (granite-docling), which mlx-vlm's
idefics3 cannot load.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from convert.random_checkpoint import make
from smolvlm_mlx.checkpoint.choices import FORMS, RECIPES, Form, Recipe
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.checkpoint.reader import open_checkpoint
from tests.parity.peer import Logits, logits_of_both, needs_peer, run_peer
from tests.support.places import ROOT

import numpy as np
import pytest

pytestmark = [pytest.mark.parity, needs_peer]


def compare(folder: Path, scratch: Path) -> None:
    ((ours, theirs),) = logits_of_both([folder], scratch).values()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=0, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("model_type", ["smolvlm", "idefics3"])
@pytest.mark.parametrize("recipe", [*RECIPES, None])
def test_mlx_vlm_reads_ours(tmp_path: Path, model_type: str, recipe: str | None) -> None:
    """None: the source itself, in Hugging Face's layout."""
    source = make(tmp_path / "in", model_type, dtype="bfloat16")
    if recipe is not None:
        convert(source, tmp_path / "out", recipe)
    compare(source if recipe is None else tmp_path / "out", tmp_path)


@pytest.mark.parametrize("model_type", ["smolvlm", "idefics3"])
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--dtype", "float16"],
        ["-q", "--q-bits", "4"],
        ["-q", "--q-bits", "8", "--q-group-size", "32"],
        ["-q", "--q-mode", "nvfp4"],
    ],
)
def test_we_read_mlx_vlms(tmp_path: Path, model_type: str, options: list[str]) -> None:
    source, out = make(tmp_path / "in", model_type, dtype="bfloat16"), tmp_path / "out"
    command = ["-m", "mlx_vlm", "convert", "--hf-path", str(source), "--mlx-path", str(out)]
    run_peer(tmp_path, *command, *options)
    assert (open_checkpoint(out).quantization is not None) is ("-q" in options)
    compare(out, tmp_path)


# ---- every layout, both ways: the table of docs/checkpoints.md

MIXED = "mixed_2_6 mixed_3_4 mixed_3_5 mixed_3_6 mixed_3_8 mixed_4_6 mixed_4_8".split()
CONVERT = """
import json, sys
from mlx_vlm.convert import convert
for out, options in json.loads(sys.argv[2]).items():
    convert(sys.argv[1], out, quantize=True, **options)
"""
LAYER = "language_model.layers.1.mlp"
# Of neighbours that would be joined, and of parts that are read in other ways.
ALL_MODES = {
    f"{LAYER}.gate_proj": Form(3, 128),
    f"{LAYER}.up_proj": Form(8, 32, "mxfp8"),
    f"{LAYER}.down_proj": None,
    "language_model.layers.0.self_attn.q_proj": Form(4, 16, "nvfp4"),
    "language_model.embed_tokens": Form(4, 32, "mxfp4"),
    "vision_model.encoder.layers.0.mlp.fc2": Form(8, 32, "mxfp8"),
    "vision_model.embeddings.position_embedding": Form(4, 16, "nvfp4"),
}
FORMS_ALL = {
    str(form): form
    for mode, (all_bits, sizes) in FORMS.items()
    for bits in all_bits
    for size in sizes
    for form in [Form(bits, size, mode)]  # type: ignore[arg-type]  # keys of FORMS are modes
}


def their_options() -> dict[str, dict[str, Any]]:
    forms = {
        name: {"q_bits": form.bits, "q_group_size": form.group_size, "q_mode": form.mode}
        for name, form in FORMS_ALL.items()
    }
    usual = {"q_bits": None, "q_group_size": None}
    mixed = {name: {**usual, "quant_predicate": name} for name in MIXED}
    in_mxfp4 = {**mixed["mixed_4_6"], "q_mode": "mxfp4"}  # layers of it are affine without a mode
    awq = {**usual, "quant_method": "awq"}
    return {**forms, **mixed, "mixed_4_6 in mxfp4": in_mxfp4, "awq": awq}


def our_recipes() -> dict[str, Recipe]:
    forms = {
        name: Recipe(form.bits, form.group_size, form.bits, form.bits, mode=form.mode)
        for name, form in FORMS_ALL.items()
    }
    mixed = {name: RECIPES[name] for name in ("4bit-8bit-embeddings", "8bit-vision", "4bit-vision")}
    all_modes = replace(RECIPES["4bit"], modules=ALL_MODES)
    return {**forms, **mixed, "all modes in one": all_modes}


def agrees(ours: Logits, theirs: Logits) -> bool:
    """Text within 1e-5; after pictures, through a tower more, within 1e-5 of the largest."""
    apart = {name: float(np.abs(ours[name] - theirs[name]).max()) for name in ours}
    largest = float(np.abs(theirs["logits"]).max())
    return apart["text"] <= 1e-5 and max(apart["tokens"], apart["logits"]) <= 1e-5 * largest


def table(theirs: set[str], ours: set[str]) -> str:
    """What of each kind agrees, as Markdown."""
    rows = [
        "| | written by mlx-vlm, read here | written here, read by mlx-vlm |",
        "|---|---|---|",
    ]
    kinds: dict[str, dict[str, str]] = {}  # its names, by what they are called in its row
    for name in FORMS_ALL:
        kind, _, size = name.rpartition(" ")
        kinds.setdefault(kind, {})[name] = size
    others = (*their_options(), *our_recipes())
    kinds["by name"] = {name: name for name in others if name not in FORMS_ALL}
    for kind, names in kinds.items():
        cells = [
            ", ".join(names[name] for name in names if name in good) for good in (theirs, ours)
        ]
        rows.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(rows)


def test_every_layout_both_ways(tmp_path: Path) -> None:
    """The table in docs/checkpoints.md is what this finds."""
    source = make(tmp_path / "in", dtype="bfloat16")
    options = {str(tmp_path / f"theirs, {name}"): how for name, how in their_options().items()}
    run_peer(tmp_path, "-c", CONVERT, str(source), json.dumps(options))
    for name, recipe in our_recipes().items():
        convert(source, tmp_path / f"ours, {name}", recipe)
    folders = [path for path in tmp_path.iterdir() if re.match("theirs, |ours, ", path.name)]
    good: dict[str, set[str]] = {"theirs": set(), "ours": set()}
    for folder, (ours, theirs) in logits_of_both(folders, tmp_path).items():
        side, _, name = folder.partition(", ")
        block = open_checkpoint(tmp_path / folder).quantization
        assert block is not None
        assert name == str(block.default) or name not in FORMS_ALL, folder
        if agrees(ours, theirs):
            good[side].add(name)
    docs = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    found = table(good["theirs"], good["ours"])
    assert found in docs, f"docs/checkpoints.md has another table than\n{found}"
