"""Clients that people use ask a real server, each in its own way, and are told what the model says.

The model is the bundled one, which sees. All but openai are in the extra `clients`: what is not
installed is skipped.
"""

import asyncio
import gc
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tests.support.checkpoints import Loaded
from tests.support.clients import (
    COLOR,
    DEMO,
    SAMPLED,
    TOOL,
    Asked,
    answer_to,
    form_of,
    says,
    user,
)
from tests.support.http import TOKEN, Running
from tests.support.pictures import encoded

import openai
import pytest
from PIL import Image
from pydantic import BaseModel

# What clients warn of among themselves; and they leave connections open.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Items? .* on TypedDict class:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_.*' attribute:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

SQUARE = Image.new("RGB", (64, 64), "red")
GRASS: list[Any] = [user("What color is grass?")]
VARIED = [user("Describe the picture.")]  # there is none, so what is sampled varies
OPENAI_FIELDS = {
    "max_tokens",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "response_format",
}

REQUESTS = {
    "words": Asked(GRASS, answer="green"),
    "system": Asked([says("system", "Be brief."), user("What comes after 3?")], {"max_tokens": 9}),
    "picture": Asked([user("What does the text say?", DEMO)], answer="HAT"),
    "two pictures": Asked([user("Do both pictures have a red shape?", DEMO, SQUARE)]),
    "low detail": Asked(
        [user("Describe the picture.", DEMO, detail="low")], {"max_tokens": 20}, one_tile=True
    ),
    "sampled": Asked(VARIED, SAMPLED),
    "top_k": Asked(VARIED, {**SAMPLED, "top_k": 4}),
    "top_p": Asked(VARIED, {**SAMPLED, "top_p": 0.7}),
    "min_p": Asked(VARIED, {**SAMPLED, "min_p": 0.05}),
    "repetition": Asked(VARIED, {"repetition_penalty": 1.5, "max_tokens": 12}),
    "presence": Asked(VARIED, {"presence_penalty": 2.0, "max_tokens": 12}),
    "frequency": Asked(VARIED, {"frequency_penalty": 2.0, "max_tokens": 12}),
    "short": Asked([user("Describe the picture.", DEMO)], {"max_tokens": 3}, "A large"),
    "stop": Asked([user("Describe the picture.", DEMO)], {"stop": [" in"]}, "A large red circle"),
    "schema": Asked(GRASS, {"response_format": form_of(COLOR)}, schema=COLOR),
    "follow-up": Asked(
        [
            user("My favorite color is red."),
            says("assistant", "OK."),
            user("What is my favorite color?"),
        ],
        answer="red",
    ),
}


class Color(BaseModel):
    color: Literal["pink", "green"]


@pytest.fixture(scope="module", autouse=True)
def tidy() -> Iterator[None]:
    """What clients leave open is gone before other tests."""
    yield
    gc.collect()


@pytest.fixture
def url(seeing: Running) -> str:
    """What people set as the base URL."""
    return f"http://127.0.0.1:{seeing.port}/v1"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def litellm(seeing: Running) -> Iterator[Any]:
    """The module, which asks the web for prices unless it is told not to; it has asked before, for
    it imports much when it first does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        module = pytest.importorskip("litellm")
        url = f"http://127.0.0.1:{seeing.port}/v1"
        module.completion("openai/tiny", GRASS, api_base=url, api_key=TOKEN, max_retries=0)
        yield module
        module.in_memory_llm_clients_cache.flush_cache()


@pytest.fixture
def chat(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    langchain = pytest.importorskip("langchain_openai")
    return langchain.ChatOpenAI(model="tiny", base_url=url, api_key=TOKEN, max_retries=0)


@pytest.fixture
def llm(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, told of the server as its documentation says."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    module = pytest.importorskip("llm")
    known = {"model_id": "tiny", "model_name": "tiny", "api_base": url, "api_key_name": "tiny"}
    may = {"vision": True, "supports_schema": True, "supports_tools": True}
    # YAML that is JSON.
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([known | may]))
    (tmp_path / "keys.json").write_text(json.dumps({"tiny": TOKEN}))
    return module


def are_different(answers: Sequence[str]) -> bool:
    return len(answers) == len(set(answers)) == 3


# ---- the same requests of every client, whole and streamed


def split(fields: dict[str, Any]) -> dict[str, Any]:
    """As openai takes them: fields that are not OpenAI's are its `extra_body`."""
    known = {name: value for name, value in fields.items() if name in OPENAI_FIELDS}
    extra = {name: value for name, value in fields.items() if name not in OPENAI_FIELDS}
    return {**known, "extra_body": extra}


