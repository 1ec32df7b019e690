"""Columns of a row: which hold its pictures and videos, where those lie, and what would be lost.

Paths are relative to the file that holds the row, wherever in the row they stand.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from os.path import splitext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from ..errors import DataError, quote
from ..inputs.fetch import local_path
from ..inputs.media import PICTURE_SUFFIXES, VIDEO_SUFFIXES

RawPart = Mapping[str, Any]
# By number from 1, as <image 2> has it.
Pool = dict[int, RawPart]

MESSAGES = ("messages", "conversations", "conversation")
QUESTIONS = ("question", "query", "prompt", "instruction")
ANSWERS = ("answers", "answer")
RESPONSES = ("response", "completion", "output", "label", "labels")
CAPTIONS = ("caption", "captions", "text")
CHOICES = ("choices", "options", "candidates")
IMAGES = (
    *("image", "images", "image_path", "image_paths", "image_file", "image_files", "image_url"),
    *("image_urls", "image_base64", "image_bytes", "image_name", "image_filename", "img", "imgs"),
    *("img_path", "img_paths", "img_name", "imgname", "photo", "photos", "picture", "pictures"),
    *("file_name", "filename", "file_path", "filepath"),
)
VIDEOS = (
    *("video", "videos", "video_path", "video_paths", "video_file", "video_files"),
    *("video_url", "video_urls"),
)
OTHERS = ("texts", "input", "history", "system", "category", "split", "longest_edge", "max_tiles")
# Of each at least one column is read, if it is there.
GROUPS = (
    *((*MESSAGES, *QUESTIONS), (*ANSWERS, *RESPONSES, *CAPTIONS), CHOICES, IMAGES, VIDEOS),
    *(("history",), ("system",), ("category",)),
)
KNOWN = frozenset(OTHERS).union(*GROUPS)
NUMBERED = re.compile(r"(image|img|picture|photo|video)_?(\d+)")  # image_1, image_2, ... of MMMU
IDS = {"image_id": "image", "img_id": "image", "video_id": "video", "videoID": "video"}
VIDEO_TIMES = ("start", "end")  # seconds of the row's video
# Columns beside a picture that are about it: of other tasks, or where it comes from.
_ASIDE = re.compile(
    r"(?i)(^|[^a-z])(mask|seg|segmentation|depth|thumb|thumbnail|preview|heatmap)s?([^a-z]|$)"
    r"|^(?!.*(image|img|photo|picture|video))"
    r"(.*[^a-z])?(source|src|origin|meta|metadata|info|annotation|id)s?([^a-z]|$)"
)
_WORDS = {"image": "a picture", "video": "a video"}
_SOURCES = frozenset({"bytes", "path", "url", "base64", "image", "video"})
_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "AAAA", "GkXfo")
_BASE64_TEXT = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*", re.ASCII)


def is_empty(value: object) -> bool:
    """Whether there is nothing: null, not a number, no text, an empty list."""
    if isinstance(value, float):
        return value != value
    return value is None or (isinstance(value, str | bytes | list | tuple) and not len(value))


def only(raw: Mapping[str, object], names: Sequence[str]) -> str | None:
    """The one of the columns that is there and holds something.

    Raises:
        DataError: there are two, and which is meant is not known.
    """
    found = [name for name in names if not is_empty(raw.get(name))]
    if len(found) > 1:
        raise DataError(f"{found[0]} and {found[1]} could both be meant; keep one of them")
    return found[0] if found else None


# ---- pictures and videos


def find_media(raw: Mapping[str, object], folder: Path) -> tuple[Pool, Pool]:
    """The row's own pictures and videos, beside those within its messages.

    Raises:
        DataError: two columns could be the picture, or one holds no picture.
        FetchError: one is on another machine.
    """
    images, videos = dict[str, object](), dict[str, object]()
    for column, value in raw.items():
        if not is_empty(value) and (kind := _kind(column, value)):
            (videos if kind == "video" else images)[column] = value
    clips = _pool("video", videos, folder)
    named = [name for name in VIDEO_TIMES if clips and not is_empty(raw.get(name))]
    times = {name: _seconds(name, raw[name]) for name in named}
    return _pool("image", images, folder), {
        number: {**clip, **times} for number, clip in clips.items()
    }


def _kind(column: str, value: object) -> str | None:
    """Whether a column is one of pictures or of videos; a file's ending goes before its name."""
    numbered = NUMBERED.fullmatch(column)
    if column in VIDEOS or (numbered and numbered[1] == "video"):
        return "video"
    if column in IMAGES or numbered:
        return "video" if _kind_of(value) == "video" else "image"
    return None


