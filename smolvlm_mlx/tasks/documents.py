"""Documents -> the text of each page, page after page: DocTags from a document checkpoint, words from any other.

    reader = Reader(*load("ds4sd/SmolDocling-256M-preview"))
    for page in reader.read(find_sheets(["report.pdf"])):
        print(page.text)

Knows nothing of terminals; other formats than DocTags are made in `doctags`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ..errors import shown_path
from ..generation.engine import stream_generate
from ..generation.image_cache import FeatureCache
from ..generation.prefix_cache import PrefixCache, Reuse
from ..generation.sampling import Options
from ..generation.stream import Statistics, Stream
from ..inputs.pdf import DPI, choose_pages, count_pages, is_pdf, render_page
from ..inputs.processor import Processor
from ..inputs.prompt import user_message
from ..inputs.tiles import load_image
from ..model import SmolVLM
from .caption_lines import TASKS
from .doctags import END, check_tokenizer, close_tags, ends_element, is_prose

# SmolDocling's instruction for a whole page, and its longest answer: the model card of ds4sd/SmolDocling-256M-preview.
PROMPT = "Convert this page to docling."
MAX_TOKENS = 8192

LONGEST_BLOCK = 256  # tokens; what is repeated in a loop is no longer
LEAST_COPIES = 6
LEAST_PROSE = 256  # tokens of all copies, of words outside of tables
LEAST_OTHER = 1024  # of table cells, numbers, dots, rules: a table of empty cells is no loop


@dataclass(frozen=True)
class Sheet:
    """A page to be read: a picture, or page `number` of a PDF, which is drawn when it is wanted."""

    path: Path
    number: int | None = None
    dpi: float = DPI

    @property
    def name(self) -> str:
        """For people."""
        return (
            shown_path(self.path.name) if self.number is None else f"{shown_path(self.path.name)}, page {self.number}"
        )

    def image(self) -> Image.Image:
        """Raises ImageError, FetchError."""
        return load_image(self.path) if self.number is None else render_page(self.path, self.number, self.dpi)


def find_sheets(paths: Sequence[str | Path], pages: str | None = None, dpi: float = DPI) -> list[Sheet]:
    """The pages of PDFs and pictures, in order.

    Args:
        pages: of each PDF, such as `1-3,7`; all if None.

    Raises:
        ImageError, PromptError: a file is not there, a PDF cannot be read or has no such pages.
    """
    sheets = []
    for path in map(Path, paths):
        if not is_pdf(path):
            sheets.append(Sheet(path))
            continue
        count = count_pages(path)
        numbers = range(1, count + 1) if pages is None else choose_pages(pages, count, shown_path(path.name))
        sheets += [Sheet(path, number, dpi) for number in numbers]
    return sheets


@dataclass(frozen=True)
class Page:
    """What was read on a page. `ended` is "loop" if the model repeated itself, and "length" if there was no room to go on."""

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
            "loop": f"the model repeated itself; the page ends after the first occurrence ({tokens} tokens were read)",
            "length": f"the page is cut off after {tokens} tokens",
        }[self.ended]


class LoopWatch:
    """Tells when tokens are one block again and again, exactly, up to the last one.

    A loop is a block of at most LONGEST_BLOCK tokens, LEAST_COPIES times or more, with LEAST_PROSE tokens in all if it has
    words outside of tables, and LEAST_OTHER otherwise. Elements at different places of a page are not equal.
    """

    def __init__(self, text_of: Callable[[Sequence[int]], str]):
        self._text_of = text_of
        self._ids: list[int] = []
        self._runs = [0] * LONGEST_BLOCK  # by block length - 1: how many last tokens equal those a block before

    def push(self, token: int) -> int | None:
        """Take one token; in a loop, how many tokens to keep: its first occurrence, and the rest of an element in it."""
        ids = self._ids
        before = reversed(ids[-LONGEST_BLOCK:])
        for index, earlier in enumerate(before):
            self._runs[index] = self._runs[index] + 1 if earlier == token else 0
        ids.append(token)
        for size, run in enumerate(self._runs, 1):
            if run + size >= max(LEAST_PROSE, LEAST_COPIES * size):
                least = LEAST_PROSE if is_prose(self._text_of(ids[-size:])) else LEAST_OTHER
                # Longer blocks are multiples of this one.
                return self._end_of_element(len(ids) - run, size) if run + size >= least else None
        return None

    def _end_of_element(self, count: int, size: int) -> int:
        """What comes before a loop often ends as its block does; then the block that was found begins in an element."""
        ends = (at for at in range(count, count + size) if ends_element(self._text_of(self._ids[at - 1 : at])))
        return next(ends, count)


class Reader:
    """Reads pages with one model; what a page has in common with the one before is computed once.

    The published prompt has the picture first, so that is the prompt's beginning, equal tiles (such as margins), and
    everything for a page that comes again.

    Args:
        doctags: ask for DocTags, keep their tokens in the text and stop at their end; off, ask for words.
        prompt: ask this instead.
        picture_options: longest_edge, split, max_tiles.

    Raises:
        PromptError: `doctags`, and the checkpoint has no such tokens.
    """

    def __init__(
        self,
        model: SmolVLM,
        processor: Processor,
        doctags: bool = True,
        prompt: str | None = None,
        max_tokens: int = MAX_TOKENS,
        picture_options: dict[str, Any] | None = None,
    ):
        if doctags:
            check_tokenizer(processor.tokenizer, "DocTags")
        self._model, self._processor, self._doctags = model, processor, doctags
        self._prompt = prompt or (PROMPT if doctags else TASKS["ocr"].prompt)
        self._options = Options(max_tokens=max_tokens, keep_special=doctags, stop=(END,) if doctags else ())
        self._picture_options = picture_options or {}
        self._reuse = Reuse(FeatureCache(model), PrefixCache())

    def read(self, sheets: Iterable[Sheet]) -> Iterator[Page]:
        """Each page, when it is finished.

        Raises:
            SmolVLMError: a page cannot be drawn or is too large for the model's context; those before have been given.
        """
        for sheet in sheets:
            yield self.read_image(sheet.image(), sheet.name)

    def read_image(self, image: Image.Image, name: str = "the page") -> Page:
        """One page from its picture."""
        inputs = self._processor([user_message(self._prompt, [image])], **self._picture_options)
        stream = stream_generate(self._model, self._processor, inputs, self._options, reuse=self._reuse)
        text, kept = self._text(stream)
        if kept is not None:
            return Page(name, text, "loop", stream.statistics)
        return Page(name, text, "stop" if stream.statistics.finish_reason == "stop" else "length", stream.statistics)

    def _text(self, stream: Stream) -> tuple[str, int | None]:
        """The page's text; and how many tokens are in it, if the rest was a loop."""
        tokenizer, keep = self._processor.tokenizer, self._options.keep_special
        watch, seen, pieces = LoopWatch(lambda ids: tokenizer.decode(ids, True)), 0, []
        for piece in stream:
            pieces.append(piece)
            fresh, seen = stream.token_ids[seen:], len(stream.token_ids)
            for kept in filter(None, map(watch.push, fresh)):
                stream.close()
                return self._closed(tokenizer.decode(stream.token_ids[:kept], keep)), kept
        at_tag = stream.statistics.finish_reason == "stop" and stream.token_ids[-1] not in tokenizer.end_ids
        return self._closed("".join(pieces) + (END if at_tag else "")), None

    def _closed(self, text: str) -> str:
        return close_tags(text.strip(), self._processor.tokenizer.added) if self._doctags else text.strip()
