"""The server as clients, and as attackers, have it: OpenAI's own client, wrong tokens, odd bodies,
leavers, load."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from smolvlm_mlx import Options, generate, load
from smolvlm_mlx.cli.serve import host_headers, listen, model_id
from smolvlm_mlx.errors import ServerError
from smolvlm_mlx.generation.decoding import Decoder
from smolvlm_mlx.generation.scheduler import Job
from smolvlm_mlx.inputs.video import VIDEO_OPTIONS
from smolvlm_mlx.server import assets, connections, security
from smolvlm_mlx.server.app import judges, make_app
from smolvlm_mlx.server.conversations import KEEPERS
from smolvlm_mlx.server.request import ChatRequest
from tests.support.cli import run
from tests.support.http import DIRECT, TOKEN, Running, always, head, listening, question, wait_until
from tests.support.pictures import PICTURE, data_url, encoded, png, tall
from tests.support.videos import encode_video

import httpx2
import numpy as np
import pytest
import uvicorn
from PIL import Image

ROUTES = [
    ("GET", "/page/start"),
    ("GET", "/tiles?width=1&height=1"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/models"),
    ("POST", "/chat/completions"),
    ("GET", "/conversations"),
    ("GET", "/conversations/00000000"),
    ("POST", "/conversations/00000000?message=1"),
    ("DELETE", "/conversations/00000000"),
    ("POST", "/conversations/00000000/stop"),
    ("GET", "/conversations/00000000/events"),
    ("GET", "/nowhere"),
    ("GET", "/page"),
    ("GET", "/page/index.html"),
    ("GET", "/page/nowhere.js"),
]


# ---- OpenAI's client


@pytest.fixture(scope="module")
def openai(server: Running) -> Iterator[Any]:
    module = pytest.importorskip("openai")
    client = module.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key=TOKEN, max_retries=0
    )
    yield client
    client.close()


def test_text_and_picture(openai: Any, tiny: Path) -> None:
    model, processor = load(tiny, "float32")
    for content, pictures in (
        ("Hello", []),
        (question("What is this?", data_url())["messages"][0]["content"], [PICTURE]),
    ):
        answer = openai.chat.completions.create(
            model="tiny", max_tokens=9, messages=[{"role": "user", "content": content}]
        )
        text = content if isinstance(content, str) else content[-1]["text"]
        want = generate(model, processor, text, Options(max_tokens=9), images=pictures)
        assert answer.choices[0].message.content == want
        assert answer.choices[0].finish_reason in ("stop", "length")
        assert (
            answer.usage.prompt_tokens
            > answer.usage.prompt_tokens_details.image_tokens
            == 208 * len(pictures)
        )
        assert (
            answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        )
    assert [model.id for model in openai.models.list()] == ["tiny"]


def test_streaming(openai: Any) -> None:
    asked = {"model": "tiny", "max_tokens": 12, "messages": [{"role": "user", "content": "Hello"}]}
    whole = openai.chat.completions.create(**asked)
    chunks = list(
        openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
        == whole.choices[0].message.content
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    bare = list(openai.chat.completions.create(**asked, stream=True))
    assert all(chunk.usage is None for chunk in bare)


def test_nothing_between_holds_a_stream_back(server: Running) -> None:
    headers = server.complete(question("Hello", max_tokens=1, stream=True)).headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["x-accel-buffering"] == "no"
    assert headers["cache-control"] == "no-store"


def test_options(openai: Any) -> None:
    def ask(**options: Any) -> str:
        messages = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
        ]
        answer = openai.chat.completions.create(model="tiny", messages=messages, **options)
        return str(answer.choices[0].message.content)

    whole = ask(max_completion_tokens=30)
    assert whole.startswith(ask(max_tokens=4))
    assert ask(max_tokens=30, stop=[whole[5:7]]) == whole[: whole.index(whole[5:7])]
    sampled = {ask(max_tokens=20, temperature=1.5, top_p=0.9, seed=3) for _ in range(3)}
    assert len(sampled) == 1
    assert ask(max_tokens=20, temperature=1.5, seed=4) not in sampled


def test_json_schema(openai: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}},
        "required": ["n"],
        "additionalProperties": False,
    }
    wanted = {
        "type": "json_schema",
        "json_schema": {"name": "count", "strict": True, "schema": schema},
    }
    asked: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Count"}]}
    asked |= {"max_tokens": 60, "temperature": 1.0, "seed": 1}

    def content(**more: Any) -> str:
        return str(openai.chat.completions.create(**asked, **more).choices[0].message.content)

    fits = json.loads(content(response_format=wanted))
    assert fits.keys() == {"n"}
    assert fits["n"] in range(100)
    assert not content(response_format={"type": "text"}).startswith("{")
    assert content(response_format={"type": "json_object"}).startswith("{")
    joined = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in openai.chat.completions.create(**asked, response_format=wanted, stream=True)
    )
    assert json.loads(joined) == fits


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"temperature": 11}, "temperature: 11.0 is not in 0..10"),
        ({"temperature": "hot"}, "temperature: must be a valid number, not 'hot'"),
        ({"n": 17}, "n: 17 answers; the limit is 16"),
        ({"tools": [{"type": "function", "function": {"name": "x"}}]}, "tools: "),
        ({"messages": []}, "messages: List should have at least 1 item"),
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            "messages.0.role: ",
        ),
        (question("What?", "https://example.com/a.png"), "URLs are not fetched here"),
        (question("What?", "file:///etc/passwd"), "'file:///etc/passwd'"),
        (question("What?", "/etc/passwd"), "'/etc/passwd'"),
        (question("What?", "data:image/png;base64,AAAA"), "not a readable picture"),
        (question("What?", data_url(tall())), "1 x 50000000 pixels; the limit of a side is 65535"),
        (
            question("What?", data_url(png(10_000, 1, 0, bytes(1250), height=5001))),
            "10000 x 5001 pixels; the limit is 50000000: make it smaller",
        ),
        (question("What?", data_url(encode_video(2))), "is a video; use --video (a part of type"),
        (
            question("What?", *[data_url(Image.new("RGB", (9, 9)))] * 257),
            "257 pictures and videos; the limit is 256",
        ),
        (question("word " * 9000), "the model's context of 4096"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema: missing"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "y"}},
                }
            },
            "the JSON schema cannot be used: Invalid type: y",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(change: dict[str, Any], error: str, stream: bool, openai: Any) -> None:
    import openai as module

    asked = {
        "model": "tiny",
        "max_tokens": 3,
        "messages": [{"role": "user", "content": "Hello"}],
        **change,
    }
    with pytest.raises(module.BadRequestError) as caught:
        for _ in openai.chat.completions.create(**asked, stream=stream):
            pass
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_video(server: Running) -> None:
    url = "data:video/mp4;base64," + base64.b64encode(encode_video(40, 10)).decode()
    parts = [
        {"type": "video_url", "video_url": {"url": url}, "fps": 2.0},
        {"type": "text", "text": "What happens?"},
    ]
    answer = server.complete({"messages": [{"role": "user", "content": parts}], "max_tokens": 2})
    assert answer.json()["usage"]["timing"]["tiles"] == 8
    parts[0] = {"type": "video_url", "video_url": {"url": "/etc/passwd"}}
    refused = server.complete({"messages": [{"role": "user", "content": parts}]})
    assert refused.status_code == 400
    assert (
        "'/etc/passwd'" in refused.json()["error"]["message"]
        or "base64" in refused.json()["error"]["message"]
    )


# ---- models, and where things are


def test_the_model_is_listed_under_each_of_its_names(
    openai: Any, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openai as module

    monkeypatch.setattr(server.service, "aliases", ["", "gpt-4o", "org/name", "tiny"])
    listed = openai.models.list().data
    assert [model.id for model in listed] == ["tiny", "gpt-4o", "org/name"]
    for model in listed:
        assert openai.models.retrieve(model.id) == model
        assert model.created == server.service.created > 1.6e9
    with server.client() as client:
        assert client.get("/v1/models/org/name").json()["id"] == "org/name"
    with pytest.raises(module.NotFoundError) as caught:
        openai.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"
    assert "no model 'org/other'; /v1/models lists what there is" in str(caught.value)


@pytest.mark.parametrize("name", ["tiny", "gpt-4o", ""])
def test_any_name_of_a_model_is_answered_by_the_one_there_is(name: str, openai: Any) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    answer = openai.chat.completions.create(model=name, messages=messages, max_tokens=1)
    assert answer.model == "tiny"


def test_a_folder_is_named_by_its_last_part(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "org" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "org")
    folders = [str(tmp_path / "org" / "mine"), "mine", "./mine/", "../org/mine"]
    assert [model_id(folder) for folder in folders] == ["mine"] * 4
    assert model_id(".") == "org"
    assert [model_id(name) for name in ("tiny", "org/mine")] == ["tiny", "org/mine"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions"])
def test_an_address_without_v1_is_answered_too(path: str, server: Running) -> None:
    with server.client() as client:
        assert client.post(path, json=question("Hello", max_tokens=1)).status_code == 200
        ours, theirs = client.get("/v1/models"), client.get("/models")
    assert ours.json() == theirs.json()


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "/chat/completions/"])
def test_a_slash_at_the_end_leads_to_the_same(path: str, server: Running) -> None:
    with server.client() as client:
        asked = question("Hello", max_tokens=1)
        answer = client.post(path, json=asked, follow_redirects=True)
    assert answer.status_code == 200
    assert [step.status_code for step in answer.history] == [307]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("DELETE", "/v1/models/tiny", {"GET", "HEAD"}),
        ("GET", "/v1/chat/completions", {"POST"}),
        ("PUT", "/conversations/00000000", {"GET", "HEAD", "POST", "DELETE"}),
        ("POST", "/health", {"GET", "HEAD"}),
    ],
)
def test_another_method_is_told_which_there_are(
    method: str, path: str, allowed: set[str], server: Running
) -> None:
    with server.client() as client:
        answer = client.request(method, path)
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == allowed
    assert answer.json()["error"]["message"] == "Method Not Allowed"


def test_what_a_request_leaves_open_is_as_the_server_was_told(
    server: Running, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.service, "options", Options(max_tokens=3, stop=("x",)))
    server.complete(question("Hello"))
    server.complete(question("Hello", max_tokens=2, temperature=0.5, stop=["y", "z"], seed=1))
    assert [job.options for job in jobs] == [
        Options(max_tokens=3, stop=("x",)),
        Options(max_tokens=2, temperature=0.5, stop=("y", "z"), seed=1),
    ]


ASKED_WITH = {"fps": 2.0, "max_frames": 3, "start": 1.0, "end": 2.0}


def test_a_video_is_seen_as_it_is_asked_with(server: Running) -> None:
    assert ASKED_WITH.keys() == {*VIDEO_OPTIONS}
    data = encode_video(40, 10)
    url = "data:video/mp4;base64," + base64.b64encode(data).decode()

    def tiles(**options: float) -> int:
        parts = [{"type": "video_url", "video_url": {"url": url}, **options}]
        asked = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
        return int(server.complete(asked).json()["usage"]["timing"]["tiles"])

    usual = tiles()
    for name, value in ASKED_WITH.items():
        part = {"type": "video", "video": data, name: value}
        inputs = server.service.processor([{"role": "user", "content": [part]}])
        assert tiles(**{name: value}) == len(inputs.tiles) != usual, name


# ---- what the page is told


def test_what_an_answer_took_in_a_line(server: Running) -> None:
    asked = question("What is this?", data_url(), max_tokens=2)
    usage = server.complete(asked).json()["usage"]
    line = (
        rf"13 tiles · {usage['prompt_tokens']} \+ 2 tokens(, \d+ reused)? · "
        r"first after \d+\.\d\d s · then [\d.]+ tokens/s"
    )
    assert re.fullmatch(rf"{line} · cut off at the longest length", usage["timing"]["about"])


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_unusual_about_a_picture_is_told_with_its_answer(
    stream: bool, server: Running
) -> None:
    cut = data_url(encoded(PICTURE, "JPEG", quality=95)[:-500])
    before, said = question("What is this?", data_url()), {"role": "assistant", "content": "x"}
    asked = question("And this?", cut, max_tokens=1, stream=stream)
    asked["messages"] = [*before["messages"], said, *asked["messages"]]
    asked |= {"stream_options": {"include_usage": True}} if stream else {}
    assert "picture: its last bytes are missing" in server.complete(asked).text
    # It is told once: of the pictures that came with the question.
    asked["messages"] += [{"role": "user", "content": "And now?"}]
    assert "missing" not in server.complete(asked).text


def camera(
    server: Running, id: str, color: str, stream: bool, text: str = "same"
) -> dict[str, Any]:
    """What a live camera is told of its next answer."""
    picture = data_url(Image.new("RGB", (64, 64), color))
    asked = question("Is there any text?", picture, max_tokens=20, live=id, split=False)
    asked |= always(text)
    answer = server.complete({**asked, "stream": stream})
    if not stream:
        return dict(answer.json()["live"])
    *chunks, last, done = answer.text.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    assert all('"live"' not in chunk for chunk in chunks)
    told = json.loads(last.removeprefix("data: "))
    assert told["usage"]["completion_tokens"] > 1  # sent though it was not asked for
    return dict(told["live"])


@pytest.mark.parametrize("stream", [True, False])
def test_a_live_camera_is_told_when_its_answer_stays_the_same(
    stream: bool, server: Running
) -> None:
    mine, other = (
        ("00000000aaaaaaaa", "00000000bbbbbbbb")
        if stream
        else ("00000000cccccccc", "00000000dddddddd")
    )
    told = [
        camera(server, mine, color, stream) for color in ("red", "red", "green", "blue", "blue")
    ]
    about = told[0].pop("about")
    assert re.fullmatch(
        r"frame 1 · preprocess \d+ ms · vision \d+ ms · prefill \d+ ms · [\d.]+ tokens/s", about
    )
    assert told[0] == {"number": 1, "unchanged": False, "stuck": False}
    assert [one["number"] for one in told] == [1, 2, 3, 4, 5]
    assert [one["unchanged"] for one in told] == [False, False, True, True, False]
    # Until the answer is another.
    assert [one["stuck"] for one in told] == [False, False, False, True, True]
    assert camera(server, other, "red", stream)["number"] == 1
    assert camera(server, mine, "red", stream, "other")["stuck"] is False
    asked = question("Hello", max_tokens=1, live=mine)
    error = server.complete(asked).json()["error"]
    assert (error["message"], error["param"]) == ("live: the request has no picture", "live")
    assert server.complete({**asked, "live": "../x"}).status_code == 400
    assert "live" not in server.complete(question("Hello", max_tokens=1)).json()


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_is_not_held_while_it_is_answered(
    stream: bool, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures in requests are a large part of the server's memory."""
    spaces = 10_000_000
    asked = question("Hi", max_tokens=2, stream=stream)
    asked["messages"][0]["content"][0]["url"] = " " * spaces  # which a text has no use for
    body = json.dumps(asked).encode()
    parse, parsed = ChatRequest.parse, list[weakref.ref[object]]()
    held: list[int] = []  # bytes, and that is without those above, at each piece of the answer
    submit = server.scheduler.submit

    def watched(*given: Any) -> ChatRequest:
        asked = parse(*given)
        parsed.append(weakref.ref(asked.messages[0]))
        return asked

    async def receive() -> dict[str, Any]:
        if parsed:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        held.append(tracemalloc.get_traced_memory()[0])

    def submitted(job: Job) -> None:
        assert parsed[0]() is None
        submit(job)

    monkeypatch.setattr(ChatRequest, "parse", staticmethod(watched))
    monkeypatch.setattr(server.scheduler, "submit", submitted)
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b""}
    app = make_app(server.service, ["a:1"], None)

    async def ask() -> None:
        await app({**scope, "headers": [(b"host", b"a:1")]}, receive, send)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1  # nothing goes on, though nobody has left

    tracemalloc.start()
    try:
        asyncio.run(ask())
    finally:
        tracemalloc.stop()
    assert len(held) >= 2
    assert max(held) < spaces / 2


