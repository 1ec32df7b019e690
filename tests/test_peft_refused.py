"""PEFT's folders that cannot be obeyed are refused in one line, whatever is in them."""

import json
from pathlib import Path
from typing import Any

from smolvlm_mlx.checkpoint.adapters import load_adapter
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.checkpoint.reader import load, open_checkpoint
from smolvlm_mlx.errors import AdapterError, CheckpointError
from smolvlm_mlx.model import SmolVLM
from tests.support import cli
from tests.support.pefts import (
    CONFIG,
    FC1,
    UP,
    WEIGHTS,
    Arrays,
    Q,
    arrays_of,
    low_rank,
    theirs,
    write,
)

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("mlx_lm_imported", "on_the_cpu")


@pytest.fixture(scope="module")
def base(tiny: Path) -> Arrays:
    """The tiny checkpoint's parameters by our names."""
    return arrays_of(tiny)


# ---- what is refused

ROWS = np.zeros((4, 128), np.float32)
BIG = {"x" * 100: 2} | {f"layer{n}": 2 for n in range(2001)}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "IA3": ({"peft_type": "IA3"}, {}, "PEFT's 'IA3' is not supported; LoRA and DoRA are"),
    "no kind": ({"peft_type": None}, {}, "PEFT's None is not supported"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, {}, "'pissa_niter_4' changes the base's"),
    "unknown": (
        {"lora_bias": True, "new_trick": 1, "old_trick": False},
        {},
        "adapter_config.json: lora_bias, new_trick not supported; merge the adapter with PEFT's",
    ),
    "tokens": ({"trainable_token_indices": [1]}, {}, "trainable_token_indices not supported"),
    "malformed": ({"r": None, "bias": "some"}, {}, "r, bias missing or malformed"),
    "many patterns": ({"rank_pattern": BIG}, {}, "rank_pattern missing or malformed"),
    "no pattern": ({"rank_pattern": {"(up": 2}}, {}, r"'\(up' is no pattern of layers"),
    "costly patterns": (
        {"alpha_pattern": {rf"(\w{{0,60}}){{0,2}}{n}y": 3 for n in range(65)}},
        {},
        "more than 64 patterns with classes or counts$",
    ),
    "embeddings": (
        {},
        {"model.text_model.embed_tokens.lora_embedding_A": ROWS},
        "embedding_A is of LoRA on embeddings, which is not supported$",
    ),
    "kernel": (
        {},
        {
            f"model.vision_model.embeddings.patch_embedding.lora_{x}.weight": ROWS[:, :, None, None]
            for x in "AB"
        },
        "vision_model.embeddings.patch_embedding.* of the kind Conv2d; only Linear",
    ),
    "other parts": ({}, {"model.layers.0.q.lora_A.weight": ROWS}, "unexpected 'base_model.model.m"),
    "twice": ({}, {"text_model.layers.0.mlp.up_proj.lora_A.weight": ROWS}, "is there twice$"),
    "no such layer": (
        {},
        {f"model.text_model.layers.9.x.lora_{x}.weight": ROWS for x in "AB"},
        r"changes 'language_model.layers.9.x' \(1 such\), which this model does not have",
    ),
    "no half": ({}, {f"{theirs(Q)}.lora_A.weight": ROWS}, f"missing {Q}.lora_b"),
    "no magnitude": ({"use_dora": True}, {}, f"missing {UP}.m"),
    "a magnitude": ({}, {f"{theirs(UP)}.lora_magnitude_vector": ROWS[0]}, "unexpected .*vector"),
    "rank": ({"r": 3}, {}, r"lora_A.weight is F32 \[4, 128\], not F32 \[3, 128\]; .*lora_B"),
    "shapes": (
        {},
        {f"{theirs(Q)}.lora_{x}.weight": ROWS for x in "AB"} | {"lm_head.weight": ROWS},
        r"q_proj.lora_B.weight is F32 \[4, 128\], not F32 \[128, 4\].*lm_head.weight is F32",
    ),
    "a bias": ({}, {f"{theirs(UP)}.bias": ROWS[0]}, "unexpected .*up_proj.bias"),
    "integers": ({}, {"lm_head.weight": ROWS.astype(np.int32)}, "lm_head.weight is I32"),
    "not finite": ({}, {f"{theirs(UP)}.lora_A.weight": ROWS + np.inf}, "not finite in .*lora_a"),
}


def check_refused(base: Path, adapter: Path, out: Path, reason: str) -> None:
    """By `load` and by `convert`, in one line, and nothing is written."""
    for use in (lambda: load(base, adapter=adapter), lambda: convert(base, out, adapter=adapter)):
        with pytest.raises((AdapterError, CheckpointError), match=reason) as caught:
            use()
        assert str(caught.value).isprintable()
        assert not out.exists()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_obeyed(name: str, tiny: Path, base: Arrays, tmp_path: Path) -> None:
    config, more, reason = REFUSED[name]
    tensors, _ = low_rank(base, {UP: (4, 2.0)})
    adapter = write(tmp_path / "in", {**tensors, **more}, **config)
    check_refused(tiny, adapter, tmp_path / "out", reason)


