"""DocTags: the text of a page -> a tree of its elements, in which every word has its place.

DocTags are `<doctag><text><loc_1><loc_2><loc_3><loc_4>Words</text>...</doctag>`: elements, their
places in five hundredths of the page, and their text (arXiv:2503.11576). They are no XML: `<` is
escaped nowhere. What is no token of DocTags is text, so `p<0.05`, `Vec<int>` and `<div>` are; a
token that is printed on the page itself, such as `<text>`, cannot be told from the model's own,
but in code and formulas, where nothing is a token but their end.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from ..generation.repetition import CELLS
from ..inputs.tokenizer import END_OF_DOCTAGS

BEGIN, END = "<doctag>", END_OF_DOCTAGS
DEEPEST = 40  # elements in one another; a token that opens more is passed over
PICTURES = ("picture", "chart")
LISTS = ("ordered_list", "unordered_list")
VERBATIM = ("code", "formula")
CHARTS = frozenset(
    "bar_chart box_plot flow_chart line_chart pie_chart scatter_plot scatter_chart heatmap line "
    "stacked_bar_chart stratigraphic_chart dot_line vbar_categorical hbar_categorical".split()
)
# What a picture shows.
CLASSES = CHARTS | frozenset(
    "full_page_image page_thumbnail photograph chemistry_structure bar_code icon logo qr_code "
    "signature stamp engineering_drawing screenshot_from_computer screenshot_from_manual "
    "geographical_map topographical_map calendar crossword_puzzle music other cad_drawing "
    "decoration electrical_diagram map illustration infographic chemistry_markush_structure "
    "chemistry_molecular_structure natural_image person picture_group remote_sensing screenshot "
    "ui_element table".split()
)
ELEMENTS = frozenset(
    "doctag otsl chart smiles inline caption footnote formula list_item page_footer page_header "
    "picture text title document_index code checkbox_selected checkbox_unselected form "
    "key_value_region key_value_map paragraph reference handwritten_text group".split()
).union(LISTS)
_NAMES = "|".join(sorted(ELEMENTS))
_SINGLE = "|".join(sorted(CELLS | CLASSES))
_TOKEN = re.compile(
    rf"<(?P<slash>/?)(?P<name>{_NAMES}|section_header_level_\d{{1,4}}|(?:key|value)_\d{{1,4}})>"
    rf"|<(?P<single>{_SINGLE}|page_break|link_\d{{1,4}}|_[^<>\s]+_)>|<loc_(?P<place>\d{{1,5}})>"
)
_TAG = re.compile(r"<(/?)(\w+)>")
_HEAD = re.compile(
    r"((?:\s*<loc_\d+>)*)\s*(<caption>.*?</caption>)?\s*(?:<_([^<>\s]+)_>)?", re.DOTALL
)


@dataclass
class Element:
    """An element with its text and what is in it, in their order. One without an end, such as a
    cell's token or a link, has no parts."""

    name: str
    parts: "list[str | Element]" = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # of the page, in five hundredths

    @property
    def number(self) -> int:
        """At the end of its name."""
        return int(self.name.rpartition("_")[2])

    @property
    def text(self) -> str:
        """All of its text, that of inner elements too."""
        return " ".join(text.strip() for text in texts(self))

    @property
    def is_pair(self) -> bool:
        """Whether it is a key, or a value, of a key-value region."""
        return bool(re.fullmatch(r"(key|value)_\d+", self.name))

    @property
    def elements(self) -> "list[Element]":
        return [part for part in self.parts if isinstance(part, Element)]


def close_tags(text: str, tokens: Collection[str]) -> str:
    """The page with its open elements closed, as it has to be for the words in them to be read.

    Args:
        tokens: of the checkpoint; an element can be open if its closing tag is among them.
    """
    stack: list[str] = []
    for slash, name in _TAG.findall(text):
        if not slash and f"</{name}>" in tokens:
            stack.append(name)
        elif slash and name in stack:
            del stack[len(stack) - 1 - stack[::-1].index(name) :]
    return text + "".join(f"</{name}>" for name in reversed(stack))


def parse(page: str) -> Element:
    """The tree of a page, an element `page`. Open elements end with those around them, and an end
    without a beginning is nothing."""
    stack, at = [Element("page")], 0
    for token in _TOKEN.finditer(page):
        name, slash = token["name"], token["slash"]
        if token.start() < at or not _belongs(token["single"], stack[-1]):
            continue  # in code, or a word as any other
        _add_text(stack[-1], page[at : token.start()])
        at = token.end()
        if token["place"]:
            stack[-1].places.append(int(token["place"]))
        elif token["single"]:
            stack[-1].parts.append(Element(token["single"]))
        elif slash:
            depth = max((n for n, open in enumerate(stack) if open.name == name), default=0)
            del stack[depth or len(stack) :]
        elif len(stack) < DEEPEST:
            stack[-1].parts.append(Element(name))
            stack.append(stack[-1].elements[-1])
            end = page.find(f"</{name}>", at) if name in VERBATIM else -1
            at = _add_verbatim(stack[-1], page, at, end) if end >= 0 else at
    _add_text(stack[-1], page[at:])
    return stack[0]


