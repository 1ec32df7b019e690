"""PDF pages as pictures: the right ones, in the right size, with their forms; and what is wrong
with a file in one line."""

import sys
from pathlib import Path

from smolvlm_mlx.errors import ImageError, PromptError, SmolVLMError
from smolvlm_mlx.inputs import pdf
from smolvlm_mlx.inputs.pdf import choose_pages, count_pages, is_pdf, render_page
from tests.support.pdfs import CATALOG, COLORS, ONE_PAGE, page_of, pictures_as_pdf, written_pdf

import pytest
from PIL import Image


def error_of(path: Path, *arguments: int) -> str:
    """What is said of a file, by the end of its name."""
    with pytest.raises(ImageError) as caught:
        render_page(path, *arguments)
    start, name, message = str(caught.value).partition(f"{path.name}'")
    assert start.startswith("'...")
    assert "\n" not in message
    return f"{name}{message}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Its name is longer than a message may be."""
    folder = tmp_path / ("folder " * 15)
    folder.mkdir()
    return folder


@pytest.fixture
def three(folder: Path) -> Path:
    pytest.importorskip("pypdfium2")
    return pictures_as_pdf(folder / "three.pdf")


def test_pages_are_drawn_one_at_a_time_at_a_resolution(three: Path) -> None:
    assert (is_pdf(three), count_pages(three)) == (True, 3)
    for number, color in enumerate(COLORS, 1):
        image = render_page(three, number)
        assert (image.mode, image.size) == ("RGB", (200, 120))
        pixel = image.getpixel((100, 60))
        assert isinstance(pixel, tuple)
        # Pillow's PDFs are JPEGs.
        assert max(abs(one - other) for one, other in zip(pixel, color, strict=True)) <= 2
    assert render_page(three, 1, dpi=72).size == (100, 60)


def test_a_pdf_is_known_by_its_first_bytes(three: Path, tmp_path: Path) -> None:
    (tmp_path / "named.png").write_bytes(three.read_bytes())
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.png")
    (tmp_path / "picture.png").rename(tmp_path / "picture.pdf")
    assert is_pdf(tmp_path / "named.png")
    assert not is_pdf(tmp_path / "picture.pdf")
    for before, is_one in ((1019, True), (1020, False)):  # within the first kilobyte
        (tmp_path / "late").write_bytes(b" " * before + b"%PDF-1.4\n")
        assert is_pdf(tmp_path / "late") is is_one


@pytest.mark.usefixtures("three")
def test_huge_pages_are_drawn_as_large_as_they_may_be(tmp_path: Path) -> None:
    poster = written_pdf(tmp_path / "poster.pdf", CATALOG, ONE_PAGE, page_of(14000, 7000))
    image = render_page(poster, 1, max_pixels=20_000)
    assert image.size == (200, 100)
    assert image.getpixel((50, 50)) == (255, 255, 255)
    assert (pdf.MAX_PAGE_PIXELS, pdf.MAX_SIDE) == (2**24, 2**15)
    ribbon = written_pdf(tmp_path / "ribbon.pdf", CATALOG, ONE_PAGE, page_of(14000, 1))
    assert render_page(ribbon, 1, dpi=1200).size == (pdf.MAX_SIDE, 3)
    dot = written_pdf(tmp_path / "dot.pdf", CATALOG, ONE_PAGE, page_of(0.5, 0.5))
    assert render_page(dot, 1, dpi=1200).size == (9, 9)


