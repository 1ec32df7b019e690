"""Parts of messages, and texts of every kind to put into them."""

import random
from collections.abc import Iterable
from typing import Any

from smolvlm_mlx.inputs.media import Attachment, Video
from smolvlm_mlx.inputs.messages import Message

WORDS = (
    "the a cat Cat  dog\t\n \n\n\n  42 3.14 007 naïve Ünïcödé 漢字 かな 한국어 العربية עברית "
    "हिन्दी 👩‍👩‍👧 "
    "🏳️‍🌈 é e\u0301 "
    "\u200b \u00a0 don't I'm you'll <b> < > << <im <|im <|im_start <image <row_1 </s> {{x}} {% y "
    "%} \\n \\ \" ' `` ** __ # "
    "def f(x): return x+1 http://a.b/c?d=e&f https://x $5 50% @me #1 ... !? ¿ «» … — 1,000,000 "
    "0x1F 1e-5 \r\n \ufeff \U0001f600"
).split(" ")


def media_of(messages: Iterable[Message]) -> list[Attachment | Video]:
    """The pictures and videos of a conversation, in order."""
    return [held for message in messages for held in message.media]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def random_text(rng: random.Random) -> str:
    if rng.random() < 0.2:
        return "".join(
            chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xA0, 0x2FFF)]))
            for _ in range(20)
        )
    return (
        rng.choice(["", " ", "\n"]).join(rng.choices(WORDS, k=rng.randrange(0, 12)))
        if rng.random() < 0.5
        else " ".join(rng.choices(WORDS, k=rng.randrange(1, 30)))
    )
