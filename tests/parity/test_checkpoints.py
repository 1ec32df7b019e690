"""Each variation of a checkpoint that transformers loads gives the same numbers here, also when it
was converted; or is refused by a line that names what is in the way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert.random_checkpoint import make
from smolvlm_mlx import convert, load
from smolvlm_mlx.checkpoint import huggingface
from smolvlm_mlx.checkpoint.choices import Dtype, Recipe
from smolvlm_mlx.checkpoint.hub import TINY
from smolvlm_mlx.checkpoint.reader import open_checkpoint
from smolvlm_mlx.errors import SmolVLMError
from smolvlm_mlx.inputs.messages import user_message
from smolvlm_mlx.inputs.processor import Processor
from smolvlm_mlx.inputs.settings import ImageOptions
from tests.parity.checkpoints import channels_first, picture, reference_model
from tests.parity.checkpoints import make as make_real
from tests.support.checkpoints import random_adapter

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

pytestmark = pytest.mark.parity

Tensors = dict[str, torch.Tensor]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("checkpoints") / "random", seed=3)


def changed(
    folder: Path,
    out: Path,
    name: str = "config.json",
    section: str | None = None,
    tensors: Callable[[Tensors], Tensors] | None = None,
    **values: Any,
) -> Path:
    """A copy with other values in a section of one of its files, and other tensors."""
    shutil.copytree(folder, out)
    raw = json.loads((out / name).read_text())
    (raw[section] if section else raw).update(values)
    (out / name).write_text(json.dumps(raw))
    if tensors is not None:
        path = out / "model.safetensors"
        save_file(tensors(load_file(path)), path, {"format": "pt"})
    return out


def check_logits(
    theirs: Path,
    ours: Path,
    adapter: Path | None = None,
    image_options: ImageOptions | None = None,
) -> None:
    """That the reference's logits of one folder are ours of another, at once and one by one."""
    model, processor = load(ours, "float32", adapter=adapter)
    question = "What is in the picture? " * 12
    inputs = processor([user_message(question, [picture(1, (200, 120))])], image_options)
    ids, pixel_values = inputs.input_ids, mx.array(inputs.pixel_values)
    with torch.no_grad():
        want = reference_model(theirs)(
            input_ids=torch.from_numpy(ids.astype(np.int64))[None],
            pixel_values=channels_first(inputs.pixel_values),
        ).logits.numpy()
    have = np.array(model(mx.array(ids)[None], pixel_values))
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-4)
    embeddings = model.merge(mx.array(ids)[None], model.encode_images(pixel_values))
    cache = model.language_model.make_cache()
    decoder = model.language_model
    steps = [
        np.array(decoder.logits(decoder.hidden_states(None, cache, embeddings[:, at : at + 1])))
        for at in range(len(ids))
    ]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), want, rtol=0, atol=1e-4)