Ask = Callable[[Asked, bool], str]


@pytest.fixture
def by_openai(client: openai.OpenAI) -> Ask:
    def ask(asked: Asked, stream: bool) -> str:
        answer: Any = client.chat.completions.create(
            model="tiny", messages=asked.messages, stream=stream, **split(asked.fields)
        )
        if not stream:
            return str(answer.choices[0].message.content)
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer)

    return ask


@pytest.fixture
def by_openai_async(url: str) -> Ask:
    async def ask(asked: Asked, stream: bool) -> str:
        async with openai.AsyncOpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client:
            answer: Any = await client.chat.completions.create(
                model="tiny", messages=asked.messages, stream=stream, **split(asked.fields)
            )
            if not stream:
                return str(answer.choices[0].message.content)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

    return lambda asked, stream: asyncio.run(ask(asked, stream))


@pytest.fixture
def by_litellm(litellm: Any, url: str) -> Ask:
    def ask(asked: Asked, stream: bool) -> str:
        known = {"api_base": url, "api_key": TOKEN, "max_retries": 0, "stream": stream}
        answer = litellm.completion("openai/tiny", asked.messages, **known, **asked.fields)
        if not stream:
            return str(answer.choices[0].message.content)
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer)

    return ask


@pytest.fixture
def by_langchain(chat: Any) -> Ask:
    def ask(asked: Asked, stream: bool) -> str:
        model = chat.bind(**split(asked.fields))
        if not stream:
            return str(model.invoke(asked.messages).content)
        return "".join(chunk.content for chunk in model.stream(asked.messages))

    return ask


@pytest.fixture(params=["openai", "openai_async", "litellm", "langchain"])
def ask(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"by_{request.param}")


@pytest.mark.parametrize("name", REQUESTS)
def test_a_client_is_told_what_the_model_says(name: str, ask: Ask, bundled: Loaded) -> None:
    asked = REQUESTS[name]
    answer = answer_to(asked, bundled)
    assert asked.answer in (None, answer)
    assert ask(asked, False) == answer
    assert ask(asked, True) == answer


@pytest.mark.parametrize(
    ("name", "field"),
    [
        (name, field)
        for name, asked in REQUESTS.items()
        for field in asked.fields
        if field not in ("max_tokens", "seed")
    ],
)
def test_a_field_of_a_request_changes_the_answer(name: str, field: str, bundled: Loaded) -> None:
    asked = REQUESTS[name]
    others = {key: value for key, value in asked.fields.items() if key != field}
    schema = None if field == "response_format" else asked.schema
    without = replace(asked, fields=others, schema=schema)
    assert answer_to(without, bundled) != answer_to(asked, bundled)


# ---- openai


