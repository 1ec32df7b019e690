"""Documents page by page: the end at `</doctag>`, loops, what is reused, and the command.

The model is small and random; where its answer matters, its logits are replaced, so that it says
what a script says.
"""

import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from random import Random
from typing import Any

from convert import random_checkpoint
from smolvlm_mlx import Options, generate, load
from smolvlm_mlx.errors import DataError, PromptError, SmolVLMError
from smolvlm_mlx.generation import prefill
from smolvlm_mlx.generation.repetition import WORDS
from smolvlm_mlx.inputs.messages import user_message
from smolvlm_mlx.inputs.pdf import DPI
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.inputs.tokenizer import Tokenizer
from smolvlm_mlx.tasks import documents
from smolvlm_mlx.tasks.captions import TASKS
from smolvlm_mlx.tasks.docling import export
from smolvlm_mlx.tasks.doctags import END, close_tags
from smolvlm_mlx.tasks.documents import (
    PageSource,
    Reader,
    find_pages,
)
from smolvlm_mlx.tasks.options import DOCUMENT_MODEL
from tests.support.checkpoints import Loaded
from tests.support.pdfs import pictures_as_pdf

import mlx.core as mx
import pytest
from PIL import Image
from tokenizers import Tokenizer as BPETokenizer

Script = Callable[..., None]

ELEMENTS = (
    "doctag",
    "text",
    "section_header_level_1",
    "unordered_list",
    "list_item",
    "otsl",
    "picture",
)
CELLS = ("<fcel>", "<ecel>", "<ched>", "<nl>", *(f"<loc_{place}>" for place in range(0, 501, 50)))
DOCTAGS = [*(f"<{slash}{name}>" for name in ELEMENTS for slash in ("", "/")), *CELLS]
TABLE = "<otsl><ched>Fruit<ched>Price<nl><fcel>Pear<fcel>3 & 4<nl></otsl>"
PAGE = (
    "<doctag><section_header_level_1><loc_50><loc_0><loc_450><loc_50>Fruit "
    "[1]</section_header_level_1>\n"
    f"<text><loc_50><loc_100><loc_450><loc_150>Zwölf Äpfel.</text>\n{TABLE}\n</doctag>"
)


@pytest.fixture(scope="module")
def docling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small random checkpoint with tokens of DocTags."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_checkpoint, "LATER", [*DOCTAGS, *random_checkpoint.LATER])
        return random_checkpoint.make(
            tmp_path_factory.mktemp("checkpoints") / "docling", "idefics3", layers=(1, 1)
        )


@pytest.fixture
def loaded(docling: Path) -> Loaded:
    return load(docling)


