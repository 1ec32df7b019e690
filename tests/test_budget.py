"""What one request may have at most: each limit at its edge, over the real server and as it is by
default; and bodies that are within the limit of bytes and were slow."""

import base64
import json
import re
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

from smolvlm_mlx.errors import FetchError, PromptError, ServerError
from smolvlm_mlx.inputs.fetch import MAX_ESCAPED, decode_base64
from smolvlm_mlx.inputs.prompt import free_character
from smolvlm_mlx.options import options_of
from smolvlm_mlx.server.budget import Budget
from smolvlm_mlx.server.fields import RequestError
from smolvlm_mlx.server.request import ChatRequest
from tests.support.http import Running, head, question
from tests.support.pictures import data_url
from tests.support.videos import encode_video

import pytest
from PIL import Image

DEFAULTS = {option.name: option.default for option in options_of(Budget)}
SECONDS = 2.0  # of this thread alone; what is tried takes hundredths, and took many seconds


def body(**fields: Any) -> bytes:
    return json.dumps({**question("Hi"), "max_tokens": 1, **fields}).encode()


def content(*parts: Any) -> bytes:
    return body(messages=[{"role": "user", "content": [*parts]}], split=False)


def image(width: int, height: int) -> dict[str, Any]:
    url = data_url(Image.new("RGB", (width, height)))
    return {"type": "image_url", "image_url": {"url": url}}


@cache
def clip(frames: int, fps: int) -> str:
    return "data:video/mp4;base64," + base64.b64encode(encode_video(frames, fps)).decode()


def video(frames: int, rate: int, **options: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": clip(frames, rate)}, **options}


def raw(value: str) -> bytes:
    """With a value of JSON as it is written."""
    return body(metadata=0).replace(b'"metadata": 0', f'"metadata": {value}'.encode())


def schema(text: str) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"const": text}},
    }


def padded(count: int) -> bytes:
    """With what is neither a text nor outside of one."""
    unpadded = content({**WORDS, "url": ""})
    return content({**WORDS, "url": "x" * (count - len(unpadded))})


WORDS = {"type": "text", "text": "x"}
OUTSIDE = len(re.sub(rb'"[^"]*"', b"", raw("0")))
LETTERS = sum(map(len, re.findall(rb'"([^"]*)"', body())))


# What makes a body with so many of each, the param of the error, what the error calls them, and a
# limit that a small model answers within.
CASES: dict[str, tuple[Callable[[int], bytes], str | None, str, int]] = {
    "body_bytes": (padded, None, "bytes", 500),
    "json_values": (lambda count: body(metadata=[0] * (count - 10)), None, "values", 14),
    "json_depth": (
        lambda count: raw("[" * (count - 1) + "]" * (count - 1)),
        None,
        "lists and objects within each other",
        8,
    ),
    "json_digits": (lambda count: raw("1" * count), None, "characters in a number", 30),
    "json_characters": (
        lambda count: raw("0" + " " * (count - OUTSIDE)),
        None,
        "characters outside of texts",
        OUTSIDE + 9,
    ),
    "fields": (
        lambda count: body(**{f"x{number}": 0 for number in range(count - 2)}),
        "x{}",
        "fields in one object",
        9,
    ),
    "text_characters": (
        lambda count: body(metadata="x" * (count - LETTERS - len("metadata"))),
        None,
        "characters of text",
        LETTERS + 20,
    ),
    "messages": (
        lambda count: body(messages=question("x")["messages"] * count),
        "messages",
        "messages",
        3,
    ),
    "parts": (
        lambda count: body(
            messages=[
                {"role": "user", "content": [WORDS]},
                {"role": "user", "content": [WORDS] * (count - 1)},
            ]
        ),
        "messages.1.content",
        "parts",
        4,
    ),
    "media": (lambda count: content(*[image(1, 1)] * count), "messages", "pictures and videos", 3),
    "pixels": (
        lambda count: content(image(10, 10), image(count - 100, 1)),
        "messages.0.content.1",
        "pixels of pictures and videos",
        140,
    ),
    "frames": (
        lambda count: content(
            video(20, 10, fps=9.0, max_frames=2), video(20, 10, fps=9.0, max_frames=count - 2)
        ),
        "messages.0.content.1",
        "frames of videos",
        6,
    ),
    "video_seconds": (
        lambda count: content(video(2, 1), video(count - 2, 1)),
        "messages.0.content.1",
        "seconds of video",
        5,
    ),
    "stops": (lambda count: body(stop=["x"] * count), "stop", "texts", 3),
    "stop_characters": (lambda count: body(stop=["x", "y" * count]), "stop.1", "characters", 9),
    "schema_characters": (
        lambda count: body(
            response_format=schema("x" * (count - len('{"const": ""}'))), max_tokens=200
        ),
        "response_format",
        "characters of schema",
        50,
    ),
    "answers": (lambda count: body(n=count), "n", "answers", 2),
}
DECODED = {"pixels", "frames", "video_seconds"}
BEFORE_JSON = {"body_bytes", "json_values", "json_depth", "json_digits", "json_characters"}


