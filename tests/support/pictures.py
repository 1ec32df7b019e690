"""Pictures, and their files."""

import base64
import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

PICTURE = Image.effect_noise((90, 60), 60).convert("RGB")


@lru_cache(maxsize=8)
def draw(mode: str, width: int, height: int) -> Image.Image:
    """The pictures of convert/goldens/images.py."""
    y, x = np.mgrid[:height, :width]
    noise = (x * 7919 + y * 104729) * (x + 3 * y + 1) // 16 % 256
    channels = [x * 255 // max(width - 1, 1), (y * 5) % 256, noise, (x + y) * 3 % 256]
    picture = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
    if mode in ("RGBA", "LA"):
        return picture.convert(mode)
    return picture.convert("RGB") if mode == "RGB" else picture.convert("RGB").convert(mode)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def data_url(image: Image.Image = PICTURE) -> str:
    png = io.BytesIO()
    image.save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
