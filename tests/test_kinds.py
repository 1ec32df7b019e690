"""What is given as a picture or a video and is something else is named by its content, with what to
do."""

import io
import json
import random
import tarfile
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import ImageError, SmolVLMError, VideoError
from smolvlm_mlx.inputs.image import load_image
from smolvlm_mlx.inputs.kinds import (
    ANIMATION,
    BOXES,
    HTML,
    PDF,
    PICTURE,
    SOUND,
    START,
    SVG,
    TEXT,
    VIDEO,
    WEIGHTS,
    Kind,
    kind_of,
    wrong_kind,
)
from smolvlm_mlx.inputs.media import Attachment, Video, attach
from tests.support.pdfs import pictures_as_pdf
from tests.support.pictures import animated, draw, encoded
from tests.support.videos import encode_video, sound

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

VIDEOS: dict[str, Callable[[], bytes]] = {
    "mp4": lambda: encode_video(30),
    "mov": lambda: encode_video(30, container="mov"),
    "3gp": lambda: encode_video(30, container="3gp"),
    "mkv": lambda: encode_video(30, container="matroska"),
    "webm": lambda: encode_video(30, 10, "webm", "libvpx"),
    "avi": lambda: encode_video(30, container="avi"),
    "ts": lambda: encode_video(30, 25, "mpegts", "mpeg2video"),
    "m2ts": lambda: blu_ray(encode_video(30, 25, "mpegts", "mpeg2video")),
    "mpg": lambda: encode_video(30, 25, "mpeg", "mpeg2video"),
    "flv": lambda: encode_video(30, 25, "flv", "flv1"),
    "asf": lambda: encode_video(30, 25, "asf", "mpeg4"),
    "h264": lambda: encode_video(30, 25, "h264", "libx264"),
    "ivf": lambda: encode_video(30, 25, "ivf", "libvpx"),
}
PICTURES = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
ANIMATIONS = ("GIF", "PNG", "WEBP", "AVIF")


def blu_ray(data: bytes) -> bytes:
    """Each packet of MPEG-TS with four bytes of time before it."""
    return b"".join(b"\0\0\0\0" + data[at : at + 188] for at in range(0, len(data), 188))


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "words " * 90)
    return file.getvalue()


def wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\0" * 800)
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz"):
        pass
    return file.getvalue()


def eps() -> bytes:
    return encoded(draw("RGB", 4, 4), "EPS")


OTHERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "is empty; save or download it again"),
    "text": (lambda: "Ein Bär.\n".encode() * 900, "is text; put it into the question"),
    "text of Windows": (lambda: "words".encode("utf-16"), "is text; put"),
    "JSON": (lambda: json.dumps({"image": "a.jpg"}).encode(), "is text; put"),
    "HTML": (lambda: b"\n<!DOCTYPE html><html></html>", "is a web page (HTML); give the file or"),
    "SVG": (
        lambda: b"<?xml version='1.0'?><!-- a --><svg/>",
        "is an SVG drawing; export it as PNG",
    ),
    "short SVG": (lambda: b"<svg/>", "is an SVG drawing; export it as PNG"),
    "Word": (lambda: zipped("[Content_Types].xml", "word/document.xml"), "is an office document;"),
    "OpenDocument": (lambda: zipped("mimetypeapplication/vnd.oasis"), "is an office document;"),
    "zip": (lambda: zipped("a.jpg"), "is an archive; unpack it"),
    "tar": (tar, "is an archive; unpack it"),
    "weights": (lambda: save({"a": np.zeros(4, np.float32)}), "is a file of weights; it belongs"),
    "pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "sound": (wav, "is sound; only pictures are seen here"),
    "PostScript": (eps, "is a PostScript drawing; export it as PNG or JPEG"),
    "Photoshop": (lambda: b"8BPS\0\1" + b"\0" * 20, "is a Photoshop file; export it as PNG"),
    "JPEG XL": (lambda: b"\xff\x0a" + b"\0" * 20, "is a JPEG XL picture; export it as PNG"),
    "raw": (lambda: b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "is a camera's raw picture; export"),
    "icon": (lambda: encoded(draw("RGB", 16, 16), "ICO"), "is an icon; export it as PNG or JPEG"),
}


