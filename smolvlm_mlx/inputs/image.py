"""Pictures in any of the forms that a message may hold to decoded RGB pictures.

In goes an image part or what such a part may hold; out comes a PIL picture in RGB, or one
ImageError or FetchError. Knows nothing about tiles. Pixels are those that transformers' Pillow
processors see, bit by bit, but for transparency, which lies on white here in files, too: there
they drop the alpha channel, and what was hidden under it shows, mostly black.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from smolvlm_mlx.errors import ImageError, quote
from smolvlm_mlx.inputs.fetch import (
    DEFAULT_LIMITS,
    MAX_IMAGE_BYTES,
    FetchLimits,
    is_path,
    one_of,
    read_source,
)
from smolvlm_mlx.inputs.kinds import wrong_kind
from smolvlm_mlx.inputs.rgb import as_array, from_array, to_rgb
from smolvlm_mlx.inputs.scans import USUAL_SCANS, check_scans, count_scans

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

IMAGE_KEYS = ("image", "path", "url", "base64")  # one of which an image part has
MAX_PIXELS = 50_000_000  # of what strangers send; larger JPEGs are decoded smaller
OWN_PIXELS = 200_000_000  # of what is the user's own, where PIXELS_SETTING says nothing else
PIXELS_SETTING = "SMOLVLM_MAX_PIXELS"  # of the environment
MAX_SIDE = 65_535  # JPEG's own; resampling coefficients take memory by the side, not the area
MAX_EDGE = 4096  # MAX_IMAGE_SIZE of the reference: no tiles are cut from more
# Of what is fetched or sent by somebody else: a server's requests, pictures by URL.
STRANGERS = FetchLimits(max_bytes=MAX_IMAGE_BYTES, max_pixels=MAX_PIXELS, allow_paths=False)

# Formats that Pillow decodes itself. Others start programs (EPS), draw (WMF) or have no signature
# (TGA).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
# How files of the formats begin whose decoders take so long for each pixel, and no longer.
JPEG = b"\xff\xd8\xff"
PLAIN = (JPEG, b"\x89PNG", b"GIF8", b"BM", b"qoif", b"P5", b"P6")
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
CUT_OFF = "image file is truncated"  # how Pillow's error begins where bytes are missing
CUT_OFF_NOTE = "its last bytes are missing"
FRAMES_NOTES = {
    "TIFF": "the first of its pages was used",
    **dict.fromkeys(
        ("GIF", "PNG", "WEBP", "AVIF"), "the first of its frames was used; --video takes all"
    ),
}
END_OF_JPEG = b"\xff\xd9"
Pixels = npt.NDArray[np.uint8]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Decoded:
    """A picture in RGB, upright. `size` is its own where the pixels are fewer; `note` says what is
    unusual about it, for people."""

    image: Image.Image
    size: tuple[int, int]
    note: str = ""


def load_image(
    part: object,
    limits: FetchLimits = DEFAULT_LIMITS,
) -> Image.Image:
    """A decoded RGB picture from an image part of a message, or from what such a part may hold.

    A part has one of the keys `image` (PIL picture, array (H, W[, 1 | 3 | 4]) of uint8 or of floats
    from 0 to 1, path, URL, data: URL, base64 text, bytes or open file), `path`, `url`, `base64`.
    Transparency lies on white. What has to be decoded is turned upright as its EXIF says; a PIL
    picture or an array is not, as in transformers. Of several frames the first is taken. A JPEG of
    more than MAX_PIXELS is decoded smaller. Raises ImageError, FetchError.
    """
    held = read_image(part, limits)
    if isinstance(held, Image.Image):
        return held
    return decode_image(held, limits_of(part, limits), _name(*_held(part), limits)).image


def limits_of(part: object, limits: FetchLimits) -> FetchLimits:
    """The limits for an image part: what a URL leads to is a stranger's."""
    _, source = _held(part)
    if not is_url(source):
        return limits
    return replace(
        limits,
        max_bytes=min(limits.max_bytes, STRANGERS.max_bytes),
        max_pixels=min(limits.max_pixels or MAX_PIXELS, MAX_PIXELS),
    )


