"""Names of files as people write them: with the quotes and escapes of a shell or a URL, composed or
decomposed, with other spaces and apostrophes than the file's own; and as completion writes them."""

import glob
import os
import re
import unicodedata
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import chain, islice
from pathlib import Path
from urllib.parse import unquote

from ...errors import FetchError, quote
from ...inputs.media import PICTURE_SUFFIXES, VIDEO_SUFFIXES

Source = str | Path  # a URL, or a file that is there

LONGEST = 255  # characters of a file's name, on all systems
MAX_NAME = 1024  # characters, of a path on macOS
MAX_NAMES = 128  # of pictures in a line; no model has room for more
SUFFIXES = PICTURE_SUFFIXES + VIDEO_SUFFIXES
INVISIBLE = "\ufeff\xad\u200b\u200c\u200d\u200e\u200f\u2060" + "".join(
    map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))
)
# Systems and keyboards write one for the other: macOS has U+202F in the names of its screenshots.
_PLAIN = str.maketrans(
    {
        **dict.fromkeys(INVISIBLE, ""),
        **dict.fromkeys("\xa0\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))), " "),
        **dict.fromkeys("‘’ʼ", "'"),
        **dict.fromkeys("“”", '"'),
    }
)
_WORD = re.compile(r"""(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s\\'"])+""", re.S)
_OPEN_WORD = re.compile(
    r"""(?:'[^']*(?:'|\Z)|"(?:\\.|[^"\\])*(?:"|\\?\Z)|\\.|\\\Z|[^\s\\'"])+""", re.S
)
_QUOTED = re.compile(r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)""", re.S)
_URL = re.compile("https?://|data:", re.I)


def folded(name: str) -> str:
    """A name as it looks."""
    return name if name.isascii() else unicodedata.normalize("NFC", name).translate(_PLAIN)


def readable(text: str) -> str:
    """A text with U+FFFD for what is no character, as in the name of a file that is not UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def expanded(path: str) -> str:
    """A path with the folder of a person in place of `~`, if there is such a person."""
    try:
        return os.path.expanduser(path)
    except ValueError:  # a null byte, or half a surrogate pair
        return path


def listed(folder: str) -> list[str]:
    """The names in a folder; none, where it cannot be read."""
    try:
        return sorted(os.listdir(folder or "."))
    except OSError:
        return []


# ---- words


def split_words(text: str) -> list[str]:
    """Words as a shell reads them; all as one, where a quote is not closed."""
    if _WORD.sub("", text).strip():
        return [text.strip()]
    return [_unquoted(word) for word in _WORD.findall(text)]


def open_word(text: str) -> tuple[str, int]:
    """The last word of a text that goes on, as a shell will read it, and how many characters it
    has; its quote may still be open."""
    words = [*_OPEN_WORD.finditer(text)]
    word = words[-1].group() if words and words[-1].end() == len(text) else ""
    closed = next((w for w in (word, word + "'", word + '"', word[:-1]) if _WORD.fullmatch(w)), "")
    return _unquoted(closed), len(word)


def written(path: str) -> str:
    """A path as one word, which reads as this path."""
    return re.sub(r"""([\s\\'"])""", r"\\\1", path)


def _unquoted(word: str) -> str:
    """A word without the quotes and escapes of a shell."""

    def plain(match: re.Match[str]) -> str:
        single, double, escaped = match.groups()
        return single or escaped or re.sub(r'\\([\\"$`])', r"\1", double or "")

    return _QUOTED.sub(plain, word)


# ---- files


class Files:
    """Finds files by what people write; reads each folder once."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, list[str]]] = {}
        self._folders: dict[str, str | None] = {"": ""}

    def find(self, name: str) -> Path | None:
        """The file of a name, which may be a URL's, if there is one."""
        for path in _paths(name):
            found = self._same(expanded(path)) if len(path) <= MAX_NAME else None
            if found is not None and os.path.isfile(found):
                return Path(found)
        return None

    def find_typed(self, text: str) -> Path | None:
        """The file that a text spells, also with the quotes and escapes of a shell."""
        return next(filter(None, map(self.find, _names(text))), None)

    def _same(self, path: str) -> str | None:
        """The path, or else the only one that looks the same."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = folder if folder == path else self._same(folder)
        within = self._folders[folder]
        if within is None or len(name) > LONGEST:
            return None
        exact = os.path.join(within, name)
        if os.path.exists(exact):
            return exact
        found = self._folder(within).get(folded(name), [])
        return os.path.join(within, found[0]) if len(found) == 1 else None

    def _folder(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._names:
            names = self._names[folder] = {}
            for name in listed(folder):
                names.setdefault(folded(name), []).append(name)
        return self._names[folder]


def likeliest(text: str) -> str:
    """The path that a text most likely spells, where there is none."""
    *_, last = _paths(_names(text)[0])
    return last


def _names(text: str) -> list[str]:
    """The names that a text may spell, without the escapes of a shell first."""
    if not re.search(r"""[\\'"]""", text):
        return [text]
    whole, *closed = (
        [_unquoted(word)] if _WORD.fullmatch(word) else []
        for word in (text, text + "'", text + '"')  # the quote after it may be its own
    )
    return [*whole, re.sub(r"\\(.)", r"\1", text, flags=re.S), text, *chain(*closed)]


def _paths(name: str) -> Iterator[str]:
    """The paths that a name may mean: as it is, with %20, and file:///a, file://host/a, file://~/a,
    file://./a or file:a."""
    yield name
    if "%" in name:
        yield unquote(name)
    if name[:5].lower() == "file:":
        path = unquote(name[5:])
        if host := re.match(r"//\w[\w.-]*(?=/)", path):
            yield path[host.end() :]
        yield re.sub(r"^//(?:localhost(?=/))?", "", path, flags=re.I)


def read_path(text: str) -> str:
    """The one path that is the argument of a command, or whatever else it says."""
    words = split_words(text)
    name = words[0] if len(words) == 1 else text.strip()
    return str(Files().find(name) or (likeliest(name) if name[:5].lower() == "file:" else name))


def read_sources(text: str) -> list[Source]:
    """The paths and URLs that are the arguments of a command: words as a shell reads them, also
    patterns such as *.jpg, or else the longest names that are there.

    Raises:
        FetchError: one is no file, or there are more than `MAX_NAMES`.
    """
    files, words = Files(), split_words(text)
    named = [_named(word, files) for word in words[: MAX_NAMES + 1]]
    is_whole = all(named) and len(named) == len(words)
    found = [*(chain(*named) if is_whole else islice(_longest(text, files), MAX_NAMES + 1))]
    check_count(len(found))
    return found


def check_count(names: int) -> None:
    """
    Raises:
        FetchError: there are more names of pictures in a line than `MAX_NAMES`.
    """
    if names > MAX_NAMES:
        raise FetchError(
            f"over {MAX_NAMES} pictures and videos in a line; /ask TEXT asks a line as it is"
        )


def _named(word: str, files: Files) -> list[Source]:
    """What one word names: a URL, a file, or the pictures and videos that fit a pattern."""
    if _URL.match(word):
        return [word]
    found = files.find(word)
    return [found] if found else [*_matching(word)]


def _matching(pattern: str) -> Iterator[Path]:
    """The pictures and videos that a shell's pattern names, by name."""
    if glob.has_magic(pattern) and "\0" not in pattern and len(pattern) <= MAX_NAME:
        for path in sorted(glob.iglob(expanded(pattern), recursive=True)):
            if path.lower().endswith(SUFFIXES) and os.path.isfile(path):
                yield Path(path)


def _longest(text: str, files: Files) -> Iterator[Source]:
    words, after = [*re.finditer(r"[^\s,;]+", text)], 0
    for number, word in enumerate(words):
        if word.start() < after:
            continue
        if _URL.match(word.group()):
            yield word.group()
            continue
        ends = [last.end() for last in words[number : number + MAX_NAME]]
        for end in reversed([end for end in ends if end - word.start() <= MAX_NAME]):
            if found := files.find_typed(text[word.start() : end]):
                yield found
                after = end
                break
        else:
            matching = [*_matching(word.group())]
            if not matching:
                name = _WORD.match(text, word.start()) or word
                raise FetchError(no_such_file(likeliest(name.group().rstrip(",;"))))
            yield from matching


def no_such_file(name: str) -> str:
    """What to say of a name that is no file's, with the nearest one."""
    path = Path(expanded(name[:MAX_NAME]))
    if "*" in name and not os.path.exists(path):
        return f"no picture or video is named {quote(name, end=True)}"
    if os.path.exists(path):
        return f"{quote(name, end=True)} is no file; give a picture or a video"
    missing = path
    while not os.path.isdir(missing.parent):
        missing = missing.parent
    names = {
        entry.casefold(): entry
        for entry in listed(str(missing.parent))
        if (
            entry.lower().endswith(SUFFIXES)
            if missing == path
            else os.path.isdir(missing.parent / entry)
        )
    }
    near = get_close_matches(missing.name[:LONGEST].casefold(), names, 1, cutoff=0)
    hint = f" (the nearest name is {quote(names[near[0]], end=True)})" if near else ""
    return f"no such file: {quote(name, end=True)}{hint}"
