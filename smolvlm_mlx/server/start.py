"""What the page begins with: GET /page/start. What was said on the command line reaches it so."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args, get_origin

from ..generation.options import Options
from ..inputs.media import Attachment, Video
from ..inputs.messages import to_json, user_message
from ..inputs.settings import ImageOptions
from ..options import Option, options_of
from ..tasks.options import CHAT, RETRY_TEMPERATURE

# The engine's cache is shared by all requests; and special tokens would come back as plain text
# with the next question.
WITHOUT = ("kv_bits", "skip_special_tokens")
# Questions that an empty page offers.
EXAMPLES = ("Describe the picture.", "What does the text say?", "How many things are there?")
PAGE_EXAMPLES = (
    "Convert this page to docling.",
    "Convert this table to OTSL.",
    "Convert formula to LaTeX.",
)


@dataclass(frozen=True)
class Start:
    """What the command line says to the page.

    Attributes:
        typed: names of options that were given: they go before what the browser keeps.
        system: the system message.
        media: pictures and videos for the first question.
        conversation: id of the one in the history that goes on.
        options: of the page's questions, where the browser keeps nothing else.
        run: names this run of the server; the page takes pictures and conversation once a run.
    """

    typed: Sequence[str] = ()
    system: str | None = None
    media: Sequence[Attachment | Video] = ()
    conversation: str | None = None
    options: Options = CHAT
    run: str = field(default_factory=lambda: secrets.token_hex(8))

    def to_json(self, options: Options, image_options: ImageOptions) -> dict[str, object]:
        """Return it as JSON, with a setting for each option that the page may ask with: `said` in
        each request, or only where it was changed.

        Args:
            options, image_options: of answers to requests that say nothing.
        """
        others, defaults = vars(options), {**vars(self.options), **vars(image_options)}
        known = [*options_of(Options), *options_of(ImageOptions)]
        (message,) = to_json([user_message("", self.media)])
        return {
            "run": self.run,
            "system": self.system,
            "content": message["content"],
            "conversation": self.conversation,
            "retry_temperature": RETRY_TEMPERATURE,
            "settings": [
                {
                    "name": option.name,
                    "help": option.help,
                    "kind": _kind(option),
                    "value": defaults[option.name],
                    "typed": option.name in self.typed,
                    "said": others.get(option.name, defaults[option.name]) != defaults[option.name],
                }
                for option in known
                if option.name not in WITHOUT
            ],
        }


def _kind(option: Option) -> str:
    """How the page asks for an option."""
    if get_origin(option.type) is tuple:
        return "texts"
    kinds = get_args(option.type) or (option.type,)
    return "flag" if bool in kinds else "whole" if int in kinds else "number"