@pytest.mark.usefixtures("three")
def test_what_is_filled_into_a_form_is_drawn(tmp_path: Path) -> None:
    appearance = "0 0 0 rg 0 0 50 50 re f"
    form = written_pdf(
        tmp_path / "form.pdf",
        "<< /Type /Catalog /Pages 2 0 R /AcroForm << /Fields [4 0 R] >> >>",
        ONE_PAGE,
        page_of(100, 100, "/Annots [4 0 R]"),
        "<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (x) /F 4 /Rect [0 0 50 50] /AP << "
        "/N 5 0 R >> >>",
        f"<< /Type /XObject /Subtype /Form /BBox [0 0 50 50] /Length {len(appearance)} >>\n"
        f"stream\n{appearance}\nendstream",
    )
    image = render_page(form, 1, dpi=72)
    assert (image.getpixel((75, 25)), image.getpixel((25, 75))) == ((255, 255, 255), (0, 0, 0))


def refused(*_: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_what_is_wrong_with_a_file(
    three: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = three.read_bytes()
    (folder / "damaged.pdf").write_bytes(b"%PDF-1.4\n" + b"\xff" * 400)
    assert "damaged.pdf': it cannot be read; the PDF is damaged or without pages" in error_of(
        folder / "damaged.pdf", 1
    )
    (folder / "cut.pdf").write_bytes(data[: len(data) // 3])
    assert "cut.pdf': " in error_of(folder / "cut.pdf", 1)
    empty = written_pdf(folder / "empty.pdf", CATALOG, "<< /Type /Pages /Kids [] /Count 0 >>")
    assert "empty.pdf': it cannot be read; the PDF is damaged or without pages" in error_of(
        empty, 1
    )
    lost = written_pdf(folder / "lost.pdf", CATALOG, ONE_PAGE)
    assert "lost.pdf': page 1 cannot be read" in error_of(lost, 1)
    key = f"<{'41' * 32}>"
    locked = written_pdf(
        folder / "locked.pdf",
        *(CATALOG, ONE_PAGE, page_of(100, 100)),
        f"<< /Filter /Standard /V 1 /R 2 /O {key} /U {key} /P -4 >>",
        trailer="/Encrypt 4 0 R /ID [<41> <41>]",
    )
    assert "locked.pdf': locked with a password; save a copy without it" in error_of(locked, 1)
    assert "there is no page 4; it has 3" in error_of(three, 4)
    for crop in ("[100 0 200 100]", "[0 100 100 200]"):
        void = written_pdf(
            folder / "void.pdf", CATALOG, ONE_PAGE, page_of(100, 100, f"/CropBox {crop}")
        )
        assert "void.pdf': page 1 is empty: " in error_of(void, 1)
    for dpi in (17.9, 1200.1):
        with pytest.raises(ImageError, match=rf"^dpi {dpi} is not in 18\.\.1200$"):
            render_page(three, 1, dpi)
    assert "no such file" in error_of_opening(folder / "missing.pdf")
    assert "not a file" in error_of_opening(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        assert error_of_opening(three).endswith("three.pdf': cannot be read (Permission denied)")


def error_of_opening(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        is_pdf(path)
    return str(caught.value)


def test_without_the_extra_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    path = pictures_as_pdf(folder / "a.pdf")
    assert error_of(path, 1) == "a.pdf' is a PDF; to read it, pip install 'smolvlm-mlx[documents]'"


@pytest.mark.parametrize(
    ("ranges", "numbers"),
    [
        ("1", [1]),
        ("1-3,7", [1, 2, 3, 7]),
        (" 7 , 2-2", [7, 2]),
        ("8-", [8, 9]),
        ("3,1-4", [3, 1, 2, 4]),
    ],
)
def test_ranges_of_pages(ranges: str, numbers: list[int]) -> None:
    assert choose_pages(ranges, 9, "a.pdf") == numbers


@pytest.mark.parametrize(
    "ranges",
    ["", "a", "1,,2", "-3", "1 2", "1--2", "٣", "1-2-3", "0", "10", "3-2", "8-10", "9" * 30],
)
def test_other_ranges_are_refused(ranges: str) -> None:
    with pytest.raises(PromptError, match="pages") as caught:
        choose_pages(ranges, 9, "a.pdf")
    assert isinstance(caught.value, SmolVLMError)
    assert "\n" not in str(caught.value)
