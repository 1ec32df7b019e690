"""Pictures, and their files."""

import base64
import io
from functools import lru_cache
from typing import Any

from convert.goldens import images

from PIL import Image

PICTURE = Image.effect_noise((90, 60), 60).convert("RGB")

draw = lru_cache(maxsize=8)(images.draw)  # what the goldens were made of


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def data_url(image: Image.Image = PICTURE) -> str:
    png = io.BytesIO()
    image.save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
