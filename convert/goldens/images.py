"""Writes tests/goldens/images.json: digests of what transformers' Pillow processors make of a few
drawn pictures.

    python -m convert.goldens.images        # needs transformers 5.23 and Pillow 13

tests/test_image.py draws the same pictures and compares, without transformers. Each golden holds
the picture (mode, width, height), the settings, the rows and columns, and the sha256 of the pixel
values as (N, 3, H, W) float32. The pictures are drawn with integers only, so they are the same on
every machine, and no image file is decoded.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TARGET = Path(__file__).parents[2] / "tests" / "goldens" / "images.json"

SIZES = [
    (1, 1),
    (1, 9),
    (9, 1),
    (1, 700),
    (700, 1),
    (64, 48),
    (384, 384),
    (385, 384),
    (386, 386),
    (512, 512),
]
SIZES += [
    (513, 512),
    (1024, 512),
    (512, 1024),
    (640, 427),
    (427, 640),
    (5000, 40),
    (40, 5000),
    (333, 777),
    (1067, 1600),
]
MODES = ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"]
SETTINGS = [  # tile size, longest edge, split
    *(
        (512, 2048, True),
        (384, 1536, True),
        (512, 512, True),
        (512, 2048, False),
        (384, 1000, True),
        (384, 5000, True),
    ),
]


def draw(mode: str, width: int, height: int) -> Image.Image:
    """A picture of gradients, stripes and noise; the last of its four channels is alpha."""
    y, x = np.mgrid[:height, :width]
    noise = (x * 7919 + y * 104729) * (x + 3 * y + 1) // 16 % 256
    channels = [x * 255 // max(width - 1, 1), (y * 5) % 256, noise, (x + y) * 3 % 256]
    picture = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
    if mode in ("RGBA", "LA"):
        return picture.convert(mode)
    return picture.convert("RGB") if mode == "RGB" else picture.convert("RGB").convert(mode)


def golden(
    mode: str, size: tuple[int, int], tile_size: int, longest_edge: int, split: bool
) -> dict[str, Any]:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    made = []
    for reference in (Idefics3ImageProcessorPil, SmolVLMImageProcessorPil):
        processor = reference(
            size={"longest_edge": longest_edge},
            max_image_size={"longest_edge": tile_size},
            do_image_splitting=split,
        )
        out = processor([[draw(mode, *size)]], return_row_col_info=True, return_tensors="np")
        digest = hashlib.sha256(np.ascontiguousarray(out["pixel_values"][0]).tobytes()).hexdigest()
        made.append({"rows": out["rows"][0][0], "cols": out["cols"][0][0], "sha256": digest})
    if made[0] != made[1]:
        raise AssertionError(f"the two processors differ for {mode} {size}")
    settings = {"tile_size": tile_size, "longest_edge": longest_edge, "split": split}
    return {"mode": mode, "size": list(size), **settings, **made[0]}


def main() -> None:
    goldens = [golden("RGB", size, *SETTINGS[0]) for size in SIZES]
    goldens += [
        golden("RGB", size, *settings) for settings in SETTINGS[1:-1] for size in SIZES[::4]
    ]
    goldens += [golden("RGB", (1200, 30), *SETTINGS[-1])]
    goldens += [golden(mode, (61, 40), *SETTINGS[2]) for mode in MODES]
    lines = ",\n".join(json.dumps(entry) for entry in goldens)
    TARGET.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(goldens)} goldens in {TARGET}")


if __name__ == "__main__":
    main()
