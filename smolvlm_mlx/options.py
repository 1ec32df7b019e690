"""An option is a field of a frozen dataclass, defined once: its name, type, default and help.

The command line makes a flag of each, and the API a field. Modules that hold such dataclasses
import nothing heavy, so that --help answers at once.
"""

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """A field of a dataclass, with what people are told about it."""

    name: str
    type: Any
    default: Any
    help: str
    flag: str = ""  # on the command line; else made of the name
    short: str = ""  # a second flag of one letter


def option(default: T, help: str, *, flag: str = "", short: str = "") -> T:
    """Define a field of a dataclass, in the place of its default."""
    return field(default=default, metadata={"help": help, "flag": flag, "short": short})


def options_of(kind: type) -> list[Option]:
    """Return the options of a dataclass whose fields are made by `option`."""
    types = get_type_hints(kind)
    return [
        Option(field.name, types[field.name], field.default, **field.metadata)
        for field in fields(kind)
    ]
