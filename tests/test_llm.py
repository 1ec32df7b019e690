"""llm, which puts pictures after the words, is told what the model says."""

import asyncio
import json
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.support.checkpoints import Loaded
from tests.support.clients import (
    COLOR,
    DEMO,
    GRASS,
    SAMPLED,
    SQUARE,
    UNTIDY,
    Asked,
    answer_to,
    says,
    user,
)
from tests.support.http import TOKEN
from tests.support.pictures import encoded

import openai
import pytest
from PIL import Image

if find_spec("llm") is None:
    pytest.skip("no llm: pip install '.[clients]'", allow_module_level=True)

pytestmark = UNTIDY


@pytest.fixture
def llm(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, told of the server as its documentation says."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    module = import_module("llm")
    known = {"model_id": "tiny", "model_name": "tiny", "api_base": url, "api_key_name": "tiny"}
    may = {"vision": True, "supports_schema": True, "supports_tools": True}
    # YAML that is JSON.
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([known | may]))
    (tmp_path / "keys.json").write_text(json.dumps({"tiny": TOKEN}))
    return module


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
