"""Loading is strict: every layout and dtype that is meant loads with the same numbers, all else is
named."""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from convert.random_checkpoint import make
from smolvlm_mlx import device
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.checkpoint.reader import Checkpoint, load, open_checkpoint
from smolvlm_mlx.errors import CheckpointError, ImageError
from smolvlm_mlx.files import read_json
from smolvlm_mlx.model import SmolVLM
from tests.support.checkpoints import Tensors, copy, logits, weights_of
from tests.support.places import ROOT

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import save_file


def tensors_of(folder: Path) -> Tensors:
    """By the names and in the layout of the file."""
    loaded = mx.load(str(folder / "model.safetensors"))
    assert isinstance(loaded, dict)
    return loaded


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, "float32")
    assert str(caught.value).isprintable()
    return str(caught.value)


def community_form(folder: Path) -> Tensors:
    """The tensors by mlx-community's names and in its layout."""
    return {name: mx.contiguous(array) for name, array in weights_of(folder).items()}


def quantized_form(folder: Path, bits: int, group_size: int, dtype: mx.Dtype) -> Tensors:
    """As mlx-vlm converts: every Linear and Embedding, but for those whose inputs do not divide
    into groups."""
    checkpoint = open_checkpoint(folder)
    model = SmolVLM(checkpoint.config)
    model.load_weights(list(community_form(folder).items()))
    model.set_dtype(dtype)
    nn.quantize(
        model,
        group_size,
        bits,
        class_predicate=lambda _, m: (
            isinstance(m, nn.Linear | nn.Embedding) and m.weight.shape[1] % group_size == 0
        ),
    )
    return model.named_parameters()


def write_as_float64(path: Path, key: str) -> None:
    """Make one tensor of a file float64, at its end."""
    file = path.read_bytes()
    size = int.from_bytes(file[:8], "little")
    header, data = json.loads(file[8 : 8 + size]), file[8 + size :]
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    wide = np.array(loaded[key].astype(mx.float32)).astype(np.float64).tobytes()
    begin, end = header.pop(key)["data_offsets"]
    for entry in header.values():
        offsets = entry.get("data_offsets", (0, 0))
        if offsets[0] >= end:
            entry["data_offsets"] = [offset - (end - begin) for offset in offsets]
    data = data[:begin] + data[end:]
    header[key] = {
        "dtype": "F64",
        "shape": list(loaded[key].shape),
        "data_offsets": [len(data), len(data) + len(wide)],
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data + wide)


# ---- layouts and dtypes


def test_mlx_community_layout_is_the_same_model(tiny: Path, tmp_path: Path) -> None:
    plain = copy(tiny, tmp_path / "plain", community_form(tiny))
    assert open_checkpoint(tiny).is_hf_layout
    assert not open_checkpoint(plain).is_hf_layout
    np.testing.assert_array_equal(logits(plain), logits(tiny))


