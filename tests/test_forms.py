"""Every form of quantized weights that MLX has: converted, loaded, damaged, adapted, joined."""

import json
import random
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from convert.random_checkpoint import make
from smolvlm_mlx import device
from smolvlm_mlx.checkpoint.choices import FORMS, Form, Recipe
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.checkpoint.reader import DTYPES, Checkpoint, load, open_checkpoint
from smolvlm_mlx.errors import CheckpointError
from smolvlm_mlx.generation.prefill import make_cache
from smolvlm_mlx.model import SmolVLM
from smolvlm_mlx.model.fast import cpu, gpu
from tests.support.checkpoints import Tensors, copy, logits, random_adapter, weights_of
from tests.support.mutated import ODD

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

ALL = [
    Form(bits, size, mode)  # type: ignore[arg-type]  # keys of FORMS are modes
    for mode, (all_bits, sizes) in FORMS.items()
    for bits in all_bits
    for size in sizes
]
FLOATS = [form for form in ALL if form.mode != "affine"]
CONNECTOR, HEAD = "connector", "language_model.lm_head"


def recipe_of(form: Form) -> Recipe:
    """Of all parts; the connector has 8 bits of the mode, or affine."""
    return Recipe(form.bits, form.group_size, form.bits, form.bits, mode=form.mode)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("forms") / "source", layers=(1, 1))


@pytest.fixture(scope="module", params=FLOATS, ids=str)
def floats(request: pytest.FixtureRequest, source: Path, tmp_path_factory: Any) -> Path:
    """A conversion in each mode of floats, positions included, as older conversions have them."""
    out: Path = tmp_path_factory.mktemp("floats") / "out"
    positions = {"vision_model.embeddings.position_embedding": request.param}
    convert(source, out, replace(recipe_of(request.param), modules=positions))
    return out


# ---- what is computed


@pytest.mark.parametrize("form", ALL, ids=str)
def test_quantized_layers_compute_what_their_weights_stand_for(
    source: Path, tmp_path: Path, form: Form
) -> None:
    """The tower's MLP, 200 wide here, is widened to whole groups."""
    quantized, plain = tmp_path / "quantized", tmp_path / "plain"
    convert(source, quantized, recipe_of(form))
    convert(quantized, plain, Recipe(dtype="float32"))
    width = open_checkpoint(quantized).config.vision_config.intermediate_size
    assert width == {16: 208, 32: 224, 64: 256, 128: 256}[form.group_size]
    model, _ = load(quantized, "float32", fuse=False)
    layers = [layer for layer in model.modules() if hasattr(layer, "bits")]
    assert {type(layer) for layer in layers} == {nn.QuantizedLinear, nn.QuantizedEmbedding}
    forms = [Form(layer.bits, layer.group_size, layer.mode) for layer in layers]
    assert forms.count(form) >= len(forms) - 1
    np.testing.assert_allclose(logits(quantized), logits(plain), rtol=0, atol=1e-4)