def test_the_camera_that_asked_longest_ago_is_forgotten() -> None:
    judge_of, tile, numbers = judges(most=2), np.zeros((4, 4, 3), np.uint8), []
    for id in "abacaab":
        judge_of(id).judge("same", tile)
        numbers.append(judge_of(id).number)
    assert numbers == [1, 1, 2, 1, 3, 4, 1]
    judge_of = judges()
    for camera in (*range(32), 0, 32, 0, 1):
        judge_of(str(camera)).judge("same", tile)
    assert [judge_of(camera).number for camera in ("0", "1", "32")] == [3, 1, 1]


def test_a_full_context_says_what_may_be_forgotten(server: Running) -> None:
    def error(*messages: tuple[str, str]) -> dict[str, Any]:
        asked = [{"role": role, "content": text} for role, text in messages]
        answer = server.complete({"messages": asked, "max_tokens": 1})
        assert answer.status_code == 400
        return dict(answer.json()["error"])

    long = "word " * 900
    told = error(("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", long))
    assert told["code"] == "context_length_exceeded"
    assert told["forget"] == {"messages": 2}
    assert error(("user", "Hello"), ("user", long))["forget"] == {"messages": 1}
    alone = error(("developer", "Be brief."), ("user", long))
    assert alone["code"] == "context_length_exceeded"
    assert "forget" not in alone


