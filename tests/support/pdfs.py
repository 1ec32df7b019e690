"""PDFs to read."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

COLORS = [(255, 0, 0), (0, 128, 0), (0, 0, 255)]


def pictures_as_pdf(
    path: Path, size: tuple[int, int] = (100, 60), colors: Sequence[tuple[int, int, int]] = ()
) -> Path:
    """A page for each color; a pixel is a point."""
    first, *others = [Image.new("RGB", size, color) for color in colors or COLORS]
    first.save(path, save_all=True, append_images=others, resolution=72)
    return path