def test_shards_are_the_same_model(tiny: Path, tmp_path: Path) -> None:
    folder, tensors = copy(tiny, tmp_path / "sharded"), tensors_of(tiny)
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    weight_map = {key: names[at % 3] for at, key in enumerate(tensors)}
    for name in names:
        part = {key: array for key, array in tensors.items() if weight_map[key] == name}
        mx.save_safetensors(str(folder / name), part, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    np.testing.assert_array_equal(logits(folder), logits(tiny))
    assert open_checkpoint(folder).nbytes == sum((folder / name).stat().st_size for name in names)
    (folder / names[1]).unlink()
    (folder / names[2]).unlink()
    assert refused(folder) == f"{folder}: missing {names[1]}; {names[2]}; download it again"
    (folder / "model.safetensors.index.json").unlink()
    assert "missing connector.modality_projection" in refused(folder)
    shutil.copy(folder / names[0], folder / "copy.safetensors")
    assert "2 .safetensors files and no model.safetensors.index.json" in refused(folder)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_sources_of_any_float(tiny: Path, tmp_path: Path, name: str) -> None:
    dtype = getattr(mx, name)
    half = {key: array.astype(dtype) for key, array in tensors_of(tiny).items()}
    rounded = {key: array.astype(mx.float32) for key, array in half.items()}
    np.testing.assert_array_equal(
        logits(copy(tiny, tmp_path / "half", half)),
        logits(copy(tiny, tmp_path / "rounded", rounded)),
    )


def test_keys_without_model_are_the_same_model(tiny: Path, tmp_path: Path) -> None:
    """As transformers saves the model without its head, and the model with it."""
    bare = {key.removeprefix("model."): array for key, array in tensors_of(tiny).items()}
    folder = copy(tiny, tmp_path / "bare", bare)
    assert open_checkpoint(folder).is_hf_layout
    np.testing.assert_array_equal(logits(folder), logits(tiny))
    del bare["lm_head.weight"]
    assert "lm_head" not in load(copy(tiny, tmp_path / "headless", bare))[0].language_model


def test_keys_with_and_without_model_do_not_mix(tiny: Path, tmp_path: Path) -> None:
    tensors = tensors_of(tiny)
    key = "model.text_model.norm.weight"
    tensors[key.removeprefix("model.")] = tensors.pop(key)
    said = refused(copy(tiny, tmp_path / "a", tensors))
    assert "missing language_model.norm.weight; unexpected 'text_model.norm.weight'" in said


BUFFERS = [
    "text_model.rotary_emb.inv_freq",
    "text_model.layers.0.self_attn.rotary_emb.inv_freq",
    "vision_model.embeddings.position_ids",
]


@pytest.mark.parametrize("layout", ["model.", "", "mlx"])
def test_computed_buffers_are_left_out_and_named(
    tiny: Path, tmp_path: Path, layout: str, call: Any
) -> None:
    tensors = community_form(tiny) if layout == "mlx" else tensors_of(tiny)
    if layout == "":
        tensors = {key.removeprefix("model."): array for key, array in tensors.items()}
    keys = [
        name.replace("text_model", "language_model") if layout == "mlx" else layout + name
        for name in BUFFERS
    ]
    folder = copy(tiny, tmp_path / "a", tensors | {key: mx.zeros((1, 16)) for key in keys})
    assert sorted(open_checkpoint(folder).left_out) == sorted(keys)
    np.testing.assert_array_equal(logits(folder), logits(tiny))
    _, out, _ = call("info", folder)
    assert "left out: 3 tensors that are computed, such as '" in out
    convert(folder, tmp_path / "b", "bf16")
    assert open_checkpoint(tmp_path / "b").left_out == ()


@pytest.mark.parametrize("lazy", [False, True])
def test_float64_is_read_as_float32(tiny: Path, tmp_path: Path, lazy: bool) -> None:
    """All of it, or some of it among all other kinds."""
    tensors = {key: np.array(array) for key, array in tensors_of(tiny).items()}
    doubles = copy(tiny, tmp_path / "a", {})
    save_file(
        {key: array.astype(np.float64) + 1e-12 for key, array in tensors.items()},
        doubles / "model.safetensors",
    )
    load(doubles, "float32", lazy=lazy)
    np.testing.assert_allclose(logits(doubles), logits(tiny), rtol=0, atol=1e-5)
    assert {tensor.dtype for tensor in open_checkpoint(doubles).tensors.values()} == {"F64"}
    convert(doubles, tmp_path / "b", "4bit")
    convert(tiny, tmp_path / "c", "4bit")
    np.testing.assert_allclose(logits(tmp_path / "b"), logits(tmp_path / "c"), rtol=0, atol=2e-2)


def test_a_file_of_all_kinds_of_floats_is_read(tiny: Path, tmp_path: Path) -> None:
    """Where one tensor is float64, MLX does not take the file."""
    kinds = [mx.float32, mx.float16, mx.bfloat16]
    tensors = {
        key: array.astype(kinds[at % 3]) for at, (key, array) in enumerate(tensors_of(tiny).items())
    }
    plain = copy(tiny, tmp_path / "a", tensors)
    mixed = copy(plain, tmp_path / "b")
    key = "model.text_model.norm.weight"
    write_as_float64(mixed / "model.safetensors", key)
    assert {tensor.dtype for tensor in open_checkpoint(mixed).tensors.values()} == {
        "F64",
        "F32",
        "F16",
        "BF16",
    }
    np.testing.assert_array_equal(logits(mixed), logits(plain))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_compute_dtype(tiny: Path, dtype: str) -> None:
    model, _ = load(tiny, dtype)
    assert {str(array.dtype) for array in model.named_parameters().values()} == {
        f"mlx.core.{dtype}"
    }
    np.testing.assert_allclose(logits(tiny, dtype=dtype), logits(tiny), rtol=0, atol=0.3)


def test_unknown_compute_dtype(tiny: Path) -> None:
    with pytest.raises(
        CheckpointError, match="dtype 'int8' is not one of float32, float16, bfloat16"
    ):
        load(tiny, "int8")


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_mlx_community_quantized(tiny: Path, tmp_path: Path, dtype: mx.Dtype) -> None:
    """Old conversions (mlx-vlm up to 0.1.14) hold float16, and quantize tower, positions and
    connector as well."""
    tensors = quantized_form(tiny, 4, 64, dtype)
    assert "vision_model.embeddings.position_embedding.scales" in tensors
    assert "connector.modality_projection.proj.scales" in tensors
    assert "vision_model.encoder.layers.0.mlp.fc2.scales" not in tensors  # 200 inputs
    folder = copy(tiny, tmp_path / "quantized", tensors, quantization={"group_size": 64, "bits": 4})
    model, _ = load(folder, "float32")
    floats = [array for array in model.named_parameters().values() if array.dtype != mx.uint32]
    assert {array.dtype for array in floats} == {mx.float32}
    # The same in float: each packed weight replaced by what it stands for.
    plain = dict(tensors)
    for name in tensors:
        if name.endswith(".scales"):
            module = name.removesuffix(".scales")
            scales, biases = (
                plain.pop(f"{module}.{part}").astype(mx.float32) for part in ("scales", "biases")
            )
            plain[f"{module}.weight"] = mx.dequantize(
                plain[f"{module}.weight"], scales, biases, 64, 4
            )
    want = logits(copy(tiny, tmp_path / "plain", plain))
    np.testing.assert_allclose(logits(folder), want, rtol=0, atol=2e-3)


def test_quantized_modules_of_their_own_form(tiny: Path, tmp_path: Path) -> None:
    tensors = quantized_form(tiny, 4, 64, mx.bfloat16)
    weight = community_form(tiny)["language_model.lm_head.weight"].astype(mx.bfloat16)
    parts = dict(zip(("weight", "scales", "biases"), mx.quantize(weight, 32, 8), strict=True))
    tensors |= {f"language_model.lm_head.{part}": array for part, array in parts.items()}
    block = {"group_size": 64, "bits": 4, "mode": "affine"}
    own = {"language_model.lm_head": {"group_size": 32, "bits": 8}}
    model, _ = load(
        copy(tiny, tmp_path / "mixed", tensors, quantization={**block, **own}), "float32"
    )
    assert (model.language_model.lm_head.bits, model.language_model.lm_head.group_size) == (8, 32)
    said = refused(copy(tiny, tmp_path / "wrong", tensors, quantization=block))
    assert "language_model.lm_head.weight has shape [" in said


def test_quantized_without_a_block(tiny: Path, tmp_path: Path) -> None:
    tensors = quantized_form(tiny, 8, 64, mx.bfloat16)
    count = sum(name.endswith(".scales") for name in tensors)
    said = refused(copy(tiny, tmp_path / "a", tensors))
    assert said.endswith(f"{count} quantized layers, but config.json has no quantization")
    said = refused(copy(tiny, tmp_path / "b", tensors, quantization={"bits": 8, "mode": "mxfp9"}))
    assert "mode 'mxfp9' is not one of affine, " in said
    said = refused(copy(tiny, tmp_path / "c", tensors, quantization={"bits": 8, "group_size": 128}))
    assert "has shape" in said
    del tensors["language_model.lm_head.biases"]
    said = refused(copy(tiny, tmp_path / "d", tensors, quantization={"bits": 8}))
    assert said.endswith("missing language_model.lm_head.biases")


def test_a_block_without_quantized_layers(tiny: Path, tmp_path: Path) -> None:
    """A module is quantized if it has scales, whatever the block says."""
    np.testing.assert_array_equal(
        logits(copy(tiny, tmp_path / "a", quantization={"bits": 4})), logits(tiny)
    )


# ---- tied embeddings


@pytest.mark.parametrize("flag", [True, False])
def test_tying_is_seen_not_believed(tiny: Path, tmp_path: Path, flag: bool) -> None:
    absent = make(tmp_path / "absent", tied=True)
    tensors = tensors_of(absent)
    assert "lm_head.weight" not in tensors
    text = {
        **json.loads((absent / "config.json").read_text())["text_config"],
        "tie_word_embeddings": flag,
    }
    flags: dict[str, Any] = {"tie_word_embeddings": flag, "text_config": text}
    lying = copy(absent, tmp_path / "lying", **flags)
    equal = copy(
        lying,
        tmp_path / "equal",
        {**tensors, "lm_head.weight": tensors["model.text_model.embed_tokens.weight"]},
    )
    for folder in (absent, lying, equal):
        assert "lm_head" not in load(folder, "float32")[0].language_model
        np.testing.assert_array_equal(logits(folder), logits(absent))
    untied = copy(tiny, tmp_path / "untied", **flags)
    assert "lm_head" in load(untied, "float32")[0].language_model
    np.testing.assert_array_equal(logits(untied), logits(tiny))


def test_a_quantized_head_equal_to_the_table_is_tied(tiny: Path, tmp_path: Path) -> None:
    tensors = quantized_form(make(tmp_path / "tied", tied=False), 8, 64, mx.float32)
    for part in ("weight", "scales", "biases"):
        tensors[f"language_model.lm_head.{part}"] = tensors[f"language_model.embed_tokens.{part}"]
    folder = copy(tiny, tmp_path / "a", tensors, quantization={"bits": 8})
    assert "lm_head" not in load(folder, "float32")[0].language_model


# ---- strictness


def test_every_problem_is_named(tiny: Path, tmp_path: Path) -> None:
    tensors, text = tensors_of(tiny), "model.text_model."
    del tensors[f"{text}norm.weight"], tensors["model.vision_model.post_layernorm.bias"]
    tensors[f"{text}layers.1.mlp.up_proj.bias"] = mx.zeros((256,))
    tensors["extra\n\x1b[2J"] = mx.zeros((1,))
    tensors[f"{text}layers.0.mlp.down_proj.weight"] = mx.zeros((256, 128))
    tensors[f"{text}layers.0.mlp.up_proj.weight"] = mx.zeros((256, 128), mx.int32)
    tensors[f"{text}layers.2.mlp.up_proj.weight"] = mx.zeros((256, 16), mx.uint32)
    tensors["vision_model.post_layernorm.bias"] = mx.zeros((128,))  # right in another layout
    folder = copy(tiny, tmp_path / "a", tensors)
    said = refused(folder)
    assert said.startswith(
        f"{folder}: the weights do not fit config.json: missing language_model.norm.weight; "
    )
    for problem in (
        "missing vision_model.post_layernorm.bias",
        f"unexpected '{text}layers.1.mlp.up_proj.bias'",
        r"unexpected 'extra\n\x1b[2J'",
        "unexpected 'vision_model.post_layernorm.bias'",
        f"{text}layers.0.mlp.down_proj.weight has shape [256, 128], not [128, 256]",
        f"{text}layers.0.mlp.up_proj.weight is I32",
        f"{text}layers.2.mlp.up_proj.weight has shape [256, 16], not [256, 128]",
        f"{text}layers.2.mlp.up_proj.weight is U32",
    ):
        assert problem in said
    assert said.count("; ") == 8


def test_each_tensor_is_needed_in_its_form(tiny: Path, tmp_path: Path) -> None:
    tensors, folder = tensors_of(tiny), copy(tiny, tmp_path / "a")
    path = folder / "model.safetensors"
    for key in tensors:
        if key == "lm_head.weight":
            continue  # its absence means tied
        mx.save_safetensors(
            str(path),
            {other: mx.array([0.0]) if other == key else tensors[other] for other in tensors},
        )
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(folder)
        assert f"{key} has shape [1], not [" in str(caught.value)
        assert str(caught.value).count(";") == 0


def test_many_problems_are_counted(tiny: Path, tmp_path: Path) -> None:
    said = refused(copy(tiny, tmp_path / "a", {"model.x": mx.zeros((1,))}))
    assert said.endswith("more")
    assert said.count("missing ") == 20


def test_config_of_another_size(tiny: Path, tmp_path: Path) -> None:
    raw = json.loads((tiny / "config.json").read_text())
    said = refused(
        copy(tiny, tmp_path / "a", text_config={**raw["text_config"], "num_hidden_layers": 4})
    )
    assert "missing language_model.layers.3.input_layernorm.weight" in said
    said = refused(
        copy(tiny, tmp_path / "b", vision_config={**raw["vision_config"], "num_hidden_layers": 1})
    )
    assert "unexpected 'model.vision_model.encoder.layers.1.layer_norm1.bias'" in said


def test_absurd_sizes_are_refused_before_anything_is_built(tiny: Path, tmp_path: Path) -> None:
    raw = json.loads((tiny / "config.json").read_text())
    for key in ("hidden_size", "num_hidden_layers", "vocab_size"):
        said = refused(copy(tiny, tmp_path / key, text_config={**raw["text_config"], key: 10**9}))
        assert f"{key} is 1000000000, not an integer from 1 to " in said


def test_names_there_twice(tiny: Path, tmp_path: Path) -> None:
    tensors, key = tensors_of(tiny), "model.connector.modality_projection.proj.weight"
    folder = copy(
        tiny,
        tmp_path / "a",
        {**tensors, "language_model.lm_head.weight": tensors["lm_head.weight"]},
    )
    assert refused(folder).endswith("unexpected 'language_model.lm_head.weight'")
    # In two shards.
    folder = copy(tiny, tmp_path / "b")
    (folder / "model.safetensors").rename(folder / "1.safetensors")
    mx.save_safetensors(str(folder / "2.safetensors"), {key: tensors[key]})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    )
    assert (
        refused(folder)
        == f"{folder}: there twice: 'connector.modality_projection.proj.weight'; download it again"
    )
    # In one header, which JSON allows and safetensors does not see.
    folder = copy(tiny, tmp_path / "c")
    path = folder / "model.safetensors"
    file = path.read_bytes()
    size = int.from_bytes(file[:8], "little")
    entry = json.loads(file[8 : 8 + size])[key]
    header = (
        file[8 : 8 + size].rstrip().removesuffix(b"}") + f',"{key}":{json.dumps(entry)}}}'.encode()
    )
    path.write_bytes(len(header).to_bytes(8, "little") + header + file[8 + size :])
    assert (
        refused(folder)
        == f"{folder}: there twice: 'connector.modality_projection.proj.weight'; download it again"
    )


