"""Settings of a chat as they are typed: how answers are generated and pictures are cut."""

import math
from dataclasses import fields
from typing import Any

from ...errors import GenerationError, shown
from ...generation.sampling import Options
from ...inputs.tiles import ImageOptions
from .completion import split_words

IMAGE_OPTIONS = tuple(option.name for option in fields(ImageOptions))


def parse(name: str, value: str) -> Any:
    """A setting's value as it was typed; `none` is None, or for `stop` no text at all."""
    if name == "stop":
        return tuple(split_words(value)) if value not in ("", "none") else ()
    if value in ("", "none", "default"):
        return getattr(Options(), name, None)
    if name == "split":
        if value not in ("on", "off"):
            raise GenerationError(f"split is on or off, not {shown(value)}")
        return value == "on"
    whole = name in (*IMAGE_OPTIONS, "max_tokens", "top_k", "seed", "kv_bits")
    try:
        number = int(value) if whole else float(value)
    except ValueError as error:
        raise GenerationError(f"{name} is a {'whole ' if whole else ''}number, not {shown(value)}") from error
    if not math.isfinite(number):
        raise GenerationError(f"{name} is a number, not {shown(value)}")
    return number


def written(value: Any) -> str:
    """A setting's value as `parse` takes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value in (None, ()) else " ".join(value) if isinstance(value, tuple) else str(value)