def test_openai_gets_usage_at_the_end_of_a_stream(client: openai.OpenAI) -> None:
    whole: Any = client.chat.completions.create(model="tiny", messages=GRASS)
    streamed: Any = client.chat.completions.create(
        model="tiny", messages=GRASS, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = streamed
    assert (last.choices, last.usage.total_tokens) == ([], whole.usage.total_tokens)
    assert all(chunk.usage is None and chunk.id == last.id for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_openai_gets_several_answers_to_one_question(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": VARIED, "n": 3, **SAMPLED}
    whole = client.chat.completions.create(**asked)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert are_different(texts)
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_openai_parses_an_answer_into_an_object(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": GRASS, "response_format": Color}
    parsed = client.chat.completions.parse(**asked).choices[0].message.parsed
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0].message.parsed
    assert parsed == streamed == Color(color="pink")


def test_openai_lists_models_and_retrieves_one(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("another")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("content", ["", None, []])
def test_an_answer_that_was_empty_is_no_reason_to_refuse_the_next(
    content: Any, client: openai.OpenAI
) -> None:
    empty = {"role": "assistant", "content": content}
    messages: Any = [user("Remember CAT."), empty, user("What color is grass?")]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=9)
    assert answer.choices[0].message.content


def test_tools_that_may_not_be_called_are_no_reason_to_refuse(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": GRASS, "tools": [TOOL], "tool_choice": "none"}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == "green"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"temperature": 11}, "temperature", "temperature: 11.0 is not in 0..10"),
        ({"tools": [TOOL]}, "tools", "not supported"),
        ({"extra_body": {"temprature": 1}}, "temprature", "temperature"),
        ({"messages": [user("word " * 9000)]}, None, "context"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages.0.content.0.type",
            "input_audio",
        ),
    ],
)
def test_openai_raises_its_own_error_with_our_line(
    fields: dict[str, Any], param: str | None, message: str, stream: bool, client: openai.OpenAI
) -> None:
    asked: Any = {"model": "tiny", "messages": GRASS, "stream": stream, **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.param == param


def test_openai_says_that_the_token_is_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError, match="no valid token"):
        client.with_options(api_key="wrong").models.list()


# ---- litellm


def test_litellm_raises_its_own_errors_with_our_line(litellm: Any, url: str) -> None:
    asked = {"model": "openai/tiny", "messages": GRASS, "api_base": url, "max_retries": 0}
    with pytest.raises(litellm.BadRequestError, match=r"temperature: 11.0 is not in 0\.\.10"):
        litellm.completion(**asked, api_key=TOKEN, temperature=11)
    with pytest.raises(litellm.BadRequestError, match=r"tools: .*not supported"):
        litellm.completion(**asked, api_key=TOKEN, tools=[TOOL])
    with pytest.raises(litellm.AuthenticationError, match="no valid token"):
        litellm.completion(**asked, api_key="wrong")


@pytest.mark.parametrize("provider", ["hosted_vllm", "lm_studio"])
def test_litellm_asks_as_it_asks_other_servers(
    provider: str, litellm: Any, url: str, bundled: Loaded
) -> None:
    known = {"api_base": url, "api_key": TOKEN, "max_retries": 0}
    answer = litellm.completion(f"{provider}/tiny", VARIED, **known, **SAMPLED)
    assert answer.choices[0].message.content == answer_to(REQUESTS["sampled"], bundled)


def test_litellm_gets_an_object_usage_and_several_answers(litellm: Any, url: str) -> None:
    asked = {"model": "openai/tiny", "api_base": url, "api_key": TOKEN, "max_retries": 0}
    answer = litellm.completion(**asked, messages=GRASS, response_format=Color)
    assert json.loads(answer.choices[0].message.content) == {"color": "pink"}
    streamed = litellm.completion(
        **asked, messages=GRASS, stream=True, stream_options={"include_usage": True}
    )
    *_, last = streamed
    assert last.usage.completion_tokens == 2
    answer = litellm.completion(**asked, messages=VARIED, n=3, **SAMPLED)
    assert are_different([choice.message.content for choice in answer.choices])


def test_litellm_asks_without_waiting(litellm: Any, url: str) -> None:
    async def ask() -> str:
        known = {"api_base": url, "api_key": TOKEN, "max_retries": 0}
        answer = await litellm.acompletion("openai/tiny", GRASS, **known)
        await litellm.close_litellm_async_clients()
        return str(answer.choices[0].message.content)

    assert asyncio.run(ask()) == "green"


def test_litellm_finds_the_model(litellm: Any, url: str) -> None:
    found = litellm.get_valid_models(
        check_provider_endpoint=True, custom_llm_provider="openai", api_base=url, api_key=TOKEN
    )
    assert found == ["tiny"]


# ---- langchain-openai


def test_langchain_gets_an_object(chat: Any) -> None:
    asked = chat.with_structured_output(Color, method="json_schema")
    assert asked.invoke(GRASS) == Color(color="pink")


def test_langchain_gets_usage_and_why_an_answer_ended(chat: Any) -> None:
    answer = chat.invoke("Describe the picture.", max_tokens=2)
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata["output_tokens"] == 2
    chunks = [*chat.stream("What color is grass?", stream_usage=True)]
    assert [chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata] == [
        2
    ]


def test_langchain_gets_several_answers(chat: Any) -> None:
    human = pytest.importorskip("langchain_core.messages").HumanMessage
    asked = [human(VARIED[0]["content"])]
    (answers,) = chat.generate([asked], n=3, **SAMPLED).generations
    assert are_different([answer.text for answer in answers])


def test_langchain_raises_openais_errors_with_our_line(chat: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=r"tools: .*not supported"):
        chat.bind_tools([TOOL]).invoke("Hello")
    with pytest.raises(openai.BadRequestError, match=r"temperature: 11.0 is not in 0\.\.10"):
        chat.bind(temperature=11).invoke("Hello")


def test_langchain_asks_several_at_once(chat: Any) -> None:
    questions = ["What color is grass?", "What color is the sky?", "What comes after 3?"]
    assert [answer.content for answer in chat.batch(questions)] == ["green", "blue", "4"]
    answers = asyncio.run(chat.abatch(questions))
    assert [answer.content for answer in answers] == ["green", "blue", "4"]


# ---- llm, which puts pictures after the words


def shown(text: str, *pictures: Image.Image, **fields: Any) -> Asked:
    return Asked([user(text, *pictures, first="words")], fields)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, shown("Hello")),
        ({"system": "Be brief."}, Asked([says("system", "Be brief."), user("Hello")])),
        ({"attachments": [DEMO]}, shown("Describe the picture.", DEMO)),
        ({"attachments": [DEMO, SQUARE]}, shown("Describe the picture.", DEMO, SQUARE)),
        (SAMPLED, shown("Hello", **SAMPLED)),
        ({**SAMPLED, "top_p": 0.5}, shown("Hello", **SAMPLED, top_p=0.5)),
        ({"presence_penalty": 2.0}, shown("Describe the picture.", presence_penalty=2.0)),
        ({"frequency_penalty": 2.0}, shown("Describe the picture.", frequency_penalty=2.0)),
        ({"max_tokens": 3}, shown("Hello", max_tokens=3)),
        ({"stop": "me"}, shown("Hello", stop=("me",))),
        ({"schema": COLOR}, Asked(GRASS, schema=COLOR)),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, dict) else "",
)
def test_llm_is_told_what_the_model_says(
    given: dict[str, Any], asked: Asked, stream: bool, llm: Any, bundled: Loaded
) -> None:
    content = asked.messages[-1]["content"]
    text = content if isinstance(content, str) else content[0]["text"]
    files = [llm.Attachment(content=encoded(each, "PNG")) for each in given.get("attachments", ())]
    answer = llm.get_model("tiny").prompt(text, stream=stream, **{**given, "attachments": files})
    assert answer.text() == answer_to(asked, bundled)


