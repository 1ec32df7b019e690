"""Pictures of every form to RGB: alpha, orientation, depth, formats, what is damaged, and the
limits at their edges."""

import base64
import builtins
import importlib.util
import io
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import FetchError, ImageError
from smolvlm_mlx.inputs.fetch import FetchLimits
from smolvlm_mlx.inputs.image import load_image
from tests.support.pictures import draw, encoded

import numpy as np
import pytest
from PIL import Image, features


def test_every_form_of_a_picture(tmp_path: Path) -> None:
    picture = draw("RGB", 61, 40)
    data = encoded(picture, "PNG")
    (tmp_path / "a.png").write_bytes(data)
    path, text = str(tmp_path / "a.png"), base64.b64encode(data).decode()
    url = f"data:image/png;base64,{text}"
    forms: list[Any] = [picture, np.asarray(picture), path, Path(path), url, text, data]
    parts: list[Any] = [{"type": "image", "image": form} for form in forms]
    parts += [{"path": path}, {"path": Path(path)}, {"url": url}, {"base64": text}, {"base64": url}]
    for form in forms + parts:
        loaded = load_image(form)
        assert loaded.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(loaded), np.asarray(picture))


@pytest.mark.parametrize(
    "part", [{}, {"image": None}, {"path": "a", "url": "b"}, {"image": 3}, {"image": [1]}]
)
def test_part_that_is_not_one_picture(part: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match=r"needs one of|cannot be of type"):
        load_image(part)


def test_alpha_of_a_file_is_dropped_and_of_a_picture_laid_on_white() -> None:
    picture = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert load_image(encoded(picture, "PNG")).getpixel((0, 0)) == (10, 20, 30)
    assert load_image(picture).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(Image.new("RGBA", (2, 2), (10, 20, 30, 128))).getpixel((0, 0)) == (
        132,
        137,
        142,
    )
    assert load_image(np.full((2, 2, 4), (10, 20, 30, 128), np.uint8)).getpixel((0, 0)) == (
        132,
        137,
        142,
    )
    assert load_image(Image.new("LA", (2, 2), (10, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_transparent_colour_turns_white_in_both() -> None:
    picture = Image.new("RGB", (2, 1), (1, 2, 3))
    picture.putpixel((1, 0), (4, 5, 6))
    data = encoded(picture, "PNG", transparency=(1, 2, 3))
    for source in (data, Image.open(io.BytesIO(data))):
        assert np.asarray(load_image(source)).tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_palette_with_alpha_gives_no_warning() -> None:
    picture = Image.new("P", (2, 1), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    assert load_image(encoded(picture, "PNG", transparency=b"\x00\x80")).getpixel((0, 0)) == (
        10,
        20,
        30,
    )


def test_orientation_of_a_file_is_applied_and_of_a_picture_not() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(draw("RGB", 61, 40), "PNG", exif=exif)
    assert load_image(data).size == (40, 61)
    np.testing.assert_array_equal(
        np.asarray(load_image(data)), np.rot90(np.asarray(draw("RGB", 61, 40)), -1)
    )
    assert load_image(Image.open(io.BytesIO(data))).size == (61, 40)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 257, 65535]], np.uint16), [0, 1, 255]),  # 16 bits: scaled
        # Nothing to clip: as in the reference.
        (np.array([[0, 200, 255]], np.uint16), [0, 200, 255]),
        (np.array([[0, 25700, 65535]], np.int32), [0, 100, 255]),
        (np.array([[0, 0.2, 1]], np.float32), [0, 51, 255]),
        (np.array([[0, 100, 255]], np.float32), [0, 100, 255]),
    ],
)
@pytest.mark.parametrize("as_file", [True, False])
def test_grey_of_more_than_8_bits(
    values: np.ndarray[Any, Any], expected: list[int], as_file: bool
) -> None:
    picture = Image.fromarray(values)
    loaded = load_image(encoded(picture, "TIFF") if as_file else picture)
    assert np.asarray(loaded)[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize(
    "values", [[0.0, -1.0], [0.0, 70000.0], [0.0, float("nan")], [0.0, float("inf")]]
)
def test_grey_values_without_a_scale(values: list[float]) -> None:
    with pytest.raises(ImageError, match="scale the picture to 8 bits"):
        load_image(Image.fromarray(np.array([values], np.float32)))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("GIF", "P"), ("WEBP", "RGB"), ("PNG", "RGB"), ("TIFF", "RGB"), ("MPO", "RGB")],
)
def test_first_frame(kind: str, mode: str) -> None:
    frames = (
        [Image.new(mode, (32, 32), colour) for colour in ((255, 0, 0), (0, 255, 0))]
        if mode == "RGB"
        else None
    )
    first, second = frames or (
        Image.new("RGB", (32, 32), "red"),
        Image.new("RGB", (32, 32), "lime"),
    )
    data = encoded(first, kind, save_all=True, append_images=[second])
    assert np.abs(np.asarray(load_image(data)).astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged tags
@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"]
)
def test_formats_and_truncated_files(kind: str) -> None:
    if not features.check(
        {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}.get(kind, "zlib")
    ):
        pytest.skip(f"Pillow is built without {kind}")
    data = encoded(draw("RGB", 120, 90), kind)
    assert load_image(data).size == (120, 90)
    for length in (0, 1, 10, 40, len(data) // 2):
        with pytest.raises(ImageError, match=r"^the picture .*(readable|damaged)") as caught:
            load_image(data[:length])
        assert "0x" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"garbage" * 50, b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xd7\xcd\xc6\x9a" + b"\0" * 60, b"<svg/>"],
)
def test_bytes_that_are_no_picture(data: bytes) -> None:
    with pytest.raises(ImageError, match="is not a readable picture; give one of JPEG"):
        load_image(data)


