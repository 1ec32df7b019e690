"""Pages of DocTags -> one document in markdown, html or json, and the words that it lost.

docling-core (the extra `documents`) holds and writes the document. Its own reader of DocTags is
not used: it finds elements by patterns, and what fits none (a list item outside of a list, `<` in
a cell) is gone. Here each element of the tree is added to the document, and then the words of both
are compared.
"""

import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import DataError, quote
from ..generation.repetition import CELLS
from .doctags import (
    CLASSES,
    LISTS,
    PICTURES,
    VERBATIM,
    Element,
    key_values,
    parse,
    table_cells,
    texts,
    with_lists,
)

if TYPE_CHECKING:
    from docling_core.types.doc import DoclingDocument, ProvenanceItem, TableData

FORMATS = ("markdown", "html", "json")
_SIDE = 500  # of a page, in DocTags
_BOXES = {"checkbox_selected": "☑ ", "checkbox_unselected": "☐ "}
_CONTAINERS = ("page", "doctag", "group", "form", "key_value_map")
# Text of which docling has a kind, by the same name.
_KINDS = (
    "title caption footnote page_header page_footer checkbox_selected checkbox_unselected "
    "reference handwritten_text paragraph"
).split()
# In markdown: what begins a tag, or, where a line begins, a block of HTML.
_TAG = re.compile(r"(?P<indent>^[ \t]*)<(?=[A-Za-z/!?])|<(?=[A-Za-z/!?].*>)", re.M | re.S)
# There, too: what begins emphasis or code that ends further on, what makes a link of brackets, and
# a backslash that is none.
_MARKUP = re.compile(
    r"\*(?=\S.*\*)|(?<![^\W_])_(?=\S.*_)|`(?=.*`)|\](?=[(:])|\\(?=[!-/:-@\[-`{-~])", re.S
)
# Names that SmolDocling has for docling's.
_CLASS_OF = {
    "line": "line_chart",
    "dot_line": "line_chart",
    "vbar_categorical": "bar_chart",
    "hbar_categorical": "bar_chart",
}


def check_export() -> None:
    """Whether pages can be exported.

    Raises:
        DataError: docling-core is not installed.
    """
    try:
        import docling_core.types.doc.document  # noqa: F401
    except ImportError:
        raise DataError(
            f"{', '.join(FORMATS)} are made by docling-core: pip install 'smolvlm-mlx[documents]'; "
            "or use doctags"
        ) from None


def export(
    pages: Sequence[str], form: str, name: str = "Document"
) -> tuple[str, dict[int, list[str]]]:
    """One document of DocTags pages, as markdown, html, or docling's own json.

    Places in json are fractions of the page, whose size is 1 x 1.

    Returns:
        The text; and by index of the page the words on it that are not in the text.

    Raises:
        DataError: docling-core is not installed.
    """
    check_export()
    text = _convert(pages, form, name)
    left, lost = Counter(lost_words(pages, text, form)), {}
    for index, page in enumerate(pages if left else ()):
        if mine := _words_of(page) & left:  # a word of several pages is named on the first
            lost[index] = list(mine.elements())
            left -= mine
    return text, lost


def lost_note(words: Sequence[str], form: str) -> str:
    """What is wrong with a page, for people."""
    some = ", ".join(map(quote, words[:5])) + (", ..." if len(words) > 5 else "")
    count = "1 word is" if len(words) == 1 else f"{len(words)} words are"
    return f"{count} not in the {form}: {some}; doctags has {'it' if len(words) == 1 else 'them'}"


def _convert(pages: Sequence[str], form: str, name: str) -> str:
    from docling_core.types.doc import ContentLayer, DoclingDocument, Size

    document = DoclingDocument(name=name)
    for number, page in enumerate(pages, 1):
        document.add_page(page_no=number, size=Size(width=1, height=1))
        _Writer(document, form, number).add(parse(page), None)
    layers = {ContentLayer.BODY, ContentLayer.FURNITURE}  # headers and footers of pages
    if form == "json":
        return json.dumps(document.export_to_dict(), ensure_ascii=False, indent=1)
    if form == "html":
        return str(document.export_to_html(included_content_layers=layers))
    return str(
        document.export_to_markdown(
            included_content_layers=layers,
            escape_html=False,  # done in `_Writer.shown`: docling-core leaves out the cells
        )
    )


# ---- the words before and after


def lost_words(pages: Iterable[str], text: str, form: str) -> list[str]:
    """Words of the pages that are not in the text, of one of the formats, or not as often."""
    before = sum(map(_words_of, pages), Counter[str]())
    if form == "json":
        after = Counter(word for each in _values(json.loads(text)) for word in _words(each))
    else:
        if form == "html":
            text = re.sub(r"<[^<>]*>", " ", text[text.find("<body>") :])
        # `&lt;` may be escaped, or be words in code: both are in it.
        after = Counter(_words(text)) | Counter(_words(html.unescape(text)))
    return list((before - after).elements())


