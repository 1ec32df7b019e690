"""A conversion gives the model that it says, in the size that it says, and all or nothing of it."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from convert.random_checkpoint import make
from smolvlm_mlx.checkpoint import plan
from smolvlm_mlx.checkpoint.choices import RECIPES, Form, Recipe
from smolvlm_mlx.checkpoint.convert import convert, convert_in_steps
from smolvlm_mlx.checkpoint.reader import load, open_checkpoint
from smolvlm_mlx.config import ModelConfig
from smolvlm_mlx.errors import CheckpointError, ConversionError
from smolvlm_mlx.events import Reading, Work
from smolvlm_mlx.model import SmolVLM
from smolvlm_mlx.model.arrays import dequantized as floats_of
from tests.support import as_metal
from tests.support.checkpoints import Tensors, copy, load_processor, logits, weights_of
from tests.support.family import FAMILY
from tests.support.kills import fingerprint, kill_converting
from tests.support.places import ROOT
from tests.support.tally import tally

import mlx.core as mx
import numpy as np
import pytest


@pytest.fixture(scope="module")
def tiny_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("checkpoints") / "tiny-bf16", dtype="bfloat16")


def dequantized(folder: Path) -> Tensors:
    """Float tensors of a quantized checkpoint, in float32."""
    checkpoint, tensors = open_checkpoint(folder), weights_of(folder)
    for name in list(tensors):
        if name.endswith(".scales"):
            module = name.removesuffix(".scales")
            assert checkpoint.quantization is not None
            tensors[f"{module}.weight"] = floats_of(
                tensors[f"{module}.weight"],
                tensors.pop(f"{module}.scales"),
                tensors.pop(f"{module}.biases", None),
                checkpoint.quantization.of(module),
            )
    return tensors


# ---- the same model


@pytest.mark.parametrize("model_type", ["smolvlm", "idefics3"])
def test_bf16_is_the_same_model(tmp_path: Path, model_type: str) -> None:
    source, out = make(tmp_path / "in", model_type, dtype="bfloat16"), tmp_path / "out"
    work = Work(convert_in_steps(source, out))
    calls, report = [(step.done, step.total) for step in work], work.result
    np.testing.assert_array_equal(logits(out), logits(source))
    have, want = weights_of(out), weights_of(source)
    assert have.keys() == want.keys()
    assert all(bool(mx.array_equal(have[name], want[name])) for name in want)
    assert not open_checkpoint(out).is_hf_layout
    assert report.out_bytes == (out / "model.safetensors").stat().st_size
    assert report.source_bytes == (source / "model.safetensors").stat().st_size
    assert report.bits_per_weight == 16
    assert sum(count for count, _ in report.parts.values()) == sum(w.size for w in want.values())
    assert calls[-1] == (calls[-1][1], sum(size for _, size in report.parts.values()))
    for path in source.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            assert (out / path.name).read_bytes() == path.read_bytes()


def test_bf16_config(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out")
    have, want = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", tiny)
    )
    assert have == {**want, "torch_dtype": "bfloat16"}
    text = (tmp_path / "out" / "config.json").read_text()
    assert text == json.dumps(have, indent=2) + "\n"  # for people


def test_what_prepares_pictures_positions_and_prompts_goes_along(
    tiny: Path, tmp_path: Path
) -> None:
    """A conversion of a checkpoint of other makes loads to the same numbers."""
    text = json.loads((tiny / "config.json").read_text())["text_config"]
    scaling = {"rope_type": "linear", "factor": 4.0}
    folder = copy(tiny, tmp_path / "a", text_config={**text, "rope_scaling": scaling})
    older = folder / "preprocessor_config.json"
    saved = {"image_processor": {**json.loads(older.read_text()), "resample": 3}}
    (folder / "processor_config.json").write_text(json.dumps(saved))
    older.unlink()
    (folder / "chat_template.json").unlink()
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text("{{ bos_token }}!")
    convert(folder, tmp_path / "b", Recipe(dtype="float32"))
    np.testing.assert_array_equal(logits(tmp_path / "b"), logits(folder))
    ours, theirs = load_processor(tmp_path / "b"), load_processor(folder)
    assert (ours.settings, ours.template.source, ours.template.special_tokens) == (
        theirs.settings,
        "{{ bos_token }}!",
        theirs.template.special_tokens,
    )


def test_every_dtype_in_config_is_the_new_one(tiny: Path, tmp_path: Path) -> None:
    raw = json.loads((tiny / "config.json").read_text())
    text = {**raw["text_config"], "dtype": "float32"}
    vision = {**raw["vision_config"], "torch_dtype": "float32"}
    values = {"text_config": text, "vision_config": vision, "dtype": "float32"}
    source = copy(tiny, tmp_path / "in", weights_of(tiny), **values)
    convert(source, tmp_path / "out", Recipe(dtype="float16"))
    have = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (have["dtype"], have["torch_dtype"]) == ("float16", "float16")
    assert (have["text_config"]["dtype"], have["vision_config"]["torch_dtype"]) == (
        "float16",
        "float16",
    )
    assert {w.dtype for w in weights_of(tmp_path / "out").values()} == {mx.float16}


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_written_once(tmp_path: Path, tied: bool) -> None:
    source = make(tmp_path / "in", dtype="bfloat16", tied=False)
    tensors = weights_of(source)
    if tied:
        tensors["language_model.lm_head.weight"] = tensors["language_model.embed_tokens.weight"]
        source = copy(source, tmp_path / "tied", tensors)
    convert(source, tmp_path / "out", "8bit")
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (raw["tie_word_embeddings"], raw["text_config"]["tie_word_embeddings"]) == (tied, tied)
    assert ("language_model.lm_head.weight" in weights_of(tmp_path / "out")) is not tied


# ---- quantization


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.quantizes])
def test_recipes(tiny: Path, tmp_path: Path, name: str) -> None:
    out, recipe = tmp_path / "out", RECIPES[name]
    report = convert(tiny, out, name)
    source, result = weights_of(tiny), weights_of(out)
    checkpoint = open_checkpoint(out)
    assert checkpoint.quantization is not None
    padded = checkpoint.config.vision_config.intermediate_size
    assert padded == (200 if recipe.vision_bits is None else 256)
    for key, weight in source.items():
        module, want = key.removesuffix(".weight"), weight.astype(mx.bfloat16)
        if ".mlp.fc" in key and recipe.vision_bits is not None:
            want = mx.pad(
                want,
                [
                    (0, new - old)
                    for old, new in zip(want.shape, unpacked(result, key), strict=True)
                ],
            )
        form = recipe.form(module) if key.endswith(".weight") and weight.ndim == 2 else None
        assert (f"{module}.scales" in result) is (form is not None), key
        if form is None:
            assert bool(mx.array_equal(result[key], want)), key
        else:
            assert checkpoint.quantization.of(module) == form
            arrays = mx.quantize(want, form.group_size, form.bits, form.mode)
            parts = ("weight", "scales", "biases")[: 3 if form.mode == "affine" else 2]
            for part, array in zip(parts, arrays, strict=True):
                assert bool(mx.array_equal(result[f"{module}.{part}"], array)), key
    assert report.bits_per_weight < 16
    load(out)


def unpacked(tensors: Tensors, key: str) -> tuple[int, ...]:
    """The shape of a weight before quantization, in groups of 64."""
    module = key.removesuffix(".weight")
    if key.endswith(".weight") and f"{module}.scales" in tensors:
        return (tensors[key].shape[0], tensors[f"{module}.scales"].shape[1] * 64)
    return tuple(tensors[key].shape)


def test_blocks_of_config(tiny: Path, tmp_path: Path) -> None:
    """Only what differs is listed, and only Linear and Embedding layers, or other readers try to
    quantize a norm."""
    blocks = {}
    for name in ("8bit", "4bit-8bit-embeddings", "4bit-vision"):
        convert(tiny, tmp_path / name, name)
        raw = json.loads((tmp_path / name / "config.json").read_text())
        blocks[name] = raw["quantization"]
        assert raw["vision_config"]["intermediate_size"] == (256 if name == "4bit-vision" else 200)
    main, eight = (
        {"group_size": 64, "mode": "affine"},
        {"bits": 8, "group_size": 64, "mode": "affine"},
    )
    assert blocks == {
        "8bit": {**main, "bits": 8},
        "4bit-8bit-embeddings": {
            **main,
            "bits": 4,
            "language_model.embed_tokens": eight,
            "language_model.lm_head": eight,
        },
        "4bit-vision": {**main, "bits": 4, "connector.modality_projection.proj": eight},
    }


def test_of_embeddings_alone_the_block_has_their_bits(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out", Recipe(embedding_bits=6))
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["quantization"] == {"group_size": 64, "bits": 6, "mode": "affine"}


def test_8_bit_is_close(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out", "8bit-vision")
    have, want = logits(tmp_path / "out"), logits(tiny)
    assert 0 < np.abs(have - want).max() < 0.1 * np.abs(want).max()


def test_quantized_vision_equals_its_float_values(tiny: Path, tmp_path: Path) -> None:
    """The quantized layers, padded ones included, do what a float model of the values they stand
    for does."""
    quantized = tmp_path / "quantized"
    convert(tiny, quantized, "4bit-vision")
    vision = json.loads((quantized / "config.json").read_text())["vision_config"]
    floats = copy(tiny, tmp_path / "floats", dequantized(quantized), vision_config=vision)
    np.testing.assert_allclose(logits(quantized), logits(floats), rtol=0, atol=2e-3)


def test_padding_changes_nothing(tiny_bf16: Path, tmp_path: Path) -> None:
    """Rows of zeros in fc1, columns of zeros in fc2."""
    tensors, raw = weights_of(tiny_bf16), json.loads((tiny_bf16 / "config.json").read_text())
    for name, array in tensors.items():
        if ".mlp.fc1." in name:
            tensors[name] = mx.pad(array, [(0, 56), (0, 0)][: array.ndim])
        elif ".mlp.fc2.weight" in name:
            tensors[name] = mx.pad(array, [(0, 0), (0, 56)])
    vision = {**raw["vision_config"], "intermediate_size": 256}
    padded = copy(tiny_bf16, tmp_path / "padded", tensors, vision_config=vision)
    np.testing.assert_allclose(logits(padded), logits(tiny_bf16), rtol=0, atol=1e-4)


def test_dequantizing(tiny: Path, tmp_path: Path) -> None:
    quantized, plain = tmp_path / "quantized", tmp_path / "plain"
    convert(tiny, quantized, "4bit-8bit-embeddings")
    convert(quantized, plain, "bf16")
    have, want = weights_of(plain), weights_of(quantized)
    assert have.keys() == weights_of(tiny).keys()
    assert "quantization" not in json.loads((plain / "config.json").read_text())
    for key, array in have.items():
        module = key.removesuffix(".weight")
        if f"{module}.scales" in want and key.endswith(".weight"):
            packed, scales, biases = (
                want[f"{module}.{part}"] for part in ("weight", "scales", "biases")
            )
            # Rounded once, to the result's dtype.
            scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
            exact = mx.dequantize(packed, scales, biases, 64, 4 if ".layers." in key else 8)
            assert bool(mx.array_equal(array, exact.astype(mx.bfloat16)))
        else:
            assert bool(mx.array_equal(array, want[key]))
    assert np.abs(logits(plain) - logits(quantized)).max() < 0.1 * np.abs(logits(tiny)).max()


# ---- what cannot be done


def refused(kind: type[Exception], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(kind) as caught:
        convert(*args, **kwargs)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("5bit", "recipe '5bit' is not one of bf16, 8bit, "),
        (
            Recipe(dtype="int8"),  # type: ignore[arg-type]
            "dtype 'int8' is not one of float32, float16, bfloat16",
        ),
        (
            Recipe(bits=7),
            "recipe: 7 bits in groups of 64 (affine: bits 2, 3, 4, 5, 6, 8; groups 32, 64, 128)",
        ),
        (
            Recipe(bits=4, group_size=100),
            "recipe: 4 bits in groups of 100",
        ),
        (Recipe(embedding_bits=9), "recipe: 9 bits"),
        (Recipe(vision_bits=0), "recipe: 0 bits"),
    ],
)
def test_recipes_that_do_not_exist(
    tiny: Path, tmp_path: Path, recipe: Recipe | str, said: str
) -> None:
    assert said in refused(ConversionError, tiny, tmp_path / "out", recipe)
    assert list(tmp_path.iterdir()) == []


def test_groups_that_do_not_fit(tmp_path: Path) -> None:
    source = slim(tmp_path / "in", hidden_size=96)
    said = refused(ConversionError, source, tmp_path / "out", Recipe(bits=4, group_size=64))
    assert said == "group_size 64: layers of 96 inputs do not divide into such groups; use 32"
    convert(source, tmp_path / "out", Recipe(bits=4, group_size=32))


def slim(out: Path, **text: int) -> Path:
    """The tiny checkpoint with other text sizes and zero weights."""
    make(out)
    raw = json.loads((out / "config.json").read_text())
    raw["text_config"] |= text
    (out / "config.json").write_text(json.dumps(raw))
    parameters = SmolVLM(ModelConfig.from_dict(raw)).named_parameters()
    mx.save_safetensors(
        str(out / "model.safetensors"), {k: mx.zeros(v.shape) for k, v in parameters.items()}
    )
    return out


def test_quantizing_twice(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "a", "8bit")
    said = refused(ConversionError, tmp_path / "a", tmp_path / "b", "4bit")
    assert (
        "is quantized already (8 bits in groups of 64); convert the original checkpoint, or "
        "dequantize this one" in said
    )
    assert not (tmp_path / "b").exists()


def test_targets_that_cannot_be(tiny: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny, tmp_path / "in"))
    before, file = fingerprint(source), tmp_path / "file"
    file.write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "linked").symlink_to(source)
    exists = {source, file, tmp_path / "dangling", tmp_path, source / "config.json"}
    for out in exists:
        assert (
            refused(ConversionError, source, out)
            == f"{out} exists; choose another name, or delete it first"
        )
    inside = [
        source / "out",
        source / "a" / "b",
        tmp_path / "linked" / "out",
        source / ".." / "in" / "out",
    ]
    for out in inside:
        assert f"{out} is inside {source}, which is only read" in refused(
            ConversionError, source, out
        )
    assert f"{file / 'out'}: cannot be made (File exists: {file})" in refused(
        ConversionError, source, file / "out"
    )
    long = tmp_path / ("n" * 256)
    assert "cannot be made (File name too long" in refused(ConversionError, source, long)
    assert refused(CheckpointError, tmp_path / "nothing", tmp_path / "out").startswith("no folder ")
    assert fingerprint(source) == before
    assert file.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"in", "file", "dangling", "linked"}


def test_folders_above_are_made(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "a" / "b" / "out")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["out"]


def test_no_access(tiny: Path, tmp_path: Path) -> None:
    parent = tmp_path / "locked"
    parent.mkdir(mode=0o500)
    if os.access(parent, os.W_OK):
        pytest.skip("root may write anywhere")
    assert "cannot be made (Permission denied: " in refused(ConversionError, tiny, parent / "out")


def test_no_space(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: type(usage)(usage.total, usage.used, 20 * 2**20)
    )
    out = tmp_path / "a" / "out"
    assert refused(ConversionError, tiny, out) == f"{out.parent}: 20 MiB free, 33 MiB needed"
    assert list(tmp_path.iterdir()) == []


def test_as_much_space_as_it_takes_is_enough(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And 32 MiB for all but the weights; a byte less is refused."""
    usage, parts = shutil.disk_usage(tmp_path), convert(tiny, tmp_path / "a").parts
    needed = sum(size for _, size in parts.values()) + 32 * 2**20
    for number, free in enumerate((needed, needed - 1)):
        found = type(usage)(usage.total, usage.used, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, found=found: found)
        if free == needed:
            convert(tiny, tmp_path / f"b{number}")
        else:
            assert "33 MiB free, 33 MiB needed" in refused(
                ConversionError, tiny, tmp_path / f"b{number}"
            )


