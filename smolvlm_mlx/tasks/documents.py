"""Documents -> the text of each page, page after page: DocTags from a document checkpoint, words
from any other.

    reader = Reader(*load("docling"))
    for page in reader.read(find_pages(["report.pdf"])):
        print(page.text)
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from ..errors import PromptError, quote
from ..events import Statistics, Text
from ..generation.engine import Engine
from ..generation.options import Options
from ..generation.repetition import LONGEST_BLOCK, RepetitionDetector
from ..inputs.image import load_image
from ..inputs.messages import user_message
from ..inputs.pdf import DPI, choose_pages, is_pdf
from ..inputs.processor import Processor
from ..inputs.sandbox import count_pages, render_page
from ..inputs.settings import ImageOptions
from ..model import SmolVLM
from .captions import TASKS
from .doctags import END, close_tags
from .options import DOCUMENT_MODEL, DOCUMENTS

_END_OF_ELEMENT = re.compile(r"</\w+>|<nl>")  # or of a row of a table


# SmolDocling's instruction for a whole page: the model card of ds4sd/SmolDocling-256M-preview.
PROMPT = "Convert this page to docling."


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
    """What was read on a page. `ended` is "repetition" if the model repeated itself, and "length"
    if there was no room to go on."""

    name: str
    text: str
    ended: Literal["stop", "repetition", "length"]
    statistics: Statistics

    @property
    def note(self) -> str:
        """What is wrong with it, for people."""
        tokens = self.statistics.generated_tokens
        return {
            "stop": "",
            "repetition": "the model repeated itself; the page ends after the first occurrence "
            f"({tokens} tokens were read)",
            "length": f"the page is cut off after {tokens} tokens",
        }[self.ended]


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
        text = "".join(event.piece for event in stream if isinstance(event, Text))
        ended, repetition = stream.statistics.finish_reason, stream.row.repetition
        if ended == "repetition" and repetition is not None:
            kept = self._end_of_element(stream.token_ids, repetition)
            text = self._processor.tokenizer.decode(stream.token_ids[:kept], not self._doctags)
        text = text.strip()
        if self._doctags:
            text = close_tags(text, self._processor.tokenizer.added)
        return Page(name, text, "length" if ended == "interrupted" else ended, stream.statistics)

    def _end_of_element(self, ids: Sequence[int], repetition: RepetitionDetector) -> int:
        """Return how many tokens to keep of a loop: its first copy, and the rest of an element in
        it. What comes before a loop often ends as its block does; then the block that was found
        begins in an element."""
        tokenizer, begins = self._processor.tokenizer, repetition.begins
        for at in range(begins, min(begins + LONGEST_BLOCK, len(ids))):
            if _END_OF_ELEMENT.fullmatch(tokenizer.decode(ids[at - 1 : at], False)):
                return at
        return begins
