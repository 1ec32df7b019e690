"""Messages in one form, the text that stands for a picture's tiles, and the chat template that makes a prompt of both.

Messages follow the transformers chat schema: `{"role": ..., "content": text or [parts]}`, with parts
`{"type": "text", "text": ...}`, `{"type": "image", "image" | "path" | "url" | "base64": ...}` and
`{"type": "video", "video" | "path" | "url" | "base64" | "frames": ...}` with `fps`, `max_frames`, `start`, `end` if wanted.

The family's template is pinned, and rendered here. Any other may come from anyone: it is rendered in Jinja's sandbox, which
stops code, in a process of its own with limits on time and memory, which stop floods.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import PromptError, short
from .tiles import TileLayout

Message = Mapping[str, Any]
SOURCES = ("image", "path", "url", "base64")  # keys of an image part, one of which it has
VIDEO_SOURCES = ("video", "frames", "path", "url", "base64")
VIDEO_OPTIONS = ("fps", "max_frames", "start", "end")  # of a video part, see `inputs.video`
IMAGE, FAKE, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"

# The family's own template, the same in all its checkpoints; used when a checkpoint has none.
FAMILY_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


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
        raise PromptError(f"{where}: role {short(role)} is not a word such as 'user', 'assistant' or 'system'")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or not content:
        raise PromptError(f"{where}: content must be text or a non-empty list of parts")
    return {"role": role, "content": [_normalize_part(part, where) for part in content]}


def _normalize_part(part: object, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or kind not in ("text", "image", "image_url", "video", "video_url"):
        raise PromptError(f"{where}: part {short(kind or type(part).__name__)} is not 'text', 'image' or 'video'")
    if kind in ("video", "video_url"):
        return _normalize_video(part, where)
    if kind != "text":
        url = part.get("image_url")
        image = {"type": "image", "url": url.get("url") if isinstance(url, Mapping) else url}
        image = {"type": "image", **{key: part[key] for key in SOURCES if key in part}} if kind == "image" else image
        sources = [key for key in SOURCES if image.get(key) is not None]
        if len(sources) != 1:
            raise PromptError(
                f"{where}: an image part needs one of {', '.join(SOURCES)}; it has {', '.join(sources) or 'none'}"
            )
        return image
    if not isinstance(part.get("text"), str):
        raise PromptError(f"{where}: a text part without text")
    return {"type": "text", "text": part["text"]}


def _normalize_video(part: Message, where: str) -> dict[str, Any]:
    url = part.get("video_url")
    named = {"url": url.get("url") if isinstance(url, Mapping) else url} if part["type"] == "video_url" else part
    sources = [key for key in VIDEO_SOURCES if named.get(key) is not None]
    if len(sources) != 1:
        raise PromptError(
            f"{where}: a video part needs one of {', '.join(VIDEO_SOURCES)}; it has {', '.join(sources) or 'none'}"
        )
    options = {key: part[key] for key in VIDEO_OPTIONS if part.get(key) is not None}
    return {"type": "video", sources[0]: named[sources[0]], **options}


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
    for code in chain(range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFD)):
        if not any(chr(code) in text for text in texts):
            return chr(code)
    raise PromptError("the text uses every character there is")


def name_of(source: Any, otherwise: str) -> str:
    """The name of a picture's or a video's file, where it has one."""
    if isinstance(source, Mapping):
        keys = ("path", "url", "image", "video")
        source = next((source[key] for key in keys if source.get(key) is not None), None)
    is_short = isinstance(source, str) and not source.startswith("data:") and len(source) < 1000
    return Path(source).name if is_short or isinstance(source, Path) else otherwise


SECONDS = 1.5  # with the start of the process, which takes a tenth of it
MEMORY = 2**29
MAX_CHARACTERS = 2**24  # of a prompt; the longest context holds a thousandth

# Reads [template, values] from stdin, writes the text to stdout as JSON. Its last line on stderr is the reason of a failure.
_CHILD = """
import json, resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # macOS does not keep it; there the deadline has to do
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
def raise_exception(message):
    raise TemplateError(message)
environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
environment.globals["raise_exception"] = raise_exception
environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
source, values = json.load(sys.stdin)
text = environment.from_string(source).render(values)
if len(text) > int(sys.argv[2]):
    raise ValueError(f"it makes {len(text)} characters")
json.dump(text, sys.stdout)
"""


class ChatTemplate:
    """A checkpoint's Jinja template, or the family's own."""

    def __init__(self, source: str | None):
        self.source = source or FAMILY_TEMPLATE
        self.is_known = self.source == FAMILY_TEMPLATE

    def render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        """Prompt text with one `<image>` for each picture.

        Raises:
            PromptError: the template fails, or does what a template should not.
        """
        values = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        if not self.is_known:
            return _render_apart(self.source, values)
        try:
            return _family().render(values)
        except TemplateError as error:
            raise PromptError(f"the chat template fails: {_one_line(str(error))}") from error


@cache
def _family() -> Template:
    return ImmutableSandboxedEnvironment().from_string(FAMILY_TEMPLATE)


def _render_apart(source: str, values: dict[str, Any]) -> str:
    command = [sys.executable, "-I", "-c", _CHILD, str(MEMORY), str(MAX_CHARACTERS)]
    request = json.dumps([source, values])
    try:
        child = subprocess.run(command, input=request, capture_output=True, encoding="utf-8", timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise PromptError(f"the checkpoint's chat template takes longer than {SECONDS:g} s") from error
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or [f"it ended with signal {-child.returncode}"])[-1]
        raise PromptError(f"the checkpoint's chat template fails: {_one_line(reason)}")
    text: str = json.loads(child.stdout)
    return text


def _one_line(text: str) -> str:
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join("".join(c if c.isprintable() else " " for c in text).split()))
    return text if len(text) <= 200 else f"{text[:197]}..."
