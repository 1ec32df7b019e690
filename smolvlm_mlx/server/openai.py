"""How answers and errors look: the shapes of OpenAI's chat completions, with ours beside them.

Fields with a default are left out where there is nothing to say; all others are always sent.

Reference: platform.openai.com/docs/api-reference/chat.
"""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ..events import Statistics
from ..generation.origins import Origin
from ..tasks.tree import Place

FinishReason = Literal["stop", "length"]  # of those of the API; clients know no others
EndedBy = Literal["repetition"]


class Shape(BaseModel):
    """What is sent: nothing else than its fields."""

    model_config = ConfigDict(extra="forbid")


class TokenDetails(Shape):
    cached_tokens: int
    image_tokens: int


class Timing(Shape):
    """Ours: what an answer took, in seconds, and as a line for people."""

    tiles: int
    preprocess: float
    vision: float
    prefill: float
    first_token: float
    tokens_per_second: float
    about: str


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetails
    timing: Timing


class Live(Shape):
    """Ours: how an answer compares with those before it of the same camera."""

    number: int
    unchanged: bool
    stuck: bool
    about: str


class Seen(Shape):
    """Ours: what a picture, or a video, is to the model: its tiles (of a video frames, one tile
    each) and the tokens of the prompt that they take, with the marks between them.

    `boxes` are where the tiles of a picture lie in it, in its pixels: left, top, right, bottom; row
    by row, then the global tile, which is all of it. `most_tiles` are those where the request says
    nothing of `max_tiles`. `origins` say of each tile where the answer has it from: computed for
    it, features that were kept, or a prompt that was read before.
    """

    width: int
    height: int
    tiles: int
    tokens: int
    is_video: bool = False
    rows: int = 0
    cols: int = 0
    boxes: list[list[float]] = []
    most_tiles: int | None = None
    origins: list[Origin] | None = None


class AnswerMessage(Shape):
    role: Literal["assistant"]
    content: str
    refusal: None


class CompletionChoice(Shape):
    """An answer. Ours: `ended_by` says why one that is cut off is, where not by its length."""

    index: int
    message: AnswerMessage
    logprobs: None
    finish_reason: FinishReason
    ended_by: EndedBy | None = None


class ChatCompletion(Shape):
    """An answer that is not streamed. Ours: `notice` says what went wrong beside it."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    live: Live | None = None
    kept: list[Place] | None = None  # its messages in the history, without instructions
    seen: list[Seen] | None = None  # its pictures and videos, where it is of a conversation
    notice: str | None = None


class Delta(Shape):
    """What a chunk adds to an answer: its role first, then text, at last nothing."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(Shape):
    """A piece of an answer; its last has `finish_reason`, and `ended_by` as a whole one."""

    index: int
    delta: Delta
    logprobs: None
    finish_reason: FinishReason | None
    ended_by: EndedBy | None = None


