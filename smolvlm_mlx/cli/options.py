"""Flags: those that several commands have, and those made of a dataclass's options; and the exit
code after Ctrl-C."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from functools import wraps
from inspect import Parameter
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from ..checkpoint import choices
from ..errors import SmolVLMError
from ..generation.options import Options
from ..inputs.settings import ImageOptions
from ..options import Option, option, options_of
from . import completion
from .choice import AUTO, VARIABLE, choose

if TYPE_CHECKING:
    from ..inputs.processor import Processor
    from ..model import SmolVLM

DEFAULT_MODEL = AUTO
INTERRUPTED = 130  # exit code after Ctrl-C
CHECKPOINT = "CHECKPOINT"  # title of options; and the mark of a parameter that names one
PICTURES = "Pictures and videos"
_COMMANDS = set[CodeType]()


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="A name that `smolvlm-mlx models` lists, a folder or a hub id; auto: what "
        f"{VARIABLE} or config.toml says (`smolvlm-mlx models` tells where it is), or else this "
        "machine's memory.",
        rich_help_panel="Checkpoint",
        autocompletion=completion.names,
    ),
    CHECKPOINT,
]
Images = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        "-i",
        metavar="FILE",
        help="Picture: path, URL or data: URL. Repeatable.",
        rich_help_panel=PICTURES,
    ),
]
Videos = Annotated[
    list[str] | None,
    typer.Option(
        "--video",
        "-v",
        metavar="FILE",
        help="Video: path or URL. Repeatable.",
        rich_help_panel=PICTURES,
    ),
]


@dataclass(frozen=True)
class Loading:
    """How a checkpoint is loaded."""

    adapter: Path | None = option(None, "Folder of a LoRA or DoRA adapter for it.", short="-a")
    dtype: choices.Dtype | None = option(
        None, "What the model computes in; else as suits this machine."
    )
    revision: str | None = option(None, "Branch, tag or commit of the hub repository.")
    memory: str | None = option(
        None, "Most memory to take, such as 6GB; else half of the machine's."
    )

    def load(
        self, model: str, lazy: bool | Literal["vision"] = False
    ) -> "tuple[SmolVLM, Processor]":
        """As `checkpoint.reader.load`."""
        from ..checkpoint.reader import load

        return load(
            model, self.dtype, self.revision, adapter=self.adapter, lazy=lazy, memory=self.memory
        )


@dataclass
class Invocation:
    """What was said to the program as a whole: the root or the command, whichever was told."""

    debug: bool = False


def _debug(context: typer.Context, given: bool) -> bool:
    invocation = context.ensure_object(Invocation)
    invocation.debug = invocation.debug or given
    return invocation.debug


Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_debug)
]


# ---- a dataclass's options as flags

GROUPS = {Options: "Answer", ImageOptions: PICTURES, Loading: "Checkpoint"}  # in --help


@dataclass(frozen=True)
class Flags:
    """How a command takes a dataclass: without the options that it cannot honour; `defaults` are
    words in place of defaults that other flags decide; `title` is its group's in --help, where
    `GROUPS` has none."""

    without: tuple[str, ...] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)
    title: str | None = None


def as_command(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function as Typer takes it. A parameter that is a dataclass becomes a flag for
    each of its options, in its place; its default, an instance, has their defaults. One that is
    marked as a CHECKPOINT gets a folder or hub id for a name. Each command has --debug, and ends
    its line after Ctrl-C."""
    parameters = inspect.signature(function).parameters
    named = [name for name, parameter in parameters.items() if _names_checkpoint(parameter)]
    groups = {
        name: found for name, parameter in parameters.items() if (found := _options(parameter))
    }
    flags: list[Parameter] = []
    for name, parameter in parameters.items():
        flags += (
            groups[name].values()
            if name in groups
            else [parameter.replace(kind=Parameter.KEYWORD_ONLY)]
        )
    flags.append(Parameter("debug", Parameter.KEYWORD_ONLY, default=False, annotation=Debug))
    _COMMANDS.add(function.__code__)

    @wraps(function)
    def command(*, debug: bool, **values: Any) -> None:
        for name, options in groups.items():
            values[name] = _filled(
                parameters[name].default, {option: values.pop(option) for option in options}
            )
        values |= {name: _chosen(values[name]) for name in named}
        try:
            function(**values)
        except KeyboardInterrupt:
            print(file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None

    command.__dict__["__signature__"] = inspect.Signature(flags)
    command.__annotations__ = {flag.name: flag.annotation for flag in flags}
    return command


def _names_checkpoint(parameter: Parameter) -> bool:
    return CHECKPOINT in getattr(parameter.annotation, "__metadata__", ())


def _chosen(name: str | list[str] | None) -> str | list[str] | None:
    """What a command gets for a name, for each of several, for none."""
    if isinstance(name, list):
        return [choose(each) for each in name]
    return name if name is None else choose(name)


def confirm(command: str, what: str, refused: type[SmolVLMError]) -> None:
    """Ask whether to do it.

    Raises:
        SmolVLMError: as `refused`: the answer is not yes, or nobody can be asked.
    """
    if not sys.stdin.isatty():
        raise refused(f"{command} would {what}; --yes does it without a question")
    print(f"{what}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise refused("nothing is deleted")


def is_command(code: CodeType) -> bool:
    """Whether this is a command's own code, in which Ctrl-C raises KeyboardInterrupt."""
    return code in _COMMANDS


def given(context: typer.Context, values: Any) -> dict[str, Any]:
    """Return those values of a dataclass's options that were typed."""
    names = [option.name for option in options_of(type(values))]
    return {name: getattr(values, name) for name in names if _is_typed(context, name)}


def typed(context: typer.Context, *names: str) -> str:
    """Return the flags of those parameters that were typed, for people to read; "" if there are
    none."""
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    return ", ".join(flags[name] for name in names if _is_typed(context, name))


def note_unused(context: typer.Context, why: str, *names: str) -> None:
    """Say which flags of those parameters were typed though they change nothing, and go on: scripts
    pass the same flags to all that they do."""
    if flags := typed(context, *names):
        print(f"smolvlm-mlx: {flags}: changes nothing, {why}", file=sys.stderr)


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def flag_of(option: Option) -> str:
    """Return an option's flag."""
    return option.flag or f"--{option.name.replace('_', '-')}"


def _options(parameter: Parameter) -> dict[str, Parameter]:
    """Return the flags of a parameter that is a dataclass, by the names of its options; none of
    another."""
    annotated = get_origin(parameter.annotation) is Annotated
    kind, *notes = get_args(parameter.annotation) if annotated else (parameter.annotation,)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return {}
    how = next((note for note in notes if isinstance(note, Flags)), Flags())
    options = [option for option in options_of(kind) if option.name not in how.without]
    title = next((title for known, title in GROUPS.items() if issubclass(kind, known)), how.title)
    return {
        o.name: _flag(o, getattr(parameter.default, o.name), how.defaults.get(o.name, True), title)
        for o in options
    }


def _filled(default: Any, values: dict[str, Any]) -> Any:
    """Return the dataclass with these values of its flags; a flag that can be repeated gives a
    list, or None."""
    several = [name for name in values if isinstance(getattr(default, name), tuple)]
    return replace(default, **values | {name: tuple(values[name] or ()) for name in several})


def _flag(option: Option, default: Any, shown: str | bool, title: str | None) -> Parameter:
    """Return the flag of one option; `shown` are words in place of its default, `title` is its
    group's."""
    kind, name = option.type, flag_of(option)
    short = [option.short] if option.short else []
    if option.flag and kind is bool:
        shown = False
    elif bool in (kind, *get_args(kind)):
        name = f"{name}/--no-{name.removeprefix('--')}"
    flag = typer.Option(name, *short, help=option.help, show_default=shown, rich_help_panel=title)
    if get_origin(kind) is tuple:
        words = get_args(get_args(kind)[0])  # of a Literal
        kind, default = list[str] | None, list(default) or None
        if words:
            flag.metavar, flag.callback = "|".join(words), _split(words)
            flag.autocompletion = lambda incomplete: words
    return Parameter(
        option.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, flag]
    )


def _split(names: Sequence[str]) -> Callable[[list[str]], list[str]]:
    """Of a flag that takes several of these names: repeated, or with commas."""

    def split(value: list[str]) -> list[str]:
        found = [name.strip() for words in value for name in words.split(",")]
        if wrong := [name for name in found if name not in names]:
            raise typer.BadParameter(
                f"{', '.join(map(repr, wrong))} is not one of {', '.join(map(repr, names))}."
            )
        return found

    return split