# ---- files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "damaged, not JSON"),
        ("{", "damaged, not JSON"),
        ("[]", "holds a list, not an object"),
        ("{}", "weight_map names no files"),
        ('{"weight_map": []}', "weight_map names no files"),
        (
            '{"weight_map": {"a": "../other/model.safetensors"}}',
            "'../other/model.safetensors', not a .safetensors",
        ),
        (
            '{"weight_map": {"a": "/etc/passwd"}}',
            "'/etc/passwd', not a .safetensors file of this folder",
        ),
        ('{"weight_map": {"a": ".."}}', "'..', not a .safetensors file"),
        (
            '{"weight_map": {"a": "pytorch_model.bin"}}',
            "'pytorch_model.bin', not a .safetensors file",
        ),
        ('{"weight_map": {"a": ["x"]}}', "['x'], not a .safetensors file"),
        (
            '{"weight_map": {"a": "b\\n.safetensors"}}',
            r"'b\n.safetensors', not a .safetensors file",
        ),
        (
            '{"weight_map": {"a": "\\ud800.safetensors"}}',
            r"'\ud800.safetensors', not a .safetensors file",
        ),
        ('{"weight_map": {"a": "b.safetensors"}}', "missing b.safetensors; download it again"),
        ('{"a":' * 90 + "1" + "}" * 90, "nested more than 64 deep"),
        ("[" * 100_000, "damaged, not JSON"),
    ],
)
def test_bad_indexes(tiny: Path, tmp_path: Path, content: str, said: str) -> None:
    folder = copy(tiny, tmp_path / "a")
    (folder / "model.safetensors").rename(folder / "1.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)
    assert said in refused(folder)


def test_a_whole_file_comes_before_an_index(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "a")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    )
    assert len(open_checkpoint(folder).tensors) > 50


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.gguf", "weights.npz", "model.pt", "consolidated.pth", "w.pkl"],
)
def test_pickles_and_others_are_refused_by_name(tiny: Path, tmp_path: Path, name: str) -> None:
    folder = copy(tiny, tmp_path / "a")
    (folder / "model.safetensors").rename(folder / name)
    said = f"no model.safetensors ({name} is not read: only safetensors files are safe to open)"
    assert refused(folder) == f"{folder}: {said}"
    (folder / name).unlink()
    assert refused(folder) == f"{folder}: no model.safetensors"