# ---- who may ask


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_route_without_the_token(method: str, path: str, server: Running) -> None:
    for given in (
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer{TOKEN}",
    ):
        with httpx2.Client(**DIRECT) as client:
            headers = {} if given is None else {"authorization": given}
            answer = client.request(
                method, f"http://127.0.0.1:{server.port}{path}", headers=headers
            )
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/health", "/favicon.ico"])
def test_what_says_nothing_of_anyone_needs_no_token(path: str, server: Running) -> None:
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.port}", **DIRECT) as client:
        answer = client.get(path)
        assert answer.status_code == 200
        assert client.get(path, headers={"host": "evil.example"}).status_code == 403
        bare = client.head(path)
    assert (bare.status_code, bare.content) == (200, b"")
    assert bare.headers["content-length"] == str(len(answer.content))


def test_the_health_says_what_is_going_on(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with server.client() as client:
        idle = {"status": "ok", "model": "tiny", "running": 0, "waiting": 0, "errors": 0}
        server.wait_until_idle()
        health = client.get("/health").json()
        memory = health.pop("memory")
        assert health == idle
        assert memory["peak"] >= memory["active"] > 0
        with monkeypatch.context() as patch:
            patch.setattr(server.scheduler, "failed", True)
            failed = client.get("/health")
        assert (failed.status_code, failed.json()["status"]) == (503, "failed")


@pytest.mark.parametrize("stream", [False, True])
def test_an_engines_error_is_of_its_answer(
    stream: bool, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 500, or an error event in a stream that has begun; the next request is answered."""
    asked = question("Hello", max_tokens=8, stream=stream)
    want, step = server.complete(asked), Decoder.step
    with server.client() as client:
        before = client.get("/health").json()["errors"]

    def broken(self: Decoder) -> Any:
        monkeypatch.setattr(Decoder, "step", step)
        raise RuntimeError("[metal::malloc] Attempting to allocate 9 bytes")

    monkeypatch.setattr(Decoder, "step", broken)
    answer = server.complete(asked)
    assert answer.status_code == (200 if stream else 500)
    *_, last = answer.text.removesuffix("data: [DONE]\n\n").rstrip().rpartition("data: ")
    error = json.loads(last)["error"]
    assert error["type"] == "server_error"
    assert "what helps: fewer tiles (--max-tiles)" in error["message"]
    assert answer.text.endswith("data: [DONE]\n\n") == stream
    with server.client() as client:
        health = client.get("/health")
    assert health.status_code == 200
    assert (health.json()["status"], health.json()["errors"]) == ("failing", before + 1)
    assert "metal::malloc" in health.json()["last_error"]
    assert text_of(server.complete(asked)) == text_of(want)


def text_of(answer: Any) -> str:
    """An answer, whole or streamed."""
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines()]
    values = [json.loads(line) for line in lines if line not in ("", "[DONE]")]
    choices = [choice for value in values for choice in value["choices"]]
    return "".join(
        choice.get("message", choice.get("delta")).get("content", "") for choice in choices
    )


POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; "
    "img-src 'self' data: blob:; media-src data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def test_the_page_needs_no_token_and_holds_nothing(server: Running) -> None:
    papers = {".md", ".txt"}  # for who reads the folder
    files = sorted(
        path for path in assets.FOLDER.rglob("*") if path.is_file() and path.suffix not in papers
    )
    assert {"index.html", "page.css", "page.js"} < {file.name for file in files}
    assert sorted(assets.ASSETS.values()) == files
    utf8 = "; charset=utf-8"
    types = {
        ".html": f"text/html{utf8}",
        ".css": f"text/css{utf8}",
        ".js": f"text/javascript{utf8}",
        ".mjs": f"text/javascript{utf8}",
        ".svg": "image/svg+xml",
        ".woff2": "font/woff2",
    }
    for path, file in assets.ASSETS.items():
        with httpx2.Client(**DIRECT) as client:
            answer = client.get(f"http://127.0.0.1:{server.port}{path}")
        assert answer.status_code == 200
        assert answer.content == file.read_bytes()
        assert answer.headers["content-type"] == types[file.suffix]
        is_worker = re.search(r"(?m)^onmessage =", answer.text)
        is_told = file.suffix in (".html", ".svg") or is_worker
        assert answer.headers.get("content-security-policy") == (POLICY if is_told else None)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        # Nothing from elsewhere. Libraries name their origins, and the policy keeps them here.
        own = answer.text if "vendor" not in path else ""
        own = re.sub(r'xmlns="http://www.w3.org/2000/svg"|https\?:\|', "", own)
        assert not re.search("https?://(?!localhost:)", own)
    html = (assets.FOLDER / "index.html").read_text()
    assert not re.search(r"<style|<script>|\s(style|on\w+)=", html)  # the policy forbids them


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/page/..%2fapp.py",
        "/page/..%2Fpage%2Fpage.js",
        "/page/%252e%252e/app.py",
        "/page/..\\app.py",
        "/page//page.js",
        "/page/./page.js",
        "/page/PAGE.js",
        "/page/page.js%00.css",
        "/page.js",
        "//page/page.js",
        "/../assets.py",
    ],
)
def test_no_other_file_can_be_reached(path: str, server: Running) -> None:
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{server.port}", "Connection: close"]
    token = f"Authorization: Bearer {TOKEN}"
    assert raw(server, "\r\n".join([*lines, token, "", ""]).encode()).startswith(b"HTTP/1.1 404 ")
    assert raw(server, "\r\n".join([*lines, "", ""]).encode()).startswith(b"HTTP/1.1 401 ")


def hosts(port: int) -> list[str]:
    names = [
        "evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.2",
        "0.0.0.0",
        "[::1]",
        "localhost.",
        "2130706433",
    ]
    ports = [
        f"localhost:{port + 1}",
        "localhost",
        "127.0.0.1",
        f"localhost:0{port}",
        f"127.0.0.1:{port}x",
    ]
    odd = [
        "",
        "@",
        f"evil@127.0.0.1:{port}",
        f"127.0.0.1:{port}@evil",
        f"127.0.0.1:{port},evil",
        "*",
        "null",
        "[",
        "127.1",
    ]
    return [*(f"{name}:{port}" for name in names), *ports, *odd][:21]


def test_other_hosts_are_refused(server: Running) -> None:
    with server.client() as client:
        for host in hosts(server.port):
            assert client.get("/health", headers={"host": host}).status_code in (400, 403), host
        assert (
            client.get("/health", headers={"host": f"LOCALHOST:{server.port}"}).status_code == 200
        )


def test_other_origins_are_refused(server: Running) -> None:
    here = f"127.0.0.1:{server.port}"
    others = [
        "null",
        "",
        "*",
        "http://evil.example",
        f"https://{here}",
        f"http://{here}.evil.example",
        f"http://{here}/",
    ]
    others += [
        f"http://127.0.0.1:{server.port + 1}",
        "http://localhost",
        f"http://evil@{here}",
        here,
        f"ftp://{here}",
    ]
    others += [
        "https://friend.example.evil",
        "http://friend.example",
        "https://friend.example:444",
        "file://",
    ]
    with server.client() as client:
        for origin in others:
            answer = client.get("/health", headers={"origin": origin})
            assert answer.status_code == 403, origin
            assert "access-control-allow-origin" not in answer.headers
        same = client.get("/health", headers={"origin": f"http://{here}"})
        assert same.status_code == 200
        assert "access-control-allow-origin" not in same.headers
        friend = client.get("/health", headers={"origin": "https://friend.example"})
        assert friend.headers["access-control-allow-origin"] == "https://friend.example"
        preflight = client.options(
            "/v1/chat/completions", headers={"origin": "https://friend.example"}
        )
        assert preflight.status_code == 200
        assert "authorization" in preflight.headers["access-control-allow-headers"]


def blocked_urls(port: int) -> list[str]:
    hosts = [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0",
    ]
    hosts += [
        "0.0.0.0",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "metadata.google.internal",
        "10.0.0.1",
        "192.168.1.1",
        "[::]",
    ]
    hosts += [
        "172.16.0.1",
        "100.64.0.1",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fec0::1]",
        "192.88.99.1",
    ]
    hosts += ["localhost.", "LOCALHOST"]
    ends = [
        f":{port}/",
        f":{port}/a.png",
        f":{port}/latest/meta-data",
        f":{port}/?x=1",
        f":{port}/#y",
        f":{port}",
    ]
    return [f"http://{host}{end}" for host, end in itertools.product(hosts, ends)]


def test_addresses_of_this_machine_and_network_are_never_asked(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where URLs are allowed."""
    monkeypatch.setattr(server.service, "allow_urls", True)
    with socket.create_server(("", 0)) as trap, server.client() as client:
        urls = blocked_urls(trap.getsockname()[1])
        assert len(urls) == 150
        for url in urls:
            answer = client.post("/v1/chat/completions", json=question("What?", url, max_tokens=2))
            assert answer.status_code == 400, url
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()


# ---- bodies and sockets


def raw(server: Running, *parts: bytes) -> bytes:
    """What the server sends back to these bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        for part in parts:
            connection.sendall(part)
        received = b""
        while data := connection.recv(65536):
            received += data
        return received


def test_large_bodies(server: Running) -> None:
    assert b" 413 " in raw(server, head(server, security.MAX_BODY_BYTES + 1))
    chunked = head(server, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    count, rest = divmod(security.MAX_BODY_BYTES, 2**20)
    assert rest == 0
    chunk = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
    assert b" 413 " in raw(server, chunked, *[chunk] * count, b"1\r\nx\r\n")  # one byte too many
    assert server.complete(question("Hello", max_tokens=2)).status_code == 200


def test_half_sent_requests_are_closed(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the server, and long before `raw` loses patience."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)
    with (
        listening(server.service, timeout_keep_alive=0.2, lifespan="off") as port,
        ThreadPoolExecutor() as pool,
    ):
        short = replace(server, port=port)
        half = head(short, 10)[:40]
        whole = (
            head(short, 0, "/health")
            .replace(b"POST", b"GET")
            .replace(b"Connection: close\r\n", b"")
        )
        junk = (
            b"\x00\xff\x16\x03\x01\n\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"A" * 70000,
        )
        *given_up, after_a_whole = pool.map(
            lambda parts: raw(short, *parts), [[], [b"G"], [half], [whole, half]]
        )
        assert {answer[:12] for answer in given_up} <= {b"", b"HTTP/1.1 400"}
        assert after_a_whole.count(b"HTTP/1.1 200") == 1  # and then the half one is given up
        refused = pool.map(lambda one: raw(short, one), junk)
        assert {answer[:12] for answer in refused} <= {b"", b"HTTP/1.1 400", b"HTTP/1.1 403"}


def mutated(rng: random.Random) -> bytes:
    whole = json.dumps(
        question("Hello", max_tokens=1, stream=bool(rng.random() < 0.3), stop=["x"], seed=1)
    ).encode()
    data = bytearray(whole)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.randrange(1, 20)]
        elif kind == 2:
            data[at:at] = rng.choice(
                (
                    b"null",
                    b"-1",
                    b"1e999",
                    b'"',
                    b"{",
                    b"[[[[",
                    b"\\ud800",
                    b"9" * 40,
                    b"\x00",
                    b"true",
                )
            )
        else:
            data[at : at + rng.randrange(1, 12)] = rng.randbytes(rng.randrange(1, 8))
        data = data or bytearray(b" ")
    return bytes(data)


def fuzz(server: Running, count: int, seed: int) -> None:
    rng = random.Random(seed)
    with server.client() as client:
        for _ in range(count):
            body = mutated(rng)
            status = client.post("/v1/chat/completions", content=body).status_code
            assert status in (200, 400), (status, body)
    assert server.complete(question("Hello", max_tokens=2)).status_code == 200


def test_odd_bodies(server: Running) -> None:
    with server.client() as client:
        for body in (
            b"",
            b"[]",
            b"null",
            b"{",
            b'{"messages": {}}',
            b"[" * 100_000,
            b'"' + b"\xff" * 50,
            b"1" * 5000,
        ):
            assert client.post("/v1/chat/completions", content=body).status_code == 400
        assert client.get("/v1/chat/completions").status_code == 405
        assert client.get("/nowhere").status_code == 404
        assert client.get("/nowhere").json()["error"]["message"] == "Not Found"
    fuzz(server, 40, 0)


@pytest.mark.slow
def test_odd_bodies_10000_times(server: Running) -> None:
    fuzz(server, 10_000, 1)


# ---- leavers, and too many


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_its_answer(
    stream: bool, server: Running, slow_model: list[Job]
) -> None:
    body = json.dumps(question(f"Hello {stream}", max_tokens=2000, stream=stream)).encode()
    for _ in range(3):
        slow_model.clear()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head(server, len(body)) + body)
            wait_until(lambda: slow_model and slow_model[0].statistics.generated_tokens >= 4)
        left = slow_model[0].statistics.generated_tokens
        server.wait_until_idle()
        assert slow_model[0].statistics.generated_tokens <= left + 2


def is_occupied(server: Running, by: tuple[int, int]) -> bool:
    return server.scheduler.occupancy == by


def test_a_full_queue_says_so(server: Running, slow_model: list[Job]) -> None:
    connections: list[socket.socket] = []
    # Those that are answered first, or it would still take from those that wait.
    for full in ((8, 0), (8, 32)):
        for number in range(len(connections), sum(full)):
            body = json.dumps(question(f"Hello {number}", max_tokens=2000, stream=True)).encode()
            connections.append(socket.create_connection(("127.0.0.1", server.port)))
            connections[-1].sendall(head(server, len(body)) + body)
        wait_until(partial(is_occupied, server, full))
    with server.client(**{"user-agent": ""}) as client:  # as those connections
        answer = client.post("/v1/chat/completions", json=question("One more"))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["type"] == "server_busy"
    with server.client() as client:
        health = client.get("/health").json()
    assert (health["status"], health["running"], health["waiting"]) == ("ok", 8, 32)
    for connection in connections:
        connection.close()
    server.wait_until_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_is_an_error_of_the_same_shape(
    stream: bool, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(body: bytes) -> ChatRequest:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(ChatRequest, "parse", staticmethod(broken))
    answer = server.complete(question("Hello", stream=stream))
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/json")
    error = answer.json()["error"]
    assert (error["type"], error["message"]) == (
        "server_error",
        "the server failed; its log says why",
    )


# ---- the history


def told(answer: Any) -> Any:
    """The last that an answer says before its end."""
    assert answer.status_code == 200
    return json.loads(answer.text.removesuffix("data: [DONE]\n\n").rpartition("data: ")[2])


@pytest.mark.parametrize("stream", [False, True])
def test_a_history_that_cannot_be_written_costs_no_answer(
    stream: bool, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = question("Hello", max_tokens=1, conversation="00000000feedbeef", stream=stream)
    monkeypatch.setattr(server.history, "path", Path("/dev/null/history.sqlite3"))
    answer = server.complete(asked)
    assert told(answer)["notice"].startswith("not kept in the history: ")
    assert "`chat --no-history`" in told(answer)["notice"]
    monkeypatch.undo()
    del asked["conversation"]
    assert text_of(answer) == text_of(server.complete(asked))


@pytest.mark.parametrize("stream", [False, True])
def test_a_history_that_does_not_answer_costs_no_answer(
    stream: bool, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And holds nothing up meanwhile."""
    asked = question("Hello", max_tokens=1, conversation="00000000feedbeef", stream=stream)
    held, go = threading.Event(), threading.Event()

    def save(*_: Any) -> None:
        held.set()
        assert go.wait(60)

    monkeypatch.setattr(server.history, "save", save)
    monkeypatch.setattr("smolvlm_mlx.server.conversations.SAVE_SECONDS", 0.5)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.complete, asked)
        assert held.wait(60)
        with server.client() as client:
            assert client.get("/health").json()["status"] == "ok"
        assert not go.is_set()
        notice = told(answer.result())["notice"]
    go.set()
    assert notice == "not kept in the history: no answer in 0.5 s"


def test_the_page_and_answers_do_not_wait_for_the_history(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many ask it: more than there are threads for all else."""
    held, go, count = threading.Semaphore(0), threading.Event(), 50

    def delete(id: str) -> None:
        held.release()
        assert go.wait(60)

    def ask() -> None:
        with server.client() as client:
            assert client.delete("/conversations/00000000feedbeef").status_code == 204

    monkeypatch.setattr(server.history, "delete", delete)
    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(ask) for _ in range(count)]
        for _ in range(KEEPERS):
            assert held.acquire(timeout=60)
        wait_until(
            lambda: (
                server.service.conversations.keepers.statistics().tasks_waiting == count - KEEPERS
            )
        )
        with server.client() as client:
            assert client.get("/").status_code == 200
        assert server.complete(question("Hello", max_tokens=1)).status_code == 200
        assert not any(each.done() for each in asked)
        go.set()
    assert all(each.exception() is None for each in asked)


def test_200_conversations_are_listed(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[int, str]]()

    def listed(most: int, words: str) -> list[Any]:
        asked.append((most, words))
        return []

    monkeypatch.setattr(server.history, "list", listed)
    with server.client() as client:
        assert client.get("/conversations").json() == {"kept": True, "conversations": []}
        client.get("/conversations?words=red+cat")
    assert asked == [(200, ""), (200, "red cat")]


def test_without_a_history_there_is_no_conversation(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.service.conversations, "history", None)
    with server.client() as client:
        assert client.get("/conversations").json() == {"kept": False, "conversations": []}
        for method in ("GET", "DELETE"):
            answer = client.request(method, "/conversations/00000000")
            error = answer.json()["error"]
            assert (answer.status_code, error["type"]) == (404, "invalid_request_error")
            assert error["message"] == "no history is kept (--no-history)"


def test_conversations_are_kept(server: Running) -> None:
    talk = question("What is this?", data_url(), max_tokens=4, conversation="0123456789abcdef")
    talk["messages"][0]["content"][0]["name"] = "cat.png"
    answer = server.complete(talk).json()["choices"][0]["message"]["content"]
    messages = server.history.load("0123456789abcdef")
    assert [message.role for message in messages] == ["user", "assistant"]
    assert messages[-1].text == answer.rstrip()
    assert messages[0].media[0].name == "cat.png"
    server.complete(question("Not kept", max_tokens=2))
    with server.client() as client:
        listed = client.get("/conversations").json()["conversations"]
        titles = {found["id"]: found["title"] for found in listed}
        assert titles["0123456789abcdef"] == "What is this?"
        assert "Not kept" not in titles.values()
        assert client.get("/conversations?words=nothing").json()["conversations"] == []
        told = client.get("/conversations/0123456789abcdef").json()
        assert told.keys() == {"id", "messages", "kept"}
        assert told["id"] == "0123456789abcdef"
        loaded = told["messages"]
        assert base64.b64decode(loaded[0]["content"][0]["base64"]) == messages[0].media[0].data
        assert client.delete("/conversations/0123456789abcdef").status_code == 204
        assert client.get("/conversations/0123456789abcdef").status_code == 404
        assert client.delete("/conversations/0123456789abcdef").status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_what_another_says_stands_beside(stream: bool, server: Running) -> None:
    id = f"00000000cafe{stream:d}"

    def ask(text: str) -> Any:
        """Where it is kept."""
        more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        return told(server.complete(question(text, max_tokens=2, conversation=id, **more)))["kept"]

    first, second = ask("One"), ask("Two")
    assert [place["branches"] for place in first] == [[place["id"]] for place in first]
    assert second[0]["branches"] == [first[0]["id"], second[0]["id"]]
    with server.client() as client:
        path = f"/conversations/{id}"
        assert client.get(path).json()["kept"] == second
        moved = client.post(f"{path}?message={first[0]['id']}").json()
        assert moved["kept"][0] == {**second[0], "id": first[0]["id"]}
        assert moved["messages"][0]["content"][0]["text"] == "One"
        assert client.get(path).json() == moved
        for message, status in (("999", 404), ("x", 400), ("", 400)):
            assert client.post(f"{path}?message={message}").status_code == status
        assert client.delete(path).status_code == 204
    answer = told(server.complete(question("Three", max_tokens=2, conversation=id)))
    assert "was deleted, and keeps no more" in answer["notice"]


NOT_SO = {"continue_final_message": False}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_cut_off_goes_on(stream: bool, seeing: Running) -> None:
    id = f"00000000ca11{stream:d}"
    asked = question("Hello", conversation=id, stream=stream)
    whole = text_of(seeing.complete(question("Hello", max_tokens=12)))
    first = text_of(seeing.complete({**asked, "max_tokens": 5}))
    assert seeing.history.load(id)[-1].interrupted
    beginning = {"role": "assistant", "content": first}
    more = {**asked, "messages": [*asked["messages"], beginning], "continue_final_message": True}
    rest = text_of(seeing.complete({**more, "max_tokens": 7, "add_generation_prompt": False}))
    assert first + rest == whole
    assert [message.text for message in seeing.history.load(id)] == ["Hello", whole.rstrip()]
    assert len(seeing.history.branches(id)) == 1
    # One of nothing begins.
    nothing = {"role": "assistant", "content": ""}
    more["messages"] = [*asked["messages"], nothing]
    assert text_of(seeing.complete({**more, "max_tokens": 5})) == first
    for wrong, param in (
        ({"messages": asked["messages"]}, "continue_final_message"),
        (always("x"), "continue_final_message"),
        ({"add_generation_prompt": True}, "add_generation_prompt"),
        (
            {"continue_final_message": False, "add_generation_prompt": False},
            "add_generation_prompt",
        ),
    ):
        error = seeing.complete({**more, **wrong}).json()["error"]
        assert error["param"] == param
    seeing.history.delete(id)


# ---- the program


@dataclass
class Served:
    """What `serve` printed, and how its application answers to its page's address."""

    printed: str
    status: Callable[..., int]


@pytest.fixture
def served(
    tiny: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Served]]:
    """Run `serve` with options, with nothing but the network left out."""
    apps = list[Any]()

    def run(self: uvicorn.Server, sockets: list[socket.socket]) -> None:
        for listener in sockets:
            listener.close()
        apps.append(self.config.app)

    async def end() -> None:
        for app in apps:
            async with app.router.lifespan_context(app):
                pass

    monkeypatch.setattr(uvicorn.Server, "run", run)

    def serve(*options: object) -> Served:
        code, out, _ = call("serve", "-m", tiny, "--port", 0, "--no-history", *options)
        assert code == 0
        base = out.split()[1].partition("#")[0].rstrip("/")

        async def ask(**headers: str) -> int:
            async with httpx2.AsyncClient(
                transport=httpx2.ASGITransport(apps[-1]), base_url=base
            ) as client:
                return (await client.get("/v1/models", headers=headers)).status_code

        return Served(out, lambda **headers: asyncio.run(ask(**headers)))

    yield serve
    asyncio.run(end())


def test_serve_asks_for_its_token(
    served: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    random = served()
    token = random.printed.split("token: ")[1].strip()
    assert f"#token={token}\n" in random.printed
    assert len(token) >= 32
    assert random.status() == 401
    assert random.status(authorization=f"Bearer {token}") == 200
    assert f"token: {token}\n" in served().printed
    assert token not in served("--new-token").printed
    given = served("--token", "mine")
    assert "token: mine\n" in given.printed
    assert given.status(authorization="Bearer mine") == 200
    assert given.status(authorization=f"Bearer {token}") == 401
    monkeypatch.setenv("SMOLVLM_MLX_TOKEN", "theirs")
    assert served().status(authorization="Bearer theirs") == 200


def test_serve_without_a_token_lets_everyone_in(
    served: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kept in ("", "mine"):  # one that stands in the environment is no one's wish of now
        monkeypatch.setenv("SMOLVLM_MLX_TOKEN", kept)
        found = served("--no-token")
        assert "token" not in found.printed
        assert found.status() == 200
        assert found.status(authorization="Bearer wrong") == 200


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("LocalHost", "127.0.0.1"),
        pytest.param("::1", "[::1]", marks=IPV6),
        pytest.param("[::1]", "[::1]", marks=IPV6),
        pytest.param("0:0:0:0:0:0:0:1", "[::1]", marks=IPV6),
        pytest.param("::", "[::1]", marks=IPV6),
    ],
)
def test_serve_prints_an_address_that_answers(
    host: str, shown: str, served: Callable[..., Served]
) -> None:
    found = served("--host", host, "--no-token")
    page, port = found.printed.split()[1].rstrip("/").rsplit(":", 1)
    assert page == f"http://{shown}"
    assert found.printed == f"page: {page}:{port}/\nAPI:  {page}:{port}/v1\n"
    assert found.status() == 200  # with the printed address as Host
    for name in ("127.0.0.1", "localhost", "[::1]"):
        assert found.status(host=f"{name}:{port}", origin=f"http://{name}:{port}") == 200
    for name in ("0.0.0.0", "[::]", "", "evil.example"):
        assert found.status(host=f"{name}:{port}") == 403
    with listen(host, 0) as listener:
        socket.create_connection((shown.strip("[]"), listener.getsockname()[1]), 60).close()


@pytest.mark.parametrize("host", ["a" * 70, "\0"])
def test_a_host_that_is_none(host: str) -> None:
    with pytest.raises(ServerError, match=r"cannot listen there \([^()]+\); choose another"):
        listen(host, 0)


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("friend", {"friend:8080"}),
        ("friend:1", {"friend:1"}),
        ("friend:80", {"friend:80", "friend"}),
        ("friend:443", {"friend:443", "friend"}),
        ("10.0.0.1", {"10.0.0.1:8080"}),
        ("FD00:0::5", {"[fd00::5]:8080"}),
        ("[fd00::5]", {"[fd00::5]:8080"}),
        ("[fd00::5]:1", {"[fd00::5]:1"}),
        ("0.0.0.0", set()),
        ("::", set()),
        ("", set()),
    ],
)
def test_what_browsers_call_a_host(name: str, sent: set[str]) -> None:
    assert {*host_headers([name], 8080)} == sent
    usual = {each.replace(":8080", ":80") for each in sent}
    bare = {each.removesuffix(":80") for each in usual}
    assert {*host_headers([name], 80)} == usual | bare


