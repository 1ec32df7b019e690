"""The settings of a chat: how its answers are generated and its pictures cut; by name, as they are
typed and shown."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from ...errors import GenerationError, quote
from ...generation.options import Options
from ...inputs.settings import ImageOptions
from ...options import Option, options_of
from ...tasks.chat import Chat
from ...tasks.options import CHAT
from .command import WITHOUT
from .paths import split_words

NAMED = {
    option.name: option
    for kind in (Options, ImageOptions)
    for option in options_of(kind)
    if option.name not in WITHOUT
}


def find(typed: str) -> Option:
    """The setting of a name, which may be written as a flag.

    Raises:
        GenerationError: there is none.
    """
    name = typed.lstrip("-").replace("-", "_").lower()
    option = NAMED.get(name)
    if option is None:
        near = get_close_matches(name, NAMED, 1)
        hint = f"is it {near[0]}? " if near else ""
        raise GenerationError(f"no setting {quote(typed)}; {hint}there are {', '.join(NAMED)}")
    return option


def value_of(chat: Chat, option: Option) -> object:
    """What it is now."""
    return {**vars(chat.options), **vars(chat.image_options)}[option.name]


def change(chat: Chat, option: Option, text: str) -> object:
    """Set it to what was typed; returns the value.

    Raises:
        SmolVLMError: it cannot be that.
    """
    value = _parsed(option, text)
    if option.name in vars(CHAT):
        chat.options = replace(chat.options, **{option.name: value})
    else:
        chat.image_options = replace(chat.image_options, **{option.name: value})
    return value


def default_of(option: Option) -> Any:
    """What it is in a chat that was told nothing."""
    return vars(CHAT).get(option.name, option.default)


def choices(option: Option) -> Iterator[str]:
    """Values that it may have, as they are typed: all, of those that have few."""
    for kind in get_args(option.type) or (option.type,):
        if kind is bool:
            yield from ("on", "off")
        elif get_origin(kind) is Literal:
            yield from map(str, get_args(kind))
    yield "default"


def _parsed(option: Option, value: str) -> Any:
    """A setting's value as it was typed; `none` and `default` are the default."""
    if value in ("none", "default"):
        return default_of(option)
    if get_origin(option.type) is tuple:
        return tuple(split_words(value))
    kinds = get_args(option.type) or (option.type,)
    if bool in kinds:
        if value not in ("on", "off"):
            raise GenerationError(f"{option.name} is on or off, not {quote(value)}")
        return value == "on"
    try:
        number = float(value) if float in kinds else int(value)
    except ValueError as error:
        kind = "number" if float in kinds else "whole number"
        raise GenerationError(f"{option.name} is a {kind}, not {quote(value)}") from error
    if not math.isfinite(number):
        raise GenerationError(f"{option.name} is a number, not {quote(value)}")
    return number


def written(value: object) -> str:
    """A setting's value as it is typed."""
    if value in (None, ()):
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return shlex.join(value) if isinstance(value, tuple) else str(value)