def test_weights_that_are_no_file(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "a")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    assert "no model.safetensors" in refused(folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert refused(folder) == f"{folder / 'config.json'}: cannot be read (not a file)"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged, not JSON"),
        (b"{", "damaged, not JSON"),
        (b"\xff\xfe\xff", "damaged, not JSON"),
        (b"null", "holds a NoneType, not an object"),
        (b"[" * 100_000 + b"]" * 100_000, "damaged, not JSON"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "nested more than 64 deep"),
        (b'{"model_type": ' + b"9" * 5000 + b"}", "damaged, not JSON"),
    ],
)
def test_bad_config_files(tiny: Path, tmp_path: Path, content: bytes, said: str) -> None:
    folder = copy(tiny, tmp_path / "a")
    (folder / "config.json").write_bytes(content)
    assert said in refused(folder)


def test_what_most_do_not_need_is_not_imported() -> None:
    """Adapters, and the patterns of PEFT's."""
    code = (
        "import sys; from smolvlm_mlx import load; load('tiny'); "
        "late = {'pydantic_core', 'mlx_lm', 'smolvlm_mlx.checkpoint.adapters'}; "
        "sys.exit(str(late & {*sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stderr.strip() == "set()"


def test_files_that_are_missing_or_too_large(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "a")
    with (folder / "config.json").open("wb") as file:
        file.truncate(5 * 2**20)
    assert "larger than 4 MiB" in refused(folder)
    (folder / "config.json").unlink()
    assert refused(folder) == f"{folder}: no config.json; give the folder of a SmolVLM checkpoint"
    assert read_json(tiny / "config.json")["model_type"] == "smolvlm"


def test_truncated_weights(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "a")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 7, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "model.safetensors: damaged, or no safetensors file (" in refused(folder)


def test_float16_overflow(tiny: Path, tmp_path: Path) -> None:
    tensors = tensors_of(tiny)
    tensors["model.text_model.norm.weight"] = tensors["model.text_model.norm.weight"] * 1e6
    folder = copy(tiny, tmp_path / "a", tensors)
    with pytest.raises(
        CheckpointError,
        match=r"language_model.norm.weight: values beyond float16's range \(1 tensors\)",
    ):
        load(folder, "float16")
    load(folder, "bfloat16")


def test_companions_of_another_checkpoint(tiny: Path, tmp_path: Path) -> None:
    raw = json.loads((tiny / "preprocessor_config.json").read_text())
    folder = copy(tiny, tmp_path / "a")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**raw, "max_image_size": {"longest_edge": 512}})
    )
    assert (
        "makes tiles of 512 pixels, the vision tower wants 64; it belongs to another checkpoint"
        in refused(folder)
    )
    (folder / "preprocessor_config.json").write_text(json.dumps({**raw, "max_image_size": "x"}))
    with pytest.raises((CheckpointError, ImageError), match=r"preprocessor_config\.json"):
        load(folder, "float32")
    folder = copy(tiny, tmp_path / "b", image_token_id=7)
    assert "<image> is " in refused(folder)
    folder = copy(tiny, tmp_path / "c")
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json: damaged" in refused(folder)
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json; copy it from the original checkpoint" in refused(folder)


