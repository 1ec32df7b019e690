"""DocTags, the text in which document checkpoints write a page: its ends, its tables, and other formats made of it.

A page is `<doctag><text><loc_1><loc_2><loc_3><loc_4>Words</text>...</doctag>`: elements, their places in five hundredths of
the page, and their text (arXiv:2503.11576). Knows nothing of models. docling-core (the extra `documents`) is imported here
alone, when something is exported.
"""

import json
import re
import warnings
from collections.abc import Collection, Sequence
from typing import Any

from ..errors import DataError, PromptError
from ..inputs.tokenizer import Tokenizer

BEGIN, END = "<doctag>", "</doctag>"
CHECKPOINTS = "ds4sd/SmolDocling-256M-preview"
FORMATS = ("markdown", "html", "json")
_TAG = re.compile(r"<(/?)(\w+)>")
_CELL = re.compile(r"<(?:[eflux]cel|ched|rhed|srow|nl)>")  # OTSL, the language of tables (arXiv:2305.03393)


def check_tokenizer(tokenizer: Tokenizer, what: str) -> None:
    """Whether a checkpoint writes DocTags: it has a token for their end.

    Raises:
        PromptError: it does not.
    """
    if END not in tokenizer.added:
        raise PromptError(
            f"{what} needs a document checkpoint, such as {CHECKPOINTS}: this one has no {END} token; "
            "for its words as they come, use the output text"
        )


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


def is_prose(block: str) -> bool:
    """Whether repeated text has letters and is in no table: rows of equal cells, dots and rules are often repeated."""
    twice = block * 2  # a block may begin in the middle of a tag
    words = re.sub(r"<[^<>]*>|^[^<>]*>|<[^<>]*$", "", twice)
    return not _CELL.search(twice) and any(character.isalpha() for character in words)


def ends_element(token: str) -> bool:
    """Whether an element or a row of a table is complete with this token."""
    return token == "<nl>" or (token.startswith("</") and _TAG.fullmatch(token) is not None)


def check_export() -> None:
    """Whether pages can be exported.

    Raises:
        DataError: docling-core is not installed.
    """
    try:
        import docling_core.types.doc.document  # noqa: F401
    except ImportError:
        raise DataError(
            f"{', '.join(FORMATS)} are made by docling-core: pip install 'smolvlm-mlx[documents]'; or use doctags"
        ) from None


def export(pages: Sequence[str], form: str, name: str = "Document") -> tuple[str, list[int]]:
    """One document of DocTags pages, as markdown, html, or docling's own json.

    Places in json are fractions of the page, whose size is 1 x 1.

    Returns:
        The text; and the indices of pages that are no DocTags, of which only the words are in it.

    Raises:
        DataError: docling-core is not installed.
    """
    check_export()
    odd = [index for index, page in enumerate(pages) if _convert([page], form, name) is None]
    readable = [
        f"{BEGIN}<text>{_words(page)}</text>{END}" if index in odd else page for index, page in enumerate(pages)
    ]
    text = _convert(readable, form, name)
    if text is None:
        raise DataError(f"docling-core cannot make {form} of these pages; use doctags")
    return text, odd


def _convert(pages: Sequence[str], form: str, name: str) -> str | None:
    """None if docling-core cannot read them, or finds no element: model text may be anything."""
    from docling_core.types.doc.document import DoclingDocument, DocTagsDocument

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about places beyond the page, which it clamps
        try:
            tags = DocTagsDocument.from_doctags_and_image_pairs(list(pages), None)
            document: Any = DoclingDocument.load_from_doctags(tags, document_name=name)
            found = (document.texts, document.tables, document.pictures, document.key_value_items)
            if not any(found) and any(map(_words, pages)):
                return None
            if form == "json":
                return json.dumps(document.export_to_dict(), ensure_ascii=False, indent=1)
            return str(document.export_to_html() if form == "html" else document.export_to_markdown())
        except (ValueError, LookupError):
            return None


def _words(page: str) -> str:
    return " ".join(_TAG.sub(" ", page).split())
