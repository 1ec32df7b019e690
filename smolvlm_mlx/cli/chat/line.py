"""The pictures and videos that a line names, wherever they stand in it.

A name is the longest file that is there which the text spells, whatever is around it: quotes,
brackets, punctuation, no space at all in Chinese. What only looks like a name is missing, never a
part of the question without a word.
"""

import os
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from .paths import (
    INVISIBLE,
    MAX_NAME,
    SUFFIXES,
    Files,
    Source,
    check_count,
    folded,
    likeliest,
    readable,
)

_KINDS = "|".join(suffix[1:] for suffix in SUFFIXES)
# `cat.jpgs` names none; `cat.jpgを` and `_cat.jpg_` do.
_ENDING = re.compile(rf"\.(?:{_KINDS})(?!_*[0-9A-Za-z\u00c0-\u024f\u0300-\u036f])", re.I)
_OTHER_KIND = re.compile(r"(?:\.[0-9A-Za-z]+)+")  # of cat.jpg.zip
_URL = re.compile(r"https?://[^\s<>\"`]+", re.I)
_PICTURE_URL = re.compile(
    rf"https?://[^\s<>\"`?#]+?\.(?:{_KINDS})(?![\w/%~-]*[0-9A-Za-z/]|\.[0-9A-Za-z])"
    r"(?:[?#](?:(?!,https?:)[!#-;=?-_a-z{|}~])*)?",
    re.I | re.A,
)
_DATA_URL = re.compile(r"data:image/[\w.+-]+(?:;[\w=.-]+)*,[\w+/=%-]{16,}", re.I | re.A)
_ROOTED = re.compile(r"""['"]?(?=(?:/(?![/*])|~[^\s/]*/|file:/)\S)""", re.I)
# The first word of a path with spaces.
_PATH = re.compile(r"(?:~|\.\.?|file:|/[^\s/\\]+)/(?:\\.|[^\s\\])+(?<![,;:.!?)\"'])(?=\s)")
_GLUE = r"_-./\~%+&$"  # what a name does not begin after
_MARKUP = re.compile(r"(?<!\S)(?:_+|\.\.+|…)$")
_OPENED = re.compile(r".*[(\[{<\"“„«`](?=[^)\]}>\"”»`]*$)")
# Names are said in code, and of what is no picture, where nobody has such a file.
_CODE = re.compile(
    r"""\w\(\s*f?["']|\w\{|\burl\(|\$\{|=\s*f?["']|["']\s*:\s*["'[{]|<[a-z]+\s[a-z]+="""
    r"""|(?<!\S)--?[a-z][\w-]*(?!\S)""",
    re.I,
)
_PLACEHOLDER = re.compile(r"[${}]|<\w+>(?!\w)|%(?:0\d)?[ds](?![0-9A-Fa-f])")
_SCRIPT = re.compile(r"(?!file:|[/~]).*\.m?ts", re.I | re.S)  # TypeScript, or a video
_PARTICLES = tuple("是的为為成和与與或及把用やとはがをでにのかなも")  # of `这是.png`
_CODEC = re.compile(r"[hx]\.26[45]", re.I)
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "„": "“", "‘": "’", "«": "»", "<": ">"}


@dataclass(frozen=True)
class Line:
    """What a line says.

    Attributes:
        text: the question as it was typed, but for what is no character; empty where there is
            nothing but names.
        sources: the files and URLs of pictures and videos that it names, in order.
        missing: names that look like a picture's or a video's, and are none.
        mentioned: such names in code, or which are rather another kind's: text.
        pages: its other URLs, which are text.
        begins_with: `path` where the first source is its beginning, `no path` where what looks like
            one is, else empty.
    """

    text: str
    sources: list[Source]
    missing: list[str]
    mentioned: list[str]
    pages: list[str]
    begins_with: Literal["path", "no path", ""]


@dataclass(frozen=True)
class _Span:
    """A piece of a line: the name of a source, or of a picture in the conversation, or of nothing
    that is there; or text, such as the URL of a page or the name of another kind of file."""

    start: int
    end: int
    kind: Literal["source", "known", "missing", "text"]
    source: Source | None = None


