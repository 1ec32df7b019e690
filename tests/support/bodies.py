"""Bodies of requests that nobody means: changed here and there, in their values or their bytes; and
such as take long to read."""

import base64
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.support.pictures import data_url
from tests.support.videos import encode_video

from PIL import Image

PICTURE = data_url(Image.new("RGB", (40, 30), "red"))
VIDEO = "data:video/mp4;base64," + base64.b64encode(encode_video(4, 2)).decode()


def user(content: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 1, **fields}


def schema(of: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": of}}


ASKED: list[dict[str, Any]] = [
    user("Hello"),
    user("Hello", temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, seed=3, n=2, stop=["a", "bc"]),
    user([{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": PICTURE}}]),
    user([{"type": "image", "base64": PICTURE, "name": "x.png", "detail": "low"}], max_tiles=2),
    user([{"type": "video_url", "video_url": {"url": VIDEO}, "fps": 2.0, "max_frames": 2}]),
    user("x", stream=True, stream_options={"include_usage": True}, conversation="0123456789"),
    user("x", response_format=schema({"type": "object", "properties": {"a": {"enum": [1, "b"]}}})),
    user("x", response_format={"type": "json_object"}, repetition_penalty=1.1),
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "me"},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
            {"role": "tool", "content": "4", "tool_call_id": "x"},
            {"role": "user", "content": "And?"},
        ],
        "max_tokens": 1,
        "tools": [{"type": "function"}],
        "tool_choice": "none",
        "metadata": {"a": "b"},
    },
]
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, -(10**400), 0.5, -0.5, 1e308, 5e-324),
    *(
        "",
        " ",
        "x",
        "<image>",
        "\0",
        "\u202e",
        "\ud83d",
        "\ufdd0",
        "😀" * 99,
        "x" * 5000,
        "1" * 999,
    ),
    *("data:", "data:image/png;base64,", "data:image/png;base64,%", "http://x", "file:///", "{}"),
    *(PICTURE, PICTURE[:99], VIDEO, VIDEO[:900], [], {}, [[]], [{}], {"": ""}, [None] * 300),
    *({"type": "text"}, {"type": "x"}, {"url": {}}, {"$ref": "#"}, {"pattern": "(" * 50}),
    *("user", "system", "tool", "text", "image", "image_url", "video", "json_object", "low"),
]
# What decides how long an answer is stays, or is wrong.
KEPT = {"max_tokens", "max_completion_tokens"}


def mutated(rng: random.Random) -> bytes:
    """A body whose values are others in some places; of every fourth also some bytes are."""
    value: Any = json.loads(json.dumps(rng.choice(ASKED)))
    for _ in range(rng.randint(1, 3)):
        _change(value, rng)
    data = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return data if rng.random() < 0.75 else flipped(data, rng)


def _change(value: Any, rng: random.Random) -> None:
    """Put another value, field or element somewhere into it."""
    places = [place for place in _places(value) if place[1] not in KEPT]
    holder, key = rng.choice(places or [({"x": 0}, "x")])
    odd = json.loads(json.dumps(rng.choice(ODD)))
    match rng.randrange(5):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, list):
            holder += [holder[key]] * rng.choice([1, 3, 70])
        case 2 if isinstance(holder, dict):
            names = [key for _, key in _places(rng.choice(ASKED)) if isinstance(key, str)]
            name = rng.choice(sorted({*names} - KEPT))
            holder[name] = odd
        case 3:
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"x": holder[key]}
        case _:
            holder[key] = odd


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Each object and list in a value, with each key or position of it."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found: list[tuple[Any, Any]] = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list):
            found += _places(value[key])
    return found


def flipped(data: bytes, rng: random.Random) -> bytes:
    """With some bytes changed, put in, taken out or said again."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        size = rng.choice([1, 1, 2, 9, 200])
        match rng.randrange(4):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                changed[at:at] = rng.choice([b'"', b"[", b"{", b",", b"\\", b"\\ud800", b"\xff"])
            case 2:
                del changed[at : at + size]
            case _:
                changed[at:at] = changed[at : at + size]
    return bytes(changed)


# ---- what takes long


START, END = b'{"max_tokens":1,"messages":[{"role":"user","content":', b"}]}"
URL, AFTER = b'[{"type":"image_url","image_url":{"url":"data:image/png;base64,', b'"}}]'


def slow(size: int) -> Iterator[tuple[str, bytes]]:
    """Bodies of at most so many bytes, each with what it is."""

    def filled(first: bytes, again: bytes, last: bytes) -> bytes:
        return first + again * ((size - len(first) - len(last)) // len(again)) + last

    for name, again in {"brackets": b"[", "closed": b"]", "quotes": b'"', "commas": b","}.items():
        yield name, again * size
    for name, again in {
        "words": b"word ", "newlines": b"\\n", "quotes": b'\\"', "backslashes": b"\\\\",
        "escapes": b"\\u00e9", "pairs": b"\\ud83d\\ude00", "halves": b"\\ud83d",
        "wide": "😀".encode(),
    }.items():  # fmt: skip
        yield f"text of {name}", filled(START + b'"', again, b'"' + END)
    for name, again in {
        "space": b" ", "digits": b"1", "numbers": b"1" * 4299 + b",", "fractions": b"0.1,",
        "objects": b"{},", "lists": b"[[[]]],", "texts": b'"",', "parts": b'{"type":"text"},',
    }.items():  # fmt: skip
        yield name, filled(START + b"[", again, b"0]" + END)
    yield "keys", filled(b"{", b'"a":1,', b'"b":1}')
    for name, again in {
        "letters": b"A", "lines": b"\\n", "letters and space": b"A ", "slashes": b"A\\/AA",
        "escapes": b"%41",
    }.items():  # fmt: skip
        yield f"picture of {name}", filled(START + URL, again, AFTER + END)
    yield from ((name, json.dumps(make()).encode()) for name, make in WITHIN.items())


def _names(count: int, seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    return {"".join(rng.choices("abcdefghij", k=6)): 0 for _ in range(count)}


# Those that no limit refuses, or only the last.
WITHIN: dict[str, Callable[[], Any]] = {
    "unknown fields": lambda: user(
        [{"type": "text", "text": "x", **_names(90, number)} for number in range(200)]
    ),
    "calls": lambda: {
        "messages": [
            {"role": "assistant", "tool_calls": [{}] * 19_000},
            {"role": "user", "content": "x"},
        ]
    },
    "emoji": lambda: user("😀" * 262_000),
    "digits": lambda: user("1" * 262_000),
    "private characters": lambda: user("".join(map(chr, range(0xF0000, 0xFFFFE))) * 3 + "\ufdd0"),
    "damaged pictures": lambda: user([{"type": "image", "base64": "QUJD" * 9}] * 256),
    "stop texts": lambda: user("x", stop=["a" * 255 + chr(300 + number) for number in range(64)]),
    "properties": lambda: user(
        "x",
        response_format=schema({"properties": {f"k{n}": {"minLength": 1} for n in range(1500)}}),
    ),
    "branches": lambda: user(
        "x", response_format=schema({"anyOf": [{"required": [f"k{n}"]} for n in range(1000)]})
    ),
    "patterns": lambda: user(
        "x", response_format=schema({"pattern": "|".join(f"w{n}[a-z]*" for n in range(3000))})
    ),
    "repeats": lambda: user(
        "x", response_format=schema({"type": "string", "pattern": "^(((a{99}){99}){99}){99}$"})
    ),
}
