"""What clients ask for, in OpenAI's form, and what the model says to it without them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from examples.demo import draw
from smolvlm_mlx import Engine, Options
from smolvlm_mlx.events import Text
from smolvlm_mlx.options import options_of
from tests.support.checkpoints import Loaded
from tests.support.pictures import data_url

import pytest
from PIL import Image
from pydantic import BaseModel

# For files about clients that warn of themselves and leave connections open.
UNTIDY = [
    pytest.mark.filterwarnings("ignore:Items? .* on TypedDict class:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_.*' attribute:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.usefixtures("tidy"),
]

DEMO = draw()
OPTIONS = {option.name for option in options_of(Options)}
SAMPLED = {"temperature": 2.0, "seed": 1, "max_tokens": 12}
COLOR = {
    "type": "object",
    "properties": {"color": {"enum": ["pink", "green"]}},
    "required": ["color"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
}


def says(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def user(text: str, *pictures: Image.Image, first: str = "picture", **more: Any) -> dict[str, Any]:
    """A question about pictures, which clients put before it or after it."""
    words = {"type": "text", "text": text}
    shown = [
        {"type": "image_url", "image_url": {"url": data_url(picture), **more}}
        for picture in pictures
    ]
    parts = [*shown, words] if first == "picture" else [words, *shown]
    return {"role": "user", "content": parts if shown else text}


def form_of(schema: dict[str, Any]) -> dict[str, Any]:
    wanted = {"name": "answer", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": wanted}


@dataclass(frozen=True)
class Asked:
    """Messages, and the fields beside them; `answer`, where a person can tell."""

    messages: list[Any]
    fields: dict[str, Any] = field(default_factory=dict)
    answer: str | None = None
    one_tile: bool = False  # by its fields, each picture is
    schema: dict[str, Any] | None = None


def answer_to(asked: Asked, loaded: Loaded) -> str:
    """Return what the model says, without server and client."""
    fields = {name: value for name, value in asked.fields.items() if name in OPTIONS}
    stream = Engine(*loaded).stream(
        asked.messages,
        Options(**fields),
        image_options=loaded[1].one_tile if asked.one_tile else None,
        schema=asked.schema,
    )
    return "".join(event.piece for event in stream if isinstance(event, Text))


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


Ask = Callable[[Asked, bool], str]


def check(name: str, ask: Ask, loaded: Loaded) -> None:
    """A client's answer to a request is the model's, whole and streamed."""
    asked = REQUESTS[name]
    answer = answer_to(asked, loaded)
    assert asked.answer in (None, answer)
    assert ask(asked, False) == answer
    assert ask(asked, True) == answer


def split(fields: dict[str, Any]) -> dict[str, Any]:
    """As openai takes them: fields that are not OpenAI's are its `extra_body`."""
    known = {name: value for name, value in fields.items() if name in OPENAI_FIELDS}
    extra = {name: value for name, value in fields.items() if name not in OPENAI_FIELDS}
    return {**known, "extra_body": extra}


def are_different(answers: Sequence[str]) -> bool:
    return len(answers) == len(set(answers)) == 3