def _kind_of(value: object) -> str | None:
    """Whether a text names a picture or a video, by its ending."""
    suffix = _suffix(value) if isinstance(value, str) else ""
    return "video" if suffix in VIDEO_SUFFIXES else "image" if suffix in PICTURE_SUFFIXES else None


def _pool(kind: str, found: Mapping[str, object], folder: Path) -> Pool:
    numbers = {column: int(match[2]) for column in found if (match := NUMBERED.fullmatch(column))}
    if found and len(set(numbers.values())) == len(found):
        return {numbers[column]: make_part(kind, found[column], folder) for column in found}
    columns = [*found]
    if len(columns) > 1:
        # A name beside a picture that is there itself says where it came from.
        held = [column for column in found if _is_itself(found[column])]
        counts = {column: _count(value) for column, value in found.items()}
        are_named = len(held) == 1 and counts[held[0]] == max(counts.values())
        columns = held if are_named else _distinct(found)
    if len(columns) > 1:
        raise DataError(
            f"{columns[0]} and {columns[1]} both hold {_WORDS[kind]}; keep one of them, or give "
            f"all as `{kind}s`"
        )
    values = [value for column in columns for value in _list_of(kind, found[column], column)]
    return {number: make_part(kind, value, folder) for number, value in enumerate(values, 1)}


def _count(value: object) -> int:
    return len(value) if isinstance(value, list | tuple) else 1


def _is_itself(value: object) -> bool:
    """Whether a picture, or one of a list, is there, and not only its address."""
    if isinstance(value, list | tuple):
        return any(map(_is_itself, value))
    if isinstance(value, Mapping):
        return value.get("bytes") is not None
    return not isinstance(value, str)


def _distinct(found: Mapping[str, object]) -> list[str]:
    """Columns, without those that say the same again: beside a file its name, or its address in
    the web."""
    columns = dict[str, str]()
    for column, value in found.items():
        columns.setdefault(repr(value if isinstance(value, list | tuple) else [value]), column)
    texts = {column: found[column] for column in columns.values()}
    files = [text for text in texts.values() if isinstance(text, str) and not _is_url(text)]

    def is_again(text: object) -> bool:
        if not isinstance(text, str):
            return False
        others = [file for file in files if file != text]
        return bool(others) and (_is_url(text) or text in {Path(file).name for file in others})

    return [column for column, text in texts.items() if not is_again(text)]


