"""Damaged safetensors files."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def mutate(rng: random.Random, file: bytes) -> bytes:
    """One mutation of a file."""
    return rng.choice(MUTATIONS)(rng, file)


def accepted_by_safetensors(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            return bool(file.keys())
    except SafetensorError:
        return False
