"""PEFT's folders, made by hand: what they do to the weights is what NumPy says, and what cannot be
obeyed is refused in one line."""

import json
from pathlib import Path
from typing import Any

from convert.random_checkpoint import make
from smolvlm_mlx.checkpoint.adapters import export_adapter, open_adapter
from smolvlm_mlx.checkpoint.choices import Recipe
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.checkpoint.reader import open_checkpoint
from smolvlm_mlx.errors import AdapterError
from tests.support.checkpoints import logits, random_adapter, weights_of
from tests.support.pefts import (
    CONFIG,
    FC1,
    FC2,
    HEAD,
    PROJ,
    TABLE,
    UP,
    WEIGHTS,
    Arrays,
    Forms,
    Q,
    arrays_of,
    low_rank,
    theirs,
    write,
)

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

FLOAT32 = Recipe(dtype="float32")
pytestmark = pytest.mark.usefixtures("mlx_lm_imported", "on_the_cpu")


@pytest.fixture(scope="module")
def base(tiny: Path) -> Arrays:
    """The tiny checkpoint's parameters by our names."""
    return arrays_of(tiny)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tied") / "tied", tied=True)


@pytest.fixture(scope="module")
def packed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in 8 bits, its tower's MLP widened from 200 to 256."""
    out = tmp_path_factory.mktemp("packed") / "8bit-vision"
    convert(tiny, out, Recipe(8, 64, 8, 8, dtype="float32"))
    return out


def check(folder: Path, adapter: Path, want: Arrays, out: Path) -> None:
    """Fused, exactly `want` has changed; layers apart do the same, and so does the model."""
    before = arrays_of(folder)
    convert(folder, out, FLOAT32, adapter=adapter)
    after = arrays_of(out)
    assert after.keys() == before.keys() | want.keys()
    for name, array in after.items():
        if name in want:
            np.testing.assert_allclose(array, want[name], rtol=0, atol=2e-6)
            assert name not in before or np.abs(array - before[name]).max() > 1e-3
        else:
            np.testing.assert_array_equal(array, before[name])
    apart = logits(folder, adapter, fuse=False)
    np.testing.assert_allclose(logits(out), apart, rtol=0, atol=1e-4)


# ---- what they do

