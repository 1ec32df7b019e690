"""What clients ask for, in OpenAI's form, and what the model says to it without them."""

from dataclasses import dataclass, field
from typing import Any

from examples.demo import draw
from smolvlm_mlx import Engine, Options
from smolvlm_mlx.events import Text
from smolvlm_mlx.options import options_of
from tests.support.checkpoints import Loaded
from tests.support.pictures import data_url

from PIL import Image

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
        Options(**fields | {"stop": tuple(fields.get("stop", ()))}),
        image_options=loaded[1].one_tile if asked.one_tile else None,
        schema=asked.schema,
    )
    answer = "".join(event.piece for event in stream if isinstance(event, Text))
    return answer.removeprefix(" ")
