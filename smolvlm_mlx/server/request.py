"""What may be asked: the body of OpenAI's chat completions.

Reference: platform.openai.com/docs/api-reference/chat. Fields that change nothing here are taken
and ignored; those that ask for what is not done are refused by name (`fields`).
"""

import json
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from ..errors import SmolVLMError, cut, quote
from ..generation.options import Options
from ..inputs.fetch import FetchLimits
from ..inputs.media import Recent
from ..inputs.messages import Message
from ..inputs.settings import ImageOptions
from ..options import options_of
from ..tasks.options import SERVE
from . import fields
from .body import read_json
from .budget import DEFAULT_BUDGET, Budget, Spent
from .fields import Fields, RequestError, wrong
from .parts import MediaPart, RequestMessage

ID = "^[0-9a-f]{8,32}$"
UNLIMITED = 2**31  # tokens; the context ends an answer before
NO_BEGINNING = "needs an assistant's message at the end, and no response_format"
NO_TOOLS = 'tools are not supported; leave them out, or send "tool_choice": "none"'


class JsonSchema(Fields):
    name: str | None = None
    strict: bool | None = None
    json_schema: dict[str, object] | None = Field(None, alias="schema")


class ResponseFormat(Fields):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None
    # Of a json_object, as llama.cpp has it.
    object_schema: dict[str, object] | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def has_its_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise wrong("json_schema", "missing; give {name, schema}")
        return self


class StreamOptions(Fields):
    include_usage: bool | None = None


def as_list(stop: object) -> object:
    if isinstance(stop, str):
        stop = [stop]
    if not isinstance(stop, list):
        raise PydanticCustomError("value", "must be a text or a list of texts")
    return [text for text in stop if text != ""]


Stop = Annotated[
    list[str],
    BeforeValidator(as_list, json_schema_input_type=str | list[str]),
    Field(json_schema_extra={"maxItems": Budget.stops}),
]
Count = Annotated[int, Field(ge=1, json_schema_extra={"maximum": Budget.answers})]
Most = Annotated[int, Field(ge=-1, json_schema_extra={"not": {"const": 0}})]

# Options that OpenAI has in a form of its own; the others have their own names.
OPENAI_FORM = {"max_tokens", "seed", "stop"}
AS_THEY_ARE = {
    option.name: (kind, option)
    for kind in (Options, ImageOptions)
    for option in options_of(kind)
    if option.name not in OPENAI_FORM and option.name not in fields.REQUEST
}


if TYPE_CHECKING:
    OptionFields = Fields
else:
    OptionFields = create_model(
        "OptionFields",
        __base__=Fields,
        **{
            name: (option.type | None, Field(None, description=option.help))
            for name, (_, option) in AS_THEY_ARE.items()
        },
    )