def said(call: Callable[[Any], object], source: Any) -> str:
    with pytest.raises(SmolVLMError) as caught:
        call(source)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", ""])
@pytest.mark.parametrize("kind", VIDEOS)
def test_a_video_given_as_picture_is_told_how_to_give_it(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    data, path = VIDEOS[kind](), tmp_path / f"clip.{suffix}"
    path.write_bytes(data)
    advice = "is a video; use --video (a part of type video, videos=)"
    assert said(load_image, data) == f"the picture {advice}"
    assert said(Attachment, path) == f"'{path.name}' {advice}"
    assert wrong_kind(data, "video") == ""
    assert isinstance(attach(path), Video), "by content"


@pytest.mark.parametrize("suffix", ["mov", ""])
@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_given_as_video_is_told_how_to_give_it(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"photo.{suffix}"
    path.write_bytes(encoded(draw("RGB", 40, 30), kind))
    advice = "is a picture; use --image (a part of type image, images=)"
    assert said(Video, path) == f"'{path.name}' {advice}"
    assert said(Video, path.read_bytes()) == f"the file {advice}"
    assert isinstance(attach(path), Attachment), "by content"


def test_a_heic_picture_given_as_video_is_told_how_to_give_it() -> None:
    pytest.importorskip("pillow_heif")
    import pillow_heif

    if not pillow_heif.libheif_info()["encoders"]:
        pytest.skip("this pillow-heif cannot write")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), "red")).save(file, quality=90)
    assert "is a picture; use --image" in said(Video, file.getvalue())


@pytest.mark.parametrize("kind", ANIMATIONS)
def test_an_animated_picture_is_both(kind: str, tmp_path: Path) -> None:
    data = animated(kind)
    assert Attachment(data).size == Video(data).size == (32, 32)
    for name, held in (("a.gif", Attachment), ("a", Attachment), ("a.mp4", Video)):
        (tmp_path / name).write_bytes(data)
        assert isinstance(attach(tmp_path / name), held)


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_neither_is_named(kind: str, tmp_path: Path) -> None:
    make, words = OTHERS[kind]
    path = tmp_path / "thing.jpg"
    path.write_bytes(make())
    for call, error in ((Attachment, ImageError), (load_image, ImageError), (Video, VideoError)):
        with pytest.raises(error) as caught:
            call(path)
        assert words in str(caught.value)
        assert "thing.jpg'" in str(caught.value)


def test_a_pdf_is_sent_to_document(tmp_path: Path) -> None:
    path = pictures_as_pdf(tmp_path / "letter.pdf").rename(tmp_path / "letter.png")
    words = "'letter.png' is a PDF; use smolvlm-mlx document"
    assert said(attach, path) == said(Video, path) == words


def test_a_folder_is_named(tmp_path: Path) -> None:
    for call in (load_image, Attachment, Video, attach):
        assert "is a folder; give a file of it" in said(call, tmp_path)


def stream(first: int, step: int, count: int) -> bytes:
    """Bytes with a G every so often, as MPEG-TS has them."""
    data = bytearray(first + step * 2 + 9)
    for place in range(count):
        data[first + place * step] = ord("G")
    return bytes(data)


def boxes(*brands: str, size: int | None = None) -> bytes:
    """The beginning of a file of boxes: its brand, and what it is compatible with."""
    data = b"ftyp" + "".join(brands).encode()
    return (len(data) + 4 if size is None else size).to_bytes(4) + data


