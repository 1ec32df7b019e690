"""What a conversation may hold: the messages of a request and their parts, in the forms that
clients send them in."""

import json
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from ..errors import SmolVLMError
from ..inputs import messages
from ..inputs.fetch import FetchLimits
from ..inputs.media import Recent
from ..inputs.settings import ImageOptions
from .budget import Spent
from .fields import MESSAGE, PART, Fields, RequestError, wrong


def as_object(url: object) -> object:
    return {"url": url} if isinstance(url, str) else url


def as_parts(content: object) -> object:
    if content is None:
        return []
    if not isinstance(content, str | list):
        raise PydanticCustomError("value", "must be a text or a list of parts")
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Detail = Literal["auto", "low", "high", "original"]


class Part(Fields):
    refused = PART

    def raw(self) -> dict[str, object]:
        """As `inputs.messages` parses it."""
        raise NotImplementedError

    def read(
        self, where: str, limits: FetchLimits, recent: Recent, low: ImageOptions, spent: Spent
    ) -> messages.Part:
        """As `inputs.messages` has it; see `RequestMessage.read`."""
        raw = [{"role": "user", "content": [self.raw()]}]
        try:
            (part,) = messages.parse_messages(raw, limits, recent)[0].parts
            spent.add(part, where)
        except RequestError:
            raise
        except SmolVLMError as error:
            raise RequestError(str(error).removeprefix("message 1: "), where) from error
        return part


class TextPart(Part):
    type: Literal["text", "input_text", "output_text"]
    text: str

    def raw(self) -> dict[str, object]:
        return {"type": "text", "text": self.text}


class RefusalPart(Part):
    type: Literal["refusal"]
    refusal: str

    def raw(self) -> dict[str, object]:
        return {"type": "text", "text": self.refusal}


class MediaPart(Part):
    name: str | None = None  # ours: of the picture or video, for the history
    detail: Detail | None = None  # of a picture: "low" is one tile

    @property
    def is_low(self) -> bool:
        return self.detail == "low"

    def read(
        self, where: str, limits: FetchLimits, recent: Recent, low: ImageOptions, spent: Spent
    ) -> messages.Part:
        part = super().read(where, limits, recent, low, spent)
        if self.is_low and isinstance(part, messages.ImagePart):
            return replace(part, options=low)
        return part


class Url(Fields):
    url: Annotated[str, StringConstraints(strip_whitespace=True)]
    detail: Detail | None = None


UrlOrText = Annotated[Url, BeforeValidator(as_object, json_schema_input_type=Url | str)]


class ImageUrlPart(MediaPart):
    type: Literal["image_url", "input_image"]
    image_url: UrlOrText

    def raw(self) -> dict[str, object]:
        return {"type": "image", "url": self.image_url.url, "name": self.name}

    @property
    def is_low(self) -> bool:
        return "low" in (self.detail, self.image_url.detail)


class ImagePart(MediaPart):
    """Transformers' form, and that in which /conversations gives pictures."""

    type: Literal["image"]
    image: str | None = None
    url: str | None = None
    base64: str | None = None

    def raw(self) -> dict[str, object]:
        return self.model_dump()


class TimedPart(MediaPart):
    """A video; its options are those of `inputs.messages`."""

    fps: float | None = None
    max_frames: int | None = None
    start: float | None = None
    end: float | None = None


class VideoUrlPart(TimedPart):
    """Ours, after image_url."""

    type: Literal["video_url"]
    video_url: UrlOrText

    def raw(self) -> dict[str, object]:
        return {**self.model_dump(), "type": "video", "url": self.video_url.url}


class VideoPart(TimedPart):
    type: Literal["video"]
    video: str | None = None
    url: str | None = None
    base64: str | None = None

    def raw(self) -> dict[str, object]:
        return self.model_dump()


AnyPart = Annotated[
    TextPart | RefusalPart | ImageUrlPart | ImagePart | VideoUrlPart | VideoPart,
    Field(discriminator="type"),
]
Content = Annotated[
    list[AnyPart], BeforeValidator(as_parts, json_schema_input_type=str | list[AnyPart] | None)
]


class RequestMessage(Fields):
    """What somebody said. Past calls of tools and what they gave are words of the conversation."""

    refused = MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = Field([])
    name: str | None = None
    refusal: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, object]] | None = None
    function_call: dict[str, object] | None = None
    interrupted: bool | None = None  # ours, of an answer that was cut off

    @model_validator(mode="after")
    def says_something(self) -> "RequestMessage":
        if self.role == "user" and not self.content:
            raise wrong("content", "missing; give text or a list of parts")
        return self

    @property
    def calls(self) -> list[str]:
        """The calls of tools, as JSON."""
        calls = [*(self.tool_calls or []), *([self.function_call] if self.function_call else [])]
        said = [call.get("function") or call.get("custom") or call for call in calls]
        return [json.dumps(call, ensure_ascii=False) for call in said]

    def read(
        self, where: str, limits: FetchLimits, recent: Recent, low: ImageOptions, spent: Spent
    ) -> messages.Message:
        """As `inputs.messages` has it. A developer is a system, and what a tool gave is said by the
        user: checkpoints know no other roles.

        Args:
            where: it is in the request, for errors.
            low: how pictures of `detail` "low" are cut.
            spent: counts what they cost.

        Raises:
            RequestError: a picture or video cannot be read within the limits, or is too much.
        """
        parts = [
            part.read(f"{where}.content.{number}", limits, recent, low, spent)
            for number, part in enumerate(self.content)
        ]
        words = [self.refusal] if self.refusal else []
        parts += [messages.TextPart(text) for text in words + self.calls]
        role = {"developer": "system", "tool": "user", "function": "user"}.get(self.role, self.role)
        content = tuple(parts) or (messages.TextPart(""),)
        return messages.Message(role, content, self.interrupted is True)
