"""Damaged and hostile weight files: refused in one line, or loaded; no crash, no hang, nothing that
safetensors refuses.

Mutations run in a process of their own, so that a crash is a failed test that names the seed. To
repeat one by hand:

    python tests/test_checkpoint_fuzz.py FOLDER SEED 1
"""

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smolvlm_mlx import load
from smolvlm_mlx.errors import CheckpointError
from tests.support import as_metal
from tests.support.places import ROOT

import mlx.core as mx
import pytest
from safetensors import SafetensorError, safe_open

Header = list[tuple[str, Any]]  # pairs, as names may be there twice
ODD_SIZES = [
    0,
    1,
    -1,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63,
    2**64 - 1,
    2**64,
    65536,
    1.5,
    1e300,
    "8",
    None,
    True,
    [],
]
DTYPES = [
    "F32",
    "F16",
    "BF16",
    "U32",
    "I32",
    "F64",
    "I64",
    "BOOL",
    "U8",
    "F8_E4M3",
    "F4",
    "C64",
    "f32",
    "",
    None,
    4,
]


# ---- mutations: a file's header and data, to other bytes


def encode(header: str, data: bytes) -> bytes:
    return len(header.encode()).to_bytes(8, "little") + header.encode() + data


def dump(pairs: Header) -> str:
    return "{" + ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in pairs) + "}"


def flip_bytes(rng: random.Random, file: bytes) -> bytes:
    changed = bytearray(file)
    size = 8 + int.from_bytes(file[:8], "little")
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(rng.choice([8, size, size, len(file)]))] = rng.randrange(256)
    return bytes(changed)


def cut(rng: random.Random, file: bytes) -> bytes:
    end = rng.choice([rng.randrange(16), rng.randrange(len(file)), len(file) - rng.randint(1, 9)])
    return file[:end] if rng.random() < 0.7 else file[end:]


def grow(rng: random.Random, file: bytes) -> bytes:
    at = rng.choice([8, len(file), rng.randrange(len(file))])
    return file[:at] + rng.randbytes(rng.randint(1, 64)) + file[at:]


def change_length(rng: random.Random, file: bytes) -> bytes:
    length = int.from_bytes(file[:8], "little")
    other = rng.choice(
        [0, 1, 2, length - 1, length + 1, length + 8, len(file), 2**31, 2**32, 2**63, 2**64 - 1]
    )
    return other.to_bytes(8, "little") + file[8:]


def edit_header(rng: random.Random, file: bytes) -> bytes:
    size = 8 + int.from_bytes(file[:8], "little")
    pairs: Header = list(json.loads(file[8:size]).items())
    for _ in range(rng.randint(1, 2)):
        rng.choice([edit_shape, edit_offsets, edit_dtype, edit_names, edit_entry])(rng, pairs)
    return encode(dump(pairs), file[size:])


def pick(rng: random.Random, pairs: Header) -> dict[str, Any]:
    tensors = [value for name, value in pairs if name != "__metadata__" and isinstance(value, dict)]
    return rng.choice(tensors)


def edit_shape(rng: random.Random, pairs: Header) -> None:
    entry = pick(rng, pairs)
    shape = entry.get("shape")
    if not isinstance(shape, list) or not shape or rng.random() < 0.3:
        entry["shape"] = rng.choice(
            [[], [65536] * 4, [2**31 - 1, 2**31 - 1, 0], [1] * 5000, None, 7, "8", {}]
        )
    elif rng.random() < 0.5:
        shape[rng.randrange(len(shape))] = rng.choice(ODD_SIZES)
    else:
        rng.shuffle(shape)
        shape += rng.choice([[], [1], [1, 1]])


def edit_offsets(rng: random.Random, pairs: Header) -> None:
    entry, other = pick(rng, pairs), pick(rng, pairs)
    if rng.random() < 0.3:
        entry["data_offsets"], other["data_offsets"] = (
            other.get("data_offsets"),
            entry.get("data_offsets"),
        )
    elif isinstance(entry.get("data_offsets"), list) and rng.random() < 0.7:
        offset = rng.choice([*ODD_SIZES, 4, 8, 100])
        entry["data_offsets"] = (
            [offset, *entry["data_offsets"][1:]] if rng.random() < 0.5 else [0, offset]
        )
    else:
        entry["data_offsets"] = rng.choice([[], [0], [8, 4], [0, 0, 0], None, 3, {"0": 1}])


def edit_dtype(rng: random.Random, pairs: Header) -> None:
    pick(rng, pairs)["dtype"] = rng.choice(DTYPES)


def edit_names(rng: random.Random, pairs: Header) -> None:
    at = rng.randrange(len(pairs))
    name, value = pairs[at]
    how = rng.randrange(5)
    if how == 0:
        pairs.append((name, pick(rng, pairs)))  # twice, with another's content
    elif how == 1:
        pairs.insert(0, (name, json.loads(json.dumps(value))))
    elif how == 2:
        del pairs[at]
    elif how == 3:
        pairs[at] = (
            rng.choice(
                ["", "x", "a\nb\x1b[2J", "\ud7ff" * 9999, "model.", "__metadata__", name[:-1]]
            ),
            value,
        )
    else:
        other = rng.randrange(len(pairs))
        pairs[at], pairs[other] = (pairs[other][0], value), (name, pairs[other][1])


