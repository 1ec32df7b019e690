"""openai, and requests as other clients send them, are told what the model says."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.support.checkpoints import Loaded
from tests.support.clients import (
    COLOR,
    DEMO,
    GRASS,
    REQUESTS,
    SAMPLED,
    SQUARE,
    TOOL,
    VARIED,
    Ask,
    Asked,
    Color,
    answer_to,
    are_different,
    check,
    form_of,
    says,
    split,
    user,
)
from tests.support.http import TOKEN, Running

import openai
import pytest


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client:
        yield client


# ---- the requests of every client, whole and streamed


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


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("ask", ["by_openai", "by_openai_async"])
def test_openai_is_told_what_the_model_says(
    ask: str, name: str, bundled: Loaded, request: pytest.FixtureRequest
) -> None:
    check(name, request.getfixturevalue(ask), bundled)


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


# ---- what else openai does


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