# ---- all or nothing


class Failing:
    """Fails once, at the n-th call."""

    def __init__(self, function: Callable[..., Any], nth: int, error: BaseException):
        self.function, self.left, self.error = function, nth, error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.function(*args, **kwargs)


POINTS = {
    "write": (os, "write", 77),
    "fsync": (os, "fsync", 20),
    "mkdir": (Path, "mkdir", 2),
    "replace": (Path, "replace", 8),
    "rename": (Path, "rename", 1),
}


@pytest.mark.parametrize("point", POINTS)
def test_each_step_failing_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    owner, name, most = POINTS[point]
    before, whole = fingerprint(tiny), getattr(owner, name)
    for nth in range(1, most + 2):
        out = tmp_path / f"{nth}" / "out"
        failing = Failing(whole, nth, OSError(errno.EIO, "Input/output error", "/the/file"))
        call = (lambda f: lambda *args, **kwargs: f(*args, **kwargs))(failing)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, call)
            if nth > most:  # there are no more calls to fail
                convert(tiny, out)
                break
            said = refused(ConversionError, tiny, out)
        assert said == f"{out}: cannot be made (Input/output error: /the/file)"
        assert not (tmp_path / f"{nth}").exists()
    load(out)
    assert fingerprint(tiny) == before


def test_a_result_that_does_not_load_is_no_result(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(path: Path, *args: Any) -> Iterator[Reading]:
        path.write_bytes(b"broken")
        yield Reading(1, 1, "bytes")

    monkeypatch.setattr(plan, "write_safetensors_in_steps", bad)
    assert "damaged, or no safetensors file" in refused(
        CheckpointError, tiny, tmp_path / "a" / "out"
    )
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_the_middle(tiny: Path, tmp_path: Path) -> None:
    for nth in (1, 30):
        steps = convert_in_steps(tiny, tmp_path / "a" / "out")
        list(islice(steps, nth))
        with pytest.raises(KeyboardInterrupt):
            steps.throw(KeyboardInterrupt)
        assert list(tmp_path.iterdir()) == []


def test_kill_9(tiny: Path, tmp_path: Path) -> None:
    with tally("conversion") as count:
        kill_converting(tiny, tmp_path / "out", 3, 0, count)


# ---- sizes and memory


def shared(form: Form) -> float:
    """Bits a weight of what a group shares."""
    return (32 if form.mode == "affine" else 8) / form.group_size


def expected_bytes(checkpoint: ModelConfig, recipe: Recipe, tied: bool = False) -> int:
    """By arithmetic: a quantized weight has `bits` a number and 32 more for the scale and bias of
    each group."""
    total = 0.0
    for name, array in SmolVLM(checkpoint, tied).named_parameters().items():
        form = recipe.form(name.removesuffix(".weight")) if array.ndim == 2 else None
        total += array.size * (16 if form is None else form.bits + shared(form)) / 8
    return round(total)


@pytest.mark.parametrize("name", RECIPES)
def test_sizes_on_disk(tiny: Path, tmp_path: Path, name: str) -> None:
    report = convert(tiny, tmp_path / "out", name)
    config = open_checkpoint(tmp_path / "out").config
    assert sum(size for _, size in report.parts.values()) == expected_bytes(config, RECIPES[name])
    assert 0 < report.out_bytes - expected_bytes(config, RECIPES[name]) < 20_000  # the header


@pytest.mark.parametrize(
    ("model", "recipe", "published"),
    [
        ("SmolVLM2-500M-Video-Instruct", "4bit", 286_571_904),
        ("SmolVLM2-500M-Video-Instruct", "6bit", 413_248_896),
        ("SmolVLM2-500M-Video-Instruct", "8bit", 539_925_888),
        ("SmolVLM2-256M-Video-Instruct", "4bit", 145_346_688),
        ("SmolVLM-Instruct", "4bit", 1_457_661_352),
    ],
)
def test_published_sizes(model: str, recipe: str, published: int) -> None:
    """mlx-community quantizes tower, connector and position table as well: their share is counted
    at its bits here."""
    config, bits = ModelConfig.from_dict(FAMILY[model]), RECIPES[recipe].bits
    assert bits is not None
    total = 0.0
    for array in SmolVLM(config).named_parameters().values():
        quantized = array.ndim == 2 and array.shape[1] % 64 == 0
        total += array.size * (bits + 0.5 if quantized else 16) / 8
    assert total == published
    # Ours has tower and connector in 16 bits, which is what it is larger by.
    parts = ("vision_model", "connector")
    ours = expected_bytes(config, RECIPES[recipe])
    tower = sum(
        array.size
        for name, array in SmolVLM(config).named_parameters().items()
        if name.startswith(parts)
    )
    assert published < ours < published + 2 * tower


MEASURED = """
import re, resource, sys
from pathlib import Path
from smolvlm_mlx.checkpoint.convert import convert

def peak():  # on Linux ru_maxrss begins with that of the process that started this one
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
convert(sys.argv[1], sys.argv[2], sys.argv[3])
print(before, peak())
"""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["bf16", "4bit-vision"])
def test_memory(tmp_path: Path, recipe: str) -> None:
    """Peak memory follows the largest tensor, not the file."""
    sizes = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 11,
        "head_dim": 64,
    }
    source = slim(
        tmp_path / "in", **sizes, num_attention_heads=16, num_key_value_heads=16, vocab_size=2000
    )
    file = (source / "model.safetensors").stat().st_size
    largest = 4 * 1024 * 4096
    assert file > 600e6
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        MEASURED,
        str(source),
        str(tmp_path / "out"),
        recipe,
    ]
    environment = {**os.environ, **as_metal.environment(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    before, peak = (int(number) for number in done.stdout.split())
    print(f"file {file >> 20} MiB, before {before >> 20} MiB, peak {peak >> 20} MiB")
    assert peak - before < 6 * largest + 100 * 2**20
    assert peak - before < file / 3


def test_parts_of_the_report(tiny: Path, tmp_path: Path) -> None:
    report = convert(tiny, tmp_path / "out", replace(RECIPES["8bit"], embedding_bits=None))
    parameters = load(tiny, "float32", fuse=False)[0].named_parameters()
    assert report.parts.keys() == {"vision_model", "connector", "language_model"}
    for part, (count, _) in report.parts.items():
        assert count == sum(
            array.size for name, array in parameters.items() if name.startswith(part)
        )
    assert report.parts["connector"] == (128 * 4 * 128, 128 * 4 * 128 * 2)
