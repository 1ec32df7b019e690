"""litellm is told what the model says, and raises its own errors."""

import asyncio
import json
from collections.abc import Iterator
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
    answer_to,
    are_different,
    check,
)
from tests.support.http import TOKEN, Running

import pytest

if find_spec("litellm") is None:
    pytest.skip("no litellm: pip install '.[clients]'", allow_module_level=True)

pytestmark = UNTIDY


@pytest.fixture(scope="module")
def litellm(seeing: Running) -> Iterator[Any]:
    """The module, which asks the web for prices unless it is told not to; it has asked before, for
    it imports much when it first does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        module = import_module("litellm")
        url = f"http://127.0.0.1:{seeing.port}/v1"
        module.completion("openai/tiny", GRASS, api_base=url, api_key=TOKEN, max_retries=0)
        yield module
        module.in_memory_llm_clients_cache.flush_cache()


@pytest.fixture
def by_litellm(litellm: Any, url: str) -> Ask:
    def ask(asked: Asked, stream: bool) -> str:
        known = {"api_base": url, "api_key": TOKEN, "max_retries": 0, "stream": stream}
        answer = litellm.completion("openai/tiny", asked.messages, **known, **asked.fields)
        if not stream:
            return str(answer.choices[0].message.content)
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer)

    return ask


@pytest.mark.parametrize("name", REQUESTS)
def test_litellm_is_told_what_the_model_says(name: str, by_litellm: Ask, bundled: Loaded) -> None:
    check(name, by_litellm, bundled)


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
