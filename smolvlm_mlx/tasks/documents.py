"""Documents -> the text of each page, page after page: DocTags from a document checkpoint, words
from any other.

    reader = Reader(*load("docling"))
    for page in reader.read(find_pages(["report.pdf"])):
        print(page.text)
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from ..errors import PromptError, quote
from ..events import Statistics, Text
from ..generation.engine import Engine
from ..generation.options import Options
from ..generation.stream import Stream
from ..inputs.image import load_image
from ..inputs.messages import user_message
from ..inputs.pdf import DPI, choose_pages, is_pdf
from ..inputs.processor import Processor
from ..inputs.sandbox import count_pages, render_page
from ..inputs.settings import ImageOptions
from ..model import SmolVLM
from .captions import TASKS
from .doctags import CELLS, END, close_tags
from .options import DOCUMENT_MODEL, DOCUMENTS

_END_OF_ELEMENT = re.compile(r"</\w+>|<nl>")  # or of a row of a table


def is_prose(block: str) -> bool:
    """Whether repeated text has letters and is in no table: rows of equal cells, dots and rules are
    often repeated."""
    twice = block * 2  # a block may begin in the middle of a tag
    words = re.sub(r"<[^<>]*>|^[^<>]*>|<[^<>]*$", "", twice)
    has_cells = any(f"<{cell}>" in twice for cell in CELLS)
    return not has_cells and any(character.isalpha() for character in words)


# SmolDocling's instruction for a whole page: the model card of ds4sd/SmolDocling-256M-preview.
PROMPT = "Convert this page to docling."

LONGEST_BLOCK = 256  # tokens; what is repeated in a loop is no longer
LEAST_COPIES = 6
LEAST_PROSE = 256  # tokens of all copies, of words outside of tables
LEAST_OTHER = 1024  # of table cells, numbers, dots, rules: a table of empty cells is no loop


@dataclass(frozen=True)
class PageSource:
    """A page to be read: a picture, or page `number` of a PDF, which is drawn when it is wanted."""

    path: Path
    number: int | None = None
    dpi: float = DPI

    @property
    def name(self) -> str:
        """For people."""
        name = quote(self.path.name, end=True)
        return name if self.number is None else f"{name}, page {self.number}"

    def image(self) -> Image.Image:
        """Raises ImageError, FetchError."""
        return (
            load_image(self.path)
            if self.number is None
            else render_page(self.path, self.number, self.dpi)
        )


def find_pages(
    paths: Sequence[str | Path], pages: str | None = None, dpi: float = DPI
) -> list[PageSource]:
    """The pages of PDFs and pictures, in order.

    Args:
        pages: of each PDF, such as `1-3,7`; all if None.

    Raises:
        ImageError, PromptError: a file is not there, a PDF cannot be read or has no such pages.
    """
    sources = []
    for path in map(Path, paths):
        if not is_pdf(path):
            sources.append(PageSource(path))
            continue
        count = count_pages(path)
        numbers = (
            range(1, count + 1)
            if pages is None
            else choose_pages(pages, count, quote(path.name, end=True))
        )
        sources += [PageSource(path, number, dpi) for number in numbers]
    return sources


@dataclass(frozen=True)
class Page:
    """What was read on a page. `ended` is "loop" if the model repeated itself, and "length" if
    there was no room to go on."""

    name: str
    text: str
    ended: Literal["stop", "loop", "length"]
    statistics: Statistics

    @property
    def note(self) -> str:
        """What is wrong with it, for people."""
        tokens = self.statistics.generated_tokens
        return {
            "stop": "",
            "loop": "the model repeated itself; the page ends after the first occurrence "
            f"({tokens} tokens were read)",
            "length": f"the page is cut off after {tokens} tokens",
        }[self.ended]


class LoopWatch:
    """Tells when tokens are one block again and again, exactly, up to the last one.

    A loop is a block of at most LONGEST_BLOCK tokens, LEAST_COPIES times or more, with LEAST_PROSE
    tokens in all if it has words outside of tables, and LEAST_OTHER otherwise. Elements at
    different places of a page are not equal.
    """

    def __init__(self, text_of: Callable[[Sequence[int]], str]):
        self._text_of = text_of
        self._ids: list[int] = []
        # By block length - 1: how many last tokens equal those a block before.
        self._runs = [0] * LONGEST_BLOCK

    def push(self, token: int) -> int | None:
        """Take one token; in a loop, how many tokens to keep: its first occurrence, and the rest of
        an element in it."""
        ids = self._ids
        for index, earlier in enumerate(reversed(ids[-LONGEST_BLOCK:])):
            self._runs[index] = self._runs[index] + 1 if earlier == token else 0
        ids.append(token)
        for size, run in enumerate(self._runs, 1):
            if run + size >= max(LEAST_PROSE, LEAST_COPIES * size):
                least = LEAST_PROSE if is_prose(self._text_of(ids[-size:])) else LEAST_OTHER
                # Longer blocks are multiples of this one.
                return self._end_of_element(len(ids) - run, size) if run + size >= least else None
        return None

    def _end_of_element(self, count: int, size: int) -> int:
        """What comes before a loop often ends as its block does; then the block that was found
        begins in an element."""
        tokens = ((at, self._text_of(self._ids[at - 1 : at])) for at in range(count, count + size))
        return next((at for at, text in tokens if _END_OF_ELEMENT.fullmatch(text)), count)


class Reader:
    """Reads pages with one model; what a page has in common with the one before is computed once.

    The published prompt has the picture first, so that is the prompt's beginning, equal tiles (such
    as margins), and everything for a page that comes again.

    Args:
        doctags: ask for DocTags, keep their tokens in the text and stop at their end; off, ask for
            words.
        prompt: ask this instead.
        options: how pages are generated; `skip_special_tokens` goes by `doctags`.
        image_options: how pictures are cut, where it is not as the checkpoint says.

    Raises:
        PromptError: `doctags`, and the checkpoint has no such tokens.
    """

    def __init__(
        self,
        model: SmolVLM,
        processor: Processor,
        doctags: bool = True,
        prompt: str | None = None,
        options: Options = DOCUMENTS,
        image_options: ImageOptions | None = None,
    ):
        if doctags and processor.tokenizer.doctags_end is None:
            raise PromptError(
                f"DocTags needs a document checkpoint, such as {DOCUMENT_MODEL}: this one has no "
                f"{END} token; for its words as they come, use the output text"
            )
        self._model, self._processor, self._doctags = model, processor, doctags
        self._prompt = prompt or (PROMPT if doctags else TASKS["ocr"].prompt)
        self._options = replace(options, skip_special_tokens=not doctags)
        self._image_options = image_options or ImageOptions()
        self._engine = Engine(model, processor)

    def read(self, sources: Iterable[PageSource]) -> Iterator[Page]:
        """Each page, when it is finished.

        Raises:
            SmolVLMError: a page cannot be drawn or is too large for the model's context; those
                before have been given.
        """
        for source in sources:
            yield self.read_image(source.image(), source.name)

    def read_image(self, image: Image.Image, name: str = "the page") -> Page:
        """One page from its picture."""
        inputs = self._processor([user_message(self._prompt, [image])], self._image_options)
        stream = self._engine.stream(inputs, self._options)
        text, is_loop = self._text(stream)
        text = (
            close_tags(text.strip(), self._processor.tokenizer.added)
            if self._doctags
            else text.strip()
        )
        ended: Literal["stop", "length"] = (
            "stop" if stream.statistics.finish_reason == "stop" else "length"
        )
        return Page(name, text, "loop" if is_loop else ended, stream.statistics)

    def _text(self, stream: Stream) -> tuple[str, bool]:
        """What was read, and whether the rest was a loop."""
        tokenizer = self._processor.tokenizer
        watch, text = LoopWatch(lambda ids: tokenizer.decode(ids, skip_special_tokens=False)), ""
        for event in stream:
            if isinstance(event, Text):
                text += event.piece
                kept = watch.push(stream.token_ids[-1])
                if kept is not None:
                    stream.close()
                    return tokenizer.decode(stream.token_ids[:kept], not self._doctags), True
        return text, False