def test_llm_goes_on_with_a_conversation(llm: Any) -> None:
    conversation = llm.get_model("tiny").conversation()
    assert conversation.prompt("My favorite color is red.").text() == "OK."
    assert conversation.prompt("What is my favorite color?").text() == "red"


def test_llm_asks_without_waiting(llm: Any) -> None:
    async def ask() -> str:
        return str(await llm.get_async_model("tiny").prompt("What color is grass?").text())

    assert asyncio.run(ask()) == "green"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_tokens": -5}, "max_tokens"),
        ({"tools": ["look"]}, "tools: .*not supported"),
        ({"attachments": ["%PDF-1.4"]}, r"messages\.0\.content\.1\.type: .*file"),
    ],
)
def test_llm_raises_openais_errors_with_our_line(
    given: dict[str, Any], message: str, llm: Any
) -> None:
    def look() -> str:
        return ""

    if "tools" in given:
        given = {"tools": [look]}
    if "attachments" in given:
        given = {"attachments": [llm.Attachment(content=b"%PDF-1.4", type="application/pdf")]}
    with pytest.raises(openai.BadRequestError, match=message):
        llm.get_model("tiny").prompt("Hello", **given).text()


def test_llm_on_the_command_line_shows_a_picture_that_is_a_file(
    llm: Any, tmp_path: Path, bundled: Loaded
) -> None:
    from click.testing import CliRunner
    from llm.cli import cli

    DEMO.save(tmp_path / "demo.png")
    text = "Describe the picture."
    asked = ["-m", "tiny", text, "-a", str(tmp_path / "demo.png"), "-u", "-o", "max_tokens", "9"]
    said = CliRunner().invoke(cli, asked)
    assert said.exit_code == 0
    assert said.stdout.strip() == answer_to(shown(text, DEMO, max_tokens=9), bundled)
    assert re.search(r"Token usage: \d+ input, \d output", said.stderr)