def test_loading_does_not_write(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "a")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    load(folder, "float32")
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()
    } == before


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("lazy", [False, "vision", True])
def test_what_is_lazy_is_read_when_it_is_used(
    tiny: Path, tmp_path: Path, lazy: Any, fuse: bool
) -> None:
    """Else the file may change when the model is there."""
    folder = copy(tiny, tmp_path / "a")
    model, _ = load(folder, "float32", fuse=fuse, lazy=lazy)
    assert not model.training
    path = folder / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))  # in place
    kept = {
        part
        for part in ("vision_model", "connector", "language_model")
        if any(
            bool(weight.any()) for weight in dict(tree_flatten(model[part].parameters())).values()
        )
    }
    assert (
        kept
        == {
            False: {"vision_model", "connector", "language_model"},
            "vision": {"language_model"},
            True: set(),
        }[lazy]
    )


@pytest.mark.skipif(device.name() != "cpu", reason="a GPU casts while the CPU reads ahead")
@pytest.mark.parametrize(("fuse", "most"), [(False, 1.25), (True, 1.0)])
def test_what_is_cast_does_not_stay(tiny: Path, fuse: bool, most: float) -> None:
    """Weights are in memory once, half as large, and what makes them fast goes layer by layer."""
    size, peaks = (tiny / "model.safetensors").stat().st_size, list[int]()
    for _ in range(4):  # what is read and what is let go overlap as they may
        gc.collect()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        load(tiny, "bfloat16", fuse=fuse)
        peaks.append(mx.get_peak_memory() - before)
    assert 0.5 * size < max(peaks) < most * size


@pytest.mark.parametrize("tied", [False, True])
def test_parts_are_counted_as_they_lie_in_the_file(tmp_path: Path, tied: bool) -> None:
    folder = make(tmp_path / "a", dtype="bfloat16", tied=tied)
    parts = open_checkpoint(folder).parts()
    for part, found in parts.items():
        some = [array for name, array in weights_of(folder).items() if name.startswith(part)]
        assert found == (sum(a.size for a in some), sum(a.nbytes for a in some))
    assert sum(size for _, size in parts.values()) == sum(
        array.nbytes for array in weights_of(folder).values()
    )


def test_nothing_is_read_before_it_is_asked_for(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    assert isinstance(checkpoint, Checkpoint)
    assert checkpoint.nbytes == (tiny / "model.safetensors").stat().st_size
    assert sum(tensor.nbytes for tensor in checkpoint.tensors.values()) < checkpoint.nbytes
    kernel = checkpoint.tensors["vision_model.embeddings.patch_embedding.weight"]
    assert kernel.shape == (128, 8, 8, 3)
    assert kernel.key == "model.vision_model.embeddings.patch_embedding.weight"
