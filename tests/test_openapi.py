"""The API does what its description says: every route, and what schemathesis makes up."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from smolvlm_mlx.events import End, Text
from smolvlm_mlx.generation.scheduler import BusyError, Job, State
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.server import assets, security
from smolvlm_mlx.server.app import Service, make_app
from smolvlm_mlx.server.openai import ChatCompletion, ChatCompletionChunk, ErrorBody
from smolvlm_mlx.server.openapi import ANSWERS, EXAMPLES, document
from smolvlm_mlx.tasks.history import History
from tests.support.checkpoints import load_processor
from tests.support.http import TOKEN, Running

import pytest
from hypothesis import HealthCheck, given, settings
from starlette.routing import BaseRoute, Mount, Route

HEADERS = {"authorization": f"Bearer {TOKEN}"}


class Parrot:
    """A scheduler whose answer is always there already."""

    def state(self) -> State:
        return State("ok", 1, 0, 1, "no memory", 0.25)

    def submit(self, job: Job) -> None:
        job.put(Text("Hel"))
        job.put(Text("lo"))
        job.statistics.generated_tokens, job.statistics.finish_reason = 2, "stop"
        job.put(End(job.statistics))

    def check(self, tiles: int, schema: object, max_tokens: int) -> None:
        pass

    def close(self, seconds: float) -> None:
        pass


@pytest.fixture(scope="module")
def api(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The server as its own description has it."""
    history = History(tmp_path_factory.mktemp("history") / "history.sqlite3")
    schemathesis = pytest.importorskip("schemathesis")
    parrot: Any = Parrot()
    service = Service(parrot, load_processor(tiny), "org/tiny", history, ImageOptions())
    app = make_app(service, ["testserver"], TOKEN)
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers=HEADERS)


def check_stream(text: str) -> list[str]:
    """Each event is as described; returns their data."""
    *events, end = text.split("\n\n")
    assert end == ""
    *chunks, last = [event.removeprefix("data: ") for event in events]
    for chunk in chunks:
        ChatCompletionChunk.model_validate_json(chunk)
    if last != "[DONE]":
        ErrorBody.model_validate_json(last)
    return [*chunks, last]


OPERATIONS = [
    (path, method)
    for path, operations in document()["paths"].items()
    for method in ("get", "post", "delete")
    if method in operations
]
EVERYWHERE = {400, 401, 403, 405, 408, 413, 500}  # errors that each of them may have
# What has no parameter, and no body, has nothing that is wrong.
FALLIBLE = [(path, method) for path, method in OPERATIONS if "{" in path or method == "post"]


def try_out(api: Any, path: str, method: str, mode: str, count: int) -> None:
    """Ask what fits the description (`mode` positive), or what does not (negative); what is
    answered is as described, and so is each event of a stream."""
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks as those

    checks = [
        not_a_server_error,
        those.status_code_conformance,
        those.content_type_conformance,
        those.response_headers_conformance,
        those.response_schema_conformance,
        those.unsupported_method,
        those.allow_header_conformance,
    ]

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(case=api[path][method].as_strategy(generation_mode=GenerationMode(mode)))
    def ask(case: Any) -> None:
        response = case.call_and_validate(headers=HEADERS, checks=checks)
        if response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
            check_stream(response.text)

    ask()


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_what_fits_the_description_is_answered_as_described(
    path: str, method: str, api: Any
) -> None:
    try_out(api, path, method, "positive", 20)


@pytest.mark.parametrize(("path", "method"), FALLIBLE)
def test_what_does_not_fit_the_description_is_answered_as_described(
    path: str, method: str, api: Any
) -> None:
    try_out(api, path, method, "negative", 20)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize(("path", "method"), FALLIBLE)
def test_1000_answers_are_as_described(path: str, method: str, mode: str, api: Any) -> None:
    try_out(api, path, method, mode, 1000)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_answered(name: str, server: Running) -> None:
    answer = server.complete({**EXAMPLES[name], "max_tokens": 3})
    assert answer.status_code == 200
    if name == "stream":
        *_, last, _ = check_stream(answer.text)
        assert ChatCompletionChunk.model_validate_json(last).usage is not None
    else:
        assert ChatCompletion.model_validate(answer.json()).usage.completion_tokens <= 3


