"""Pictures of every form to RGB: alpha, orientation, depth, formats, what is damaged, and the
limits at their edges."""

import base64
import builtins
import importlib.util
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import FetchError, ImageError, quote
from smolvlm_mlx.inputs.fetch import DEFAULT_LIMITS, FetchLimits
from smolvlm_mlx.inputs.image import STRANGERS, decode_here, decode_image, limits_of, load_image
from smolvlm_mlx.inputs.settings import ImageSettings
from smolvlm_mlx.inputs.tiles import make_tiles
from tests.support.pictures import animated, draw, encoded, noise
from tests.support.places import ROOT

import numpy as np
import pytest
from PIL import Image, ImageFile, features


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


def test_orientation_of_a_file_is_applied_and_of_a_picture_not() -> None:
    exif = Image.Exif()
    for orientation in range(1, 10):
        exif[0x0112] = orientation
        turned = decode_image(encoded(draw("RGB", 61, 40), "PNG", exif=exif), DEFAULT_LIMITS)
        assert turned.size == turned.image.size
        assert turned.size == ((40, 61) if 5 <= orientation <= 8 else (61, 40))
    exif[0x0112] = 6
    data = encoded(draw("RGB", 61, 40), "PNG", exif=exif)
    assert load_image(data).size == (40, 61)
    np.testing.assert_array_equal(
        np.asarray(load_image(data)), np.rot90(np.asarray(draw("RGB", 61, 40)), -1)
    )
    assert load_image(Image.open(io.BytesIO(data))).size == (61, 40)


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
    lengths = [0, 1, 10, 40] if kind in ("JPEG", "PNG") else [0, 1, 10, 40, len(data) // 2]
    for length in lengths:
        with pytest.raises(
            ImageError, match=r"^the picture .*(able|damaged|is empty|is text)"
        ) as e:
            load_image(data[:length])
        assert "0x" not in str(e.value)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("MPO", {})],
)
def test_a_picture_that_lacks_its_last_bytes_is_shown_with_a_note(
    kind: str, options: dict[str, Any]
) -> None:
    picture = noise(320, 240)
    whole = encoded(picture, kind, quality=95, **options)
    for count in (len(whole) // 10, len(whole) // 2):
        cut = decode_image(whole[:-count], DEFAULT_LIMITS)
        assert cut.note == "its last bytes are missing"
        assert cut.image.size == (320, 240)
        if not options:
            top = np.asarray(load_image(whole))[:100]
            np.testing.assert_array_equal(np.asarray(cut.image)[:100], top)
        if kind == "JPEG" and not options:
            assert cut.image.getpixel((319, 239)) == (128, 128, 128)
    assert decode_image(whole, DEFAULT_LIMITS).note == ""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "which would hold for all threads"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGBA"])
def test_a_png_of_every_mode_may_lack_its_last_bytes(mode: str) -> None:
    grey = noise(320, 240).convert("L")
    picture = Image.fromarray(np.asarray(grey, np.uint16) * 257) if mode == "I;16" else grey
    data = encoded(picture if mode == "I;16" else picture.convert(mode), "PNG")
    cut = decode_image(data[: -len(data) // 4], DEFAULT_LIMITS)
    assert cut.note == "its last bytes are missing"
    np.testing.assert_array_equal(np.asarray(cut.image)[:100], np.asarray(load_image(data))[:100])


def test_a_picture_that_is_damaged_in_the_middle_is_refused() -> None:
    data = bytearray(encoded(draw("RGB", 120, 90), "PNG"))
    with pytest.raises(ImageError, match=r"damaged"):  # nothing but the header is there
        load_image(bytes(data[: data.find(b"IDAT") + 10]))
    data[len(data) // 2] ^= 255
    with pytest.raises(ImageError, match=r"damaged"):
        load_image(bytes(data))


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("GIF", "the first of its frames was used; --video takes all"),
        ("PNG", "the first of its frames was used; --video takes all"),
        ("WEBP", "the first of its frames was used; --video takes all"),
        ("AVIF", "the first of its frames was used; --video takes all"),
        ("TIFF", "the first of its pages was used"),
        ("MPO", ""),
    ],
)
def test_a_picture_of_several_says_that_the_first_was_used(kind: str, note: str) -> None:
    assert decode_image(animated(kind), DEFAULT_LIMITS).note == note
    still = encoded(Image.new("RGB", (32, 32), "red"), "JPEG" if kind == "MPO" else kind)
    assert decode_image(still, DEFAULT_LIMITS).note == ""


def test_bytes_that_are_nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have the name that was given, unless that is the picture itself."""
    unknown = b"\xd7\xcd\xc6\x9a" + b"\0" * 56
    text, url = base64.b64encode(unknown).decode(), f"HTTP://a.b/{'c' * 80}"
    monkeypatch.setattr("smolvlm_mlx.inputs.image.read_source", lambda *_: unknown)
    for source, name in (
        *[(unknown, "the picture"), (text, "the picture"), ("data:,", "the picture")],
        *[(text[4:], f"'{text[4:]}'"), (url, quote(url))],
    ):
        with pytest.raises(ImageError) as caught:
            load_image(source)
        assert str(caught.value).startswith(f"{name} is not a readable picture; give one of JPEG")


def test_the_end_of_a_long_path_is_said(tmp_path: Path) -> None:
    path = tmp_path / ("folder " * 20) / "a.png"
    path.parent.mkdir()
    path.write_bytes(b"\1" * 9)
    for source in (path, str(path), {"path": str(path)}, {"image": str(path)}):
        with pytest.raises(ImageError, match=r"^'\.\.\..*folder /a\.png' is not a readable"):
            load_image(source)


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
        decode_here(file.getvalue(), DEFAULT_LIMITS, "it", 64)


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
    assert load_image(padded, STRANGERS).size == (4, 4)
    with pytest.raises(ImageError, match="20971521 bytes; the limit is 20971520"):
        load_image(padded + b"\0", STRANGERS)
    assert load_image(padded + b"\0").size == (4, 4), "the user's own"


def test_limit_of_pixels_is_checked_before_decoding() -> None:
    """A PPM header alone says the size; what follows is missing, so that decoding would fail in
    another way."""
    before = Image.MAX_IMAGE_PIXELS
    too_many = r"has 10000 x \d+ pixels; the limit is 50000000: make it smaller"
    with pytest.raises(ImageError, match="damaged"):
        load_image(b"P6 10000 5000 255\n", STRANGERS)  # 50,000,000 is allowed
    # Beyond the second Pillow's own guard warns, beyond the third it raises.
    for height in (5001, 10000, 20000):
        with pytest.raises(ImageError, match=too_many):
            load_image(b"P6 10000 %d 255\n" % height, STRANGERS)
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_users_own_pictures_may_be_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding begins, and finds nothing."""
    for height in (5001, 10000, 20000):
        with pytest.raises(ImageError, match=r"damaged: 'image file is truncated"):
            load_image(b"P6 10000 %d 255\n" % height)
    how = "the limit is 200000000: set SMOLVLM_MAX_PIXELS higher or make it smaller"
    with pytest.raises(ImageError, match=rf"has 10000 x 20001 pixels; {how}"):
        load_image(b"P6 10000 20001 255\n")
    monkeypatch.setenv("SMOLVLM_MAX_PIXELS", "200010000")
    with pytest.raises(ImageError, match="damaged"):
        load_image(b"P6 10000 20001 255\n")
    for wrong in ("", "0", "many", "1e9"):
        monkeypatch.setenv("SMOLVLM_MAX_PIXELS", wrong)
        with pytest.raises(ImageError, match=f"SMOLVLM_MAX_PIXELS is '{wrong}', not a number"):
            load_image(draw("RGB", 4, 4))


def test_what_a_url_leads_to_has_the_limits_of_strangers() -> None:
    assert FetchLimits(20 * 2**20, 50_000_000, allow_paths=False) == STRANGERS
    url = "HTTPS://example.com/cat.jpg"
    for part in (url, {"image": url}, {"url": url}, {"type": "image", "url": url}):
        limits = limits_of(part, DEFAULT_LIMITS)
        assert (limits.max_bytes, limits.max_pixels) == (20 * 2**20, 50_000_000)
        assert limits_of(part, FetchLimits(max_bytes=5)).max_bytes == 5
    for own in ("cat.jpg", "data:image/png;base64,AAAA", b"http://", draw("RGB", 4, 4)):
        assert limits_of(own, DEFAULT_LIMITS) == DEFAULT_LIMITS


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(640, 400), (400, 640)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_large_jpeg_is_decoded_smaller(
    mode: str, size: tuple[int, int], orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a power of two that leaves the longer side as long as asked, and only above the limit."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(draw("RGB", *size).convert(mode), "JPEG", exif=exif)
    monkeypatch.setattr("smolvlm_mlx.inputs.image.MAX_PIXELS", 640 * 400)
    whole = decode_image(data, DEFAULT_LIMITS, edge=100)
    assert whole.image.size == whole.size == (size if orientation == 1 else size[::-1])
    monkeypatch.setattr("smolvlm_mlx.inputs.image.MAX_PIXELS", 640 * 400 - 1)
    for edge, side in ((640, 640), (321, 640), (320, 320), (100, 160), (80, 80), (1, 80)):
        smaller = decode_image(data, DEFAULT_LIMITS, edge=edge)
        assert max(smaller.image.size) == side
        assert (smaller.size, smaller.image.mode) == (whole.size, "RGB")
    monkeypatch.undo()
    pixels = [np.asarray(each.image.resize((40, 40))) for each in (whole, smaller)]
    assert np.abs(pixels[0].astype(int) - pixels[1]).mean() < 5


MEASURE = """
import resource, sys
from smolvlm_mlx.inputs.media import Attachment
from smolvlm_mlx.inputs.settings import ImageSettings
def peak():
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024
Attachment(sys.argv[1]).tiled(ImageSettings(512, 2048))
before = peak()
print(Attachment(sys.argv[2]).tiled(ImageSettings(512, 2048)).layout.tiles, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photo_of_61_megapixels_takes_less_than_100_mb(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    draw("RGB", 960, 640).resize((9600, 6400)).save(tmp_path / "large.jpg", exif=exif)
    draw("RGB", 96, 64).save(tmp_path / "small.jpg")
    files = [str(tmp_path / name) for name in ("small.jpg", "large.jpg")]
    command = [sys.executable, "-c", MEASURE, *files]
    said = subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout
    tiles, memory = map(int, said.split())
    assert tiles == 13
    assert memory < 100e6


@pytest.mark.parametrize("size", [(1, 65_536), (65_536, 1), (70_000, 3)])
def test_limit_of_a_side(size: tuple[int, int]) -> None:
    width, height = size
    array = np.zeros((height, width, 3), np.uint8)
    forms: list[Any] = [Image.new("RGB", size), array, encoded(Image.new("L", size), "PNG")]
    for form in forms:
        with pytest.raises(ImageError, match=f"{width} x {height} pixels; the limit of a side is"):
            load_image(form)
    with pytest.raises(ImageError, match="the limit of a side is 65535"):
        make_tiles(Image.new("RGB", size), ImageSettings(32, 64))  # of a video's frame


@pytest.mark.parametrize("size", [(1, 65_535), (65_535, 1)])
def test_the_longest_sides_become_tiles(size: tuple[int, int]) -> None:
    tiled = make_tiles(load_image(Image.new("RGB", size, "red")), ImageSettings(32, 64))
    assert sorted((tiled.layout.rows, tiled.layout.cols)) == [1, 2]
    assert (tiled.tiles == [255, 0, 0]).all()


def test_what_does_not_fit_into_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    picture = draw("RGB", 40, 30)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "resize", full)
        with pytest.raises(ImageError, match="40 x 30 pixels do not fit into memory"):
            make_tiles(picture, ImageSettings(32, 64))
    monkeypatch.setattr(ImageFile.ImageFile, "load", full)
    with pytest.raises(ImageError, match=r"^the picture does not fit into memory; make it smaller"):
        load_image(encoded(picture, "PNG"))


@pytest.mark.parametrize("as_array", [True, False])
def test_limit_of_pixels_of_what_is_decoded(as_array: bool) -> None:
    picture: Any = Image.new("RGB", (10, 10))
    source = np.asarray(picture) if as_array else picture
    assert load_image(source, FetchLimits(max_pixels=100)).size == (10, 10)
    with pytest.raises(ImageError, match="has 10 x 10 pixels; the limit is 99: make it smaller"):
        load_image(source, FetchLimits(max_pixels=99))


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_empty_picture(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"is empty: {size[0]} x {size[1]} pixels"):
        load_image(Image.new("RGB", size))
    with pytest.raises(ImageError, match="is empty"):
        load_image(np.zeros((size[1], size[0], 3), np.uint8))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.int64),
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
def test_flipped_bytes_give_a_picture_or_one_line(kind: str) -> None:
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
            assert load_image(bytes(data), FetchLimits(max_pixels=10**6)).mode == "RGB"
        except ImageError as error:
            messages.append(str(error))
    assert all(len(message.splitlines()) == 1 and len(message) < 250 for message in messages)