@pytest.fixture
def script(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Called with texts, makes the model say them, one a page; then, and beyond their ends, line
    breaks."""
    model, processor = loaded
    vocabulary, following = model.config.text_config.vocab_size, iter([0])
    pages: list[str] = []
    read = prefill.prefill_in_steps

    def logits_of_next() -> mx.array:
        return (mx.arange(vocabulary) == next(following)).astype(mx.float32)[None]

    def begin(*arguments: Any) -> Generator[int, None, mx.array]:
        nonlocal following
        yield from read(*arguments)
        following = endless(ids_of(processor.tokenizer, pages.pop(0)))
        return logits_of_next()

    def endless(ids: list[int]) -> Iterator[int]:
        yield from ids
        while True:
            yield ids_of(processor.tokenizer, "\n")[0]

    def say(*texts: str) -> None:
        pages[:] = texts
        monkeypatch.setattr(prefill, "prefill_in_steps", begin)
        monkeypatch.setattr(model.language_model, "logits", lambda hidden: logits_of_next())

    real = model.language_model.logits
    monkeypatch.setattr(model.language_model, "logits", lambda hidden: real(hidden))
    return say


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode_prompt(text, "\ufdd0")


def picture(seed: int = 0, size: tuple[int, int] = (120, 90)) -> Image.Image:
    noise = Random(seed).randbytes(size[0] * size[1] * 3)
    return Image.frombytes("RGB", size, noise)


# ---- a page


def test_a_page_ends_at_its_tag_which_is_kept(loaded: Loaded, script: Script) -> None:
    script(f" {PAGE}<text>no more</text>")
    page = Reader(*loaded).read_image(picture())
    assert (page.text, page.ended, page.note) == (PAGE, "stop", "")
    assert page.statistics.generated_tokens == len(ids_of(loaded[1].tokenizer, f" {PAGE}"))


def test_a_page_ends_before_a_stop_string(loaded: Loaded, script: Script) -> None:
    script(PAGE)
    page = Reader(*loaded, options=Options(stop=("Zw",))).read_image(picture())
    before = PAGE.partition("Zw")[0]
    assert (page.text, page.ended) == (f"{before}</text></doctag>", "stop")


def test_a_page_that_ends_without_its_tag_is_closed(loaded: Loaded, script: Script) -> None:
    script(
        "<doctag><unordered_list><list_item>one</list_item><list_item>two<end_of_utterance>three"
    )
    page = Reader(*loaded).read_image(picture())
    assert page.text == (
        "<doctag><unordered_list><list_item>one</list_item><list_item>two</list_item>"
        "</unordered_list></doctag>"
    )
    assert page.ended == "stop"


def test_a_page_without_an_end_is_cut_off(loaded: Loaded, script: Script) -> None:
    script("<doctag><text>abcdefgh")
    page = Reader(*loaded, options=Options(max_tokens=6)).read_image(picture())
    assert (page.text, page.ended) == ("<doctag><text>abcd</text></doctag>", "length")
    assert page.note == "the page is cut off after 6 tokens"


def test_a_loop_is_cut_to_its_first_occurrence(loaded: Loaded, script: Script) -> None:
    item = "<text><loc_50><loc_50>The same again.</text>\n"
    script("<doctag><text>First.</text>\n" + item * 100 + END, PAGE)
    first, second = (Reader(*loaded).read_image(picture(seed)) for seed in (1, 2))
    assert first.text == f"<doctag><text>First.</text>\n{item.strip()}</doctag>"
    assert (first.ended, second.ended, second.text) == ("repetition", "stop", PAGE)
    tokens = first.statistics.generated_tokens
    assert WORDS.tokens < tokens < WORDS.tokens + 40
    assert first.note == (
        "the model repeated itself; the page ends after the first occurrence "
        f"({tokens} tokens were read)"
    )


@pytest.mark.parametrize(
    "part",
    [
        "<otsl>" + "<ecel><ecel><ecel><ecel><ecel><nl>" * 80 + "</otsl>",  # a form to be filled in
        "<otsl>" + "<fcel>n/a<fcel>0.00<nl>" * 40 + "</otsl>",
        "<text>Contents" + "." * 300 + "7</text>",
        "<text>" + "_" * 500 + "</text>",
        "".join(
            f"<text><loc_{place}><loc_0>The same.</text>" for place in [*range(0, 501, 50)] * 3
        ),
        "<text>" + "ha " * 40 + "</text>",
    ],
    ids=["empty cells", "equal rows", "dots", "rule", "other places", "laughter"],
)
def test_what_is_repeated_on_purpose_stays(loaded: Loaded, script: Script, part: str) -> None:
    page = f"<doctag>{part}</doctag>"
    script(page)
    found = Reader(*loaded).read_image(picture())
    assert (found.text, found.ended) == (page, "stop")


def test_cells_without_end_are_a_loop_too(loaded: Loaded, script: Script) -> None:
    script("<doctag><otsl><fcel>x<nl>" + "<ecel><ecel><nl>" * 2000)
    page = Reader(*loaded).read_image(picture(size=(40, 30)))
    assert (page.text, page.ended) == (
        "<doctag><otsl><fcel>x<nl><ecel><ecel><nl></otsl></doctag>",
        "repetition",
    )


# ---- the pages of files


def test_pages_of_files_come_in_order(tmp_path: Path) -> None:
    """Of a PDF all, or those that are asked for; a picture is one, whatever is asked for."""
    pytest.importorskip("pypdfium2")
    pdf, image = pictures_as_pdf(tmp_path / "three.pdf"), tmp_path / f"{'x' * 90}.png"
    picture().save(image)
    every = find_pages([image, pdf])
    assert [(page.path, page.number, page.dpi) for page in every] == [
        (image, None, DPI),
        *((pdf, number, DPI) for number in (1, 2, 3)),
    ]
    some = find_pages([pdf, image], "3,1-2", 36)
    assert [(page.number, page.dpi) for page in some] == [(3, 36), (1, 36), (2, 36), (None, DPI)]
    assert [page.name for page in some[2:]] == ["'three.pdf', page 2", f"'...{'x' * 71}.png'"]
    assert (some[0].image().size, every[1].image().size) == ((50, 30), (200, 120))
    assert every[0].image().size == (120, 90)
    long = pictures_as_pdf(tmp_path / f"{'y' * 90}.pdf")
    with pytest.raises(PromptError, match=r"'\.\.\.y{71}\.pdf'"):
        find_pages([long], "4")


# ---- what the model reads, and what is reused


def test_the_prompt_is_the_published_one(loaded: Loaded) -> None:
    _, processor = loaded
    inputs = processor([user_message(documents.PROMPT, [picture()])], ImageOptions(split=False))
    tile = "<image>" * processor.tokens_per_tile
    around = "<fake_token_around_image>"
    assert inputs.input_ids.tolist() == ids_of(
        processor.tokenizer,
        f"<|im_start|>User:{around}<global-img>{tile}{around}Convert this page to "
        "docling.<end_of_utterance>\nAssistant:",
    )


def test_pages_are_what_they_are_alone(loaded: Loaded, tmp_path: Path) -> None:
    """With the prefix reused: the beginning of the prompt, equal first tiles, or a whole page that
    comes again."""
    model, processor = loaded
    half = picture(1, (256, 256))
    half.paste(picture(3, (256, 128)), (0, 128))  # other tiles below, the same above
    for number, image in enumerate((picture(1, (256, 256)), half, half, picture(2, (64, 64)))):
        image.save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.iterdir())
    pages = list(Reader(model, processor, options=Options(max_tokens=16)).read(find_pages(paths)))
    for path, page in zip(paths, pages, strict=True):
        alone = generate(model, processor, documents.PROMPT, Options(max_tokens=16), images=[path])
        assert page.text == close_tags(alone.strip(), processor.tokenizer.added)
    reused = [page.statistics.reused_tokens for page in pages]
    above = 8 * processor.tokens_per_tile  # of four times four tiles
    assert reused[0] == 0
    assert above < reused[1] < 10 * processor.tokens_per_tile
    assert reused[2] == pages[2].statistics.prompt_tokens - 1
    assert 0 < reused[3] < 10


def test_pages_come_when_they_are_finished(loaded: Loaded, script: Script) -> None:
    script(PAGE, PAGE)
    drawn = []

    class Counted(PageSource):
        def image(self) -> Image.Image:
            drawn.append(self.name)
            return picture()

    pages = Reader(*loaded).read(Counted(Path("a.pdf"), number) for number in (1, 2, 3))
    assert drawn == []
    assert next(pages).name == "'a.pdf', page 1"
    assert drawn == ["'a.pdf', page 1"]
    assert next(pages).text == PAGE
    assert drawn == ["'a.pdf', page 1", "'a.pdf', page 2"]


def test_pages_are_cut_as_it_is_asked_for(loaded: Loaded) -> None:
    for split, tiles in ((False, 1), (True, 13)):
        reader = Reader(*loaded, image_options=ImageOptions(split=split), options=Options(1))
        assert reader.read_image(picture()).statistics.tiles == tiles


def test_a_checkpoint_without_doctags(tiny: Path) -> None:
    model, processor = load(tiny)
    with pytest.raises(
        PromptError,
        match=r"such as docling: this one has no </doctag> token",
    ):
        Reader(model, processor)
    page = Reader(model, processor, doctags=False, options=Options(max_tokens=9)).read_image(
        picture()
    )
    want = generate(
        model, processor, TASKS["ocr"].prompt, Options(max_tokens=9), images=[picture()]
    )
    assert page.text == want.strip()


def test_a_document_checkpoint_is_known_by_its_tags(tiny: Path) -> None:
    """As granite-docling's: each tag is an added token, and special."""
    bpe = BPETokenizer.from_file(str(tiny / "tokenizer.json"))
    bpe.add_special_tokens(["<doctag>", "<text>", "</text>", END])
    tokenizer = Tokenizer(bpe)
    assert END in tokenizer.added
    (end,) = ids_of(tokenizer, END)
    assert tokenizer.decode([end], skip_special_tokens=False) == END


# ---- the command


@pytest.fixture
def document(loaded: Loaded, call: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command in this process, with the scripted model: exit code, stdout, stderr."""
    monkeypatch.setattr("smolvlm_mlx.checkpoint.reader.load", lambda *arguments, **options: loaded)
    return lambda *arguments: call("document", *arguments)


def test_defaults_are_the_modules() -> None:
    import inspect

    from smolvlm_mlx.cli.document import document

    defaults = inspect.signature(document).parameters
    assert defaults["dpi"].default == DPI
    assert defaults["model_path"].default == DOCUMENT_MODEL


def test_pages_of_a_pdf_to_stdout(document: Any, script: Script, tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    path = pictures_as_pdf(tmp_path / "a.pdf")
    other = PAGE.replace("Pear", "Plum")
    script(other, PAGE)
    assert document(path, "--pages", "3,1", "--dpi", 72) == (0, f"{other}\n{PAGE}\n", "")


def test_markdown_to_a_file(document: Any, script: Script, tmp_path: Path) -> None:
    pytest.importorskip("docling_core")
    picture().save(tmp_path / "a.png")
    script(PAGE, "<doctag>" + "<text>Again.</text>" * 90)
    out = tmp_path / "a.md"
    code, stdout, stderr = document(
        tmp_path / "a.png", tmp_path / "a.png", "--output", "markdown", "--out", out
    )
    assert (code, stdout) == (0, "")
    assert stderr.startswith(
        "'a.png': the model repeated itself; the page ends after the first occurrence ("
    )
    assert stderr.endswith(f"{out}: 2 pages\n")
    assert (
        out.read_text(encoding="utf-8")
        == export([PAGE, "<doctag><text>Again.</text></doctag>"], "markdown")[0] + "\n"
    )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_words_that_a_format_lost_are_told(
    document: Any, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture().save(tmp_path / "a.png")
    script(PAGE)
    monkeypatch.setattr(
        "smolvlm_mlx.tasks.docling.export", lambda *arguments: ("# Fruit", {0: ["Zwölf", "Äpfel"]})
    )
    code, stdout, stderr = document(tmp_path / "a.png", "--output", "markdown")
    assert (code, stdout) == (0, "# Fruit\n")
    assert stderr == (
        "'a.png': 2 words are not in the markdown: 'Zwölf', 'Äpfel'; doctags has them\n"
    )


def stopping(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The second page raises."""
    images = iter([picture()])

    def image(self: PageSource) -> Image.Image:
        for each in images:
            return each
        raise error

    monkeypatch.setattr(PageSource, "image", image)


@pytest.mark.parametrize("to_file", [False, True])
def test_ctrl_c_keeps_what_is_finished(
    document: Any, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to_file: bool
) -> None:
    for name in ("a.png", "b.png"):
        picture().save(tmp_path / name)
    script(PAGE)
    stopping(monkeypatch, KeyboardInterrupt())
    out = tmp_path / "out.txt"
    code, stdout, stderr = document(
        tmp_path / "a.png", tmp_path / "b.png", *(["--out", out] if to_file else [])
    )
    assert (code, out.read_text(encoding="utf-8") if to_file else stdout) == (130, f"{PAGE}\n")
    assert "stopped after 1 of 2 pages" in stderr


def test_what_no_file_takes_is_on_stdout(document: Any, script: Script, tmp_path: Path) -> None:
    """Such as a full disk, after many pages."""
    picture().save(tmp_path / "a.png")
    script(PAGE)
    out = tmp_path / "link"
    out.symlink_to(tmp_path / "gone" / "out.txt")
    code, stdout, stderr = document(tmp_path / "a.png", "--out", out)
    assert (code, stdout) == (1, f"{PAGE}\n")
    why = "cannot be written (No such file or directory); it is on stdout instead"
    assert stderr == f"smolvlm-mlx: {out}: {why}\n"


def test_a_damaged_page_keeps_what_is_finished(
    document: Any, script: Script, tmp_path: Path
) -> None:
    picture().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    script(PAGE)
    code, stdout, stderr = document(tmp_path / "a.png", tmp_path / "b.png")
    assert (code, stdout) == (1, f"{PAGE}\n")
    assert "b.png" in stderr
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[malloc] no memory")])
def test_one_bad_file_does_not_end_the_others(
    error: Exception,
    document: Any,
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("pypdfium2")
    other, out = PAGE.replace("Pear", "Plum"), tmp_path / "out.txt"
    image, good = PageSource.image, pictures_as_pdf(tmp_path / "good.pdf")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 no")
    (tmp_path / "b.png").write_bytes(b"no picture")
    picture().save(tmp_path / "c.png")
    picture().save(tmp_path / "large.png")

    def failing(self: PageSource) -> Image.Image:
        if self.path.name == "large.png":
            raise error
        return image(self)

    monkeypatch.setattr(PageSource, "image", failing)
    script(PAGE, other)
    names = ("none.png", "bad.pdf", "b.png", "large.png", "c.png")
    code, stdout, stderr = document(
        good, *(tmp_path / name for name in names), "--pages", "1", "--out", out
    )
    assert (code, stdout, out.read_text(encoding="utf-8")) == (1, "", f"{PAGE}\n{other}\n")
    said, missing, damaged, no_picture, large = stderr.splitlines()
    assert said == f"{out}: 2 pages"
    assert missing.endswith("none.png': no such file")
    assert "bad.pdf': it cannot be read" in damaged
    assert no_picture.startswith("'b.png': ")
    assert large == f"'large.png': {str(error) or 'MemoryError()'}"


def test_what_is_wrong_is_told_before_a_model_is_loaded(
    document: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture().save(tmp_path / "a.png")
    good = tmp_path / "a.png"

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    def refused(*arguments: object) -> str:
        code, stdout, stderr = document(*arguments)
        assert (code, stdout, stderr.count("\n")) == (1, "", 1)
        assert stderr.startswith("smolvlm-mlx: ")
        return str(stderr)

    monkeypatch.setattr(documents, "Reader", never)
    assert "no such file" in refused(tmp_path / "b.png")
    both = refused(tmp_path / "b.png", tmp_path / "c.png")
    assert "b.png': no such file; " in both
    assert "c.png': no such file" in both
    assert "no such folder" in refused(good, "--out", tmp_path / "no" / "a.md")
    assert "a folder" in refused(good, "--out", tmp_path)
    (tmp_path / "page").write_bytes(good.read_bytes())
    for name in ("a.png", "new.PDF", "page"):
        told = refused(good, tmp_path / "page", "--out", tmp_path / name)
        assert "a document to read, where text is to be written" in told
    monkeypatch.setitem(sys.modules, "docling_core", None)
    monkeypatch.setitem(sys.modules, "docling_core.types.doc.document", None)
    assert "pip install 'smolvlm-mlx[documents]'; or use doctags" in refused(
        good, "--output", "html"
    )
    with pytest.raises(DataError):
        export([PAGE], "json")
    assert issubclass(DataError, SmolVLMError)