def test_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("pillow_heif") is None:
        pytest.skip("needs pillow-heif")
    import pillow_heif

    if not pillow_heif.libheif_info()["encoders"]:
        pytest.skip("this pillow-heif cannot write")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 40, 40))).save(file, quality=90)
    loaded = load_image(file.getvalue())
    assert loaded.size == (64, 48)
    assert np.abs(np.asarray(loaded).astype(int) - [200, 40, 40]).max() < 12
    assert "HEIF" not in Image.OPEN, "nothing is registered with Pillow"
    with pytest.raises(ImageError, match=r"damaged|readable"):
        load_image(file.getvalue()[:200])

    real_import = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "pillow_heif":
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImageError, match=r"pip install 'smolvlm-mlx\[heif\]'"):
        load_image(file.getvalue())


# --- limits


def test_limit_of_bytes(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (4, 4)), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    assert load_image(data, FetchLimits(max_bytes=len(data))).size == (4, 4)
    with pytest.raises(ImageError, match=f"{len(data)} bytes; the limit is {len(data) - 1}"):
        load_image(data, FetchLimits(max_bytes=len(data) - 1))
    with pytest.raises(FetchError, match=f"{len(data)} bytes; the limit is {len(data) - 1}"):
        load_image(tmp_path / "a.png", FetchLimits(max_bytes=len(data) - 1))
    padded = data + b"\0" * (20 * 2**20 - len(data))
    assert load_image(padded).size == (4, 4)
    with pytest.raises(ImageError, match="20971521 bytes; the limit is 20971520"):
        load_image(padded + b"\0")


def test_limit_of_pixels_is_checked_before_decoding() -> None:
    """A PPM header alone says the size; what follows is missing, so that decoding would fail in
    another way."""
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="damaged"):
        load_image(b"P6 10000 5000 255\n")  # 50,000,000 is allowed
    with pytest.raises(ImageError, match="has 10000 x 5001 pixels; the limit is 50000000"):
        load_image(b"P6 10000 5001 255\n")
    with pytest.raises(ImageError):
        load_image(b"P6 10000 10000 255\n")  # here Pillow warns
    with pytest.raises(ImageError):
        load_image(b"P6 100000 100000 255\n")  # and here it raises
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("as_array", [True, False])
def test_limit_of_pixels_of_what_is_decoded(
    as_array: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture: Any = Image.new("RGB", (10, 10))
    source = np.asarray(picture) if as_array else picture
    monkeypatch.setattr("smolvlm_mlx.inputs.image.MAX_PIXELS", 100)
    assert load_image(source).size == (10, 10)
    monkeypatch.setattr("smolvlm_mlx.inputs.image.MAX_PIXELS", 99)
    with pytest.raises(ImageError, match="has 10 x 10 pixels; the limit is 99"):
        load_image(source)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_empty_picture(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"is empty: {size[0]} x {size[1]} pixels"):
        load_image(Image.new("RGB", size))
    with pytest.raises(ImageError, match="is empty"):
        load_image(np.zeros((size[1], size[0], 3), np.uint8))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3)),
        np.zeros((3, 40, 50), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_array_of_another_kind(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ImageError, match="an image array is uint8"):
        load_image(array)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged tags
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_flipped_bytes_give_a_picture_or_one_line(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smolvlm_mlx.inputs.image.MAX_PIXELS", 10**6)
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    whole = encoded(
        draw("RGB", 40, 30), kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {})
    )
    messages = []
    for _ in range(40):
        data = bytearray(whole)
        for position in random.integers(0, min(len(data), 400), 4):
            data[position] = random.integers(256)
        try:
            assert load_image(bytes(data)).mode == "RGB"
        except ImageError as error:
            messages.append(str(error))
    assert all(len(message.splitlines()) == 1 and len(message) < 250 for message in messages)