def read_line(line: str, known: Iterable[str] = ()) -> Line:
    """Read a line that is no command.

    Args:
        known: names of the pictures in the conversation; a name that is no file means one of these.

    Raises:
        FetchError: there are more names than `MAX_NAMES`.
    """
    text = line.strip().strip(INVISIBLE).strip()
    check_count(sum(1 for _ in _ENDING.finditer(text)))
    spans = [*_spans(text, {folded(readable(name)) for name in known})]
    blank = text
    for span in spans:
        blank = _blanked(blank, span.start, span.end, "x" if span.kind == "text" else "\0")
    kinds = ("missing",) if _has_words(blank) else ("missing", "known")
    none = [(span.end, text[span.start : span.end]) for span in spans if span.kind in kinds]
    none = sorted([*none, *_missing(blank)])
    mentioned = [name for end, name in none if _is_mentioned(text, end, name)]
    missing = [(end, name) for end, name in none if name not in mentioned]
    for end, name in missing:
        blank = _blanked(blank, end - len(name), end, "\0")
    pieces = [text[span.start : span.end] for span in spans if span.kind == "text"]
    return Line(
        readable(text) if _has_words(blank) or not (spans or none) else "",
        [span.source for span in spans if span.source is not None],
        [likeliest(name) for _, name in missing],
        mentioned,
        [piece for piece in pieces if _URL.fullmatch(piece)],
        _beginning(text, spans),
    )


def _beginning(text: str, spans: Sequence[_Span]) -> Literal["path", "no path", ""]:
    rooted = _ROOTED.match(text)
    if rooted is None:
        return ""
    return "path" if any(span.start <= rooted.end() for span in spans) else "no path"


# ---- what is named


def _spans(text: str, known: Set[str]) -> Iterator[_Span]:
    """The pieces that name something, from left to right, each as long as can be."""
    files, ends, after = Files(), _ends(text), 0
    for at in range(len(text)):
        if at >= after and _may_begin(text, at, after):
            near = ends[bisect_right(ends, at) : bisect_right(ends, at + MAX_NAME)]
            if text[at - 1 : at] == "_":  # _cat.jpg_ in Markdown, but never cat.jpg for _cat.jpg
                near = [end for end in near if text[end : end + 1] == "_"]
            span = _url(text, at) or _file(text, at, near, files, known)
            if span:
                yield span
                after = span.end


def _ends(text: str) -> list[int]:
    """Where a name may end."""
    ends = set[int]()
    for match in _ENDING.finditer(text):
        ends.add(match.end())
        if other := _OTHER_KIND.match(text, match.end()):
            ends.add(other.end())
    return sorted(ends)


def _may_begin(text: str, at: int, after: int) -> bool:
    """Whether a name may begin here, not in the middle of another; `after` is the last one's
    end."""
    before = text[at - 1 : at]
    if text[at].isspace():
        return False
    if at == after:
        return True
    if before.isalnum() or unicodedata.combining(before):
        return before >= "\u2e80"  # Chinese and Japanese have no spaces
    if before in _GLUE:
        between = text[after:at] if after else "x"
        return not between.strip(_GLUE) or bool(_MARKUP.search(text[max(at - 4, 0) : at]))
    return not (before.isspace() and text[at - 2 : at - 1] == "\\")


