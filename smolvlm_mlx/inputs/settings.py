"""How pictures become tiles: as a checkpoint says, and what a user has in its place."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import ImageError, quote
from ..files import read_json_if_there
from ..options import documented, option, settle

MAX_PIXELS = 2**31 - 1  # of a side, in words of 32 bits
LANCZOS = 1  # Pillow's number, as in preprocessor_config.json
FILTERS = range(6)  # Pillow's others: nearest 0, bilinear 2, bicubic 3, box 4, Hamming 5
# Of means, deviations and factors, whose numbers are those of pixels, 0 to 1 or 0 to 255.
LARGEST, SMALLEST = 1e4, 1e-4
MAX_SIDE_TILES = 64  # of a side that a checkpoint makes its pictures
# Of settings that have another name in preprocessor_config.json.
_KEYS = {
    "tile_size": "max_image_size.longest_edge",
    "longest_edge": "size.longest_edge",
    "split": "do_image_splitting",
    "mean": "image_mean",
    "std": "image_std",
}


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
    resample: int = LANCZOS

    def __post_init__(self) -> None:
        if problems := _problems(vars(self)):
            raise ImageError(f"image settings: {'; '.join(problems)}")

    @property
    def normalization(self) -> bytes:
        """A name for what becomes of a tile's pixels after it is cut."""
        return repr((self.mean, self.std, self.rescale_factor)).encode()

    @classmethod
    def from_dict(
        cls, raw: Mapping[str, object], name: str = "preprocessor_config.json"
    ) -> "ImageSettings":
        """From preprocessor_config.json; a missing key has the default of transformers' processor
        classes.

        Raises ImageError naming every problem.
        """
        problems: list[str] = []
        values: dict[str, Any] = {
            "tile_size": _longest_edge(raw, "max_image_size", 364, problems),
            "longest_edge": _longest_edge(raw, "size", 4 * 364, problems),
            "split": raw.get("do_image_splitting", cls.split),
            "mean": _three(raw.get("image_mean", cls.mean)),
            "std": _three(raw.get("image_std", cls.std)),
            "rescale_factor": raw.get("rescale_factor", cls.rescale_factor),
            "resample": raw.get("resample", cls.resample),
        }
        # do_pad and do_convert_rgb are not asked: tiles are full squares, there is nothing to pad;
        # and what is RGB stays as it is.
        if not _is_on(raw, "do_resize", problems):
            problems.append("do_resize is False: pictures are always resized here; set it to true")
        if not _is_on(raw, "do_rescale", problems):
            values["rescale_factor"] = 1.0
        if not _is_on(raw, "do_normalize", problems):
            values |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        edge, tile = values["longest_edge"], values["tile_size"]
        if type(edge) is int and type(tile) is int and 0 < tile * MAX_SIDE_TILES < edge:
            problems.append(f"size.longest_edge is {edge}, more than {MAX_SIDE_TILES} tiles")
        named = (problem.partition(" ") for problem in _problems(values))
        problems += [f"{_KEYS.get(name, name)} {rest}" for name, _, rest in named]
        if problems:
            raise ImageError(f"{name}: {'; '.join(problems)}")
        return cls(**values)


def preprocessor_config(folder: Path) -> tuple[Mapping[str, object], str]:
    """How a checkpoint's pictures are prepared, and the file's name: the `image_processor` of
    processor_config.json, where transformers 5 saves it, or preprocessor_config.json.

    Raises:
        CheckpointError: a file is damaged.
    """
    saved = read_json_if_there(folder / "processor_config.json").get("image_processor")
    if isinstance(saved, Mapping):
        return saved, "processor_config.json"
    name = "preprocessor_config.json"
    return read_json_if_there(folder / name), name


@documented
@dataclass(frozen=True)
class ImageOptions:
    """How pictures are cut, where it is not as the checkpoint says; None leaves that as it is.

    Raises:
        ImageError: values are of another type, or out of range (all are named at once).
    """

    longest_edge: int | None = option(None, "Pixels of a picture's longer side before it is split.")
    split: bool | None = option(
        None, "Split pictures into tiles, or make one of each; else as the checkpoint says."
    )
    max_tiles: int | None = option(
        None, "Most tiles for one picture; its longer side shrinks until that is kept."
    )

    def __post_init__(self) -> None:
        settle(self, ImageError)
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


def _longest_edge(raw: Mapping[str, object], key: str, default: int, problems: list[str]) -> object:
    """The value of a size. In transformers one number, or a height and a width, is the size of
    every picture, whatever its shape."""
    size = raw.get(key, {"longest_edge": default})
    if isinstance(size, Mapping) and "longest_edge" in size:
        return size["longest_edge"]
    problems.append(f"{key} is {quote(size)}, must be {{'longest_edge': pixels}}")
    return default


def _is_on(raw: Mapping[str, object], key: str, problems: list[str]) -> bool:
    value = raw.get(key, True)
    if type(value) is not bool:
        problems.append(f"{key} is {quote(value)}, must be true or false")
    return value is not False


def _three(values: object) -> object:
    """One for each channel; a single number is for all."""
    if isinstance(values, list):
        return tuple(values)
    return (values,) * 3 if _is_number(values) else values


def _problems(values: Mapping[str, object]) -> list[str]:
    found = []
    for name in ("tile_size", "longest_edge", "max_tiles"):
        value = values.get(name)
        if (value is not None or name != "max_tiles") and (type(value) is not int or value < 1):
            found.append(f"{name} is {quote(value)}, must be a whole number above 0")
        elif type(value) is int and value > MAX_PIXELS:
            found.append(f"{name} is {quote(value)}, more than {MAX_PIXELS}")
    if type(values["split"]) is not bool:
        found.append(f"split is {quote(values['split'])}, must be true or false")
    for name in ("mean", "std"):
        three = values[name]
        if not (
            isinstance(three, tuple)
            and len(three) == 3
            and all(_is_number(value) for value in three)
        ):
            found.append(
                f"{name} is {quote(three)}, must be three numbers from -{LARGEST:g} to {LARGEST:g}"
            )
        elif name == "std" and min(three) < SMALLEST:
            found.append(f"std is {quote(three)}, must be from {SMALLEST:g}")
    if type(values["resample"]) is not int or values["resample"] not in FILTERS:
        found.append(f"resample is {quote(values['resample'])}, must be a number from 0 to 5")
    factor = values["rescale_factor"]
    if not _is_number(factor) or factor < SMALLEST:
        found.append(
            f"rescale_factor is {quote(factor)}, must be a number from {SMALLEST:g} to {LARGEST:g}"
        )
    return found


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number that float32 pixels can be computed with."""
    return (type(value) is int or type(value) is float) and abs(value) <= LARGEST