def is_url(source: object) -> bool:
    """Whether a source is an address elsewhere, of what is a stranger's."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def is_decoded(part: object) -> bool:
    """Whether an image part holds pixels, a PIL picture or an array."""
    return isinstance(_held(part)[1], Image.Image | np.ndarray)


def read_image(part: object, limits: FetchLimits = DEFAULT_LIMITS) -> bytes | Image.Image:
    """The bytes that `load_image` would decode, not decoded; for a PIL picture or an array what
    `load_image` makes of it."""
    limits, (key, source) = limits_of(part, limits), _held(part)
    if isinstance(source, Image.Image):
        return _guarded(lambda: _from_picture(source, limits), "the picture")
    if isinstance(source, np.ndarray):
        if source.ndim > 1:
            check_size(source.shape[1::-1], limits, "the array")
        return _guarded(lambda: from_array(source), "the array")
    data = read_source(key, source, limits)
    if data is None:
        raise ImageError(
            f"an image cannot be of type {type(source).__name__}; give a path, URL, bytes, open "
            "file, array or PIL picture"
        )
    if len(data) > limits.max_bytes:
        raise ImageError(f"a picture of {len(data)} bytes; the limit is {limits.max_bytes}")
    return data


def decode_image(
    data: bytes, limits: FetchLimits, name: str = "the picture", edge: int = MAX_EDGE
) -> Decoded:
    """Decode an encoded picture: a stranger's, and one of a format whose decoders do more than one
    thing for each pixel, in a process that can be ended (see `sandbox`).

    Args:
        name: for messages.
        edge: what the longer side of a JPEG of more than MAX_PIXELS has at least.

    Raises:
        ImageError: it cannot be decoded, or is outside the limits.
    """
    is_own = limits.max_pixels is None
    has_scans = data.startswith(JPEG) and count_scans(data) > USUAL_SCANS
    if is_own and data.startswith(PLAIN) and not has_scans:
        return decode_here(data, limits, name, edge)
    from smolvlm_mlx.inputs import sandbox

    return sandbox.decode_image(data, limits, name, edge)


def decode_here(data: bytes, limits: FetchLimits, name: str, edge: int) -> Decoded:
    """As `decode_image`, in this process, where nothing ends it."""

    def decoded() -> Decoded:
        image, size, cut_off = _loaded(data, limits, name, edge)
        turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
        ImageOps.exif_transpose(image, in_place=True)
        notes = [_note_on_frames(data, image.format), CUT_OFF_NOTE if cut_off else ""]
        note = ", ".join(filter(None, notes))
        return Decoded(to_rgb(image), size[::-1] if turned else size, note)

    return _guarded(decoded, name)


def check_size(size: tuple[int, ...], limits: FetchLimits, name: str) -> None:
    """Refuse a picture of (width, height) pixels that is empty, or outside the limits.

    Raises:
        ImageError: it is.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty: {width} x {height} pixels")
    check_side(size, name)
    most = most_pixels(limits)
    if width * height > most:
        how = f"set {PIXELS_SETTING} higher or " if limits.max_pixels is None else ""
        raise ImageError(
            f"{name} has {width} x {height} pixels; the limit is {most}: {how}make it smaller"
        )


def check_side(size: tuple[int, ...], name: str) -> None:
    """Refuse a picture with a side of more than MAX_SIDE pixels.

    Raises:
        ImageError: it has one.
    """
    if max(size) > MAX_SIDE:
        raise ImageError(
            f"{name} has {size[0]} x {size[1]} pixels; the limit of a side is {MAX_SIDE}: cut it "
            "into pieces"
        )


def most_pixels(limits: FetchLimits) -> int:
    """How many pixels a picture may have.

    Raises:
        ImageError: the environment says something else than a number.
    """
    if limits.max_pixels is not None:
        return limits.max_pixels
    given = os.environ.get(PIXELS_SETTING, str(OWN_PIXELS))
    if not (given.isdecimal() and int(given)):
        raise ImageError(f"{PIXELS_SETTING} is {quote(given)}, not a number of pixels")
    return int(given)


def _held(part: object) -> tuple[str, object]:
    """Which key a part has, and what is there; an array as NumPy's."""
    key, source = one_of(part, IMAGE_KEYS, "an image part", ImageError)
    array = as_array(source)
    return key, source if array is None else array


def _name(key: str, source: object, limits: FetchLimits) -> str:
    """For messages, of a path or URL; a picture written out, in bytes or in text, has none."""
    if isinstance(source, Path) or (isinstance(source, str) and key == "path"):
        return quote(source, end=True)
    if not isinstance(source, str) or source[:5].lower() == "data:":
        return "the picture"
    if key == "image" and limits.allow_paths and is_path(source):
        return quote(source, end=True)
    return quote(source) if len(source) < 80 or source[:4].lower() == "http" else "the picture"