def test_a_server_ends_in_one_line(tiny: Path, tmp_path: Path) -> None:
    """Although MLX aborts a program that ends while a thread does that has read weights."""
    options = ("--port", 0, "--no-token", "--no-history")
    refused = cli.run("serve", "-m", tiny, "--adapter", tmp_path, *options)
    cli.check_refused(refused, "no adapter_config.json; give a folder")


FILES: dict[str, tuple[str, bytes | None, str]] = {
    "no weights": (WEIGHTS, None, "in: no adapter_model.safetensors$"),
    "weights cut off": (WEIGHTS, b"\x00" * 7, "adapter_model.safetensors: damaged"),
    "no tensors": (WEIGHTS, b"\x02" + b"\x00" * 7 + b"{}", "no tensors in it"),
    "a list": (CONFIG, b"[]", "adapter_config.json: holds a list"),
    "no JSON": (CONFIG, b'{"peft_type": "LORA', "adapter_config.json: damaged, not JSON"),
    "huge": (CONFIG, b" " * (4 * 2**20 + 1), "adapter_config.json: larger than 4 MiB"),
    "no config": (CONFIG, None, "no adapter_config.json; give a folder that"),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(name: str, tiny: Path, base: Arrays, tmp_path: Path) -> None:
    file, data, reason = FILES[name]
    adapter = write(tmp_path / "in", low_rank(base, {UP: (4, 2.0)})[0])
    (adapter / file).unlink()
    if data is not None:
        (adapter / file).write_bytes(data)
    check_refused(tiny, adapter, tmp_path / "out", reason)
    if name == "no weights":
        (adapter / "adapter_model.bin").write_bytes(b"")
        hint = r"\(adapter_model.bin is not read: only safetensors files are safe to open\)$"
        check_refused(tiny, adapter, tmp_path / "out", hint)


FIELDS = (
    "peft_type r lora_alpha lora_dropout rank_pattern alpha_pattern use_rslora use_dora bias "
    "modules_to_save ensure_weight_tying init_lora_weights target_modules fan_in_fan_out "
    "base_model_name_or_path layer_replication"
).split()
DEEP = json.loads("[" * 60 + "]" * 60)
VALUES = [
    *("none", 4, False, None, True, 0, -1, 1, 4096, 10**400, 1e-300, float("nan"), float("inf")),
    *("", "LORA", "\ud800", "x" * 10**5, [], [1], ["lm_head"], DEEP, {}, {"a": DEEP}),
    *({"up_proj": 4}, {"(": 1}, {"\ud800": 4}, {"(a*)*b{999}{999}": 4}, {"": 4}, {".*": 10**400}),
]


@pytest.mark.parametrize("field", FIELDS)
def test_any_value_is_obeyed_or_refused(
    field: str, tiny: Path, base: Arrays, tmp_path: Path
) -> None:
    """Each in place of its field: one line, or an adapter that works."""
    tensors, _ = low_rank(base, {UP: (4, 2.0), FC1: (4, 2.0)})
    adapter, checkpoint = write(tmp_path / "in", tensors), open_checkpoint(tiny)
    raw, outcomes = json.loads((adapter / CONFIG).read_text()), []
    for value in VALUES:
        (adapter / CONFIG).write_text(json.dumps({**raw, field: value}))
        try:
            load_adapter(SmolVLM(checkpoint.config, checkpoint.is_tied), adapter, "")
            outcomes.append("works")
        except (AdapterError, CheckpointError) as error:
            outcomes.append(str(error))
    assert "works" in outcomes
    assert all(each.isprintable() and len(each) < 1000 for each in outcomes)


NAMES = [
    *(
        "",
        ".",
        "model.",
        "base_model.model.",
        "lm_head",
        "lm_head.",
        ".weight",
        "model.text_model.",
    ),
    *("a\n.lora_A.weight", ".lora_A.weight", "lora_A.weight", "é" * 9999, "model." * 9999),
    *(
        "text_model..lora_B.weight",
        "connector.lora_A.weight",
        "lm_head.lora_A.weight",
        "\0",
        "\\u12",
    ),
    *("text_model.norm.lora_A.weight", "vision_model.lora_magnitude_vector", "text_model.norm.m"),
    *("text_model.layers.0.mlp.up_proj.lora_a", "text_model.layers.0.mlp.up_proj.lora_A.default"),
]


def test_any_name_of_a_tensor_is_refused(tiny: Path, base: Arrays, tmp_path: Path) -> None:
    tensors, _ = low_rank(base, {UP: (4, 2.0)})
    for number, name in enumerate(NAMES):
        for prefix in ("", "model."):
            adapter = write(tmp_path / f"{number}{prefix}", {**tensors, prefix + name: ROWS})
            with pytest.raises(AdapterError) as caught:
                load(tiny, adapter=adapter)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 1000