class ChatCompletionChunk(Shape):
    """A piece of a streamed answer; the last one has no choices, but the usage, if it was asked
    for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    live: Live | None = None
    kept: list[Place] | None = None
    seen: list[Seen] | None = None
    notice: str | None = None


class Model(Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["local"]


class ModelList(Shape):
    object: Literal["list"]
    data: list[Model]


class Forget(Shape):
    """Ours: how many messages, from the first question on, would make room if they were not sent
    again."""

    messages: int


class Coming(Shape):
    """Ours: an answer under way, as far as it has come; `after` is the id of the message before."""

    after: int
    text: str


class News(Shape):
    """Ours: what comes to a conversation: its state (the id of its last message, none before the
    first, and the answer under way), then more text of that answer; or that it was deleted."""

    leaf: int | None = None
    answer: Coming | None = None
    text: str | None = None
    deleted: bool = False


class Error(Shape):
    message: str
    type: str
    param: str | None
    code: str | None
    forget: Forget | None = None


class ErrorBody(Shape):
    error: Error


class Completion:
    """Shapes the answers to one request, of whose pictures `notes` say what is unusual."""

    def __init__(self, model: str, notes: Sequence[str] = ()):
        self._notes = notes
        self._shared: dict[str, Any] = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(
        self,
        texts: Sequence[str],
        statistics: Sequence[Statistics],
        live: Live | None = None,
        kept: list[Place] | None = None,
        seen: list[Seen] | None = None,
        notice: str | None = None,
    ) -> dict[str, object]:
        """Return answers that are not streamed."""
        choices = [
            CompletionChoice(
                index=index,
                message=AnswerMessage(role="assistant", content=text, refusal=None),
                logprobs=None,
                finish_reason=finish_reason(found),
                ended_by=ended_by(found),
            )
            for index, (text, found) in enumerate(zip(texts, statistics, strict=True))
        ]
        return dump(
            ChatCompletion(
                **self._shared,
                object="chat.completion",
                choices=choices,
                usage=usage(statistics, self._notes),
                live=live,
                kept=kept,
                seen=seen,
                notice=notice,
            )
        )

    def chunk(self, index: int, delta: Delta, ended: Statistics | None = None) -> dict[str, object]:
        """Return a piece of a streamed answer; with its last one what it took."""
        choice = ChunkChoice(
            index=index,
            delta=delta,
            logprobs=None,
            finish_reason=None if ended is None else finish_reason(ended),
            ended_by=None if ended is None else ended_by(ended),
        )
        return self._chunk(choices=[choice])

    def last_chunk(
        self,
        statistics: Sequence[Statistics] | None,
        live: Live | None = None,
        kept: list[Place] | None = None,
        seen: list[Seen] | None = None,
        notice: str | None = None,
    ) -> dict[str, object]:
        """Return what a stream ends with, if usage was asked for or there is a notice."""
        used = None if statistics is None else usage(statistics, self._notes)
        beside = {"live": live, "kept": kept, "seen": seen, "notice": notice}
        return self._chunk(choices=[], usage=used, **beside)

    def _chunk(self, **fields: Any) -> dict[str, object]:
        return dump(ChatCompletionChunk(**self._shared, object="chat.completion.chunk", **fields))


def finish_reason(statistics: Statistics) -> FinishReason:
    return "stop" if statistics.finish_reason == "stop" else "length"


def ended_by(statistics: Statistics) -> EndedBy | None:
    return "repetition" if statistics.finish_reason == "repetition" else None


def usage(statistics: Sequence[Statistics], notes: Sequence[str] = ()) -> Usage:
    """Return OpenAI's token counts of a request's answers, the prompt counted once; ours beside
    them: phases of the first answer, and the speed of each one."""
    first, reasons = statistics[0], [found.finish_reason for found in statistics]
    total = replace(
        first,
        generated_tokens=sum(found.generated_tokens for found in statistics),
        decode_seconds=sum(found.decode_seconds for found in statistics),
        finish_reason=next((reason for reason in reasons if reason != "stop"), "stop"),
    )
    return Usage(
        prompt_tokens=total.prompt_tokens,
        completion_tokens=total.generated_tokens,
        total_tokens=total.prompt_tokens + total.generated_tokens,
        prompt_tokens_details=TokenDetails(
            cached_tokens=total.reused_tokens, image_tokens=total.image_tokens
        ),
        timing=Timing(
            tiles=total.tiles,
            preprocess=round(total.preprocess_seconds, 4),
            vision=round(total.vision_seconds, 4),
            prefill=round(total.prefill_seconds, 4),
            first_token=round(total.first_token_seconds, 4),
            tokens_per_second=round(total.tokens_per_second, 2),
            about=" · ".join([total.describe(), *notes]),
        ),
    )


def error_body(
    message: str,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    forget: Forget | None = None,
) -> dict[str, object]:
    """Return OpenAI's shape of an error."""
    return dump(
        ErrorBody(error=Error(message=message, type=kind, param=param, code=code, forget=forget))
    )


def dump(value: Shape) -> dict[str, object]:
    """Return an answer as it is sent."""
    return value.model_dump(exclude_defaults=True)


def event(value: Mapping[str, object]) -> bytes:
    """Return a server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode("utf-8", "replace")
