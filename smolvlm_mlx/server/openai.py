"""How answers and errors look: the shapes of OpenAI's chat completions.

Reference: platform.openai.com/docs/api-reference/chat.
"""

import json
import secrets
import time
from collections.abc import Mapping, Sequence

from ..events import Statistics


class Completion:
    """Shapes the answer to one request, of whose pictures `notes` say what is unusual."""

    def __init__(self, model: str, notes: Sequence[str] = ()):
        self._notes = notes
        self._shared = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, statistics: Statistics) -> dict[str, object]:
        """An answer that is not streamed."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": statistics.finish_reason,
        }
        return {
            **self._shared,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage(statistics, self._notes),
        }

    def chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
        """A piece of a streamed answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._shared, "object": "chat.completion.chunk", "choices": [choice]}

    def last_chunk(self, statistics: Statistics) -> dict[str, object]:
        """What a stream ends with, if usage was asked for."""
        return {
            **self._shared,
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": usage(statistics, self._notes),
        }


def usage(statistics: Statistics, notes: Sequence[str] = ()) -> dict[str, object]:
    """OpenAI's token counts; ours beside them, in `timing`, in seconds, and as a line for people,
    with the notes."""
    phases = ("preprocess", "vision", "prefill", "first_token")
    return {
        "prompt_tokens": statistics.prompt_tokens,
        "completion_tokens": statistics.generated_tokens,
        "total_tokens": statistics.prompt_tokens + statistics.generated_tokens,
        "prompt_tokens_details": {
            "cached_tokens": statistics.reused_tokens,
            "image_tokens": statistics.image_tokens,
        },
        "timing": {
            "tiles": statistics.tiles,
            **{phase: round(getattr(statistics, f"{phase}_seconds"), 4) for phase in phases},
            "tokens_per_second": round(statistics.tokens_per_second, 2),
            "about": " · ".join([statistics.describe(), *notes]),
        },
    }


def error_body(
    message: str,
    kind: str = "invalid_request_error",
    code: str | None = None,
    forget: int | None = None,
) -> dict[str, object]:
    """Return OpenAI's shape of an error.

    Args:
        forget: ours: how many messages, from the first question on, would make room if they were
            not sent again.
    """
    ours = {} if forget is None else {"forget": {"messages": forget}}
    return {"error": {"message": message, "type": kind, "param": None, "code": code, **ours}}


def event(value: Mapping[str, object]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode("utf-8", "replace")
