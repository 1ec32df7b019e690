"""Messages -> prompt text: the chat template, and the text that stands for a picture's tiles.

Messages follow the transformers chat schema: `{"role": ..., "content": text or [parts]}`, with parts
`{"type": "text", "text": ...}` and `{"type": "image", "image" | "path" | "url" | "base64": ...}`.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import FrameType
from typing import Any

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import PromptError
from .image import TileLayout

Message = Mapping[str, Any]
IMAGE, FAKE, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"

# The family's own template, the same in all its checkpoints; used when a checkpoint has none.
FAMILY_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_SECONDS = 1.0  # a template that takes longer is hostile: the family's takes less than a millisecond
_MAX_CHARACTERS = 16 * 2**20


def user_message(text: str, images: Sequence[Any] = ()) -> Message:
    """A user's message with its pictures (paths, URLs, PIL images or image parts) before its text."""
    parts = [image if isinstance(image, Mapping) else {"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def normalize_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Check messages and bring them to one form: content a list of parts, text a string, OpenAI's image_url an image.

    Raises:
        PromptError: naming the message and what is wrong with it.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise PromptError('messages must be a non-empty list such as [{"role": "user", "content": "Hello"}]')
    return [_normalize_message(message, f"message {number}") for number, message in enumerate(messages, 1)]


def _normalize_message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} is a {type(message).__name__}, not an object with role and content")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role.replace("_", "").isalnum():
        raise PromptError(f"{where}: role {role!r:.40} is not a word such as 'user', 'assistant' or 'system'")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or not content:
        raise PromptError(f"{where}: content must be text or a non-empty list of parts")
    return {"role": role, "content": [_normalize_part(part, where) for part in content]}


def _normalize_part(part: object, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or kind not in ("text", "image", "image_url"):
        raise PromptError(f"{where}: part {kind or type(part).__name__!r:.40} is neither 'text' nor 'image'")
    if kind == "image_url":
        url = part.get("image_url")
        return {"type": "image", "url": url.get("url") if isinstance(url, Mapping) else url}
    if kind == "image":
        return dict(part)
    if not isinstance(part.get("text"), str):
        raise PromptError(f"{where}: a text part without text")
    return {"type": "text", "text": part["text"]}


class ChatTemplate:
    """A checkpoint's Jinja template, in the sandbox, with limits on time and size unless it is the family's own."""

    def __init__(self, source: str | None):
        self._source = source or FAMILY_TEMPLATE
        self.is_known = self._source == FAMILY_TEMPLATE

    def render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        """Prompt text with one `<image>` for each picture.

        Raises:
            PromptError: the template fails, or does what a template should not.
        """

        def run() -> str:
            template = _environment().from_string(self._source)
            return template.render(messages=messages, add_generation_prompt=add_generation_prompt)

        try:
            prompt = run() if self.is_known else _within(_SECONDS, run)
        except (
            TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            RecursionError,
            MemoryError,
        ) as error:
            raise PromptError(f"the checkpoint's chat template fails: {str(error).splitlines()[0][:200]}") from error
        if len(prompt) > _MAX_CHARACTERS:
            raise PromptError(f"the checkpoint's chat template made {len(prompt)} characters")
        return prompt


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox stops code, not floods: operators that can make huge values in one step are checked first."""

    intercepted_binops = frozenset({"*", "**", "<<"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and all(isinstance(value, int | float) for value in (left, right)):
            return super().call_binop(context, operator, left, right)
        raise SecurityError(f"operator {operator} on {type(left).__name__} and {type(right).__name__}")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = _raise_exception
    for name in ("lipsum", "cycler", "joiner", "namespace"):
        if name == "lipsum":
            del environment.globals[name]  # makes text of any length
    for name in ("center", "indent", "filesizeformat", "format", "xmlattr", "pprint", "random", "wordwrap"):
        del environment.filters[name]  # make values of any length from a number, or are not for prompts
    return environment


def _within(seconds: float, run: Callable[[], str]) -> str:
    """Run pure-Python code with a deadline that is checked at every line it executes."""
    deadline = time.monotonic() + seconds

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        if time.monotonic() > deadline:
            raise SecurityError(f"longer than {seconds:g} s")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return run()
    finally:
        sys.settrace(before)


def image_text(layout: TileLayout, tokens_per_tile: int) -> str:
    """What stands in the prompt for one picture: `tokens_per_tile` placeholders for each of its tiles, row by row.

    Follows `get_image_prompt_string` (transformers, models/smolvlm/processing_smolvlm.py). The markers are text: the
    v1 2.2B checkpoint has no tokens for `<global-img>` and `<row_1_col_1>`.
    """
    placeholders = IMAGE * tokens_per_tile
    whole = f"{FAKE}{GLOBAL}{placeholders}{FAKE}"
    if not layout.rows:
        return whole
    rows = [
        "".join(f"{FAKE}<row_{row}_col_{col}>{placeholders}" for col in range(1, layout.cols + 1)) + "\n"
        for row in range(1, layout.rows + 1)
    ]
    return "".join(rows) + "\n" + whole


def free_character(texts: Sequence[str]) -> str:
    """A character that is in none of the texts: one of Unicode's noncharacters, which are for such internal use."""
    for code in (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xFFFFD)):
        if not any(chr(code) in text for text in texts):
            return chr(code)
    raise PromptError("the text uses every character there is")
