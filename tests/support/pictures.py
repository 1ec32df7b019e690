"""Pictures, and their files."""

import base64
import io
import struct
import zlib
from functools import lru_cache
from typing import Any

from convert.goldens import images

import numpy as np
from PIL import Image


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Grey noise, the same each time."""
    values = np.random.default_rng(seed).normal(128, 60, (height, width))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")


PICTURE = noise(90, 60)

draw = lru_cache(maxsize=8)(images.draw)  # what the goldens were made of


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def animated(kind: str, **options: Any) -> bytes:
    """A red frame and a green one, a second each."""
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime")]
    options |= {"save_all": True, "append_images": frames[1:], "duration": 1000}
    return encoded(frames[0], kind, **options)


def data_url(picture: Image.Image | bytes = PICTURE) -> str:
    data = picture if isinstance(picture, bytes) else encoded(picture, "PNG")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def png(width: int, bits: int, colour: int, row: bytes, key: bytes = b"", height: int = 1) -> bytes:
    """A PNG of equal rows, of a depth or size that Pillow does not write, with a transparent
    colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    clear = chunk(b"tRNS", key) if key else b""
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + clear + pixels + chunk(b"IEND", b"")


@lru_cache
def tall() -> bytes:
    """A picture of 1 x 50,000,000 pixels, in 97 kB."""
    return png(1, 8, 0, b"\0", height=50_000_000)
