"""`smolvlm-mlx document`: PDFs and pictures of pages to DocTags, markdown, html, json or text."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import DataError, SmolVLMError
from ..generation.options import Options
from ..inputs.settings import ImageOptions
from ..tasks.options import DOCUMENT_MODEL, DOCUMENTS, Output
from .options import INTERRUPTED, Flags, Loading, Model, note_unused

if TYPE_CHECKING:
    from ..tasks.documents import Page, PageSource, Reader

Files = Annotated[
    list[Path], typer.Argument(help="PDFs, and pictures of pages; several are one document.")
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Write to this file; else to stdout.")
]
Format = Annotated[Output, typer.Option(help="What is written; text does without DocTags.")]
Pages = Annotated[str | None, typer.Option(help="Of each PDF, such as 1-3,7 or 5-; else all.")]
Dpi = Annotated[int, typer.Option(min=18, max=1200, help="Pixels an inch of a PDF's page.")]
Prompt = Annotated[
    str | None, typer.Option(help="Ask this instead of the checkpoint's own prompt.")
]


PAGE_ERRORS = (SmolVLMError, MemoryError, RuntimeError)  # the last is MLX's


def document(
    context: typer.Context,
    files: Files,
    out: Out = None,
    output: Format = "doctags",
    pages: Pages = None,
    dpi: Dpi = 144,
    prompt: Prompt = None,
    model_path: Model = DOCUMENT_MODEL,
    options: Annotated[Options, Flags(without=("skip_special_tokens",))] = DOCUMENTS,
    image_options: ImageOptions = ImageOptions(),
    loading: Loading = Loading(),
) -> None:
    """Read PDFs and scans: to markdown, html, json or text.

    Page by page; what is finished is written, also after Ctrl-C. A page on which the model repeats
    itself ends there, and is named. What cannot be read is named too, and the exit code is 1.
    Checkpoints that do not write DocTags can do --output text.
    """
    from ..tasks.documents import Reader

    _check(output, out, files)
    sources, failed = _find_pages(files, pages, dpi)
    if all(source.number is None for source in sources):
        note_unused(context, "no page is a PDF's", "pages", "dpi")
    reader = Reader(*loading.load(model_path), output != "text", prompt, options, image_options)
    finished: list[Page] = []
    try:
        finished.extend(_read(reader, sources, failed))
    except KeyboardInterrupt:
        print(f"\nstopped after {len(finished)} of {len(sources)} pages", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if finished:
            _write(finished, output, out, files[0].stem)
        for line in failed:
            print(line, file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _find_pages(
    files: Sequence[Path], pages: str | None, dpi: int
) -> "tuple[list[PageSource], list[str]]":
    """Pages of the files; and what is wrong with files that have none, if not with all of them."""
    from ..tasks.documents import find_pages

    sources: list[PageSource] = []
    failed: list[str] = []
    for file in files:
        try:
            sources += find_pages([file], pages, dpi)
        except SmolVLMError as error:
            if len(files) == 1:
                raise
            failed.append(str(error))
    if not sources:
        raise DataError("; ".join(failed))
    return sources, failed


def _read(reader: "Reader", sources: "Sequence[PageSource]", failed: list[str]) -> "Iterator[Page]":
    """Each page that can be read; what is wrong with another is added to `failed`."""
    from .show import count_bar

    with count_bar("pages") as shown:
        task = shown.add_task("", total=len(sources))
        for source in sources:
            try:
                yield from reader.read([source])
            except PAGE_ERRORS as error:
                failed.append(f"{source.name}: {str(error) or repr(error)}")
            shown.advance(task)


def _check(output: Output, out: Path | None, files: list[Path]) -> None:
    """What would be wrong in the end is told in the beginning."""
    from ..inputs.media import PICTURE_SUFFIXES
    from ..tasks.docling import FORMATS, check_export

    if output in FORMATS:
        check_export()
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise DataError(
            f"{out}: {'a folder' if out.is_dir() else 'no such folder'}; give the file to write"
        )
    if out is not None and (
        out.suffix.lower() in (".pdf", *PICTURE_SUFFIXES)
        or (out.exists() and any(file.exists() and file.samefile(out) for file in files))
    ):
        raise DataError(f"{out}: a document to read, where text is to be written; choose another")


def _write(pages: "Sequence[Page]", output: Output, out: Path | None, name: str) -> None:
    from ..files import write_file, written
    from ..tasks.docling import FORMATS, export, lost_note

    texts = [page.text for page in pages]
    text, lost = export(texts, output, name) if output in FORMATS else ("\n".join(texts), {})
    notes = [(page.name, page.note) for page in pages if page.note]
    notes += [(pages[index].name, lost_note(words, output)) for index, words in lost.items()]
    for page_name, note in notes:
        print(f"{page_name}: {note}", file=sys.stderr)
    if out is None:
        print(text)
        return
    try:
        with written(out, DataError):
            write_file(out, f"{text}\n".encode())
    except DataError as error:
        print(text)
        raise DataError(f"{error}; it is on stdout instead") from error
    print(f"{out}: {len(pages)} pages", file=sys.stderr)