def _file(text: str, at: int, ends: list[int], files: Files, known: Set[str]) -> _Span | None:
    """The longest file that is spelled from here on; else the name of a known picture, or a path
    with spaces that is none."""
    rooted = _ROOTED.match(text)
    any_kind = rooted is not None and at <= rooted.end()  # what a line begins with
    if any_kind:
        words = re.finditer(r"[\s'\"]|\Z", text[: at + MAX_NAME])
        ends = sorted({*ends, *(word.start() for word in words)})
    for end in reversed(ends):
        if found := files.find_typed(text[at:end]):
            if any_kind or found.name.lower().endswith(SUFFIXES):
                return _Span(at, end, "source", found)
            return _Span(at, end, "text")
    for end in reversed(ends):
        name = text[at:end]
        if known and not known.isdisjoint(map(folded, (name, re.sub(r"\\(.)", r"\1", name)))):
            return _Span(at, end, "known")
    # Else `/tmp/no such cat.jpg` would be another cat.jpg.
    path = _PATH.match(text, at)
    ending = _ENDING.search(text, at, at + MAX_NAME) if path else None
    if path and ending and ending.end() in ends and not os.path.exists(likeliest(path.group())):
        return _Span(at, ending.end(), "missing")
    return None


def _url(text: str, at: int) -> _Span | None:
    """The URL that begins here: of a picture or a video by its path, else of a page."""
    if data := _DATA_URL.match(text, at):
        return _Span(at, data.end(), "source", data.group())
    picture = _PICTURE_URL.match(text, at)
    match = picture or _URL.match(text, at)
    if match is None:
        return None
    url = _trimmed(match.group())
    end = at + len(url)
    return _Span(at, end, "source", url) if picture else _Span(at, end, "text")


def _trimmed(url: str) -> str:
    """A URL without the punctuation of the sentence, and the brackets, around it."""
    while not (url[-1].isalnum() or url[-1] in "/=&%#~+-"):
        opening = {")": "(", "]": "[", "}": "{"}.get(url[-1])
        if opening and url.count(opening) >= url.count(url[-1]):
            break
        url = url[:-1]
    return url


# ---- what is said besides, and what looks like a name


def _blanked(text: str, start: int, end: int, fill: str) -> str:
    return text[:start] + fill * (end - start) + text[end:]


def _is_word(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "LNM" or category == "So"


def _has_words(blank: str) -> bool:
    """Whether a line says anything beside its names, which are zero bytes here."""
    rest = re.sub(r"!?\[[^\[\]\n]*\]\(<?\0+>?[^)\n]*\)", "", blank)  # a picture in Markdown
    return any(_is_word(character) or character in "?？؟" for character in rest)


def _missing(blank: str) -> Iterator[tuple[int, str]]:
    """The ends, and the names, that look like a picture's or a video's; `.png` alone, or `*.png`,
    is none."""
    after = 0
    for match in _ENDING.finditer(blank):
        name = _name_before(blank, after, match.end())
        last = re.split(r"(?<!\\)[\s/]", name)[-1]
        stem = last.removesuffix(match.group())
        if ("_" in stem or any(map(_is_word, stem))) and not _CODEC.fullmatch(last):
            yield match.end(), name
        after = match.end()


def _is_mentioned(text: str, end: int, name: str) -> bool:
    """Whether a name that is no file's is told of, rather than meant: see `_CODE`."""
    before, after = text[:end], text[end:]
    line = before.rpartition("\n")[2] + after.partition("\n")[0]
    fences = before.split("```")
    rows = (fences[-1] + after.partition("```")[0]).strip().split("\n")
    is_listed = all(row.strip().lower().endswith(SUFFIXES) for row in rows)
    stem = name.rpartition("/")[2].rpartition(".")[0]
    return bool(
        _CODE.search(line)
        or (len(fences) % 2 == 0 and not is_listed)
        or _PLACEHOLDER.search(stem)
        or _SCRIPT.fullmatch(name)
        or stem.endswith(_PARTICLES)
        or re.match(r"\.[a-z][a-z0-9]{1,4}(?!\w)", after)
    )


def _name_before(text: str, after: int, end: int) -> str:
    """The quoted name, or else the word, that ends here."""
    piece = text[max(after, end - MAX_NAME) : end].rpartition("\0")[2]
    for opening, closing in _QUOTES.items():
        before, found, name = piece.rpartition(opening)
        if found and text[end : end + 1] == closing and not before[-1:].isalnum():
            return name
    word = re.split(r"(?<!\\)\s", piece)[-1]
    return _OPENED.sub("", word).lstrip("@'‘,;:|*!?")