USUAL: Forms = dict.fromkeys((Q, UP, FC1, PROJ, HEAD), (4, 2.0))
PATTERNS = {
    "rank_pattern": {"up_proj": 2, "up_.*": 9, r"vision_model\..*\.fc1": 6, "proj": 3},
    "alpha_pattern": {"layers.0.mlp.up_proj": 3, "q_proj": 0, "_proj": 99, "x{1}proj": 9},
}
CASES: dict[str, tuple[dict[str, Any], Forms]] = {
    "LoRA": ({}, USUAL),
    "rsLoRA": ({"use_rslora": True}, dict.fromkeys(USUAL, (4, 4.0))),
    "DoRA": ({"use_dora": True}, USUAL),
    "patterns": (PATTERNS, {Q: (4, 0.0), UP: (2, 1.5), FC1: (6, 8 / 6), PROJ: (3, 8 / 3)}),
    "DoRA, patterns, rsLoRA": (
        {**PATTERNS, "use_dora": True, "use_rslora": True},
        {UP: (2, 3 / 2**0.5), FC1: (6, 8 / 6**0.5), PROJ: (3, 8 / 3**0.5)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_low_rank(name: str, tiny: Path, base: Arrays, tmp_path: Path) -> None:
    settings, forms = CASES[name]
    tensors, want = low_rank(base, forms, "use_dora" in settings)
    adapter = write(tmp_path / "in", tensors, **settings)
    config = open_adapter(adapter).config
    assert {path: config.of(path) for path in config.modules} == forms
    want = {name: array for name, array in want.items() if np.any(array != base[name])}
    check(tiny, adapter, want, tmp_path / "out")


@pytest.mark.parametrize(
    "names", ["model.{}", "{}", "model.{}.model", "{}.model", "model.model.{}"]
)
@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_names_of_every_version(names: str, suffix: str, base: Arrays, tmp_path: Path) -> None:
    tensors, _ = low_rank(base, USUAL, True, names)
    spelled = {k + suffix if k.endswith("vector") else k: a for k, a in tensors.items()}
    adapter = open_adapter(write(tmp_path / "in", spelled, use_dora=True))
    parts = {f"{path}.{part}" for path in USUAL for part in ("lora_a", "lora_b", "m")}
    assert adapter.tensors.keys() == parts
    np.testing.assert_array_equal(
        adapter.read()[f"{UP}.lora_a"], tensors[f"{theirs(UP, names)}.lora_A.weight"].T
    )


@pytest.mark.parametrize("which", ["tiny", "tied"])
@pytest.mark.parametrize("saved", ["lm_head", "embed_tokens", "both", "proj"])
def test_whole_modules(
    saved: str, which: str, tiny: Path, tied: Path, base: Arrays, tmp_path: Path
) -> None:
    """A tied base gets a head of its own: what was saved, or its table as it was."""
    folder = {"tiny": tiny, "tied": tied}[which]
    before, rng = arrays_of(folder), np.random.default_rng(1)
    modules = {"lm_head": [HEAD], "embed_tokens": [TABLE], "both": [HEAD, TABLE], "proj": [PROJ]}
    tensors, want = low_rank(before, {UP: (4, 2.0)})
    for path in modules[saved]:
        array = rng.normal(0, 0.1, base[f"{path}.weight"].shape).astype(np.float32)
        tensors[f"{theirs(path)}.weight"] = want[f"{path}.weight"] = array
    if which == "tied" and saved == "embed_tokens":
        want[f"{HEAD}.weight"] = before[f"{TABLE}.weight"]
    leaves = [path.rpartition(".")[2] for path in modules[saved]]
    adapter = write(tmp_path / "in", tensors, modules_to_save=leaves)
    check(folder, adapter, want, tmp_path / "out")


def test_a_table_that_stays_tied(tied: Path, tmp_path: Path) -> None:
    before = arrays_of(tied)
    tensors, want = low_rank(before, {UP: (4, 2.0)})
    table = before[f"{TABLE}.weight"][::-1].copy()
    tensors[f"{theirs(TABLE)}.weight"] = want[f"{TABLE}.weight"] = table
    settings = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    check(tied, write(tmp_path / "in", tensors, **settings), want, tmp_path / "out")


@pytest.mark.parametrize("dora", [False, True])
def test_biases(dora: bool, tiny: Path, base: Arrays, tmp_path: Path) -> None:
    tensors, want = low_rank(base, {FC1: (4, 2.0)}, dora)
    norm = "vision_model.post_layernorm"
    for path, inner in ((FC1, ".base_layer"), (FC2, ""), (norm, "")):
        changed = base[f"{path}.bias"] + np.float32(0.3)
        tensors[f"{theirs(path)}{inner}.bias"] = want[f"{path}.bias"] = changed
    for again in ("modules_to_save", "original_module"):  # PEFT's, of a norm saved as a whole
        tensors[f"{theirs(norm)}.{again}.bias"] = base[f"{norm}.bias"]
    check(tiny, write(tmp_path / "in", tensors, use_dora=dora, bias="all"), want, tmp_path / "out")


# ---- quantized bases


@pytest.mark.parametrize("dora", [False, True])
def test_a_widened_tower(dora: bool, packed: Path, tiny: Path, tmp_path: Path) -> None:
    """What is cut to its width again and then fused is the same."""
    convert(packed, tmp_path / "floats", FLOAT32)
    wide, narrow = arrays_of(tmp_path / "floats"), arrays_of(tiny)
    cut = {name: array[tuple(map(slice, narrow[name].shape))] for name, array in wide.items()}
    assert (wide[f"{FC2}.weight"].shape, cut[f"{FC2}.weight"].shape) == ((128, 256), (128, 200))
    tensors, want = low_rank(cut, {FC1: (4, 2.0), FC2: (4, 2.0), UP: (4, 2.0)}, dora)
    adapter = write(tmp_path / "in", tensors, use_dora=dora)
    padded = {
        name: np.pad(array, [(0, wide[name].shape[i] - n) for i, n in enumerate(array.shape)])
        for name, array in want.items()
    }
    check(tmp_path / "floats", adapter, padded, tmp_path / "out")
    np.testing.assert_allclose(
        logits(packed, adapter, fuse=False), logits(tmp_path / "out"), rtol=0, atol=1e-4
    )


def test_fusing_keeps_forms_and_bytes(packed: Path, tmp_path: Path) -> None:
    convert(packed, tmp_path / "floats", FLOAT32)
    tensors, want = low_rank(arrays_of(tmp_path / "floats"), {UP: (4, 2.0)})
    adapter = write(tmp_path / "in", tensors)
    convert(packed, tmp_path / "out", adapter=adapter)
    before, after = (load_file(f / "model.safetensors") for f in (packed, tmp_path / "out"))
    parts = [f"{UP}.{part}" for part in ("weight", "scales", "biases")]
    assert all(np.any(after[part] != before[part]) for part in parts)
    convert(packed, tmp_path / "fused", FLOAT32, adapter=adapter)
    fused = weights_of(tmp_path / "fused")[parts[0]]
    np.testing.assert_allclose(np.array(fused), want[parts[0]], rtol=0, atol=2e-6)
    for part, array in zip(parts, mx.quantize(fused, 64, 8), strict=True):
        np.testing.assert_array_equal(after[part], np.array(array))
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[n], before[n]) for n in after if n not in parts)
    configs = [json.loads((f / "config.json").read_text()) for f in (packed, tmp_path / "out")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("recipe", [["--dtype", "bfloat16"], ["--recipe", "bf16"]])
def test_what_is_typed_is_obeyed(
    recipe: list[str], packed: Path, tmp_path: Path, call: Any
) -> None:
    tensors, _ = low_rank(arrays_of(packed) | {f"{Q}.weight": np.ones((128, 128))}, {Q: (4, 2.0)})
    adapter = write(tmp_path / "in", tensors)
    code, out, _ = call("convert", packed, tmp_path / "out", *recipe, "--adapter", adapter)
    made = open_checkpoint(tmp_path / "out")
    assert code == 0
    if recipe[0] == "--recipe":
        assert made.quantization is None
        assert "--recipe bf16" not in out
    else:
        assert made.quantization == open_checkpoint(packed).quantization
        assert "--recipe bf16 dequantizes it" in out
    assert {t.dtype for t in made.tensors.values()} <= {"BF16", "U32"}


# ---- written and read again


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_is_exported_both_ways(kind: Any, tiny: Path, tmp_path: Path, call: Any) -> None:
    """By the command, and there it is what `finetune --save-as peft` writes."""
    ours, saved = (random_adapter(tiny, tmp_path / f, kind, f) for f in ("mlx", "peft"))
    out, back = tmp_path / "out", tmp_path / "back"
    assert call("adapters", "export", ours, out) == (0, f"{out}\n", "")
    assert (out / WEIGHTS).read_bytes() == (saved / WEIGHTS).read_bytes()
    assert (out / CONFIG).read_bytes() == (saved / CONFIG).read_bytes()
    assert call("adapters", "export", out, back, "--as", "mlx") == (0, f"{back}\n", "")
    want, have = open_adapter(ours).read(), open_adapter(back).read()
    assert all(np.array_equal(have[name], want[name]) for name in want.keys() | have.keys())
    raw = json.loads((saved / CONFIG).read_text())
    assert (raw["r"], raw["lora_alpha"], raw["use_dora"]) == (4, 8, kind == "dora")
    assert set(load_file(saved / WEIGHTS)) >= {
        f"base_model.model.{key}.lora_A.weight" for key in raw["target_modules"]
    }
    assert call("adapters", "export", ours, out)[:2] == (1, "")  # it exists


def test_fine_tuned_and_saved_so(
    shallow: Path, short_questions: Path, tmp_path: Path, call: Any
) -> None:
    out, options = tmp_path / "out", ("--steps", 1, "--accumulate", 1, "--save-as", "peft")
    assert call("finetune", short_questions, out, "-m", shallow, *options)[0] == 0
    assert {file.name for file in (out / "adapter").iterdir()} == {WEIGHTS, CONFIG}
    config = open_adapter(out / "adapter").config
    assert (config.fine_tune_type, config.rank, config.scale, len(config.modules)) == (
        *("lora", 8, 2.0),
        14,
    )
    assert np.any(logits(shallow, out / "adapter") != logits(shallow))


def test_ranks_of_their_own_are_exported(tiny: Path, base: Arrays, tmp_path: Path) -> None:
    settings, forms = CASES["DoRA, patterns, rsLoRA"]
    tensors, want = low_rank(base, forms, True)
    adapter, forms_out = write(tmp_path / "in", tensors, **settings), ("mlx", "peft")
    for form in forms_out:
        export_adapter(adapter, tmp_path / form, form)  # type: ignore[arg-type]
        check(tiny, tmp_path / form, want, tmp_path / f"{form} fused")
    assert open_adapter(tmp_path / "mlx").config.rank == 6
    assert load_file(tmp_path / "peft" / WEIGHTS).keys() == load_file(adapter / WEIGHTS).keys()


def test_whole_tensors_are_not_exported(base: Arrays, tmp_path: Path) -> None:
    tensors = {"lm_head.weight": base[f"{HEAD}.weight"]}
    adapter = write(tmp_path / "in", tensors, modules_to_save=["lm_head"])
    for form in ("mlx", "peft"):
        with pytest.raises(AdapterError, match="holds whole tensors of the base"):
            export_adapter(adapter, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()
