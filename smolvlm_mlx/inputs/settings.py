"""How pictures become tiles: as a checkpoint says, and what a user has in its place."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from ..errors import ImageError, quote
from ..options import option

LANCZOS = 1  # Pillow's number, as in preprocessor_config.json


@dataclass(frozen=True)
class ImageSettings:
    """How pictures become tiles. `max_tiles` limits the tiles of one picture, the global one
    included."""

    tile_size: int  # max_image_size.longest_edge
    longest_edge: int  # size.longest_edge
    split: bool = True  # do_image_splitting
    max_tiles: int | None = None
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255

    def __post_init__(self) -> None:
        if problems := _problems(vars(self)):
            raise ImageError(f"image settings: {'; '.join(problems)}")

    @classmethod
    def from_dict(cls, raw: Mapping[str, object]) -> "ImageSettings":
        """From preprocessor_config.json; a missing key has the default of transformers' processor
        classes.

        Raises ImageError naming every problem.
        """
        values: dict[str, Any] = {
            "tile_size": _longest_edge(raw.get("max_image_size", {"longest_edge": 364})),
            "longest_edge": _longest_edge(raw.get("size", {"longest_edge": 4 * 364})),
            "split": raw.get("do_image_splitting", cls.split),
            "mean": _tuple(raw.get("image_mean", cls.mean)),
            "std": _tuple(raw.get("image_std", cls.std)),
            "rescale_factor": raw.get("rescale_factor", cls.rescale_factor),
        }
        # do_pad is not among them: tiles are full squares, there is nothing to pad.
        always = ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize")
        problems = [
            f"{key} is {quote(raw[key])}, must be true"
            for key in always
            if raw.get(key, True) is not True
        ]
        if raw.get("resample", LANCZOS) != LANCZOS:
            problems.append(f"resample is {quote(raw['resample'])}, must be {LANCZOS} (LANCZOS)")
        if problems := problems + _problems(values):
            raise ImageError(f"preprocessor_config.json: {'; '.join(problems)}")
        return cls(**values)


@dataclass(frozen=True)
class ImageOptions:
    """How pictures are cut, where it is not as the checkpoint says; None leaves that as it is.

    Raises:
        ImageError: a value is out of range (all are named at once).
    """

    longest_edge: int | None = option(None, "Pixels of a picture's longer side before it is split.")
    split: bool | None = option(None, "Split pictures into tiles, or make one of each.")
    max_tiles: int | None = option(
        None, "Most tiles for one picture; its longer side shrinks until that is kept."
    )

    def __post_init__(self) -> None:
        if problems := _problems(vars(ImageSettings(1, 1)) | self.given):  # as of any settings
            raise ImageError("; ".join(problems))

    @property
    def given(self) -> dict[str, Any]:
        """Those that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def over(self, other: "ImageOptions") -> "ImageOptions":
        """These, and the other's where these have none."""
        return replace(other, **self.given)

    def applied(self, settings: ImageSettings) -> ImageSettings:
        """A checkpoint's settings with these in their place."""
        return replace(settings, **self.given)


def _longest_edge(size: object) -> object:
    return size.get("longest_edge") if isinstance(size, Mapping) else size


def _tuple(values: object) -> object:
    return tuple(values) if isinstance(values, list) else values


def _problems(values: Mapping[str, object]) -> list[str]:
    found = []
    for name in ("tile_size", "longest_edge", "max_tiles"):
        value = values.get(name)
        if (value is not None or name != "max_tiles") and (type(value) is not int or value < 1):
            found.append(f"{name} is {quote(value)}, must be a whole number above 0")
    if type(values["split"]) is not bool:
        found.append(f"split is {quote(values['split'])}, must be true or false")
    for name in ("mean", "std"):
        three = values[name]
        if not (
            isinstance(three, tuple)
            and len(three) == 3
            and all(_is_number(value) for value in three)
        ):
            found.append(f"{name} is {quote(three)}, must be three numbers")
        elif name == "std" and min(three) <= 0:
            found.append(f"std is {quote(three)}, must be above 0")
    factor = values["rescale_factor"]
    if not _is_number(factor) or factor <= 0:
        found.append(f"rescale_factor is {quote(factor)}, must be a number above 0")
    return found


def _is_number(value: object) -> TypeGuard[float]:
    return (type(value) is int or type(value) is float) and math.isfinite(value)