# How files begin, beside what is no such file though it begins nearly so.
BEGINNINGS: list[tuple[bytes, Kind | None]] = [
    *((b"\0\0\0\x0c" + box + b"qt  ", VIDEO) for box in BOXES),
    *((b"\0\0\0\x0c" + box + b"qt ", None) for box in BOXES),
    *[(boxes("M4A ", "isom"), SOUND), (boxes("M4B "), SOUND), (boxes("isom", "avis"), VIDEO)],
    *[(boxes("avif", "0000", "avis"), ANIMATION), (boxes("avif", "0000", "mif1"), PICTURE)],
    *[(boxes("avis"), ANIMATION), (boxes("msf1", "hevc"), ANIMATION), (boxes("mif2"), PICTURE)],
    *[(boxes("heic", "0000", "hevx", size=size), PICTURE) for size in (0, 12, 16)],
    *[(boxes("mifx"), PICTURE), (boxes("msfx", "0000", "msf1"), ANIMATION)],
    *[(b"BM" + bytes(8), PICTURE), (b"BM1234\0\0\0", None), (b"BMW drives", TEXT)],
    *[(b"AB" + bytes(8), None), (b"P6 4 4 255", PICTURE), (b"Pf\n", PICTURE), (b"P7 a", TEXT)],
    *[(b"PC games", TEXT), (b"P66 a", TEXT), (b"Q6 a", TEXT)],
    *[(b"RIFF0000WEBPVP8X0000" + bytes([flags]), ANIMATION) for flags in (2, 0x12)],
    (b"RIFF0000WEBPVP8X0000\x10\2", PICTURE),
    *[(b"RIFF0000WEBPVP8 0000\2", PICTURE), (b"RIFF0000AVI ", VIDEO), (b"RIFF0000WAVE", SOUND)],
    *[(b"FORM0000AIFF", SOUND), (b"FORM0000ILBM", TEXT)],
    *[(b"OggS\0\1vorbis", SOUND), (b"OggS\0OpusHead", SOUND), (b"OggS\0theora", VIDEO)],
    *[(b"OggS\0theora\1vorbis", VIDEO), (b"OggS\0theora\1Opus", VIDEO)],
    *((stream(first, step, 3), VIDEO) for first, step in ((0, 188), (4, 192))),
    *((stream(first, step, 2), None) for first, step in ((0, 188), (4, 192))),
    *((size.to_bytes(8, "little") + b'{"a"', WEIGHTS) for size in (8, 61, 2**30 - 1)),
    *[((2**30).to_bytes(8, "little") + b'{"a"', None), (bytes(8) + b'["a"', None)],
    *[(b" " * 1019 + b"%PDF-", PDF), (b" " * 1020 + b"%PDF-", TEXT)],
    *[("Ä".encode() * START, TEXT), (b"a" + "Ä".encode() * START, TEXT), (b"\xc4a", None)],
    *[("a\t\n\r\f\x1b ".encode(code), TEXT) for code in ("utf-8", "utf-16")],
    *[(b"a\x1f", None), (b"a\0", None), (b"\xff\xfea", TEXT), (b"\xfe\xff\0a", TEXT)],
    *[(f"\ufeff \r\n{head}".encode(), HTML) for head in ("<HTML", "<head><svg", "<!DocType HTML")],
    *[(f"\ufeff \r\n{head}".encode(), SVG) for head in ("<SVG", "<?xml <svg", "<!-- --><svg")],
    *[(b"<!-- -->", TEXT), (b"see <svg", TEXT), (b"see <html", TEXT)],
]


@pytest.mark.parametrize(("start", "kind"), BEGINNINGS, ids=lambda value: repr(value)[:40])
def test_a_file_is_what_it_begins_as(start: bytes, kind: Kind | None) -> None:
    assert kind_of(start) is kind


def test_sound_of_an_mp4_is_no_video() -> None:
    assert "sound but no video" in said(Video, sound())


def test_an_attached_name_that_is_not_there_is_missing(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.mp4", "a"):
        assert "no such file" in said(attach, tmp_path / name)


@given(st.binary(max_size=600), st.sampled_from([b"", b"RIFF", b"\0\0\0\x18ftyp", b"GIF89a", b"G"]))
def test_any_bytes_have_a_kind_or_none(data: bytes, start: bytes) -> None:
    kind = kind_of(start + data)
    assert kind is None or kind.advice


def test_a_long_profile_hides_no_animation() -> None:
    data = animated("PNG", icc_profile=random.Random(0).randbytes(3 * START))
    assert data.find(b"acTL") > START
    assert kind_of(data) is ANIMATION


def test_a_beginning_of_any_length_has_a_kind_or_none() -> None:
    moving = animated("WEBP")
    assert [kind_of(moving[:length]) for length in range(1, 22)][-1] is ANIMATION
    assert kind_of(moving[:20]) is PICTURE


def test_the_start_of_a_file_is_enough() -> None:
    for kind in (*PICTURES, "GIF"):
        data = encoded(draw("RGB", 300, 200), kind)
        assert kind_of(data[:START]) is kind_of(data)
