"""langchain-openai is told what the model says."""

import asyncio
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from tests.support.checkpoints import Loaded
from tests.support.clients import (
    GRASS,
    REQUESTS,
    SAMPLED,
    TOOL,
    UNTIDY,
    VARIED,
    Ask,
    Asked,
    Color,
    are_different,
    check,
    split,
)
from tests.support.http import TOKEN

import openai
import pytest

if find_spec("langchain_openai") is None:
    pytest.skip("no langchain_openai: pip install '.[clients]'", allow_module_level=True)

pytestmark = UNTIDY


@pytest.fixture
def chat(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    langchain = import_module("langchain_openai")
    return langchain.ChatOpenAI(model="tiny", base_url=url, api_key=TOKEN, max_retries=0)


@pytest.fixture
def by_langchain(chat: Any) -> Ask:
    def ask(asked: Asked, stream: bool) -> str:
        model = chat.bind(**split(asked.fields))
        if not stream:
            return str(model.invoke(asked.messages).content)
        return "".join(chunk.content for chunk in model.stream(asked.messages))

    return ask


@pytest.mark.parametrize("name", REQUESTS)
def test_langchain_is_told_what_the_model_says(
    name: str, by_langchain: Ask, bundled: Loaded
) -> None:
    check(name, by_langchain, bundled)


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

    async def ask() -> list[str]:
        answers = await chat.abatch(questions)
        await chat.root_async_client.close()
        return [answer.content for answer in answers]

    assert asyncio.run(ask()) == ["green", "blue", "4"]