@contextlib.contextmanager
def terminated(
    checkpoint: Path, home: Path, grace: float, max_tokens: int
) -> Iterator[tuple[list[str], str]]:
    """A server that gets SIGTERM while it streams an answer: the lines of the answer after that,
    and stderr."""
    environment = {
        **os.environ,
        **dict.fromkeys(("XDG_DATA_HOME", "XDG_CACHE_HOME", "HOME"), str(home)),
    }
    program = f"from smolvlm_mlx.cli import main, serve; serve.GRACE_SECONDS = {grace}; main.main()"
    options = ["-m", str(checkpoint), *"--port 0 --token t --alias gpt-4o --alias b".split()]
    command = [sys.executable, "-c", program, "serve", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        page = process.stdout.readline()
        assert page.startswith("page: http://127.0.0.1:")
        assert page.endswith("/#token=t\n")
        base = page.split()[1].partition("#")[0]
        client = httpx2.Client(
            base_url=base, headers={"authorization": "Bearer t"}, timeout=60, **DIRECT
        )
        body, lines = question("Hello", max_tokens=max_tokens, stream=True), list[str]()
        with client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
            listed = client.get("/v1/models").json()["data"]
            assert [model["id"] for model in listed] == [checkpoint.name, "gpt-4o", "b"]
            coming = answer.iter_lines()
            next(coming)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            with contextlib.suppress(httpx2.RemoteProtocolError):  # it may be broken off
                lines.extend(coming)
        assert process.stderr is not None
        yield lines, process.stderr.read()


def test_sigterm_lets_an_answer_end(tiny: Path, tmp_path: Path) -> None:
    with terminated(tiny, tmp_path, 60, 50) as (lines, stderr):
        assert "data: [DONE]" in lines
        assert stderr == ""


def test_sigterm_ends_it_in_time(endless: Path, tmp_path: Path) -> None:
    with terminated(endless, tmp_path, 0.2, 90_000) as (lines, stderr):
        assert "the server is shutting down" in lines[-4]
        assert lines[-2:] == ["data: [DONE]", ""]
        assert stderr == ""


def test_a_port_that_is_taken(tiny: Path, server: Running) -> None:
    code, _, error = run("serve", "-m", tiny, "--port", server.port)
    assert code == 1
    assert error == (
        f"smolvlm-mlx: 127.0.0.1:{server.port}: cannot listen there (Address already in use); "
        "choose another --host or --port\n"
    )
