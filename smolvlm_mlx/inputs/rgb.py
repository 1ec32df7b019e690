"""Decoded pictures of every mode, and arrays, to RGB: transparency lies on white.

Where nothing is transparent, pixels are those that transformers' Pillow processors see, bit by bit.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import ImageError, quote


def to_rgb(image: Image.Image) -> Image.Image:
    """An RGB picture, composited over white as the reference's `convert_to_rgb` does; the same one
    if it is that already."""
    image = _eight_bit(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # the only way out of it
    image = image.convert("RGBA")
    return Image.alpha_composite(
        Image.new("RGBA", image.size, (255, 255, 255, 255)), image
    ).convert("RGB")


def from_array(array: npt.NDArray[Any]) -> Image.Image:
    """An RGB picture of an array (H, W[, 1 | 3 | 4]), uint8 or floats from 0 to 1; the fourth
    channel is alpha.

    Raises:
        ImageError: it is another array.
    """
    is_float = array.dtype.kind == "f"
    if (
        not (is_float or array.dtype == np.uint8)
        or array.ndim not in (2, 3)
        or array.shape[2:] not in ((), (1,), (3,), (4,))
    ):
        has_them_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        raise ImageError(
            "an image array is uint8, or floats from 0 to 1, of (H, W[, 1 | 3 | 4]); this one is "
            f"{array.dtype} {array.shape}"
            + ("; put the channels last: transpose(1, 2, 0)" if has_them_first else "")
        )
    if is_float:
        array = _scaled(array)
    # The reference's formula for arrays; Pillow's alpha_composite rounds differently.
    if array.shape[2:] == (4,):
        alpha = array[..., 3:] / 255
        array = np.round(alpha * array[..., :3] + (1 - alpha) * 255).astype(np.uint8)
    elif array.shape[2:] != (3,):
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=-1)
    return Image.fromarray(np.ascontiguousarray(array))


def shape_of(source: object) -> tuple[int, ...] | None:
    """The shape of an array, of NumPy, MLX or others; None of what is no array, such as a text of
    NumPy's."""
    is_array = hasattr(source, "dtype") and not isinstance(source, str)
    shape: tuple[int, ...] | None = getattr(source, "shape", None) if is_array else None
    return shape


def as_array(source: Any) -> npt.NDArray[Any] | None:
    """An array of NumPy, MLX or others as NumPy's; None of what is no array.

    Raises:
        ImageError: NumPy cannot read it, such as bfloat16.
    """
    if shape_of(source) is None:
        return None
    try:
        return np.asarray(source)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ImageError(
            f"an image array of {quote(source.dtype)} cannot be read; give uint8 or float32"
        ) from error


def _scaled(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Floats from 0 to 1 as 0 to 255."""
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise ImageError(
            f"an image array of floats from {low:g} to {high:g}; divide it so that they are from 0 "
            "to 1, or give uint8"
        )
    scaled: npt.NDArray[Any] = np.rint(np.multiply(array, 255, dtype=np.float32))
    return scaled.astype(np.uint8)


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
    clear = image.info.get("transparency")  # a grey value, of PNG
    as_it_is = high <= 255 and not (image.mode == "F" and high <= 1)
    if as_it_is and clear is None:
        return image
    scale = 1 if as_it_is else 255 / (1 if high <= 1 else 65535)
    return Image.fromarray(np.where(values == clear, 255, np.rint(values * scale)).astype(np.uint8))
