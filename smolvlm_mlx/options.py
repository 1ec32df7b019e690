"""An option is a field of a frozen dataclass, defined once: its name, type, default and help.

The command line makes a flag of each, the API a field, Python a keyword and a line of help().
Modules that hold such dataclasses import nothing heavy, so that --help answers at once.
"""

import inspect
import textwrap
from dataclasses import dataclass, field, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import SmolVLMError, quote

T = TypeVar("T")
WORDS = {int: "a whole number", float: "a number", bool: "true or false", NoneType: "None"}


@dataclass(frozen=True)
class Option:
    """A field of a dataclass, with what people are told about it."""

    name: str
    type: Any
    default: Any
    help: str
    flag: str = ""  # on the command line; else made of the name, a bool's with --no- beside it
    short: str = ""  # a second flag of one letter


def option(default: T, help: str, *, flag: str = "", short: str = "") -> T:
    """Define a field of a dataclass, in the place of its default."""
    return field(default=default, metadata={"help": help, "flag": flag, "short": short})


def options_of(kind: type) -> tuple[Option, ...]:
    """Return the options of a dataclass whose fields are made by `option`."""
    return _options_of(kind)


@cache  # annotations take longer to read than all that is done with them
def _options_of(kind: type) -> tuple[Option, ...]:
    types = get_type_hints(kind)
    return tuple(
        Option(field.name, types[field.name], field.default, **field.metadata)
        for field in fields(kind)
    )


# ---- documentation


def documented(kind: type[T]) -> type[T]:
    """Complete the docstring of a dataclass with its options."""
    kind.__doc__ = completed(kind.__doc__, "Fields", kind)
    return kind


def completed(doc: str | None, title: str, *kinds: type) -> str:
    """Return a docstring with a section about the options of dataclasses."""
    paragraphs = [
        textwrap.fill(
            f"{option.name} = {option.default!r}: {option.help}",
            width=96,
            initial_indent="    ",
            subsequent_indent="        ",
        )
        for kind in kinds
        for option in options_of(kind)
    ]
    return "\n".join([inspect.cleandoc(doc or ""), "", f"{title}:", *paragraphs]).strip()


# ---- types


def settle(values: Any, error: type[SmolVLMError]) -> None:
    """Bring the options of a dataclass to their types: numbers from NumPy's, tuples from a list or
    from one text. For __post_init__.

    Raises:
        error: some are of other types (all are named at once).
    """
    problems = []
    for option in options_of(type(values)):
        given = getattr(values, option.name)
        if given is option.default or type(given) is option.type:
            continue  # most, and the rest takes longer
        try:
            object.__setattr__(values, option.name, _as_type(option.type, given))
        except TypeError:
            kinds = ", or ".join(map(_in_words, _members(option.type)))
            problems.append(f"{option.name} is {quote(given)}, must be {kinds}")
    if problems:
        raise error("; ".join(problems))


def _as_type(kind: Any, value: Any) -> Any:
    """Return the value as one of the types that an annotation has. Raises TypeError."""
    if getattr(value, "shape", None) == ():  # a number of NumPy, MLX or others
        value = value.item()
    for member in _members(kind):
        known = get_args(member) if get_origin(member) is Literal else ()
        if get_origin(member) is tuple:
            values = (value,) if isinstance(value, str) else value
            if isinstance(values, list | tuple) and all(isinstance(each, str) for each in values):
                return tuple(values)
        elif type(value) in (*map(type, known), member) or (member, type(value)) == (float, int):
            return value
    raise TypeError


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _in_words(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "a text or a list of texts"
    return WORDS.get(kind) or " or ".join(map(str, get_args(kind)))
