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


CATALOG = "<< /Type /Catalog /Pages 2 0 R >>"
ONE_PAGE = "<< /Type /Pages /Kids [3 0 R] /Count 1 >>"


def page_of(width: float, height: float, more: str = "") -> str:
    return f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] {more} >>"


def written_pdf(path: Path, *objects: str, trailer: str = "") -> Path:
    """A PDF of these objects, the first of which is its catalog."""
    data, starts = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, 1):
        starts.append(len(data))
        data += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{start:010} 00000 n \n" for start in starts)
    size = len(objects) + 1
    end = f"trailer << /Size {size} /Root 1 0 R {trailer} >>\nstartxref\n{len(data)}\n%%EOF\n"
    path.write_bytes(data + f"xref\n0 {size}\n0000000000 65535 f \n{table}{end}".encode())
    return path


def nested_pdf(path: Path, depth: int = 40, pages: int = 1) -> Path:
    """Its first page draws a form that draws another one twice, and so on; the others are empty."""
    kids = " ".join(f"{depth + 3 + number} 0 R" for number in range(pages))
    forms = []
    for number in range(depth):
        below = f"/Resources << /XObject << /F {number + 4} 0 R >> >>" if number < depth - 1 else ""
        content = "/F Do /F Do" if number < depth - 1 else "0 0 9 9 re f"
        forms.append(
            f"<< /Type /XObject /Subtype /Form /BBox [0 0 99 99] {below} /Length {len(content)} >>"
            f"\nstream\n{content}\nendstream"
        )
    first = f"/Resources << /XObject << /F 3 0 R >> >> /Contents {depth + 3 + pages} 0 R"
    return written_pdf(
        path,
        CATALOG,
        f"<< /Type /Pages /Kids [{kids}] /Count {pages} >>",
        *forms,
        page_of(100, 100, first),
        *[page_of(100, 100)] * (pages - 1),
        "<< /Length 5 >>\nstream\n/F Do\nendstream",
    )
