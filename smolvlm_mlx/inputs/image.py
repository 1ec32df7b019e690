"""Pictures in any of the forms that a message may hold to decoded RGB pictures.

In goes an image part or what such a part may hold; out comes a PIL picture in RGB, or one
ImageError or FetchError. Knows nothing about tiles. Pixels are those that transformers' Pillow
processors see, bit by bit.
"""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import ImageError, quote
from smolvlm_mlx.inputs.fetch import DEFAULT_LIMITS, FetchLimits, is_path, one_of, read_source

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_KEYS = ("image", "path", "url", "base64")  # one of which an image part has
MAX_PIXELS = 50_000_000

# Formats that Pillow decodes itself. Others start programs (EPS), draw (WMF) or have no signature
# (TGA).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
# What Pillow's decoders raise on damaged files. There is no common base class.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    MemoryError,
    RuntimeError,
    AttributeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

Pixels = npt.NDArray[np.uint8]


def load_image(
    part: Mapping[str, object] | Image.Image | Pixels | str | Path | bytes,
    limits: FetchLimits = DEFAULT_LIMITS,
) -> Image.Image:
    """A decoded RGB picture from an image part of a message, or from what such a part may hold.

    A part has one of the keys `image` (PIL picture, uint8 array (H, W[, 1 | 3 | 4]), path, URL,
    data: URL, base64 text or bytes), `path`, `url`, `base64`. As in transformers there are two
    rules: what has to be decoded is turned upright as its EXIF says and its alpha channel is
    dropped; a PIL picture or an array is not turned, and is laid on white where it is transparent.
    Of several frames the first is taken. Raises ImageError, FetchError.
    """
    held = read_image(part, limits)
    if isinstance(held, Image.Image):
        return held
    name = _name(*_held(part), limits)
    return _decode(lambda: _open(held, name), _upright, name)


def is_decoded(part: object) -> bool:
    """Whether an image part holds pixels, a PIL picture or an array."""
    return isinstance(_held(part)[1], Image.Image | np.ndarray)


def read_image(part: object, limits: FetchLimits = DEFAULT_LIMITS) -> bytes | Image.Image:
    """The bytes that `load_image` would decode, not decoded; for a PIL picture or an array what
    `load_image` makes of it."""
    key, source = _held(part)
    if isinstance(source, Image.Image):
        return _decode(lambda: source, _on_white, "the picture")
    if isinstance(source, np.ndarray):
        return _from_array(source)
    data = read_source(key, source, limits)
    if data is None:
        raise ImageError(
            f"an image cannot be of type {type(source).__name__}; give a path, URL, bytes or PIL "
            "picture"
        )
    if len(data) > limits.max_bytes:
        raise ImageError(f"a picture of {len(data)} bytes; the limit is {limits.max_bytes}")
    return data


def _held(part: object) -> tuple[str, object]:
    return one_of(part, IMAGE_KEYS, "an image part", ImageError)


def _name(key: str, source: object, limits: FetchLimits) -> str:
    """For messages, of a path or URL; a picture written out, in bytes or in text, has none."""
    if isinstance(source, Path) or (isinstance(source, str) and key == "path"):
        return quote(source, end=True)
    if not isinstance(source, str) or source[:5].lower() == "data:":
        return "the picture"
    if key == "image" and limits.allow_paths and is_path(source):
        return quote(source, end=True)
    return quote(source) if len(source) < 80 or source[:4].lower() == "http" else "the picture"


def _decode(
    open_image: Callable[[], Image.Image], to_rgb: Callable[[Image.Image], Image.Image], name: str
) -> Image.Image:
    try:
        image = open_image()
        _check_pixels(image.size, name)  # before anything is decoded
        image.load()
        _check_pixels(image.size, name)  # a HEIC file may have said something else in its header
        return to_rgb(image)
    except UnidentifiedImageError:  # its own text holds a memory address
        raise ImageError(
            f"{name} is not a readable picture; give one of {', '.join(FORMATS)} or HEIC"
        ) from None
    except DECODER_ERRORS as error:
        raise ImageError(f"{name} cannot be decoded, it may be damaged: {quote(error)}") from error


def _open(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if data[4:8] != b"ftyp":
            raise
    try:
        # The class itself, so that nothing is registered with Pillow.
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ImageError(
            f"{name} is a HEIC picture; to read it, pip install 'smolvlm-mlx[heif]'"
        ) from None
    return HeifImageFile(io.BytesIO(data))


def _upright(image: Image.Image) -> Image.Image:
    """The rule of the reference's `load_image`, for what was decoded here, and then its other rule:
    an alpha channel is dropped by the first, while a single transparent colour survives it and
    turns white in the second."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        del image.info["transparency"]  # convert("RGB") only warns about it
    return _on_white(_eight_bit(image).convert("RGB"))


def _on_white(image: Image.Image) -> Image.Image:
    """The rule of the reference's `convert_to_rgb`, for a PIL picture; that LAB counts as having
    alpha is its own."""
    image = _eight_bit(image)
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(
        Image.new("RGBA", image.size, (255, 255, 255, 255)), image
    ).convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey pictures of 16, 32 or float bits, scaled to 8. Here the reference is not followed:
    Pillow's convert clips (all above 255 white, floats up to 1 black). Where nothing is clipped,
    values stay as they are, as there."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # also true for NaN
        raise ImageError(
            f"grey values from {low:g} to {high:g}; scale the picture to 8 bits (0 to 255) first"
        )
    if high <= 255 and not (image.mode == "F" and high <= 1):
        return image
    return Image.fromarray(np.rint(values * (255 / (1 if high <= 1 else 65535))).astype(np.uint8))


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or array.shape[2:] not in ((), (1,), (3,), (4,))
    ):
        raise ImageError(
            f"an image array is uint8 (H, W[, 1 | 3 | 4]); this one is {array.dtype} {array.shape}"
        )
    _check_pixels((array.shape[1], array.shape[0]), "the array")
    # The reference's formula for arrays; Pillow's alpha_composite rounds differently.
    if array.shape[2:] == (4,):
        alpha = array[..., 3:] / 255
        array = np.round(alpha * array[..., :3] + (1 - alpha) * 255).astype(np.uint8)
    elif array.shape[2:] != (3,):
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=-1)
    return Image.fromarray(np.ascontiguousarray(array))


def _check_pixels(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty: {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {width} x {height} pixels; the limit is {MAX_PIXELS}: make it smaller"
        )
