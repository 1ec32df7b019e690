"""PDF files -> pages as pictures, one at a time, as they would be printed: with the words of
filled-in forms.

Knows nothing of models. pypdfium2 (the extra `documents`) is imported here alone, when a PDF is
opened.
"""

import math
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import ImageError, PromptError, quote, reason

# An A4 page has 1190 x 1684 pixels: near the 2,048 of a longer side at which the family's
# processors split.
DPI = 144
DPI_RANGE = (18, 1200)
MAX_PAGE_PIXELS = 2**24
MAX_SIDE = 2**15
POINTS = 72  # to an inch, PDF's unit


def is_pdf(path: Path) -> bool:
    """Whether a file's first kilobyte says that it is one, whatever its name says.

    Raises:
        ImageError: there is no such file, or it cannot be read.
    """
    name = quote(path, end=True)
    if not path.is_file():
        raise ImageError(f"{name}: {'not a file' if path.exists() else 'no such file'}")
    try:
        with path.open("rb") as file:
            return b"%PDF-" in file.read(1024)
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror})") from error


def count_pages(path: Path) -> int:
    """How many pages a PDF has.

    Raises:
        ImageError: it is damaged, locked or empty, or pypdfium2 is not installed.
    """
    with _opened(path) as document:
        return len(document)


def render_page(
    path: Path, number: int, dpi: float = DPI, max_pixels: int = MAX_PAGE_PIXELS
) -> Image.Image:
    """Page `number` (the first is 1) as an RGB picture on white.

    At `dpi` pixels an inch; a page that would have more than `max_pixels` pixels, or a side of more
    than MAX_SIDE, is drawn as large as it may be in its own proportions.

    Raises:
        ImageError: as `count_pages`, or the page cannot be drawn.
    """
    if not DPI_RANGE[0] <= dpi <= DPI_RANGE[1]:
        raise ImageError(f"dpi {dpi} is not in {DPI_RANGE[0]}..{DPI_RANGE[1]}")
    with _opened(path) as document, _named(path, f"page {number}"):
        if not 1 <= number <= len(document):
            raise ImageError(
                f"{quote(path, end=True)}: there is no page {number}; it has {len(document)}"
            )
        page = document[number - 1]  # which is closed with the document
        width, height = page.get_size()
        if not (width > 0 and height > 0):
            raise ImageError(
                f"{quote(path, end=True)}: page {number} is empty: {width:g} x {height:g} points"
            )
        scale = min(
            dpi / POINTS, math.sqrt(max_pixels / (width * height)), MAX_SIDE / max(width, height)
        )
        with closing(page.render(scale=scale)) as bitmap:
            # A copy: the bitmap's memory is given back.
            image: Image.Image = bitmap.to_pil().convert("RGB")
        return image


def choose_pages(ranges: str, count: int, name: str) -> list[int]:
    """Page numbers from text such as `1-3,7` or `5-`, in its order, each once.

    Raises:
        PromptError: it is no such text, or names pages beyond `count`, those of the document
            `name`.
    """
    chosen: dict[int, None] = {}
    for part in ranges.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,9})\s*(-?)\s*([0-9]{1,9})?\s*", part)
        if not found or (found[3] and not found[2]):
            raise PromptError(
                f"pages {quote(ranges)}: write numbers and ranges, such as 1-3,7 or 5-"
            )
        first = int(found[1])
        last = int(found[3]) if found[3] else count if found[2] else first
        if not 1 <= first <= count or not first <= last <= count:
            raise PromptError(f"pages {quote(part.strip())}: {name} has pages 1 to {count}")
        chosen |= dict.fromkeys(range(first, last + 1))
    return list(chosen)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import pypdfium2
    except ImportError:
        name = quote(path, end=True)
        raise ImageError(
            f"{name} is a PDF; to read it, pip install 'smolvlm-mlx[documents]'"
        ) from None
    with _named(path, "it"):
        document = pypdfium2.PdfDocument(path)
    with closing(document):
        with _named(path, "its forms"):
            document.init_forms()  # before the first page is asked for, or forms are drawn empty
        yield document


@contextmanager
def _named(path: Path, what: str) -> Iterator[None]:
    """What pdfium reports, as one line."""
    import pypdfium2

    try:
        yield
    except (pypdfium2.PdfiumError, OSError, ValueError, MemoryError) as error:
        if getattr(error, "err_code", None) == pypdfium2.raw.FPDF_ERR_PASSWORD:
            raise ImageError(
                f"{quote(path, end=True)}: locked with a password; save a copy without it"
            ) from error
        raise ImageError(
            f"{quote(path, end=True)}: {what} cannot be read; the PDF is damaged or without pages "
            f"({reason(error)})"
        ) from error
