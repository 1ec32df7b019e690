"""What is converted for transformers has its names, shapes and files; parity has the numbers."""

import json
from pathlib import Path
from typing import Any

from convert.random_checkpoint import make
from smolvlm_mlx.checkpoint import huggingface
from smolvlm_mlx.checkpoint.choices import Recipe
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.checkpoint.reader import open_checkpoint
from smolvlm_mlx.checkpoint.safetensors import find_shards, read_header
from smolvlm_mlx.errors import ConversionError
from smolvlm_mlx.files import read_json
from tests.support.checkpoints import copy, logits, random_adapter, weights_of
from tests.support.cli import check_refused

import mlx.core as mx
import numpy as np
import pytest

FLOAT32 = Recipe(dtype="float32")


def header(path: Path) -> Any:
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


@pytest.mark.parametrize("model_type", ["smolvlm", "idefics3"])
@pytest.mark.parametrize("tied", [True, False])
def test_there_and_back(tmp_path: Path, model_type: str, tied: bool) -> None:
    """By way of MLX's layout a checkpoint comes back as it was."""
    source = make(tmp_path / "in", model_type, dtype="bfloat16", tied=tied)
    convert(source, tmp_path / "mlx")
    convert(tmp_path / "mlx", tmp_path / "back", layout="huggingface")
    assert open_checkpoint(tmp_path / "back").is_hf_layout
    have, want = (header(at / "model.safetensors") for at in (tmp_path / "back", source))
    assert have["__metadata__"] == {"format": "pt"}
    for name, entry in want.items():
        if name != "__metadata__":
            assert (have[name]["shape"], have[name]["dtype"]) == (entry["shape"], "BF16"), name
    assert have.keys() == want.keys()
    assert ("lm_head.weight" in have) is not tied
    ours, theirs = weights_of(tmp_path / "back"), weights_of(source)
    assert all(bool(mx.array_equal(ours[name], theirs[name])) for name in theirs)
    config = read_json(tmp_path / "back" / "config.json")
    dtypes = {"torch_dtype": "bfloat16", "dtype": "bfloat16"}
    assert config == {**read_json(source / "config.json"), **dtypes}


def test_config(tiny: Path, tmp_path: Path) -> None:
    """Its class is there, and neither quantization nor code of others."""
    convert(tiny, tmp_path / "four", "4bit-vision")
    odd = copy(tmp_path / "four", tmp_path / "odd", architectures=None, auto_map={"x": "y.Z"})
    convert(odd, tmp_path / "out", FLOAT32, layout="huggingface")
    config = read_json(tmp_path / "out" / "config.json")
    assert config["architectures"] == ["SmolVLMForConditionalGeneration"]
    assert config["vision_config"]["intermediate_size"] == 256  # as wide as it was quantized
    assert not {"auto_map", "quantization"} & config.keys()
    assert (config["dtype"], config["torch_dtype"]) == ("float32", "float32")


@pytest.mark.parametrize("recipe", ["4bit-vision", "mxfp4"])
def test_a_quantized_source_is_dequantized(
    tiny: Path, tmp_path: Path, call: Any, recipe: str
) -> None:
    convert(tiny, tmp_path / "four", recipe)
    code, out, err = call(
        "convert",
        tmp_path / "four",
        tmp_path / "out",
        "--layout",
        "huggingface",
        "--dtype",
        "float32",
    )
    assert (code, err) == (0, "")
    assert "Dequantized from " in out
    np.testing.assert_allclose(
        logits(tmp_path / "out"), logits(tmp_path / "four"), rtol=0, atol=2e-3
    )


def test_an_adapter_is_fused(tiny: Path, tmp_path: Path) -> None:
    adapter = random_adapter(tiny, tmp_path / "adapter")
    convert(tiny, tmp_path / "out", FLOAT32, adapter=adapter, layout="huggingface")
    have, want = logits(tmp_path / "out"), logits(tiny, adapter)
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-4)
    assert np.abs(want - logits(tiny)).max() > 0.1


@pytest.mark.parametrize("most", [1, 100_000, 1_000_000])
def test_files_of_at_most_so_many_bytes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """A tensor that is larger alone has a file of its own."""
    monkeypatch.setattr(huggingface, "SHARD_BYTES", most)
    convert(tiny, tmp_path / "out", FLOAT32, layout="huggingface")
    shards = find_shards(tmp_path / "out")
    index = read_json(tmp_path / "out" / "model.safetensors.index.json")
    held = {shard.name: list(read_header(shard)) for shard in shards}
    assert [*held] == [
        f"model-{n:05}-of-{len(held):05}.safetensors" for n in range(1, len(held) + 1)
    ]
    assert index["weight_map"] == {
        tensor.key: name for name, tensors in held.items() for tensor in tensors
    }
    sizes = [[tensor.nbytes for tensor in tensors] for tensors in held.values()]
    assert index["metadata"] == {"total_size": sum(map(sum, sizes))}
    assert all(sum(each) <= most or len(each) == 1 for each in sizes)
    np.testing.assert_array_equal(logits(tmp_path / "out"), logits(tiny))
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_what_cannot_be(tiny: Path, tmp_path: Path, call: Any) -> None:
    for options in (("--bits", 4), ("--recipe", "8bit")):
        result = call("convert", tiny, tmp_path / "out", "--layout", "huggingface", *options)
        check_refused(result, "layout huggingface is for transformers")
    with pytest.raises(ConversionError, match="layout 'gguf' is not one of mlx, huggingface"):
        convert(tiny, tmp_path / "out", layout="gguf")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