def _words_of(page: str) -> Counter[str]:
    return Counter(word for text in texts(parse(page)) for word in _words(text))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def _values(value: Any) -> Iterable[str]:
    """The texts in docling's json; `grid` has the cells of a table again."""
    if isinstance(value, dict):
        if isinstance(value.get("text"), str):
            yield value["text"]
        value = [each for key, each in value.items() if key != "grid"]
    for each in value if isinstance(value, list) else ():
        yield from _values(each)


# ---- the elements


class _Writer:
    """Adds the elements of one page to a document."""

    def __init__(self, document: "DoclingDocument", form: str, page: int):
        self._document: Any = document  # its methods take labels as text, their types do not
        self._form, self._page = form, page

    def add(self, element: Element, parent: Any) -> None:
        """Add an element, and all in it, to `parent` (to the document if None)."""
        if element.name in _CONTAINERS or (element.name == "inline" and not _is_inline(element)):
            self._add_all(with_lists(element.parts), parent)
        elif element.name == "inline":
            self._add_all(element.parts, self._document.add_inline_group(parent=parent))
        elif element.name in LISTS:
            self._add_list(element, parent)
        elif element.name in PICTURES:
            self._add_picture(element, parent)
        elif any(part.name in CELLS for part in element.elements):
            self._add_table(element, parent)
        elif element.name == "key_value_region":
            self._add_key_values(element, parent)
        else:
            self._add_pieces(element, parent)

    def _add_all(self, parts: Iterable[str | Element], parent: Any) -> None:
        for part in parts:
            self.add(Element("text", [part]) if isinstance(part, str) else part, parent)

    def _add_pieces(self, element: Element, parent: Any) -> None:
        """Add an element of text; one with others in it comes in pieces, in their order."""
        pieces = [part for part in element.parts if isinstance(part, str) or part.parts]
        language = [part.name for part in element.elements if part.name.startswith("_")]
        if element.name == "text" and parent is None and _is_line(pieces):
            parent = self._document.add_inline_group()
        for part in pieces:
            if isinstance(part, Element):
                self.add(part, parent)
            else:
                text = part.strip()
                if element.name == "code" and "\n" in text:  # whose first line may be indented
                    text = part.strip("\n").rstrip()
                self._add_text(element, text, parent, *language[:1])

    def _add_text(self, element: Element, text: str, parent: Any, language: str = "") -> None:
        from docling_core.types.doc import CodeLanguageLabel, ContentLayer

        common = {"prov": self._place(element, text), "parent": parent}
        if element.name == "code":
            known = {label.value: label for label in CodeLanguageLabel}
            label = known.get(language.strip("_"), CodeLanguageLabel.UNKNOWN)
            self._document.add_code(text=text, code_language=label, **common)
        elif element.name == "formula":
            if self._form == "markdown":  # a space is nothing in TeX, and `<b>` a tag
                text = re.sub(r"<(?=[A-Za-z/][\w\s:.=\"'/-]*>)", "< ", text)
            self._document.add_formula(text=text, **common)
        elif element.name.startswith("section_header"):
            level = min(max(element.number, 1), 100)
            self._document.add_heading(text=self.shown(text), level=level, **common)
        else:
            if element.name in ("page_header", "page_footer"):
                common["content_layer"] = ContentLayer.FURNITURE
            if self._form == "html":  # docling-core writes none there
                text = _BOXES.get(element.name, "") + text
            label = element.name if element.name in _KINDS else "text"
            self._document.add_text(label=label, text=self.shown(text), **common)

    def _add_list(self, element: Element, parent: Any) -> None:
        group = self._document.add_list_group(name="list", parent=parent)
        is_ordered = element.name == "ordered_list"
        items: list[Element] = []
        parts = [Element("", [part]) if isinstance(part, str) else part for part in element.parts]
        for part in parts:
            if part.name in LISTS and items:  # beside the item that it belongs to
                items[-1] = replace(items[-1], parts=[*items[-1].parts, part])
            else:
                items.append(part if part.name in ("list_item", "") else Element("", [part]))
        for number, item in enumerate(items, 1):
            first = item.parts[0] if item.parts and isinstance(item.parts[0], str) else ""
            added = self._document.add_list_item(
                text=self.shown(first.strip()),
                enumerated=is_ordered,
                marker=f"{number}." if is_ordered else "",
                parent=group,
                prov=self._place(item, first),
            )
            rest = item.parts[1:] if first else item.parts
            if first:  # docling-core joins a group to it, without a space
                rest = [each for part in rest for each in _without_inline(part)]
            self._add_all(with_lists(rest), added)

    def _add_table(self, element: Element, parent: Any) -> None:
        table = self._document.add_table(
            data=self._table(element),
            prov=self._place(element),
            parent=parent,
            label="document_index" if element.name == "document_index" else "table",
        )
        self._add_captions(element, table)

    def _table(self, element: Element) -> "TableData":
        from docling_core.types.doc import TableCell, TableData

        cells = [
            TableCell(
                text=self.shown(cell.text),
                row_span=cell.rows,
                col_span=cell.cols,
                start_row_offset_idx=cell.row,
                end_row_offset_idx=cell.row + cell.rows,
                start_col_offset_idx=cell.col,
                end_col_offset_idx=cell.col + cell.cols,
            )
            for cell in table_cells(element)
        ]
        return TableData(
            num_rows=max((cell.end_row_offset_idx for cell in cells), default=0),
            num_cols=max((cell.end_col_offset_idx for cell in cells), default=0),
            table_cells=cells,
        )

    def _add_picture(self, element: Element, parent: Any) -> None:
        """Add a picture with its captions, its kind, and the table of a chart; other words follow
        it."""
        from docling_core.types.doc import (
            PictureClassificationMetaField,
            PictureClassificationPrediction,
            PictureMeta,
            TabularChartMetaField,
        )

        picture = self._document.add_picture(prov=self._place(element), parent=parent)
        self._add_captions(element, picture)
        names = [part.name for part in element.elements]
        kind = next((_CLASS_OF.get(name, name) for name in names if name in CLASSES), None)
        rest = [part for part in element.parts if isinstance(part, str) or part.name != "caption"]
        picture.meta = PictureMeta()
        if kind:
            prediction = PictureClassificationPrediction(class_name=kind, confidence=1.0)
            picture.meta.classification = PictureClassificationMetaField(predictions=[prediction])
        inner = [part for part in element.elements if part.name == "otsl"]
        tables = [element] if CELLS.intersection(names) else inner
        if tables and (tables[0] is element or element.name == "chart"):
            picture.meta.tabular_chart = TabularChartMetaField(
                title=kind or "other", chart_data=self._table(tables[0])
            )
            rest = [] if tables[0] is element else [each for each in rest if each is not tables[0]]
        self._add_all(with_lists(rest), parent)

    def _add_captions(self, element: Element, item: Any) -> None:
        for part in element.elements:
            if part.name == "caption" and part.text:
                caption = self._document.add_text(
                    label="caption",
                    text=self.shown(part.text),
                    prov=self._place(part, part.text),
                )
                item.captions.append(caption.get_ref())

    def _add_key_values(self, element: Element, parent: Any) -> None:
        """Add keys with their values, as docling's graph in json, as lines in the others; then
        what else is there."""
        pairs = key_values(element)
        if self._form == "json":
            self._add_graph(pairs)
        else:
            for key, values in pairs:
                line = ": ".join(filter(None, (key.rstrip(" :") or key, ", ".join(values))))
                self._add_text(Element("text"), line, parent)
        others = [part for part in element.parts if isinstance(part, str) or not part.is_pair]
        self._add_all(with_lists(others), parent)

    def _add_graph(self, pairs: "Sequence[tuple[str, Sequence[str]]]") -> None:
        from docling_core.types.doc import (
            GraphCell,
            GraphCellLabel,
            GraphData,
            GraphLink,
            GraphLinkLabel,
        )

        graph = GraphData()

        def add(label: GraphCellLabel, text: str) -> int:
            number = len(graph.cells)
            graph.cells.append(GraphCell(label=label, cell_id=number, text=text, orig=text))
            return number

        for key, values in pairs:
            source = add(GraphCellLabel.KEY, key) if key else None
            for value in values:
                target = add(GraphCellLabel.VALUE, value)
                if source is not None:
                    graph.links.append(
                        GraphLink(
                            label=GraphLinkLabel.TO_VALUE,
                            source_cell_id=source,
                            target_cell_id=target,
                        )
                    )
        self._document.add_key_values(graph=graph)

    # ---- text and places

    def shown(self, text: str) -> str:
        """Text as docling-core has to get it, to be read as it is: in markdown, what would be a
        tag, a character's name, emphasis or a link is escaped."""
        if self._form != "markdown":
            return text
        text = _MARKUP.sub(r"\\\g<0>", re.sub(r"&(?=#?\w+;)", "&amp;", text))
        return _TAG.sub(r"\g<indent>&lt;", text)

    def _place(self, element: Element, text: str = "") -> "ProvenanceItem | None":
        from docling_core.types.doc import BoundingBox, ProvenanceItem

        if len(element.places) < 4:
            return None
        left, top, right, bottom = (min(place, _SIDE) / _SIDE for place in element.places[:4])
        box = BoundingBox(l=left, t=top, r=right, b=bottom)
        return ProvenanceItem(bbox=box, charspan=(0, len(text)), page_no=self._page)


def _without_inline(part: str | Element) -> list[str | Element]:
    return part.parts if isinstance(part, Element) and part.name == "inline" else [part]


def _is_inline(element: Element) -> bool:
    """Whether nothing in it needs a line of its own, as a table does."""
    return not element.parts or (
        element.name in ("inline", "text", *_KINDS, *VERBATIM)
        and all(isinstance(part, str) or _is_inline(part) for part in element.parts)
    )


def _is_line(pieces: Sequence[str | Element]) -> bool:
    """Whether pieces of a text are words with formulas or code between them."""
    return len(pieces) > 1 and all(
        isinstance(piece, str) or piece.name in VERBATIM for piece in pieces
    )
