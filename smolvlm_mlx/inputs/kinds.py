"""What a file is, by how it begins, whatever its name says: for those that are given as something
else."""

from codecs import getincrementaldecoder
from dataclasses import dataclass
from typing import Literal

START = 4096  # bytes that are enough to tell


@dataclass(frozen=True)
class Kind:
    """What a file is, as in "is a PDF", and what its owner can do with it here."""

    name: str
    advice: str


PICTURE = Kind("a picture", "use --image (a part of type image, images=)")
VIDEO = Kind("a video", "use --video (a part of type video, videos=)")
ANIMATION = Kind("an animated picture", "use --image or --video")
PDF = Kind("a PDF", "use smolvlm-mlx document")
OFFICE = Kind("an office document", "save it as PDF and use smolvlm-mlx document")
SVG = Kind("an SVG drawing", "export it as PNG")
HTML = Kind("a web page (HTML)", "give the file or address of the picture or video itself")
TEXT = Kind("text", "put it into the question")
LFS = Kind("a pointer of Git LFS", "get the file itself with git lfs pull")
SOUND = Kind("sound", "only pictures are seen here")
ARCHIVE = Kind("an archive", "unpack it and give a file of it")
WEIGHTS = Kind("a file of weights", "it belongs into the folder that --model names")
EMPTY = Kind("empty", "save or download it again")


def _foreign(name: str) -> Kind:
    return Kind(name, "export it as PNG or JPEG")


# Kinds of which every file begins with one of these.
STARTS: tuple[tuple[Kind, tuple[bytes, ...]], ...] = (
    (PICTURE, (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (PICTURE, (b"\0\0\0\x0cjP  \r\n", b"\xffO\xffQ", b"qoif")),
    (ANIMATION, (b"GIF87a", b"GIF89a")),
    (VIDEO, (b"\x1aE\xdf\xa3", b"FLV\1", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11")),
    (
        VIDEO,
        (b"DKIF", b".RMF", b"\0\0\1\xba", b"\0\0\1\xb3", b"YUV4MPEG2", b"\x06\x0e\x2b\x34\2\5\1\1"),
    ),
    (VIDEO, tuple(b"\0\0\0\1%c" % unit for unit in b"\x09\x27\x67\x40\x42\x44\x46")),
    (
        SOUND,
        (b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf1", b"\xff\xf9", b"fLaC", b"#!AMR", b"caff"),
    ),
    (OFFICE, (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"{\\rtf")),
    (
        ARCHIVE,
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"7z\xbc\xaf", b"Rar!\x1a", b"\x28\xb5\x2f\xfd"),
    ),
    (WEIGHTS, (b"GGUF",)),
    (LFS, (b"version https://git-lfs",)),
    (_foreign("a Photoshop file"), (b"8BPS",)),
    (_foreign("a PostScript drawing"), (b"%!PS", b"\xc5\xd0\xd3\xc6")),
    (_foreign("a GIMP file"), (b"gimp xcf",)),
    (_foreign("a JPEG XL picture"), (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n")),
    (_foreign("an OpenEXR picture"), (b"\x76\x2f\x31\1",)),
    (_foreign("an icon"), (b"\0\0\1\0", b"icns")),
)
# Boxes that an MP4 or QuickTime file begins with, and brands of those that hold something else.
BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"pnot", b"styp", b"moof")
SEQUENCES = (b"avis", b"msf1", b"hevc", b"hevx")
STILLS = (b"avif", b"heic", b"heix", b"heim", b"heis", b"mif1", b"mif2", b"miaf")
OFFICE_NAMES = (b"[Content_Types].xml", b"mimetypeapplication/vnd.oasis", b"word/", b"ppt/", b"xl/")


def wrong_kind(data: bytes, wanted: Literal["picture", "video"]) -> str:
    """What a file is that was given as a picture or a video, and what to do with it; nothing where
    it is one, or cannot be told."""
    kind = kind_of(data)
    right = (ANIMATION, PICTURE if wanted == "picture" else VIDEO)
    return "" if kind is None or kind in right else f"is {kind.name}; {kind.advice}"


def kind_of(data: bytes) -> Kind | None:
    """What a file is, of which START bytes are enough; None if it cannot be told."""
    start = data[:START]
    if not start:
        return EMPTY
    for kind, beginnings in STARTS:
        if start.startswith(beginnings):
            return ANIMATION if start[1:4] == b"PNG" and _is_apng(data) else kind
    if start[4:8] in BOXES and len(start) >= 12:
        return _of_boxes(start)
    return _of_containers(start) or _of_text(start)


def _is_apng(data: bytes) -> bool:
    """A profile of any length may stand before the chunk that says so."""
    pixels = data.find(b"IDAT")
    return data.find(b"acTL", 0, len(data) if pixels < 0 else pixels) > 0


def _of_boxes(start: bytes) -> Kind:
    if start[4:8] != b"ftyp":
        return VIDEO
    end = max(min(int.from_bytes(start[:4]), 256), 12)
    major, brands = start[8:12], {start[at : at + 4] for at in range(8, end, 4)}
    if major in (b"M4A ", b"M4B "):
        return SOUND
    if major == b"crx ":
        return _foreign("a camera's raw picture")
    if not major.startswith((b"mif", b"msf")) and major not in STILLS + SEQUENCES:
        return VIDEO
    return ANIMATION if brands.intersection(SEQUENCES) else PICTURE


def _of_containers(start: bytes) -> Kind | None:
    if start[:2] == b"BM" and start[6:10] == b"\0\0\0\0":
        return PICTURE
    if start[:1] == b"P" and start[1:2] in b"123456f" and start[2:3].isspace():  # PPM
        return PICTURE
    if start[:4] in (b"RIFF", b"FORM"):
        is_moving = start[12:16] == b"VP8X" and bool(int.from_bytes(start[20:21]) & 2)
        webp = ANIMATION if is_moving else PICTURE
        return {b"WEBP": webp, b"AVI ": VIDEO, b"WAVE": SOUND, b"AIFF": SOUND}.get(start[8:12])
    if start[:4] == b"OggS":
        has_sound = b"vorbis" in start or b"Opus" in start
        return SOUND if has_sound and b"theora" not in start else VIDEO
    if start[:4] == b"PK\3\4":
        return OFFICE if any(name in start for name in OFFICE_NAMES) else ARCHIVE
    # MPEG-TS: a G each 188 bytes, or each 192 with four before it.
    if b"GGG" in (start[:377:188], start[4:389:192]):
        return VIDEO
    if start[8:10] == b'{"' and int.from_bytes(start[:8], "little") < 2**30:  # safetensors
        return WEIGHTS
    return PDF if b"%PDF-" in start[:1024] else None


def _of_text(start: bytes) -> Kind | None:
    """HTML, SVG or other text; None for bytes that are none."""
    is_wide = start[:2] in (b"\xff\xfe", b"\xfe\xff")
    decoder = getincrementaldecoder("utf-16" if is_wide else "utf-8")()
    try:
        text = decoder.decode(start)  # its last character may be cut
    except UnicodeDecodeError:
        return None
    if any(ord(character) < 32 and character not in "\t\n\r\f\x1b" for character in text):
        return None
    lower = text.lstrip("\ufeff \t\r\n").lower()
    if "<svg" in lower and lower.startswith(("<svg", "<?xml", "<!")):
        return SVG
    return HTML if lower.startswith(("<!doctype html", "<html", "<head", "<body")) else TEXT