@pytest.mark.skipif(device.name() != "cpu", reason="the CPU's own kernels")
@pytest.mark.parametrize("form", ALL, ids=str)
def test_many_rows_are_multiplied_by_unpacked_weights(
    form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the numbers of MLX's kernels, whatever the scales' dtype."""
    calls = Mock(wraps=cpu.unpacked)
    monkeypatch.setattr(cpu, "unpacked", calls)
    layers = (
        nn.Linear(256, 24).to_quantized(form.group_size, form.bits, form.mode),
        nn.Embedding(24, 256).to_quantized(form.group_size, form.bits, form.mode),
    )
    if form.mode == "affine":
        for layer in layers:
            layer.set_dtype(mx.bfloat16)
    for rows, is_unpacked in ((cpu.UNPACKED_ROWS - 1, False), (cpu.UNPACKED_ROWS, True)):
        x = mx.random.normal((1, rows, 256), key=mx.random.key(0))
        for layer, name in zip(layers, ("__call__", "as_linear"), strict=True):
            plain, fast = deepcopy(layer), deepcopy(layer)
            cpu.swap(fast)
            calls.reset_mock()
            have, want = getattr(fast, name)(x), getattr(plain, name)(x)
            assert calls.called == is_unpacked
            assert have.dtype == mx.float32
            np.testing.assert_allclose(np.array(have), np.array(want), rtol=1e-5, atol=1e-5)
        half = x.astype(mx.bfloat16)
        assert fast.as_linear(half).dtype == mx.bfloat16


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_all_is_computed_in_one_dtype(floats: Path, dtype: str) -> None:
    """MLX's tables of floats give bfloat16, and their scales are no numbers to cast."""
    model, _ = load(floats, dtype, fuse=False)
    want = DTYPES[dtype]
    for kv_bits in (None, 8):
        cache = make_cache(model, 16, kv_bits)
        assert model.language_model(mx.array([[5, 9, 200]]), cache).dtype == want
    assert model.encode_images(mx.zeros((1, 64, 64, 3))).dtype == want
    parameters = model.named_parameters()
    kinds = {
        parameters[f"{path}.scales"].dtype for path in layers_of(model) if CONNECTOR not in path
    }
    assert kinds == {mx.uint8}


def test_joined_projections_are_the_same(floats: Path) -> None:
    plain, _ = load(floats, "float32", fuse=False)
    joined, _ = load(floats, "float32", fuse=False)
    modules = [module for module in joined.modules() if type(module) in gpu.KINDS]
    for module in modules:
        kind = type(module)
        gpu.swap(module)
        assert type(module) is gpu.KINDS[kind][0]
    assert len(modules) == 4
    side = plain.config.vision_config.image_size
    ids = mx.array([[5] + [plain.config.image_token_id] * plain.config.tokens_per_tile + [7]])
    pixels = mx.random.normal((1, side, side, 3), key=mx.random.key(0))
    assert bool(mx.allclose(joined(ids, pixels), plain(ids, pixels), rtol=0, atol=1e-5))


def test_neighbours_of_other_modes_stay_apart(source: Path, tmp_path: Path) -> None:
    mlp = "language_model.layers.0.mlp"
    modules = {
        f"{mlp}.gate_proj": Form(4, 32, "mxfp4"),
        f"{mlp}.up_proj": Form(4, 32),  # as many bits in as large groups
        f"{mlp}.down_proj": None,
    }
    recipe, out = Recipe(bits=8, modules=modules), tmp_path / "out"
    convert(source, out, recipe)
    convert(out, tmp_path / "plain", Recipe(dtype="float32"))
    model, _ = load(out, "float32", fuse=False)
    layer = model.language_model.layers[0]
    for module in (layer.mlp, layer.self_attn):
        gpu.swap(module)
    assert (layer.mlp.gate_proj.mode, layer.mlp.up_proj.mode) == ("mxfp4", "affine")
    assert type(layer.mlp.down_proj) is nn.Linear
    assert layer.self_attn.qkv_proj.bits == 8
    want, _ = load(tmp_path / "plain", "float32")
    ids = mx.array([[5, 9, 200]])
    assert bool(mx.allclose(model(ids), want(ids), rtol=0, atol=1e-4))


@pytest.mark.parametrize("form", FLOATS, ids=str)
def test_adapters_fit_conversions_to_floats(source: Path, tmp_path: Path, form: Form) -> None:
    quantized, adapter = tmp_path / "quantized", random_adapter(source, tmp_path / "adapter")
    convert(source, quantized, replace(recipe_of(form), vision_bits=None))
    convert(quantized, tmp_path / "plain", Recipe(dtype="float32"))
    convert(quantized, tmp_path / "fused", Recipe(dtype="float32"), adapter=adapter)
    have = logits(quantized, adapter)
    assert np.abs(have - logits(quantized)).max() > 0.01
    for want in (logits(tmp_path / "plain", adapter), logits(tmp_path / "fused")):
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", FLOATS, ids=str)
def test_a_table_of_floats_gives_logits_too(tmp_path: Path, form: Form) -> None:
    tied = make(tmp_path / "tied", layers=(1, 1), tied=True)
    convert(tied, tmp_path / "quantized", recipe_of(form))
    convert(tmp_path / "quantized", tmp_path / "plain", Recipe(dtype="float32"))
    assert open_checkpoint(tmp_path / "quantized").is_tied
    have, want = logits(tmp_path / "quantized"), logits(tmp_path / "plain")
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-4)


# ---- what is damaged


def refused(source: Path, out: Path, tensors: Tensors) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(copy(source, out, tensors), "float32")
    assert str(caught.value).isprintable()
    return str(caught.value).partition("do not fit config.json: ")[2]