def edit_entry(rng: random.Random, pairs: Header) -> None:
    at = rng.randrange(len(pairs))
    deep = json.loads("[" * 90 + "]" * 90)
    value = rng.choice([None, [], 1, "x", {}, deep, {"format": "pt"}, {"format": 1}, {"a": deep}])
    if rng.random() < 0.5:
        pairs[at] = (pairs[at][0], value)
    else:
        pick(rng, pairs)[rng.choice(["extra", "dtype2", "strides"])] = value


def rewrite_header(rng: random.Random, file: bytes) -> bytes:
    """Other JSON, or hardly JSON."""
    size = 8 + int.from_bytes(file[:8], "little")
    text = file[8:size].decode().strip()
    deep = rng.choice([100, 1000, 100_000])
    header = rng.choice(
        [
            "[" * deep + "]" * deep,
            '{"a":' * deep + "1" + "}" * deep,
            '{"__metadata__":' + "[" * deep + "]" * deep + "," + text[1:],
            text[:-1] + ',"x":1e999}',
            text.replace(":", " : ").replace(",", " ,\n"),
            text.replace('"shape"', '"sh\\u0061pe"'),
            text + " " * rng.randint(1, 99),
            " " + text,
            "\ufeff" + text,
            text + text,
            text.replace("[0,", "[-0,", 1),
            text.replace("[0,", "[0.0,", 1),
            text.replace("[0,", "[00,", 1),
            "{}",
            "null",
            '"' + "x" * 100_000 + '"',
            text.replace('"dtype":"F32"', '"dtype":"F32","dtype":"F16"', 1),
            text.replace("}", ',"shape":[1]}', 1),
            text.replace("/", "//"),
            "/* */" + text,
        ]
    )
    return encode(header, file[size:])


MUTATIONS: list[Callable[[random.Random, bytes], bytes]] = [
    flip_bytes,
    cut,
    grow,
    change_length,
    rewrite_header,
]
MUTATIONS += [edit_header] * 5


# ---- one process: seeds one by one, the counts to stdout, the seed at work to stderr


def run(folder: Path, first: int, count: int) -> Counter[str]:
    """Mutate `folder`'s weights, which are overwritten."""
    outcomes: Counter[str] = Counter()
    weights = folder / "model.safetensors"
    original = weights.read_bytes()
    for seed in range(first, first + count):
        print(seed, file=sys.stderr, flush=True)
        rng = random.Random(seed)
        mutated = rng.choice(MUTATIONS)(rng, original)
        weights.write_bytes(mutated)
        try:
            model, _ = load(folder, "float32")
            mx.eval(model(mx.array([[1, 2, 3]])))
            outcomes["loaded"] += 1
        except CheckpointError as error:
            message = str(error)
            assert message.isprintable(), message
            assert len(message) < 6000, message
            outcomes["refused"] += 1
        else:
            assert accepted_by_safetensors(weights), "loaded, but safetensors refuses it"
    weights.write_bytes(original)
    return outcomes


def accepted_by_safetensors(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            return bool(file.keys())
    except SafetensorError:
        return False


def in_a_process(folder: Path, first: int, count: int, seconds: float) -> Counter[str]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(Path(__file__)),
        str(folder),
        str(first),
        str(count),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, f"exit code {done.returncode}, at the end: {done.stderr[-2000:]}"
    return Counter(json.loads(done.stdout))


def environment() -> dict[str, str]:
    import os

    return {**os.environ, **as_metal.environment(ROOT)}


# ---- tests


@pytest.fixture
def small(tmp_path: Path, tiny: Path) -> Path:
    """A checkpoint of 200 kB in the tiny one's form."""
    from convert.random_checkpoint import HF_PREFIXES
    from smolvlm_mlx.config import ModelConfig
    from smolvlm_mlx.model import SmolVLM

    folder = tmp_path / "small"
    folder.mkdir()
    for path in tiny.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    raw = json.loads((tiny / "config.json").read_text())
    raw["text_config"] |= {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "head_dim": 4,
    }
    raw["vision_config"] |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(raw))
    parameters = SmolVLM(ModelConfig.from_dict(raw)).named_parameters()
    renamed = {}
    for name, array in parameters.items():
        prefix = next(prefix for prefix in HF_PREFIXES if name.startswith(prefix))
        array = array.transpose(0, 3, 1, 2) if name.endswith("patch_embedding.weight") else array
        renamed[HF_PREFIXES[prefix] + name.removeprefix(prefix)] = mx.contiguous(array)
    mx.save_safetensors(str(folder / "model.safetensors"), renamed)
    return folder


def test_200_mutated_files(small: Path) -> None:
    outcomes = in_a_process(small, first=0, count=200, seconds=60)
    assert outcomes.total() == 200
    assert outcomes["refused"] > 100
    assert outcomes["loaded"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(20))
def test_20000_mutated_files(small: Path, batch: int) -> None:
    outcomes = in_a_process(small, first=1000 * (batch + 1), count=1000, seconds=300)
    assert outcomes.total() == 1000
    assert outcomes["loaded"] > 0


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