# ---- requests as clients send them that do not run here

OPEN_WEBUI = {
    "a picture and a person's parameters": Asked(
        [says("system", "Be brief."), user("Describe the picture.", DEMO)],
        {"temperature": 2.0, "seed": 1, "max_tokens": 12, "top_k": 40, "top_p": 0.9, "min_p": 0.0}
        | {"frequency_penalty": 0.5, "presence_penalty": 0.0, "stop": ["\n\n"]}
        | {"stream_options": {"include_usage": True}, "reasoning_effort": "medium"},
    ),
    "a title": Asked(
        [user("### Task:\nGenerate a title")], {"stream": False, "max_completion_tokens": 1000}
    ),
    "after an answer that was stopped": Asked(
        [user("Hello"), says("assistant", ""), *GRASS], {"logit_bias": {}}
    ),
}
IMMICH_MEMORIES = {
    "pictures": Asked(
        [user("Describe the picture.", DEMO, SQUARE, first="words", detail="low")],
        {"max_tokens": 20, "temperature": 0.0, "repetition_penalty": 1.0}
        | {"chat_template_kwargs": {"enable_thinking": False}},
        one_tile=True,
    ),
    "words": Asked(GRASS, {"max_tokens": 500, "response_format": form_of(COLOR)}, schema=COLOR),
}


@pytest.mark.parametrize("name", [*OPEN_WEBUI, *IMMICH_MEMORIES])
def test_open_webui_and_immich_memories_are_told_what_the_model_says(
    name: str, seeing: Running, bundled: Loaded
) -> None:
    asked = (OPEN_WEBUI | IMMICH_MEMORIES)[name]
    answer = answer_to(asked, bundled)
    told = seeing.complete({"model": "tiny", "messages": asked.messages, **asked.fields})
    assert told.json()["choices"][0]["message"]["content"] == answer
    body = {"model": "tiny", "messages": asked.messages, **asked.fields, "stream": True}
    lines = [line.removeprefix("data: ") for line in seeing.complete(body).text.split("\n\n")]
    assert lines[-2:] == ["[DONE]", ""]
    choices = [choice for line in lines[:-2] for choice in json.loads(line)["choices"]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == answer
