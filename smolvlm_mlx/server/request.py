"""What may be asked: the body of OpenAI's chat completions.

Reference: platform.openai.com/docs/api-reference/chat. Fields that change nothing here are taken
and ignored; those that ask for what is not done are refused by name.
"""

from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ..errors import PromptError, cut
from ..generation.options import Options
from ..options import Option, options_of
from ..tasks.options import CHAT

ID = "^[0-9a-f]{8,32}$"


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    url: str
    # A request of "low" pictures alone: one tile each.
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: ImageUrl
    name: str | None = None  # ours: of the picture, for the history


class VideoPart(BaseModel):
    """Ours, after image_url; its options are those of `inputs.messages`."""

    type: Literal["video_url"]
    video_url: ImageUrl
    name: str | None = None
    fps: float | None = None
    max_frames: int | None = None
    start: float | None = None
    end: float | None = None


class RequestMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart | ImagePart | VideoPart] = Field(min_length=1)


class JsonSchema(BaseModel):
    model_config = ConfigDict(protected_namespaces=())
    json_schema: dict[str, object] = Field(alias="schema")


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


# Options that OpenAI has in a form of its own, and those that are refused: the engine's cache is
# shared by all requests, and special tokens are no text for a client.
OPENAI_FORM, REFUSED = {"max_tokens", "seed", "stop"}, {"kv_bits", "skip_special_tokens"}
AS_THEY_ARE = {
    option.name: option for option in options_of(Options) if option.name not in OPENAI_FORM
}


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions, with the other options of an answer under their own
    names (see `_Request`), as other servers have them. Ours are `conversation`, the id under which
    the history keeps it, and `live`, the id of a camera whose answers are compared: what comes of
    that stands beside the usage, which is then always sent."""

    messages: list[RequestMessage] = Field(min_length=1)
    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    response_format: ResponseFormat | None = None
    conversation: str | None = Field(None, pattern=ID)
    live: str | None = Field(None, pattern=ID)
    # Asked for, these would change the answer.
    n: Literal[1] | None = None
    tools: list[None] | None = Field(None, max_length=0)
    functions: list[None] | None = Field(None, max_length=0)
    logprobs: Literal[False] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    frequency_penalty: Literal[0] | float | None = Field(None, ge=0, le=0)
    presence_penalty: Literal[0] | float | None = Field(None, ge=0, le=0)

    @classmethod
    def parse(cls, body: bytes) -> "ChatRequest":
        """Check a body.

        Raises:
            PromptError: it is not JSON, or a field cannot be used; the first is named.
        """
        try:
            return _Request.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            kinds = ("list[", "Text", "Image", "Video")
            where = ".".join(str(part) for part in first["loc"] if not str(part).startswith(kinds))
            raise PromptError(cut(f"{where or 'body'}: {first['msg']}")) from None

    def options(self, defaults: Options = CHAT) -> Options:
        """How the answer is generated: as it says, and as `defaults` where it says nothing.

        Raises:
            GenerationError: a value is out of range.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        given = {
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "seed": None if self.seed is None else self.seed % 2**63,
            "stop": None if stop is None else tuple(stop),
            **self.model_dump(include=set(AS_THEY_ARE)),
        }
        return replace(defaults, **{n: value for n, value in given.items() if value is not None})

    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.live is not None or (
            self.stream_options is not None and self.stream_options.include_usage
        )

    def wants_one_tile(self) -> bool:
        """Whether every picture is to be one tile: there is one, and `detail` is "low" for all of
        them."""
        pictures = [part for part in self.media if isinstance(part, ImagePart)]
        return bool(pictures) and all(picture.image_url.detail == "low" for picture in pictures)

    def schema_wanted(self) -> dict[str, object] | None:
        """The JSON schema of the answer, {} for any object, None for text."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return {}
        if wanted.json_schema is None:
            raise PromptError("response_format.json_schema: missing; give {name, schema}")
        return wanted.json_schema.json_schema

    @property
    def media(self) -> list[ImagePart | VideoPart]:
        """Its pictures and videos, in order."""
        contents = [
            message.content for message in self.messages if not isinstance(message.content, str)
        ]
        return [part for content in contents for part in content if not isinstance(part, TextPart)]

    def raw_messages(self) -> list[dict[str, object]]:
        """As `inputs.messages` parses them; a developer is a system."""
        messages = [message.model_dump() for message in self.messages]
        return [
            {**m, "role": "system" if m["role"] == "developer" else m["role"]} for m in messages
        ]


def _field(option: Option) -> Any:
    """Its type, and null for its default; of one that is refused, the default alone."""
    kind: Any = Literal.__getitem__(option.default) if option.name in REFUSED else option.type
    return kind | None, Field(None, description=option.help)


_Request = create_model(
    "ChatRequest", __base__=ChatRequest, **{n: _field(option) for n, option in AS_THEY_ARE.items()}
)