WEIGHTS: dict[str, Callable[[Tensors], Tensors]] = {
    "keys without model": lambda tensors: {
        key.removeprefix("model."): tensor for key, tensor in tensors.items()
    },
    "buffers": lambda tensors: {
        **tensors,
        "model.text_model.rotary_emb.inv_freq": torch.ones(16),
        "model.text_model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16),
        "model.vision_model.embeddings.position_ids": torch.arange(64)[None],
    },
    "float64": lambda tensors: {key: tensor.double() for key, tensor in tensors.items()},
    "float64 and bfloat16": lambda tensors: {
        key: tensor.double() if at % 2 else tensor.bfloat16()
        for at, (key, tensor) in enumerate(tensors.items())
    },
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(folder: Path, tmp_path: Path, name: str) -> None:
    here = changed(folder, tmp_path / "a", tensors=WEIGHTS[name])
    check_logits(here, here)
    convert(here, tmp_path / "b", Recipe(dtype="float32"))
    check_logits(here, tmp_path / "b")


POSITIONS: dict[str, dict[str, Any]] = {
    "linear": {"rope_scaling": {"type": "linear", "factor": 4}},
    "linear in the newer place": {
        "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1000.0}
    },
    "linear with another theta": {
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_theta": 5000.0,
    },
    "less than 1": {"rope_scaling": {"rope_type": "linear", "factor": 0.5}},
    "llama3": {"rope_scaling": LLAMA3},
    "llama3 in the newer place": {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
    "llama3 of the whole context": {
        "rope_scaling": {key: value for key, value in LLAMA3.items() if "original" not in key},
        "max_position_embeddings": 512,
    },
    "both places": {"rope_scaling": {"type": "linear", "factor": 3.0}, "rope_parameters": LLAMA3},
}


@pytest.mark.parametrize("name", POSITIONS)
def test_positions(folder: Path, tmp_path: Path, name: str) -> None:
    here = changed(folder, tmp_path / "a", section="text_config", **POSITIONS[name])
    check_logits(here, here)
    convert(here, tmp_path / "b", Recipe(dtype="float32"))
    check_logits(here, tmp_path / "b")


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope", "proportional"])
def test_other_positions_are_refused_by_name(folder: Path, tmp_path: Path, kind: str) -> None:
    scaling = {"rope_type": kind, "factor": 2.0}
    here = changed(folder, tmp_path / "a", section="text_config", rope_scaling=scaling)
    with pytest.raises(SmolVLMError, match=f"rope type '{kind}'"):
        load(here)


PICTURES: dict[str, dict[str, Any]] = {
    **{f"resample {number}": {"resample": number} for number in range(6)},
    "no rescale": {"do_rescale": False},
    "no normalize": {"do_normalize": False},
    "neither": {"do_rescale": False, "do_normalize": False},
    "no conversion": {"do_convert_rgb": False},
    "no split": {"do_image_splitting": False},
    "no pad": {"do_pad": False},
    "one mean": {"image_mean": 0.4, "image_std": 0.3},
    "three means": {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 0.5]},
    "all together": {"resample": 2, "do_rescale": False, "image_mean": 99, "image_std": 50.5},
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("model_type", ["smolvlm", "idefics3"])
def test_pictures(tmp_path: Path, model_type: str, name: str) -> None:
    folder = make(tmp_path / "random", model_type, layers=(1, 1))
    here = changed(folder, tmp_path / "a", "preprocessor_config.json", **PICTURES[name])
    convert(here, tmp_path / "b", "bf16")
    theirs = AutoProcessor.from_pretrained(here, use_fast=False)
    for size in ((200, 120), (61, 300), (700, 900)):
        image = picture(size[0], size)
        want = theirs.image_processor([[image]], return_tensors="np")["pixel_values"][0]
        for checkpoint in (here, tmp_path / "b"):
            inputs = load_processor(checkpoint)([user_message("", [image])])
            have = inputs.pixel_values.transpose(0, 3, 1, 2)
            np.testing.assert_array_equal(have, want.astype(np.float32))


def load_processor(folder: Path) -> Processor:
    return Processor.from_folder(folder, open_checkpoint(folder).config)


@pytest.mark.parametrize("model_type", ["smolvlm", "idefics3"])
def test_what_transformers_saves(tmp_path: Path, model_type: str) -> None:
    """It writes the settings of pictures into processor_config.json, and the template apart."""
    folder, out = make(tmp_path / "random", model_type, layers=(1, 1)), tmp_path / "saved"
    changed(folder, tmp_path / "a", "preprocessor_config.json", resample=3, image_mean=0.25)
    AutoProcessor.from_pretrained(tmp_path / "a").save_pretrained(out)
    AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).save_pretrained(out)
    assert not (out / "preprocessor_config.json").exists()
    ours, theirs = load_processor(out), load_processor(tmp_path / "a")
    assert (ours.settings, ours.template.source, ours.tokenizer.end_ids) == (
        theirs.settings,
        theirs.template.source,
        theirs.tokenizer.end_ids,
    )
    check_logits(folder, out)


# ---- back to Hugging Face's layout


def goes_back(
    source: Path,
    out: Path,
    dtype: Dtype = "float32",
    adapter: Path | None = None,
    image_options: ImageOptions | None = None,
) -> None:
    """That transformers has the logits of a source in what was converted for it, and that it misses
    no weight, and leaves none unused."""
    convert(source, out, Recipe(dtype=dtype), adapter=adapter, layout="huggingface")
    model, said = AutoModelForImageTextToText.from_pretrained(
        out, dtype="auto", output_loading_info=True
    )
    assert model.dtype == getattr(torch, dtype)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    check_logits(out, source, adapter, image_options)
    ours, theirs = load_processor(source), AutoProcessor.from_pretrained(out)
    assert theirs.tokenizer.encode("A cat?") == list(ours.tokenizer.encode_text("A cat?"))


@pytest.mark.parametrize("model_type", ["smolvlm", "idefics3"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_converted_goes_back(tmp_path: Path, model_type: str, tied: bool) -> None:
    folder = make(tmp_path / "random", model_type, tied=tied)
    convert(folder, tmp_path / "mlx", Recipe(dtype="float32"))
    goes_back(tmp_path / "mlx", tmp_path / "back")
    have, want = (load_file(at / "model.safetensors") for at in (tmp_path / "back", folder))
    assert have.keys() == want.keys()
    assert all(torch.equal(have[key], want[key]) for key in want)


def test_the_bundled_one_goes_back(tmp_path: Path) -> None:
    goes_back(TINY, tmp_path / "out")


@pytest.mark.parametrize("recipe", ["4bit-vision", "mxfp4", "nvfp4"])
def test_what_is_quantized_goes_back(folder: Path, tmp_path: Path, recipe: str) -> None:
    """With a padded tower too."""
    convert(folder, tmp_path / "small", recipe)
    goes_back(tmp_path / "small", tmp_path / "out")


def test_what_is_fused_goes_back(folder: Path, tmp_path: Path) -> None:
    adapter = random_adapter(folder, tmp_path / "adapter")
    goes_back(folder, tmp_path / "out", adapter=adapter)
    convert(folder, tmp_path / "8bit", "8bit")
    goes_back(tmp_path / "8bit", tmp_path / "out-8bit", adapter=adapter)


def test_what_is_in_several_files_goes_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 500_000)
    convert(folder, tmp_path / "mlx", Recipe(dtype="float32"))
    goes_back(tmp_path / "mlx", tmp_path / "out")
    assert len([*(tmp_path / "out").glob("model-*-of-*.safetensors")]) > 3


@pytest.mark.parametrize("name", ["SmolVLM-256M-Instruct", "SmolVLM2-256M-Video-Instruct"])
def test_the_real_256m_layout_goes_back(tmp_path: Path, name: str) -> None:
    """Its file has the bytes that transformers wrote, in bfloat16. One tile: the prompt is read one
    token at a time, too."""
    source = make_real(name, tmp_path / "random", "--dtype", "bfloat16")
    convert(source, tmp_path / "mlx")
    whole = ImageOptions(split=False)
    goes_back(tmp_path / "mlx", tmp_path / "out", "bfloat16", image_options=whole)
    have, want = (load_file(at / "model.safetensors") for at in (tmp_path / "out", source))
    assert have.keys() == want.keys()
    assert all(torch.equal(have[key], want[key]) for key in want)