def _belongs(single: str | None, element: Element) -> bool:
    """Whether a token without an end may be in an element, and is no word there."""
    if single is None or single in CELLS or single == "page_break":
        return True
    if single in CLASSES:
        return element.name in PICTURES
    return element.is_pair if single.startswith("link_") else element.name == "code"


def _add_text(element: Element, text: str) -> None:
    if text.strip():
        element.parts.append(text)


def _add_verbatim(element: Element, page: str, at: int, end: int) -> int:
    """Take all up to `end` as text, but for places, a caption and a language before it, and a
    caption behind it; returns `end`."""
    head = _HEAD.match(page, at, end)
    assert head is not None  # it matches nothing, too
    element.places += map(int, re.findall(r"\d+", head[1]))
    if head[2]:
        element.parts += parse(head[2]).parts
    if head[3]:
        element.parts.append(Element(f"_{head[3]}_"))
    begin = head.end() if any(head.groups()) else at
    text = page[begin:end]
    behind = text.rfind("<caption>") if text.rstrip().endswith("</caption>") else -1
    behind = behind if behind >= 0 else len(text)
    _add_text(element, text[:behind])
    element.parts += parse(text[behind:]).parts
    return end


def texts(element: Element) -> Iterator[str]:
    """All text in an element, in order."""
    for part in element.parts:
        if isinstance(part, str):
            yield part
        else:
            yield from texts(part)


def with_lists(parts: Iterable[str | Element]) -> list[str | Element]:
    """The parts of an element with list items that are in no list put into one."""
    found: list[str | Element] = []
    for name, run in groupby(parts, lambda part: part.name if isinstance(part, Element) else ""):
        together = list(run)
        found += [Element("unordered_list", together)] if name == "list_item" else together
    return found


# ---- key-value regions


def key_values(region: Element) -> list[tuple[str, list[str]]]:
    """Keys with the values that they link to, in order; values without a key have an empty one.

    `<key_1>Name<link_2></key_1><value_2>Ada</value_2>`; a key without links has the value of its
    own number.
    """
    pairs = [part for part in region.elements if part.is_pair]
    values: dict[int, list[str]] = {}
    for part in pairs:
        if part.name.startswith("value_"):
            values.setdefault(part.number, []).append(part.text)
    found, linked = [], set()
    for part in pairs:
        if part.name.startswith("key_"):
            links = [link.number for link in part.elements if link.name.startswith("link_")]
            numbers = [number for number in links or [part.number] if number in values]
            linked.update(numbers)
            found.append((part.text, [text for number in numbers for text in values[number]]))
    return found + [("", each) for number, each in values.items() if number not in linked]


# ---- tables: OTSL, arXiv:2305.03393


@dataclass
class Cell:
    """A cell of a table, at `row` and `col`, over as many rows and columns as it spans."""

    row: int
    col: int
    text: str
    rows: int = 1
    cols: int = 1


def table_cells(table: Element) -> list[Cell]:
    """The cells of a table, which may be ragged: none lies over another, and each word is in one.

    A token that continues another cell, but has words, or no such cell, is a cell of its own.
    """
    grid = _grid(table)
    taken: set[tuple[int, int]] = set()
    cells = []
    for row, line in enumerate(grid):
        for col, (name, text) in enumerate(line):
            if (row, col) in taken or (name in ("lcel", "ucel", "xcel") and not text):
                continue
            cell = Cell(row, col, text)
            while _continues(grid, taken, [(row, col + cell.cols)], ("lcel", "xcel")):
                cell.cols += 1
            below = range(col, col + cell.cols)
            while _continues(
                grid, taken, [(row + cell.rows, at) for at in below], ("ucel", "xcel")
            ):
                cell.rows += 1
            taken.update((row + r, at) for r in range(cell.rows) for at in below)
            cells.append(cell)
    return cells


def _grid(table: Element) -> list[list[tuple[str, str]]]:
    """Rows of (token, text)."""
    rows: list[list[tuple[str, str]]] = [[]]
    for part in table.parts:
        if isinstance(part, Element) and part.name == "nl":
            rows.append([])
        elif isinstance(part, Element) and part.name in CELLS:
            rows[-1].append((part.name, ""))
        elif isinstance(part, str) or (part.name != "caption" and part.text):
            text = (part if isinstance(part, str) else part.text).strip()
            name, before = rows[-1].pop() if rows[-1] else ("fcel", "")
            rows[-1].append((name, f"{before} {text}".strip()))
    return [row for row in rows if row]


def _continues(
    grid: Sequence[Sequence[tuple[str, str]]],
    taken: Collection[tuple[int, int]],
    places: Sequence[tuple[int, int]],
    names: Collection[str],
) -> bool:
    """Whether tokens without words, that belong to no cell yet, are at all of the places."""
    return all(
        row < len(grid)
        and col < len(grid[row])
        and grid[row][col][0] in names
        and not grid[row][col][1]
        and (row, col) not in taken
        for row, col in places
    )