def test_every_route_is_described_with_its_methods(server: Running) -> None:
    described = {
        path: {method.upper() for method in operations} & {"GET", "POST", "DELETE"}
        for path, operations in document()["paths"].items()
    }
    assert described == {
        route.path.replace(":path", ""): (route.methods or set()) - {"HEAD"}
        for route in flat(server.service.routes())
        if route.path not in assets.ASSETS
        and not route.path.startswith(("/models", "/chat", "/c/"))
    }


def flat(routes: Iterable[BaseRoute], before: str = "") -> Iterator[Route]:
    for route in routes:
        if isinstance(route, Mount):
            yield from flat(route.routes, route.path)
        elif isinstance(route, Route):
            yield Route(before + route.path, route.endpoint, methods=[*(route.methods or ())])


def test_every_error_is_described(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(job: Job) -> None:
        raise BusyError("full")

    monkeypatch.setattr(server.scheduler, "submit", full)
    monkeypatch.setattr(security, "MAX_BODY_BYTES", 1000)
    chat, stranger = "/v1/chat/completions", {"host": "evil.example"}
    body: Any = EXAMPLES["text"]
    asked: dict[int, tuple[str, str, dict[str, Any]]] = {
        400: ("POST", chat, {"content": b"{"}),
        401: ("POST", chat, {"headers": {"authorization": ""}}),
        403: ("POST", chat, {"headers": stranger}),
        404: ("GET", "/v1/models/none", {}),
        405: ("GET", chat, {}),
        413: ("POST", chat, {"content": b"x" * 1001}),
        503: ("POST", chat, {"json": body}),
    }
    with server.client() as client:
        for status, (method, path, more) in asked.items():
            answer = client.request(method, path, **more)
            assert answer.status_code == status
            assert answer.headers["content-type"] == "application/json"
            assert ErrorBody.model_validate(answer.json()).error.message
    assert {*asked, 408, 500} == {*EVERYWHERE, 404, 503}  # all that are described


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_an_operation_has_its_answer_and_its_errors(path: str, method: str) -> None:
    described = document()["paths"][path][method]["responses"]
    errors = EVERYWHERE | ({404} if "{" in path else set())
    errors |= {503} if path.endswith(("/completions", "/events")) else set()
    is_done = method == "delete" or path.endswith(("/stop", "/restore"))
    assert [*map(int, described)] == [204 if is_done else 200, *sorted(errors)]
    for status in errors:
        assert described[str(status)]["content"] == {
            "application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}
        }


def test_the_description_is_one_of_openapi(server: Running) -> None:
    with server.client() as client:
        told = client.get("/openapi.json").json()
    assert told == document()
    references = set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(told)))
    schemas = told["components"]["schemas"]
    assert references <= {f"#/components/schemas/{name}" for name in schemas}
    request = schemas["ChatRequest"]["properties"]
    assert {"messages", "n", "stream", "max_tokens", "seed"} <= set(request)
    # What is sent is all said, so that a field that is none fits no description.
    for shape in ANSWERS:
        assert schemas[shape.__name__]["additionalProperties"] is False


def test_what_is_asked_with_is_described() -> None:
    paths, text = document()["paths"], {"type": "string"}
    id = {"name": "id", "in": "path", "required": True, "schema": {**text, "minLength": 1}}
    assert paths["/v1/models/{id}"]["parameters"] == [id]
    assert paths["/conversations/{id}"]["parameters"] == [id]
    (words,) = paths["/conversations"]["parameters"]
    about = {"description": words["description"]}
    assert words == {"name": "words", "in": "query", "required": False, "schema": text, **about}
    body = paths["/v1/chat/completions"]["post"]["requestBody"]
    assert body["required"] is True
    assert body["content"]["application/json"]["schema"]["$ref"].endswith("/ChatRequest")
    examples = body["content"]["application/json"]["examples"]
    assert examples == {name: {"value": value} for name, value in EXAMPLES.items()}


def test_each_event_of_a_stream_is_described() -> None:
    answers = document()["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert answers.keys() == {"application/json", "text/event-stream"}
    event = answers["text/event-stream"]["schema"]
    assert (event["type"], event["required"]) == ("object", ["data"])
    end, chunk = event["properties"]["data"]["anyOf"]
    assert end == {"const": "[DONE]"}
    assert [each["$ref"].rpartition("/")[2] for each in chunk["contentSchema"]["oneOf"]] == [
        "ChatCompletionChunk",
        "ErrorBody",
    ]