def _is_url(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://", "data:"))


def _list_of(kind: str, value: object, column: str) -> list[object]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return [value]
    if any(is_empty(each) for each in value):
        raise DataError(f"{column} holds an empty one among its {len(value)}")
    are_frames = kind == "video" and all(_kind_of(each) == "image" for each in value)
    return [{"frames": value}] if are_frames else list(value)


def _seconds(name: str, value: object) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            return float(value)
    raise DataError(f"{name} is {quote(value)}, not the seconds of the video")


def make_part(kind: str, value: object, folder: Path) -> RawPart:
    """A part of a message from a path, URL, base64, bytes, decoded picture, or object with one of
    them."""
    if isinstance(value, str):
        return {"type": kind, **_located(value, folder)}
    if isinstance(value, list | tuple) and kind == "video":
        value = {"frames": value}
    if isinstance(value, Mapping):
        return {"type": kind, **_sources(kind, value, folder)}
    if isinstance(value, bool | int | float | list | tuple):
        raise DataError(f"{quote(value)} is not {_WORDS[kind]}")
    return {"type": kind, kind: value}


def _sources(kind: str, value: Mapping[str, Any], folder: Path) -> dict[str, object]:
    """What an object says of a picture or video, its paths made ones from here."""
    said = {key: each for key, each in value.items() if each is not None and key != "type"}
    inner = said.pop(f"{kind}_url", said.pop(kind, None))
    if inner is not None:
        return {**said, **_without_type(make_part(kind, inner, folder))}
    if "bytes" in said:  # of a dataset; its path is a name
        return {kind: said["bytes"]}
    if isinstance(said.get("frames"), Sequence):
        frames = [_without_type(make_part("image", each, folder)) for each in said["frames"]]
        return {**said, "frames": frames}
    for key in ("path", "url"):
        if isinstance(said.get(key), str):
            return _located(said.pop(key), folder) | said
    return said


def _without_type(part: RawPart) -> dict[str, object]:
    return {key: value for key, value in part.items() if key != "type"}


def _located(text: str, folder: Path) -> dict[str, object]:
    """Text as a `url`, `base64` or `path` from here."""
    if _is_url(text):
        return {"url": text}
    if _is_base64(text):
        return {"base64": text}
    return {"path": str(folder / local_path(text))}


def _is_base64(text: str) -> bool:
    return text.startswith(_BASE64) and _BASE64_TEXT.fullmatch(text) is not None


def _suffix(text: str) -> str:
    if len(text) >= 1000 or "\n" in text:
        return ""
    if text[:8].lower().startswith(("http://", "https://")):
        with suppress(ValueError):  # no URL, which is said where it is fetched
            text = urlsplit(text).path
    return splitext(text)[1].lower()


# ---- what would be lost


def check_columns(raw: Mapping[str, object], media: Sequence[RawPart]) -> None:
    """Refuse a row with a column that nobody reads and that is a picture, or a mistyped name.

    Args:
        media: the pictures and videos that the row's conversation shows.
    """
    for column, value in raw.items():
        if column in KNOWN or NUMBERED.fullmatch(column) or is_empty(value):
            continue
        if near := _mistyped(column, raw):
            raise DataError(f"column {quote(column)} is not known; rename it to {near}")
        if holds_media(value) and not (media and _is_beside(column, value, media)):
            kind = _kind_of(value) or "image"
            raise DataError(
                f"column {quote(column)} holds {_WORDS[kind]} that would be lost; rename it to "
                f"{kind}, or leave it out"
            )
    for column, kind in IDS.items():
        if not media and not is_empty(raw.get(column)):
            raise DataError(
                f"{column} names {_WORDS[kind]} that is not in the row; add its path as `{kind}`"
            )


def refuse_media(said: Mapping[Any, object], read: Sequence[str], where: str) -> None:
    """Refuse a picture or video in a message, turn or part, under a key that is not read there.

    Raises:
        DataError: there is one.
    """
    for key, value in said.items():
        if key not in read and holds_media(value):
            raise DataError(
                f"{where} holds a picture or video in {quote(key)}, where it would be lost; move "
                "it into the content, or into a column of the row"
            )


def holds_media(value: object) -> bool:
    """Whether a value is, or seems to be, a picture or a video: bytes, a decoded picture, a path or
    URL with such an ending, base64, an object or list of these."""
    if isinstance(value, bytes | Image.Image):
        return True
    if isinstance(value, str):
        if value[:11].lower().startswith(("data:image/", "data:video/")) or _is_base64(value):
            return True
        return _suffix(value) in PICTURE_SUFFIXES + VIDEO_SUFFIXES
    if isinstance(value, Mapping):
        return set(value) <= _SOURCES and any(map(holds_media, value.values()))
    return isinstance(value, list | tuple) and len(value) > 0 and holds_media(value[0])


def _is_beside(column: str, value: object, media: Sequence[RawPart]) -> bool:
    """Whether it is about a picture that is shown: its address or name, or for another task."""
    if _ASIDE.search(column):
        return True
    if not isinstance(value, str) or value.startswith("data:") or _is_base64(value):
        return False
    kind = _kind_of(value) or "image"
    shown = [part.get("path") or part.get("url") for part in media if part["type"] == kind]
    if not shown:
        return False
    names = {Path(str(source)).name for source in shown}
    return value.startswith(("http://", "https://")) or None in shown or Path(value).name in names


def _mistyped(column: str, raw: Mapping[str, object]) -> str | None:
    """The known name that was meant, where no column of its kind is there."""
    for near, names in _near_groups(column):
        if all(is_empty(raw.get(name)) for name in names):
            return near
    return None


@lru_cache(maxsize=4096)
def _near_groups(column: str) -> list[tuple[str, tuple[str, ...]]]:
    """The first name of each group that is nearly this, and the group."""
    near = [next((name for name in names if is_near(column, name)), None) for names in GROUPS]
    return [(name, names) for name, names in zip(near, GROUPS, strict=True) if name]


def is_near(one: str, other: str) -> bool:
    """Whether words of five letters or more differ in one letter, or in the order of two."""

    def shorter(word: str) -> set[str]:
        return {word, *(word[:place] + word[place + 1 :] for place in range(len(word)))}

    one = one.lower()
    return min(len(one), len(other)) > 4 and not shorter(one).isdisjoint(shorter(other))


def nearest(columns: Iterable[str], names: Sequence[str]) -> str:
    """For a message: which column may have been meant as one of the names."""
    from difflib import get_close_matches

    for column in columns:
        if column not in KNOWN and (near := get_close_matches(column.lower(), names, 1, 0.75)):
            return f"; column {quote(column)} looks like {near[0]}"
    return ""