class ChatRequest(OptionFields):
    """The body of POST /v1/chat/completions, with the other options of an answer, and those of
    pictures, under their own names, as other servers have them. Ours are `conversation`, the id
    under which the history keeps it, and `live`, the id of a camera whose answers are compared:
    what comes of that stands beside the usage, which is then always sent."""

    refused = fields.REQUEST

    messages: list[RequestMessage] = Field(min_length=1)
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Most | None = Field(None, description="-1: as many as there is room for.")
    max_completion_tokens: Most | None = Field(None, description="Goes before max_tokens.")
    stop: Stop | None = None
    seed: int | None = Field(None, description="-1: another one each time.")
    n: Count | None = Field(None, description="How many answers.")
    response_format: ResponseFormat | None = None
    tools: list[object] | None = Field(
        None, description="Ignored with tool_choice none, else refused."
    )
    functions: list[object] | None = None
    tool_choice: object = None
    function_call: object = None
    continue_final_message: bool | None = Field(
        None, description="The last message is the beginning of the answer."
    )
    add_generation_prompt: bool | None = Field(
        None, description="False only beside continue_final_message, as vLLM has it."
    )
    conversation: str | None = Field(None, pattern=ID)
    live: str | None = Field(None, pattern=ID)

    @classmethod
    def parse(cls, body: bytes, budget: Budget = DEFAULT_BUDGET) -> "ChatRequest":
        """Check a body. It may take a second.

        Raises:
            RequestError: it is not JSON, has too much of something, or a field cannot be used; the
                first is named.
        """
        value = read_json(body, budget)
        if not isinstance(value, dict):
            raise RequestError(f"the body is {_shown(value)}, not an object with messages")
        budget.check(value)
        try:
            asked = cls.model_validate(value, context=budget)
        except ValidationError as error:
            raise request_error(error.errors()[0]) from None
        schema = json.dumps(asked.schema_wanted(), ensure_ascii=False)
        budget.hold("schema_characters", len(schema), "characters of schema", "response_format")
        return asked

    @field_validator("top_k", mode="before")
    @classmethod
    def has_no_bound(cls, value: object) -> object:
        return 0 if value == -1 else value  # as vLLM and SGLang call it

    @field_validator(*AS_THEY_ARE)
    @classmethod
    def is_in_range(cls, value: object, info: ValidationInfo) -> object:
        name = info.field_name or ""
        try:
            if value is not None:
                kind: Any = AS_THEY_ARE[name][0]
                kind(**{name: value})
        except SmolVLMError as error:
            raise PydanticCustomError("value", "{words}", {"words": str(error)}) from None
        return value

    @field_validator("max_tokens", "max_completion_tokens")
    @classmethod
    def is_not_zero(cls, value: int | None) -> int | None:
        if value == 0:
            raise PydanticCustomError("value", "must be above 0, or -1: as long as there is room")
        return value

    @model_validator(mode="after")
    def asks_for_what_is_done(self) -> "ChatRequest":
        choice = self.tool_choice or self.function_call or "auto"
        if choice != "none" and (self.tools or self.functions):
            raise wrong("tools" if self.tools else "functions", NO_TOOLS)
        if choice not in ("none", "auto"):
            raise wrong("tool_choice" if self.tool_choice else "function_call", NO_TOOLS)
        goes_on, last = bool(self.continue_final_message), self.messages[-1]
        if self.add_generation_prompt is not None and self.add_generation_prompt == goes_on:
            raise wrong("add_generation_prompt", "must be the opposite of continue_final_message")
        if goes_on and (last.role != "assistant" or self.schema_wanted() is not None):
            raise wrong("continue_final_message", NO_BEGINNING)
        if self.stop and self.schema_wanted() is not None:
            raise wrong("stop", "would cut JSON, which ends by itself; leave it out")
        return self

    def options(self, defaults: Options = SERVE) -> Options:
        """How the answer is generated, where it says nothing as the defaults are."""
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        # As in llama.cpp and vLLM -1 stands for none, also where the server has one.
        seed = secrets.randbits(64) if self.seed == -1 else self.seed
        given = {
            "max_tokens": UNLIMITED if most == -1 else most,
            "seed": None if seed is None else seed % 2**64,
            "stop": None if self.stop is None else tuple(self.stop),
            **self._given(Options),
        }
        if self.schema_wanted() is not None:
            given["stop"] = ()
        return replace(defaults, **{name: v for name, v in given.items() if v is not None})

    def image_options(self, defaults: ImageOptions) -> ImageOptions:
        """How pictures are cut, where it says nothing as the defaults are."""
        return ImageOptions(**self._given(ImageOptions)).over(defaults)

    def _given(self, kind: type) -> dict[str, Any]:
        names = [name for name, (owner, _) in AS_THEY_ARE.items() if owner is kind]
        return {name: getattr(self, name) for name in names}

    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        options = self.stream_options
        return self.live is not None or bool(options and options.include_usage)

    def schema_wanted(self) -> dict[str, object] | None:
        """The JSON schema of the answer, {} for any object, None for text."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        named = wanted.json_schema.json_schema if wanted.json_schema else None
        return (named if wanted.type == "json_schema" else wanted.object_schema) or {}

    @property
    def media(self) -> list[MediaPart]:
        """Its pictures and videos, in order."""
        parts = [part for message in self.messages for part in message.content]
        return [part for part in parts if isinstance(part, MediaPart)]

    def read(
        self, limits: FetchLimits, recent: Recent, one_tile: ImageOptions, spent: Spent
    ) -> list[Message]:
        """Its messages, with their pictures and videos; `one_tile` is how those of `detail` "low"
        are cut, `spent` counts what they cost. A system that says nothing is left out.

        Raises:
            RequestError: a picture or video cannot be read within the limits, or is too much; its
                part is named.
        """
        low = self.image_options(one_tile)
        messages = [
            message.read(f"messages.{number}", limits, recent, low, spent)
            for number, message in enumerate(self.messages)
        ]
        return [m for m in messages if m.role != "system" or m.text or m.media]


# ---- what is wrong with it


def request_error(error: ErrorDetails) -> RequestError:
    """What pydantic says in a line, without its classes and tags."""
    where, kind, words = list(error["loc"]), error["type"], error["msg"]
    context, given = error.get("ctx", {}), error["input"]
    if where[:1] == ["messages"] and len(where) > 4:
        del where[4]  # the tag of the part's type
    if kind == "missing":
        words = "missing"
    elif kind == "field":
        where.append(context["name"])
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        where.append("type")
        words = "missing"
        if kind == "union_tag_invalid":
            words = f"must be one of {context['expected_tags']}, not {quote(context['tag'])}"
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        words = f"must be an object, not {_shown(given)}"
    elif kind == "value" and where:
        words = words.removeprefix(f"{where[-1]} ")
    elif words.startswith("Input should be"):
        words = f"{words.replace('Input should be', 'must be')}, not {_shown(given)}"
    return RequestError(words, ".".join(map(str, where)))


def _shown(value: object) -> str:
    """A value of JSON, short."""
    if isinstance(value, str):
        return quote(value, 40)
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return cut(json.dumps(value), 40)
