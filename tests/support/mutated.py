"""Checkpoints with one damaged or hostile file: refused in one line, or loaded. See
`safetensor_files` for the weights' own mutations."""

import atexit
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from convert.random_checkpoint import HF_PREFIXES, make
from smolvlm_mlx import load
from smolvlm_mlx.config import ModelConfig
from smolvlm_mlx.errors import SmolVLMError
from smolvlm_mlx.model import SmolVLM
from tests.support.safetensor_files import mutate

import mlx.core as mx

HUGE = 10**400
ODD: list[Any] = [
    *(0, 1, -1, 2, 7, 2**31, 2**63, 2**64, HUGE, -HUGE, 1e30, -1e30, 1e-300, 0.5, True, None),
    *("", "x", "<image>", "NaN", "\ud800", "\x1b[2J\n", "../../etc/passwd", "/dev/zero", "x" * 999),
    *([], {}, [[]], [0, 0, 0], [1e30] * 3, ["a", "b"], [None], {"a": {}}, {"longest_edge": HUGE}),
    *(float("nan"), float("inf"), -float("inf")),
]


def make_small(tiny: Path, out: Path) -> Path:
    """Write a checkpoint of 200 kB in the form of the tiny one into the folder `out`."""
    out.mkdir(parents=True)
    for path in tiny.glob("*.json"):
        (out / path.name).write_bytes(path.read_bytes())
    raw = json.loads((tiny / "config.json").read_text())
    raw["text_config"] |= {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "head_dim": 4,
    }
    raw["vision_config"] |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    (out / "config.json").write_text(json.dumps(raw))
    parameters = SmolVLM(ModelConfig.from_dict(raw)).named_parameters()
    renamed = {}
    for name, array in parameters.items():
        prefix = next(prefix for prefix in HF_PREFIXES if name.startswith(prefix))
        array = array.transpose(0, 3, 1, 2) if name.endswith("patch_embedding.weight") else array
        renamed[HF_PREFIXES[prefix] + name.removeprefix(prefix)] = mx.contiguous(array)
    mx.save_safetensors(str(out / "model.safetensors"), renamed)
    return out


@cache
def small_checkpoint() -> Path:
    """One for as long as the program runs."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_small(make(folder / "tiny"), folder / "small")


def places(value: Any) -> list[tuple[Any, Any]]:
    """All (object or list, key) in a JSON value, but the entries of a vocabulary."""
    found, waiting = [], [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict | list) and len(each) < 500:
            keys = list(each) if isinstance(each, dict) else range(len(each))
            found += [(each, key) for key in keys]
            waiting += [each[key] for key in keys]
    return found


def change_json(rng: random.Random, data: bytes) -> bytes:
    """Other values, keys that are missing, twice or swapped."""
    value = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        inside, key = rng.choice(places(value) or [({}, "x")])
        how = rng.randrange(5)
        if how == 0 and isinstance(inside, list):
            inside.append(deepcopy(inside[key]) if key < len(inside) else 0)
        elif how == 1 and isinstance(inside, dict):
            inside.pop(key, None)
        elif how == 2 and isinstance(inside, dict):
            inside[rng.choice(["type", "rope_scaling", "quantization", "eos_token_id", "x"])] = (
                deepcopy(rng.choice(ODD))
            )
        elif isinstance(inside, list) and not key < len(inside):
            continue
        else:
            inside[key] = deepcopy(rng.choice(ODD))
    return json.dumps(value).encode("utf-8", "replace")


def flip_bytes(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))] + rng.choice([b"", b"", b"}", b'"}', b"\0" * 9])


def replace(rng: random.Random, data: bytes) -> bytes:
    """Something else altogether."""
    deep = rng.choice([70, 1000, 100_000])
    return rng.choice(
        [
            b"",
            b"{}",
            b"[]",
            b"null",
            b"\xff\xfe" + data,
            b"\xef\xbb\xbf" + data,
            b"[" * deep + b"]" * deep,
            b'{"a":' * deep + b"1" + b"}" * deep,
            b'{"model_type":' + b"9" * 5000 + b"}",
            data + data,
            b"<!DOCTYPE html><title>Log in</title>",
        ]
    )


Files = dict[str, bytes]
Mutation = Callable[[random.Random, bytes], bytes]
CHANGES: list[Mutation] = [*[change_json] * 4, flip_bytes, flip_bytes, cut, replace]
STEPS = [
    *({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}, {"type": "NFKD"}),
    *({"type": "Precompiled", "precompiled_charsmap": "AAAA"}, {"type": "Strip"}),
    *({"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False},),
    *({"type": "Digits", "individual_digits": True}, {"type": "Metaspace"}, {"type": "NFC"}),
]


def hostile(rng: random.Random, files: Files) -> Files:
    """One of the tricks that a checkpoint may try."""
    raw = json.loads(files["tokenizer.json"])
    kind, members = rng.choice([("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")])
    raw[kind] = {"type": "Sequence", members: [rng.choice(STEPS)] * rng.choice([1, 3, 40, 9999])}
    shards = [rng.choice(ODD[-30:]) for _ in range(3)] + ["a.safetensors", "../model.safetensors"]
    weight_map = {str(number): rng.choice(shards) for number in range(rng.choice([0, 1, 3]))}
    index = json.dumps({"weight_map": weight_map}).encode()
    template = rng.choice(
        [b"{{", b"{% for i in range(10**9) %}{% endfor %}", b"\xff", b"x" * 2**21]
    )
    adapter = {"fine_tune_type": "lora", "rank": 1, "scale": 1, "dropout": 0, "modules": ["x"]}
    return rng.choice(
        [
            {"tokenizer.json": json.dumps(raw).encode()},
            {"model.safetensors.index.json": index, "model.safetensors": b""},
            {"chat_template.jinja": template},
            {"adapter_config.json": change_json(rng, json.dumps(adapter).encode())},
        ]
    )


def mutation(seed: int, folder: Path) -> Files:
    """What the files of a folder become; an empty one is gone."""
    rng = random.Random(seed)
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    if rng.random() < 0.2:
        return hostile(rng, files)
    name = rng.choice(sorted(files))
    if name.endswith(".safetensors"):
        return {name: mutate(rng, files[name])}
    return {name: rng.choice(CHANGES)(rng, files[name])}


def checkpoint(seed: int, folder: Path) -> str:
    """Damage a small checkpoint in a way of its own, beside `folder`, and use it.

    Returns:
        "fine" or "refused"; whatever else comes is a fault.
    """
    own = folder.with_name(f"{folder.name}-{seed}")
    shutil.copytree(folder, own)
    try:
        for name, data in mutation(seed, folder).items():
            (own / name).unlink(missing_ok=True)
            if data or name != "model.safetensors":
                (own / name).write_bytes(data)
        adapter = own if (own / "adapter_config.json").exists() else None
        model, processor = load(own, "float32", adapter=adapter)
        ids = processor([{"role": "user", "content": "a 12 <image>"}]).input_ids
        mx.eval(model(mx.array(ids[None, :4])))
        return "fine"
    except SmolVLMError as error:
        said = str(error)
        assert said.isprintable(), said
        assert len(said) < 6000, said
        return "refused"
    finally:
        shutil.rmtree(own)