@pytest.fixture
def limited(server: Running) -> Iterator[Callable[..., None]]:
    """Sets limits of the server."""
    whole = server.service.budget

    def limit(**limits: int) -> None:
        server.service.budget = replace(whole, **limits)

    yield limit
    server.service.budget = whole


def post(server: Running, body: bytes) -> Any:
    with server.client() as client:
        return client.post("/v1/chat/completions", content=body)


def test_each_limit_is_tried() -> None:
    assert [*CASES] == [*DEFAULTS]


@pytest.mark.parametrize("name", CASES)
def test_at_the_limit_is_answered_and_one_more_refused(
    name: str, server: Running, limited: Callable[..., None]
) -> None:
    make, param, what, limit = CASES[name]
    limited(**{name: limit})
    answered = post(server, make(limit))
    assert answered.status_code == 200, answered.text
    refused = post(server, make(limit + 1))
    error = refused.json()["error"]
    assert refused.status_code == (413 if name == "body_bytes" else 400)
    assert (error["param"], error["type"]) == (
        param and param.format(limit - 2),
        "invalid_request_error",
    )
    first = f"{error['param']}: " if param else "the body has "
    assert error["message"].startswith(f"{first}{limit + 1}")
    assert error["message"].endswith(f" {what}; the limit is {limit}")


@pytest.mark.parametrize("name", [name for name in CASES if name not in DECODED])
def test_the_default_limit_is_kept(name: str) -> None:
    make, limit = CASES[name][0], DEFAULTS[name]
    ChatRequest.parse(make(limit))
    with pytest.raises(RequestError, match=f"the limit is {limit}$"):
        ChatRequest.parse(make(limit + 1))


@pytest.mark.parametrize("name", sorted(BEFORE_JSON))
def test_it_is_counted_before_json_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, limit = CASES[name][0], CASES[name][3]
    beyond = make(limit + 1)
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(RequestError, match=f"the limit is {limit}$"):
        ChatRequest.parse(beyond, replace(Budget(), **{name: limit}))


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("[]", 10), ("[ ]", 10), ("{}", 10), ("[[], [0]]", 13), ('["[,{"]', 11), (r'"\","', 10),
        (r'["\\", "\\\"[", ""]', 13), ('{"[": "]", "a": {"b": []}}', 13), ("[1,\t2 , 3]", 13),
    ],
)  # fmt: skip
def test_values_are_counted_and_not_what_is_in_texts(value: str, count: int) -> None:
    ChatRequest.parse(raw(value), replace(Budget(), json_values=count))
    with pytest.raises(RequestError, match=f"^the body has {count} values; the limit is"):
        ChatRequest.parse(raw(value), replace(Budget(), json_values=count - 1))


def test_pictures_are_no_text_but_addresses_are() -> None:
    few = replace(Budget(), text_characters=200)
    long = "data:image/png;base64," + "A" * 300
    forms: list[Any] = [
        {"type": "image_url", "image_url": {"url": long}},
        {"type": "input_image", "image_url": long},
        {"type": "image", "base64": long},
        {"type": "video", "video": long},
        {"type": "video_url", "video_url": {"url": long}},
    ]
    for part in forms:
        assert ChatRequest.parse(content(part), few).media
    for text in ({"type": "text", "text": long}, {"type": "image", "url": f"HTTPS://{long}"}):
        with pytest.raises(RequestError, match=r"characters of text; the limit is 200$"):
            ChatRequest.parse(content(text), few)


def test_all_that_is_said_counts_as_text() -> None:
    for fields in (
        {"messages": [{"role": "assistant", "tool_calls": [{"url": "x" * 300}]}]},
        {"tools": [{"x" * 300: 1}], "tool_choice": "none"},
        {"user": "x" * 300},
    ):
        with pytest.raises(RequestError, match=r"characters of text; the limit is 300$"):
            ChatRequest.parse(body(**fields), replace(Budget(), text_characters=300))


