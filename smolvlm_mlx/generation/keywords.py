"""Single options as keywords: `generate(..., max_tokens=5)`, as type checkers, help() and a typo
have them."""

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, signature
from typing import Any, Literal, TypedDict, TypeVar, cast

from ..errors import GenerationError, quote
from ..inputs.settings import ImageOptions
from ..options import completed, options_of
from .options import Options

Function = TypeVar("Function", bound=Callable[..., Any])
Kind = TypeVar("Kind", Options, ImageOptions)


class Keywords(TypedDict, total=False):
    """Each field of Options and ImageOptions, for type checkers, which read no other list."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    repetition_context: int
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    stop: str | list[str] | tuple[str, ...]
    end_loops: bool
    kv_bits: Literal[4, 8] | None
    skip_special_tokens: bool | None
    longest_edge: int | None
    split: bool | None
    max_tiles: int | None


def takes_options(function: Function) -> Function:
    """Complete the signature and the docstring of a function with a keyword for each option, in
    the place of its `**keywords`; another is a TypeError that names the nearest."""
    *named, _ = signature(function).parameters.values()
    options = (*options_of(Options), *options_of(ImageOptions))
    single = [
        Parameter(o.name, Parameter.KEYWORD_ONLY, default=o.default, annotation=o.type)
        for o in options
    ]
    known = {parameter.name for parameter in (*named, *single)} - {"self"}
    called = function.__qualname__.removesuffix(".__init__")

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in known:
                near = get_close_matches(name, known, 1, 0.5)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise TypeError(f"{called}() has no argument {quote(name)}{hint}")
        return function(*args, **kwargs)

    checked.__dict__["__signature__"] = signature(function).replace(parameters=[*named, *single])
    title = "Options as keywords, each in place of a field of `options` or `image_options`"
    checked.__doc__ = completed(function.__doc__, title, Options, ImageOptions)
    return cast(Function, checked)


def changed(
    options: Options | None, image_options: ImageOptions | None, keywords: Keywords
) -> tuple[Options, ImageOptions]:
    """Return both with what the keywords change.

    Raises:
        GenerationError, ImageError: a value cannot be used, or what should be options is none.
    """
    return _changed(Options, options, keywords), _changed(ImageOptions, image_options, keywords)


def _changed(kind: type[Kind], given: Kind | None, keywords: Keywords) -> Kind:
    if not isinstance(given, kind | None):
        raise GenerationError(
            f"{quote(given)} is given as options, which are {kind.__name__}(...); pictures are "
            "images=..., and single options keywords such as max_tokens=5"
        )
    names = {option.name for option in options_of(kind)}
    changes: Any = {name: value for name, value in keywords.items() if name in names}
    options = given or kind()
    return replace(options, **changes) if changes else options
