"""An adapter changes what it learned, on its base and the conversions of it; fused it is the same;
no other file gets through."""

import gc
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from convert.random_checkpoint import make
from smolvlm_mlx.checkpoint.adapters import WEIGHTS, fingerprint, open_adapter, save_adapter
from smolvlm_mlx.checkpoint.choices import Recipe
from smolvlm_mlx.checkpoint.convert import convert, convert_in_steps
from smolvlm_mlx.checkpoint.lora import AdapterConfig, adapter_weights, add_adapter, layers_of
from smolvlm_mlx.checkpoint.reader import load
from smolvlm_mlx.errors import AdapterError, CheckpointError, ConversionError, quote
from tests.support.checkpoints import logits, weights_of

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

FLOAT32 = Recipe(dtype="float32")
RECIPES = {
    "float32": FLOAT32,
    "bfloat16": Recipe(),
    **{
        f"{bits} bits": Recipe(bits=bits, embedding_bits=bits, dtype="float32")
        for bits in (4, 6, 8)
    },
}
UP = "language_model.layers.0.mlp.up_proj"
A = f"{UP}.lora_a"
pytestmark = pytest.mark.usefixtures("mlx_lm_imported", "on_the_cpu")
Folders = dict[str, Path]


@pytest.fixture(scope="module")
def bases(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The tiny checkpoint and its conversions."""
    folder = tmp_path_factory.mktemp("bases")
    for name, recipe in RECIPES.items():
        convert(tiny, folder / name, recipe)
    hf = make(folder / "Hugging Face's bfloat16", dtype="bfloat16")
    return {"tiny": tiny, hf.name: hf, **{name: folder / name for name in RECIPES}}


@pytest.fixture(scope="module")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Adapters of the tiny checkpoint that change all its layers. Only for reading."""
    folder = tmp_path_factory.mktemp("adapters")
    return {kind: write_adapter(tiny, folder / kind, kind) for kind in ("lora", "dora")}


def write_adapter(base: Path, out: Path, kind: str, trained: bool = True) -> Path:
    """One with random values, or as training begins."""
    model, _ = load(base, "float32", fuse=False)
    modules = layers_of(model, ("decoder", "connector", "vision"))
    mark = fingerprint(weights_of(base))
    config = AdapterConfig(kind, 4, 2.0, 0.1, modules, mark, str(base))  # type: ignore[arg-type]
    add_adapter(model, config)
    rng = np.random.default_rng(0)
    changes = {
        name: array * rng.uniform(0.8, 1.2, array.shape)
        if name.endswith(".m")
        else rng.normal(0, 0.05, array.shape)
        for name, array in adapter_weights(model, config).items()
    }
    if trained:
        model.load_weights(
            [(name, mx.array(array, mx.float32)) for name, array in changes.items()], strict=False
        )
    out.mkdir()
    save_adapter(model, config, out)
    assert len((out / "adapter_config.json").read_text().splitlines()) > 5  # for people too
    return out


def changed(adapter: Path, out: Path, **values: Any) -> Path:
    """A copy with another adapter_config.json; what is None is left out."""
    shutil.copytree(adapter, out)
    config = {**json.loads((adapter / "adapter_config.json").read_text()), **values}
    kept = {name: value for name, value in config.items() if value is not None}
    (out / "adapter_config.json").write_text(json.dumps(kept))
    return out


def check_refused(base: Path, adapter: Path | str, out: Path, reason: str) -> None:
    """By `load` and by `convert`, in one line, and nothing is written."""
    for use in (lambda: load(base, adapter=adapter), lambda: convert(base, out, adapter=adapter)):
        with pytest.raises((AdapterError, CheckpointError), match=reason) as caught:
            use()
        assert str(caught.value).isprintable()
        assert not out.exists()


# ---- what it changes


@pytest.mark.parametrize("base", ["tiny", "8 bits"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_fresh_adapter_changes_nothing(
    kind: str, base: str, bases: Folders, tmp_path: Path
) -> None:
    adapter = write_adapter(bases[base], tmp_path / "new", kind, trained=False)
    tolerance = 0 if kind == "lora" else 1e-4
    plain, adapted = logits(bases[base], fuse=False), logits(bases[base], adapter, fuse=False)
    np.testing.assert_allclose(adapted, plain, rtol=0, atol=tolerance)


@pytest.mark.parametrize("base", ["tiny", "8 bits", "4 bits"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_fused_adapter_is_the_same_model(
    kind: str, base: str, bases: Folders, adapters: Folders, tmp_path: Path
) -> None:
    convert(bases[base], tmp_path / "out", FLOAT32, adapter=adapters[kind])
    want = logits(bases[base], adapters[kind])
    assert np.abs(want - logits(bases[base])).max() > 0.1
    np.testing.assert_allclose(
        logits(bases[base], adapters[kind], fuse=False), want, rtol=0, atol=1e-4
    )
    np.testing.assert_allclose(logits(tmp_path / "out"), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_fused_and_quantized_at_once_or_one_after_another(
    kind: str, tiny: Path, adapters: Folders, tmp_path: Path
) -> None:
    convert(tiny, tmp_path / "once", "8bit-vision", adapter=adapters[kind])
    convert(tiny, tmp_path / "fused", FLOAT32, adapter=adapters[kind])
    convert(tmp_path / "fused", tmp_path / "twice", "8bit-vision")
    once, twice = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("once", "twice")
    )
    assert once == twice


def test_fused_layers_do_not_stay_in_memory(tiny: Path, adapters: Folders, tmp_path: Path) -> None:
    gc.collect()  # models of other tests
    before, held = mx.get_active_memory(), list[int]()
    for _ in convert_in_steps(tiny, tmp_path / "out", FLOAT32, adapter=adapters["lora"]):
        held.append(mx.get_active_memory() - before)
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert max(held) < size / 3


def test_quantized_twice_is_refused(bases: Folders, adapters: Folders, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"quantized already \(8 bits"):
        convert(bases["8 bits"], tmp_path / "out", "4bit", adapter=adapters["lora"])
    assert not (tmp_path / "out").exists()


def test_dora_needs_whole_words_of_bits(bases: Folders, adapters: Folders) -> None:
    """Six bits do not divide 32, which mlx-lm's DoRA takes for granted."""
    with pytest.raises(AdapterError, match="DoRA on a base of 6 bits is not supported; use LoRA"):
        load(bases["6 bits"], adapter=adapters["dora"])
    assert np.abs(logits(bases["6 bits"], adapters["lora"]) - logits(bases["6 bits"])).max() > 0.1


# ---- its base


def test_it_fits_every_conversion_of_its_base(bases: Folders, adapters: Folders) -> None:
    assert len({fingerprint(weights_of(folder)) for folder in bases.values()}) == 1
    want = logits(bases["tiny"], adapters["lora"])
    np.testing.assert_array_equal(logits(bases["float32"], adapters["lora"]), want)
    for name in ("bfloat16", "Hugging Face's bfloat16", "8 bits"):
        effect = np.abs(logits(bases[name], adapters["lora"]) - logits(bases[name])).max()
        assert effect == pytest.approx(np.abs(want - logits(bases["tiny"])).max(), rel=0.1), name


def test_it_does_not_fit_another_base(tiny: Path, adapters: Folders, tmp_path: Path) -> None:
    base = re.escape(quote(tiny, end=True))
    reason = f"this adapter was trained on {base} and does not fit this checkpoint"
    other = make(tmp_path / "other", seed=1)
    check_refused(other, adapters["lora"], tmp_path / "out", reason)
    # Of a long name the end, where folders differ.
    name = "folder/" * 30 + "base"
    long = changed(adapters["lora"], tmp_path / "long", base_name=name)
    check_refused(other, long, tmp_path / "out", re.escape(f"trained on {quote(name, end=True)} "))


def test_the_fingerprint_is_of_the_norms_and_of_all_of_them(tiny: Path) -> None:
    model, _ = load(tiny, "float32", fuse=False)
    norms = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.RMSNorm | nn.LayerNorm)
    ]
    weights: Mapping[str, Any] = weights_of(tiny)
    alone = {
        name: array if name.rpartition(".")[0] in norms else None for name, array in weights.items()
    }
    want = fingerprint(weights)
    assert fingerprint(alone) == want  # type: ignore[arg-type]  # None cannot be read
    others = [{**alone, name: array + 1} for name, array in alone.items() if array is not None]
    assert len(others) == 17
    assert len({want, *map(fingerprint, others)}) == 18
    assert want == "6ee6575b16a478d9"  # or adapters that were trained before would fit no more


# ---- adapter_config.json

WRONG: dict[str, list[Any]] = {
    "fine_tune_type": ["qlora", 1, ["lora"]],
    "rank": ["4", 4.0, True, 0, -1, 4097, 10**9],
    "scale": ["2", True, -1, 1e6, float("nan"), float("inf"), 10**400],
    "dropout": ["0", -0.1, 1, float("nan")],
    "modules": [UP, [], [UP, 1], {UP: 1}, [UP, UP], [UP] * 100_000],
    "base": [5, []],
    "base_name": [5, ["tiny"]],
}


def test_what_is_saved_is_read_again(adapters: Folders) -> None:
    for kind, folder in adapters.items():
        config = open_adapter(folder).config
        assert (config.fine_tune_type, config.rank, config.scale, config.dropout) == (
            *(kind, 4),
            *(2.0, 0.1),
        )
        text = (folder / "adapter_config.json").read_text()
        own = {name: value for name, value in asdict(config).items() if name != "exceptions"}
        keys = {"rank": 4, "scale": 2.0, "dropout": 0.1, "keys": config.modules}
        assert text == json.dumps({**own, "lora_parameters": keys}, indent=2) + "\n"


FINE: dict[str, list[Any]] = {
    "fine_tune_type": ["lora", "dora"],
    "rank": [1, 4096],
    "scale": [0, 0.5, 999_999.9],
    "dropout": [0, 0.999],
    "modules": [[UP], [UP, "a"]],
}


@pytest.mark.parametrize("field", FINE)
def test_a_field_is_read_up_to_its_edges(field: str, adapters: Folders, tmp_path: Path) -> None:
    for number, value in enumerate(FINE[field]):
        folder = changed(adapters["lora"], tmp_path / str(number), **{field: value})
        want = tuple(value) if field == "modules" else value
        assert getattr(open_adapter(folder).config, field) == want


@pytest.mark.parametrize("field", WRONG)
def test_a_field_that_is_missing_or_wrong_is_named(
    field: str, adapters: Folders, tmp_path: Path
) -> None:
    for number, value in enumerate([None, *WRONG[field]]):
        folder = changed(adapters["lora"], tmp_path / str(number), **{field: value})
        with pytest.raises(
            AdapterError, match=f"adapter_config.json: {field} missing or malformed"
        ):
            open_adapter(folder)


def test_all_wrong_fields_are_named_at_once(tiny: Path, adapters: Folders, tmp_path: Path) -> None:
    folder = changed(adapters["lora"], tmp_path / "in", rank=None, base=1)
    check_refused(tiny, folder, tmp_path / "out", "rank, base missing or malformed")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rank": 4', "[" * 10_000, "\x00"])
def test_what_is_no_json_is_named(text: str, tiny: Path, adapters: Folders, tmp_path: Path) -> None:
    folder = changed(adapters["lora"], tmp_path / "in")
    (folder / "adapter_config.json").write_text(text)
    check_refused(
        tiny, folder, tmp_path / "out", r"adapter_config\.json: (damaged, not JSON|holds a list)"
    )


@pytest.mark.parametrize(
    "folder",
    [
        *("nothing/there", "there/" * 100 + "there", "~nobody-of-this-name/adapter"),
        *("x" * 5000 + "there", "a\0b"),
    ],
)
def test_a_folder_that_is_none(folder: str, tiny: Path, tmp_path: Path) -> None:
    """Of a long name the end is told."""
    end = "there'.*" if folder.endswith("there") else ""
    check_refused(tiny, folder, tmp_path / "out", rf"^.{{,150}}{end}; give (a|an adapter's) folder")


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("language_model.layers.3.mlp.up_proj", "which this model does not have"),
        ("up\n", "which this model does not have"),
        ("language_model.norm", "of the kind RMSNorm; only Linear layers can be adapted"),
        ("", "of the kind SmolVLM; only Linear layers can be adapted"),
    ],
)
def test_layers_that_the_model_does_not_have(
    module: str, reason: str, tiny: Path, adapters: Folders, tmp_path: Path
) -> None:
    folder = changed(adapters["lora"], tmp_path / "in", modules=[UP, module])
    name = re.escape(repr(module)[1:-1])
    check_refused(
        tiny,
        folder,
        tmp_path / "out",
        rf"changes '?{name}'? \(1 such\), {reason}",
    )


def test_a_model_and_its_adapter_in_each_others_place(
    tiny: Path, adapters: Folders, tmp_path: Path
) -> None:
    check_refused(
        tiny, tiny, tmp_path / "out", "a checkpoint, with no adapter_config.json; give a "
    )
    check_refused(
        adapters["lora"], tiny, tmp_path / "out", "an adapter; give it as adapter, beside its base$"
    )


def test_hostile_values_take_no_time(tiny: Path, adapters: Folders, tmp_path: Path) -> None:
    many = changed(adapters["lora"], tmp_path / "many", modules=[f"{UP}{n}" for n in range(40_000)])
    largest = changed(adapters["lora"], tmp_path / "largest", rank=4096)
    started, before = time.process_time(), mx.get_active_memory()
    mx.reset_peak_memory()
    check_refused(tiny, many, tmp_path / "out", r"up_proj0' \(40000 such\)")
    check_refused(
        tiny, largest, tmp_path / "out", r"lora_a is F32 \[512, 4\], not F32 \[512, 4096\]"
    )
    assert time.process_time() - started < 3
    assert mx.get_peak_memory() - before < 30e6  # the adapter would have 180 MB


# ---- adapters.safetensors

DAMAGES: dict[str, tuple[Callable[[dict[str, mx.array]], object], str]] = {
    "missing": (lambda weights: weights.pop(A), f"missing {A}$"),
    "extra": (lambda weights: weights.update({"more": weights[A]}), "unexpected 'more'$"),
    "shape": (
        lambda weights: weights.update({A: weights[A].T}),
        rf"{A} is F32 \[4, 128\], not F32 \[128, 4\]$",
    ),
    "dtype": (
        lambda weights: weights.update({A: weights[A].astype(mx.int32)}),
        rf"{A} is I32 \[128, 4\], not F32",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_tensors_that_do_not_fit_are_named(
    damage: str, tiny: Path, adapters: Folders, tmp_path: Path
) -> None:
    folder, (harm, reason) = changed(adapters["lora"], tmp_path / "in"), DAMAGES[damage]
    file = folder / "adapters.safetensors"
    weights: Any = mx.load(str(file))
    harm(weights)
    mx.eval(weights)
    file.unlink()
    mx.save_safetensors(str(file), weights)
    check_refused(
        tiny, folder, tmp_path / "out", rf"safetensors does not fit adapter_config\.json: {reason}"
    )


def test_values_that_are_not_finite_are_refused(
    tiny: Path, adapters: Folders, tmp_path: Path
) -> None:
    adapter = changed(adapters["lora"], tmp_path / "adapter")
    weights: Any = mx.load(str(adapter / WEIGHTS))
    name = min(weights)
    weights[name] = mx.full(weights[name].shape, float("nan"))
    mx.save_safetensors(str(adapter / WEIGHTS), weights)
    check_refused(tiny, adapter, tmp_path / "out", f"not finite in {name}")


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj"])
def test_one_adapted_projection_of_three_is_enough(
    projection: str, tiny: Path, tmp_path: Path
) -> None:
    module = f"language_model.layers.0.self_attn.{projection}"
    adapter = changed(
        write_adapter(tiny, tmp_path / "all", "lora"), tmp_path / "one", modules=[module]
    )
    stored: Any = mx.load(str(adapter / WEIGHTS))
    weights = {name: array for name, array in stored.items() if name.startswith(f"{module}.")}
    mx.save_safetensors(str(adapter / WEIGHTS), weights)
    np.testing.assert_allclose(
        logits(tiny, adapter, fuse=True), logits(tiny, adapter, fuse=False), atol=1e-4
    )


def test_a_tensor_that_is_there_twice_is_refused(
    tiny: Path, adapters: Folders, tmp_path: Path
) -> None:
    folder = changed(adapters["lora"], tmp_path / "in")
    data = (folder / "adapters.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    entry = json.dumps({A: json.loads(data[8:end])[A]})[1:]
    header = data[8:end].rstrip()[:-1] + b"," + entry.encode()
    (folder / "adapters.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + data[end:]
    )
    check_refused(tiny, folder, tmp_path / "out", "1 tensors are there twice$")


@pytest.mark.parametrize("size", [None, 0, 7, 100, -1])
def test_weights_that_are_missing_or_cut_off(
    size: int | None, tiny: Path, adapters: Folders, tmp_path: Path
) -> None:
    folder = changed(adapters["lora"], tmp_path / "in")
    file = folder / "adapters.safetensors"
    whole = file.read_bytes()
    file.unlink()
    if size is not None:
        file.write_bytes(whole[:size])
    reason = ": no adapters.safetensors" if size is None else r"adapters\.safetensors: damaged"
    check_refused(tiny, folder, tmp_path / "out", reason)


# ---- the command line


def test_errors_are_one_line(tiny: Path, adapters: Folders, tmp_path: Path, call: Any) -> None:
    other = make(tmp_path / "other", seed=1)
    broken = changed(adapters["lora"], tmp_path / "broken", rank=10**9)
    for model, adapter, reason in (
        (other, adapters["lora"], f"trained on {quote(tiny, end=True)}"),
        (tiny, broken, "rank missing or"),
    ):
        for command in (
            ["generate", "Hi", "-n", 2, "-m", model],
            ["convert", model, tmp_path / "out"],
        ):
            code, out, err = call(*command, "--adapter", adapter)
            assert (code, out, err.count("\n")) == (1, "", 1)
            assert err.startswith("smolvlm-mlx: ")
            assert reason in err


def test_an_adapter_changes_the_answer(
    tiny: Path, adapters: Folders, tmp_path: Path, call: Any
) -> None:
    ask, adapter = ("generate", "Hi", "-n", 9, "-m"), ("--adapter", adapters["dora"])
    assert call("convert", tiny, tmp_path / "fused", "--dtype", "float32", *adapter)[0] == 0
    code, out, err = call(*ask, tiny, *adapter)
    assert (code, err) == (0, "")
    assert call(*ask, tmp_path / "fused")[1] == out != call(*ask, tiny)[1]