def test_damaged_scales(floats: Path, tmp_path: Path) -> None:
    tensors = weights_of(floats)
    scales = tensors[f"{HEAD}.scales"]
    rows, groups = scales.shape
    damaged: list[tuple[Tensors, str]] = [
        ({f"{HEAD}.scales": scales.astype(mx.bfloat16)}, f"{HEAD}.scales is BF16"),
        ({f"{HEAD}.scales": scales.astype(mx.uint32)}, f"{HEAD}.scales is U32"),
        (
            {f"{HEAD}.scales": scales[:, 1:]},
            f"{HEAD}.scales has shape [{rows}, {groups - 1}], not [{rows}, {groups}]",
        ),
        ({f"{HEAD}.biases": scales.astype(mx.bfloat16)}, f"unexpected '{HEAD}.biases'"),
        (
            {f"{HEAD}.weight": tensors[f"{HEAD}.weight"].astype(mx.bfloat16)},
            f"{HEAD}.weight is BF16",
        ),
    ]
    for number, (changed, said) in enumerate(damaged):
        assert refused(floats, tmp_path / str(number), tensors | changed) == said
    del tensors[f"{HEAD}.scales"]
    said = refused(floats, tmp_path / "without", tensors)
    assert said.startswith(f"{HEAD}.weight has shape [")
    assert f"{HEAD}.weight is U32" in said


def test_affine_scales_are_floats(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", "4bit")
    tensors = weights_of(tmp_path / "out")
    scales = tensors[f"{HEAD}.scales"].astype(mx.uint8)
    said = refused(tmp_path / "out", tmp_path / "a", tensors | {f"{HEAD}.scales": scales})
    assert said == f"{HEAD}.scales is U8"


# ---- blocks of config.json


@cache
def values() -> list[Any]:
    forms = [*FORMS, *FORMS["affine"][0], *FORMS["affine"][1], 16]
    entries = [{}, False, True, {"bits": 4}, {"mode": "mxfp4"}, {"mode": "nvfp4", "group_size": 16}]
    return [*ODD, *forms, *entries]


def change(rng: random.Random, block: dict[str, Any], modules: list[str]) -> dict[str, Any]:
    """One to three other values, in the block or in entries of modules."""
    changed = deepcopy(block)
    for _ in range(rng.randint(1, 3)):
        inside, key = changed, rng.choice(["bits", "group_size", "mode"])
        if rng.random() < 0.5:
            module = rng.choice([*modules, "a.b", "", "model." + modules[0]])
            inside = changed.setdefault(module, dict(block))
            if not isinstance(inside, dict) or rng.random() < 0.2:
                inside, key = changed, module
        if rng.random() < 0.2:
            inside.pop(key, None)
        else:
            inside[key] = deepcopy(rng.choice(values()))
    return changed


def opened_or_said(folder: Path) -> Checkpoint | str:
    try:
        return open_checkpoint(folder)
    except CheckpointError as error:
        return str(error)


def layers_of(model: SmolVLM) -> dict[str, tuple[Any, ...]]:
    return {
        path: (layer.bits, layer.group_size, layer.mode)
        for path, layer in model.named_modules()
        if hasattr(layer, "bits")
    }


def test_a_changed_block_is_refused_or_changes_nothing(floats: Path, tmp_path: Path) -> None:
    """No two forms have arrays of equal shapes and types, so that none is taken for another."""
    folder = copy(floats, tmp_path / "folder")
    raw = json.loads((folder / "config.json").read_text())
    want = layers_of(open_checkpoint(floats).build(tied=False))
    outcomes = {"refused": 0, "read": 0}
    for seed in range(150):
        block = change(random.Random(seed), raw["quantization"], list(want))
        (folder / "config.json").write_text(json.dumps({**raw, "quantization": block}))
        opened = opened_or_said(folder)
        if isinstance(opened, str):
            assert opened.isprintable(), seed
            assert len(opened) < 2000, seed
            outcomes["refused"] += 1
        else:
            assert layers_of(opened.build(tied=False)) == want, seed
            outcomes["read"] += 1
    assert outcomes["refused"] > 50
    assert outcomes["read"] > 5


def test_forms_have_arrays_of_their_own() -> None:
    """What the test above rests on."""
    weight = mx.zeros((8, 384))
    arrays = {
        form: [
            (a.shape, a.dtype) for a in mx.quantize(weight, form.group_size, form.bits, form.mode)
        ]
        for form in ALL
    }
    assert len({str(kinds) for kinds in arrays.values()}) == len(ALL) == 21
