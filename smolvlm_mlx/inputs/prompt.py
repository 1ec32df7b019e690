"""The text of a prompt: what stands for a picture's tiles, and the chat template that makes text of
messages.

The family's template is pinned, and rendered here. Any other may come from anyone: it is rendered
in Jinja's sandbox, which stops code, in a process of its own with limits on time and memory, which
stop floods.
"""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import PromptError, cut
from .tiles import TileLayout

IMAGE, FAKE, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"

# The family's own template, the same in all its checkpoints; used when a checkpoint has none.
FAMILY_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor "
    "%}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def image_text(layout: TileLayout, tokens_per_tile: int) -> str:
    """What stands in the prompt for one picture: `tokens_per_tile` placeholders for each of its
    tiles, row by row.

    Follows `get_image_prompt_string` (transformers, models/smolvlm/processing_smolvlm.py). The
    markers are text: the v1 2.2B checkpoint has no tokens for `<global-img>` and `<row_1_col_1>`.
    """
    placeholders = IMAGE * tokens_per_tile
    whole = f"{FAKE}{GLOBAL}{placeholders}{FAKE}"
    if not layout.rows:
        return whole
    rows = [
        "".join(f"{FAKE}<row_{row}_col_{col}>{placeholders}" for col in range(1, layout.cols + 1))
        + "\n"
        for row in range(1, layout.rows + 1)
    ]
    return "".join(rows) + "\n" + whole


def free_character(texts: Sequence[str]) -> str:
    """A character that is in none of the texts: one of Unicode's noncharacters, which are for such
    internal use."""
    used = set[str]().union(*texts)
    for code in chain(range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFD)):
        if chr(code) not in used:
            return chr(code)
    raise PromptError("the text uses every character there is")


CPU_SECONDS = 2  # with the start of the process, which takes a tenth of it
SECONDS = 30.0  # in which a busy machine gives them
MEMORY = 2**29
MAX_CHARACTERS = 2**24  # of a prompt; the longest context holds a thousandth

# Reads [template, values] from stdin, writes the text to stdout as JSON. Its last line on stderr is
# the reason of a failure.
# What templates may use is what transformers gives them (utils/chat_template_utils.py).
_CHILD = """
import json, resource, sys
from datetime import datetime
def bound(limit, most):
    hard = resource.getrlimit(limit)[1]  # of whoever started the program (ulimit)
    resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
memory, characters, seconds = map(int, sys.argv[1:])
bound(resource.RLIMIT_CORE, 0)
bound(resource.RLIMIT_CPU, seconds)
bound(resource.RLIMIT_AS, memory)  # macOS does not keep it; there the time has to do
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
class Generation(Extension):
    # {% generation %} ... {% endgeneration %} marks what is learned; its text is as without it.
    tags = {"generation"}
    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("as_it_is"), [], [], body).set_lineno(line)
    def as_it_is(self, caller):
        return caller()
def raise_exception(message):
    raise TemplateError(message)
def strftime_now(format):
    return datetime.now().strftime(format)
def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
)
environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
environment.filters["tojson"] = to_json
source, values = json.load(sys.stdin)
text = environment.from_string(source).render(values)
if len(text) > characters:
    raise ValueError(f"it makes {len(text)} characters")
json.dump(text, sys.stdout)
"""


class ChatTemplate:
    """A checkpoint's Jinja template, or the family's own.

    Args:
        special_tokens: of the tokenizer, such as bos_token, for the template to use.
    """

    def __init__(self, source: str | None, special_tokens: Mapping[str, str] | None = None):
        self.source, self.special_tokens = source or FAMILY_TEMPLATE, special_tokens or {}
        self.is_known = self.source == FAMILY_TEMPLATE

    def render(self, messages: Sequence[Mapping[str, object]], add_generation_prompt: bool) -> str:
        """Prompt text with one `<image>` for each picture.

        Raises:
            PromptError: the template fails, or does what a template should not.
        """
        values: dict[str, object] = {
            **self.special_tokens,
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        if not self.is_known:
            return _render_apart(self.source, values)
        try:
            return _family().render(values)
        except TemplateError as error:
            raise PromptError(f"the chat template fails: {_one_line(str(error))}") from error


@cache
def _family() -> Template:
    return ImmutableSandboxedEnvironment().from_string(FAMILY_TEMPLATE)


def _render_apart(source: str, values: dict[str, object]) -> str:
    limits = map(str, (MEMORY, MAX_CHARACTERS, CPU_SECONDS))
    command = [sys.executable, "-I", "-c", _CHILD, *limits]
    request = json.dumps([source, values])
    try:
        child = subprocess.run(
            command, input=request, capture_output=True, encoding="utf-8", timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise PromptError(
            f"the checkpoint's chat template takes longer than {SECONDS:g} s"
        ) from error
    if child.returncode == -signal.SIGXCPU:
        raise PromptError(
            f"the checkpoint's chat template takes more than {CPU_SECONDS} s of the processor"
        )
    if child.returncode:
        reason = (
            child.stderr.strip().splitlines() or [f"it ended with signal {-child.returncode}"]
        )[-1]
        raise PromptError(f"the checkpoint's chat template fails: {_one_line(reason)}")
    return str(json.loads(child.stdout))


def _one_line(text: str) -> str:
    text = re.sub(
        r" at 0x[0-9a-fA-F]+",
        "",
        " ".join("".join(c if c.isprintable() else " " for c in text).split()),
    )
    return cut(text, 200)
