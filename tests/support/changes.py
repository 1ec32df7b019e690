"""Every option with a value that changes an answer. A new option needs a line here, and is then
tried wherever options are taken; a field without one fails."""

from typing import Any

from smolvlm_mlx import Options
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.options import options_of

ANSWERS, PICTURES = options_of(Options), options_of(ImageOptions)
EVERY = [*ANSWERS, *PICTURES]
WARM: dict[str, Any] = {"temperature": 1.5, "seed": 1}
# By name: options beside it, and a value with which, beside them, the answer is another.
CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "max_tokens": ({}, 3),
    "temperature": ({"seed": 1}, 1.5),
    "top_p": (WARM, 0.3),
    "top_k": (WARM, 2),
    "min_p": (WARM, 0.9),
    "repetition_penalty": ({}, 3.0),
    "repetition_context": ({"repetition_penalty": 3.0}, 2),
    "presence_penalty": ({}, 2.0),
    "frequency_penalty": ({}, 2.0),
    "seed": (WARM, 2),
    "stop": ({}, ("^6", "D", "rE")),  # which answers of the small checkpoint have
    "end_loops": ({"end_loops": False}, True),
    "kv_bits": ({}, 4),
    "skip_special_tokens": (WARM, False),
    "longest_edge": ({}, 64),
    "split": ({}, False),
    "max_tiles": ({}, 3),
}
VALUES = {name: value for name, (_, value) in CHANGES.items()}
# What changes no answer of the small checkpoint, but those in test_repetition.py.
UNSEEN = {"end_loops"}