def _guarded(work: Callable[[], Result], name: str) -> Result:
    try:
        return work()
    except UnidentifiedImageError:  # its own text holds a memory address
        raise ImageError(
            f"{name} is not a readable picture; give one of {', '.join(FORMATS)} or HEIC"
        ) from None
    except MemoryError as error:
        raise ImageError(f"{name} does not fit into memory; make it smaller") from error
    except DECODER_ERRORS as error:
        raise ImageError(f"{name} cannot be decoded, it may be damaged: {quote(error)}") from error


def _from_picture(image: Image.Image, limits: FetchLimits) -> Image.Image:
    check_size(image.size, limits, "the picture")
    rgb = to_rgb(image)
    return rgb.copy() if rgb is image else rgb  # the caller's may change


def _loaded(
    data: bytes, limits: FetchLimits, name: str, edge: int
) -> tuple[ImageFile.ImageFile, tuple[int, int], bool]:
    """A picture with its pixels, its size before they were reduced, and whether some are missing at
    its end."""
    image = _open(data, name)
    size, is_jpeg = image.size, image.format in ("JPEG", "MPO")
    check_size(size, limits, name)  # before anything is decoded
    if is_jpeg:
        check_scans(data, size, name)
    if size[0] * size[1] > MAX_PIXELS:
        # Only JPEG's decoder does this; what it gives is not smaller than asked.
        image.draft(None, (size[0] * edge // max(size) or 1, size[1] * edge // max(size) or 1))
    try:
        image.load()
    except OSError as error:
        if not (str(error).startswith(CUT_OFF) and (is_jpeg or image.format == "PNG")):
            raise
        if is_jpeg and not data.endswith(END_OF_JPEG):
            # Its decoder then makes grey of what is missing.
            image = _loaded(data + END_OF_JPEG, limits, name, edge)[0]
        image.tile = []  # what was decoded is there, and is not decoded again
        pixels = np.asarray(image)
        if (pixels == pixels[:1, :1]).all():
            raise  # it is of one colour: nothing was
        return image, size, True
    check_size(image.size, limits, name)  # a HEIC file may have said something else in its header
    return image, size, False


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    """A picture whose header is read; the size that it claims is to be checked next."""
    if wrong := wrong_kind(data, "picture"):
        raise ImageError(f"{name} {wrong}")
    image = identify(data)
    if image is not None:
        if image.format == "PNG":
            _scale_key(image, bits=data[24])
        return image
    if data[4:8] != b"ftyp":
        raise UnidentifiedImageError
    try:
        # The class itself, so that nothing is registered with Pillow.
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ImageError(
            f"{name} is a HEIC picture; to read it, pip install 'smolvlm-mlx[heif]'"
        ) from None
    heif: ImageFile.ImageFile = HeifImageFile(io.BytesIO(data))
    return heif


def identify(data: bytes) -> ImageFile.ImageFile | None:
    """As `Image.open`, which refuses or warns above a number of pixels that is Pillow's, for the
    whole process. Ours is checked after this."""
    Image.preinit()
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()  # the rest of the formats
        factory, accepts = Image.OPEN.get(name, (None, None))
        # What accepts may return is also text, why the format cannot be read in this installation.
        with suppress(SyntaxError, IndexError, TypeError, struct.error):  # as there
            if factory is not None and (accepts is None or accepts(data[:16]) is True):
                return factory(io.BytesIO(data), b"")
    return None


def _scale_key(image: Image.Image, bits: int) -> None:
    """Bring a PNG's transparent colour to the 8 bits of its pixels. Pillow leaves it as the file
    has it."""
    key = image.info.get("transparency")
    if isinstance(key, tuple) and bits == 16:
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif isinstance(key, int) and image.mode in ("1", "L"):
        image.info["transparency"] = key * 255 // (2**bits - 1)


def _note_on_frames(data: bytes, format: str | None) -> str:
    """What to say of a picture of several."""
    # Not of MPO: a photo with a preview or a map beside it. Another object looks for the second,
    # which takes the first one away, and may be damaged.
    with suppress(*DECODER_ERRORS):
        if format in FRAMES_NOTES and getattr(identify(data), "is_animated", False):
            return FRAMES_NOTES[format]
    return ""
