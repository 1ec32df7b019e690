"""Small files that take much time or memory to decode, one for each way in which a format can."""

import struct
import zlib
from collections.abc import Callable

from tests.support.pictures import encoded, png

from PIL import Image


def jpeg_of_scans(scans: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """A progressive JPEG whose last scan, of a few bytes, comes again and again until there are
    `scans` in all."""
    data = encoded(Image.new("RGB", size, (90, 160, 30)), "JPEG", progressive=True)
    starts = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    last = data[starts[-1] : -2]
    return data[:-2] + last * (scans - len(starts)) + data[-2:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_with(kind: bytes, start: bytes, size: int) -> bytes:
    """A PNG with a chunk that is `size` bytes when it is inflated."""
    data = png(1, 8, 0, b"\0")
    head = 8 + 25
    return data[:head] + _chunk(kind, start + zlib.compress(bytes(size), 9)) + data[head:]


def gif_of_frames(count: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", 2000, 2000, 0x80, 0, 0) + bytes(6)
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return screen + frame * count + b";"


def tiff_of_pages(count: int) -> bytes:
    """Each page is one pixel, and says where the next is."""
    page = struct.pack("<HHII", 256, 4, 1, 1) + struct.pack("<HHII", 257, 4, 1, 1)
    page += struct.pack("<HHII", 258, 3, 1, 8) + struct.pack("<HHII", 262, 3, 1, 1)
    page += struct.pack("<HHII", 273, 4, 1, 8) + struct.pack("<HHII", 279, 4, 1, 1)
    size = 2 + len(page) + 4
    data = bytearray(b"II*\0" + struct.pack("<I", 12) + b"\x80\0\0\0")
    for number in range(count):
        after = 12 + size * (number + 1) if number + 1 < count else 0
        data += struct.pack("<H", 6) + page + struct.pack("<I", after)
    return bytes(data)


def tiff_in_a_circle() -> bytes:
    data = bytearray(tiff_of_pages(2))
    data[-4:] = struct.pack("<I", 12)
    return bytes(data)


def tiff_of_tiles(side: int, tile: int = 16) -> bytes:
    """A large picture whose tiles are all the same few bytes."""
    strip = zlib.compress(bytes(tile * tile))
    count = (side // tile) ** 2
    tags = [
        (256, 4, 1, side),
        (257, 4, 1, side),
        (258, 3, 1, 8),
        (259, 3, 1, 8),  # deflate
        (262, 3, 1, 1),
        (277, 3, 1, 1),
        (322, 4, 1, tile),
        (323, 4, 1, tile),
        (324, 4, count, 0),
        (325, 4, count, 0),
    ]
    end = 8 + 2 + 12 * len(tags) + 4
    places = {324: end + len(strip), 325: end + len(strip) + 4 * count}
    ifd = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, kind, number, places.get(tag, value))
        for tag, kind, number, value in tags
    )
    data = b"II*\0" + struct.pack("<I", 8) + ifd + bytes(4) + strip
    return data + struct.pack("<I", end) * count + struct.pack("<I", len(strip)) * count


def huge(kind: str, side: int = 7000, **options: object) -> bytes:
    """A picture of one colour."""
    return encoded(Image.new("RGB", (side, side), "red"), kind, **options)


PICTURES: dict[str, Callable[[], bytes]] = {
    "JPEG, scans": lambda: jpeg_of_scans(5000),
    "JPEG, large scans": lambda: jpeg_of_scans(100, (7000, 7000)),
    "JPEG, comments": lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 500_000,
    "PNG, text": lambda: _png_with(b"zTXt", b"a\0\0", 2**29),
    "PNG, international text": lambda: _png_with(b"iTXt", b"a\0\1\0\0\0", 2**29),
    "PNG, profile": lambda: _png_with(b"iCCP", b"a\0\0", 2**29),
    "PNG, empty chunks": lambda: png(1, 8, 0, b"\0")[:33] + _chunk(b"teXt", b"") * 100_000,
    "PNG, deep": lambda: png(6000, 16, 6, bytes(8 * 6000), height=8000),
    "PNG, grey of 16 bits": lambda: png(7000, 16, 0, bytes(14000), height=7000),
    "GIF, frames": lambda: gif_of_frames(100_000),
    "TIFF, pages": lambda: tiff_of_pages(200_000),
    "TIFF, a circle": lambda: tiff_in_a_circle(),
    "TIFF, tiles": lambda: tiff_of_tiles(7040),
    "BMP": lambda: huge("BMP", 2000),
    "WEBP": lambda: huge("WEBP", 1000),
    "AVIF": lambda: huge("AVIF", 1000, speed=10),
    "JPEG2000": lambda: huge("JPEG2000", 1000),
    "JPEG2000, tiles": lambda: huge("JPEG2000", 512, tile_size=(8, 8)),
    "PPM": lambda: b"P3 7000 7000 255\n" + b"1 " * 1_000_000,
    "PPM, a long comment": lambda: b"P6\n#" + b"a" * 2_000_000,
    "QOI": lambda: b"qoif" + struct.pack(">II", 7000, 7000) + b"\3\0" + b"\xfd" * 800_000,
}