def test_a_number_of_a_thousand_digits_is_told_in_short(server: Running) -> None:
    for name in ("n", "longest_edge", "max_tiles"):
        error = post(server, body(**{name: 10**900})).json()["error"]
        assert error["param"] == name
        assert len(error["message"]) < 200


def test_a_budget_of_another_type_is_refused() -> None:
    with pytest.raises(ServerError, match="messages is 'x', must be a whole number"):
        Budget(messages="x")  # type: ignore[arg-type]


# ---- what was slow


def within_its_time(work: Callable[[], object]) -> None:
    began = time.thread_time()
    work()
    assert time.thread_time() - began < SECONDS


def test_a_key_that_is_there_twice_is_found_at_once() -> None:
    keys = [f'"k{number}":1' for number in range(19_000)]
    twice = ("{" + ",".join([*keys, keys[-1]]) + "}").encode()

    def refused() -> None:
        with pytest.raises(RequestError, match="the key 'k18999' is there twice"):
            ChatRequest.parse(twice)

    within_its_time(refused)


def test_many_escaped_quotes_are_passed_over_at_once() -> None:
    for text in ('\\"' * 250_000, "\\\\" * 2_000_000 + '\\"'):
        size = len(json.loads(f'"{text}"'))
        value = f'{{"messages": "{text}"}}'.encode()

        def refused(value: bytes = value, most: int = size + 8) -> None:
            with pytest.raises(RequestError, match="messages: must be a valid list"):
                ChatRequest.parse(value, replace(Budget(), text_characters=most))

        within_its_time(refused)


def test_space_within_base64_makes_no_list() -> None:
    text = "data:image/png;base64," + "QUJD \n" * 500_000
    tracemalloc.start()
    try:
        assert decode_base64(text) == b"ABC" * 500_000
        assert tracemalloc.get_traced_memory()[1] < 6 * len(text)
    finally:
        tracemalloc.stop()


def test_escaped_characters_of_a_data_url_are_counted() -> None:
    text = "data:image/png;base64," + "%41" * MAX_ESCAPED
    assert len(decode_base64(text)) == MAX_ESCAPED * 3 // 4
    with pytest.raises(FetchError, match=f"{MAX_ESCAPED + 1} escaped characters; the limit is"):
        decode_base64(text + "%41")


def test_a_text_of_all_private_characters_is_refused() -> None:
    used = "".join(map(chr, [*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xFFFFC)]))
    assert free_character([used]) == chr(0xFFFFC)
    with pytest.raises(PromptError, match="uses every character there is"):
        free_character([used + chr(0xFFFFC)])


# ---- the event loop


def test_others_are_answered_while_bodies_are_read(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once, however many come."""
    read, may_go_on, reading = ChatRequest.parse, threading.Event(), threading.Semaphore(0)
    most, at_once, lock = 0, 0, threading.Lock()

    def parse(*arguments: Any) -> ChatRequest:
        nonlocal most, at_once
        with lock:
            at_once += 1
            most = max(most, at_once)
        reading.release()
        assert may_go_on.wait(60)
        with lock:
            at_once -= 1
        return read(*arguments)

    monkeypatch.setattr(ChatRequest, "parse", parse)
    with ThreadPoolExecutor(5) as pool, server.client() as client:
        answers = [pool.submit(post, server, body()) for _ in range(5)]
        for _ in range(2):
            assert reading.acquire(timeout=60)
        assert client.get("/health").json()["status"] == "ok"
        may_go_on.set()
        assert [answer.result(60).status_code for answer in answers] == [200] * 5
    assert most == 2


def test_a_body_that_ends_too_soon_is_no_json(server: Running) -> None:
    for text in (b'{"messages": "', b'{"messages": "\\"', b'{"messages": ["x", "y'):
        assert post(server, text).json()["error"]["message"].startswith("the body is not JSON: ")


def test_the_limit_of_bytes_is_that_of_the_guard(server: Running) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(60)
        connection.sendall(head(server, DEFAULTS["body_bytes"] + 1))
        assert b" 413 " in connection.recv(999)


def test_whole_numbers_that_no_float_can_hold_are_refused_by_name(server: Running) -> None:
    for name in ("fps", "max_frames", "start", "end"):
        error = post(server, content(video(4, 2, **{name: 10**400}))).json()["error"]
        assert error["param"].startswith("messages.0.content.0")
        assert name in error["message"]
