"""Folders of pictures and videos -> a file with one line for each: a caption, a description with
keywords, their text.

The files are taken in windows of one size, in order. A window's pictures are read by threads while
the one before is answered; equal prompts' lengths are answered together, equal pictures once. Lines
are written window by window, so that a run that was stopped at any moment goes on to the same
result. Under `mlx.launch` each process takes its share of the windows, and the first merges them.

A file that is asked about again is answered again if it failed or was changed. Lines of other files
stay as long as their files are there. See `lines` for the file of them.
"""

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..data.layouts import CAPTION_QUESTION
from ..errors import DataError, GenerationError, SmolVLMError, cut, quote
from ..events import Reading, at_once
from ..files import lock, written
from ..generation.engine import Engine
from ..generation.options import Options
from ..inputs.image import DECODER_ERRORS
from ..inputs.media import attach
from ..inputs.messages import user_message
from ..inputs.prefetch import prefetch
from ..inputs.processor import Inputs, Processor
from ..inputs.settings import ImageOptions
from ..model import SmolVLM, ints
from .lines import Line, current, read_lines, stat_of, write_csv, write_lines
from .options import CAPTIONS


@dataclass(frozen=True)
class Task:
    """What is asked about each picture. With a JSON schema of an object, its properties are the
    line's fields. Where `words` are asked for, a document checkpoint's tags are left out untold."""

    prompt: str
    max_tokens: int = 256
    schema: Mapping[str, object] | None = None
    most_characters: int | None = None  # a longer answer ends with its last whole sentence or word
    words: bool = False

    def fields(self, text: str) -> Line:
        """An answer as fields of a line."""
        text = text.strip()
        if self.schema is None:
            most = self.most_characters
            return {"caption": text if most is None else shorten(text, most)}
        try:
            fields: Line = json.loads(text)
        except ValueError:  # the grammar gave up
            return {"error": f"the answer broke off: {quote(text)}; the schema cannot be met"}
        return fields


_KEYWORDS = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 100},
        "description": {"type": "string", "maxLength": 600},
        "keywords": {
            "type": "array",
            "items": {"type": "string", "maxLength": 40},
            "minItems": 1,
            "maxItems": 12,
        },
    },
    "required": ["title", "description", "keywords"],
    "additionalProperties": False,
}
TASKS = {
    "caption": Task(CAPTION_QUESTION, 128, words=True),
    "alt": Task(
        "Write alternative text for this image: one sentence of fewer than 125 characters.",
        max_tokens=64,
        most_characters=124,
        words=True,
    ),
    "keywords": Task(
        "Give this image a title, a description and keywords, as JSON.", 512, _KEYWORDS, words=True
    ),
    "ocr": Task("Read all the text in this image.", 1024, words=True),
}


def shorten(text: str, most: int) -> str:
    """The whole sentences that fit into `most` characters; the words that do, if none does."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    ends = [
        end + 1 for end in range(most) if text[end] in ".!?" and text[end + 1 : end + 2].isspace()
    ]
    if ends:
        return text[: ends[-1]]
    space = text.rfind(" ", 0, most)
    return text[: most - 1 if space < 0 else space] + "…"


MOST_FILES, WINDOW_BYTES, USUAL_TILES = 64, 2**28, 17  # of a window
READERS = 4  # threads
CACHE_BYTES = 2**30  # of keys and values of the answers that are made together


# What may be wrong with one file, beside what its reader says: a folder goes on.
FILE_ERRORS = (*DECODER_ERRORS, ArithmeticError, AssertionError)


@dataclass(frozen=True)
class _Read:
    """A file that was read: its bytes' name, and what the model needs or why it cannot be had."""

    path: str
    stat: list[float] | None
    digest: str
    inputs: Inputs | None
    error: str = ""
    note: str = ""


class Captioner:
    """Answers one task for files, with one model.

    Args:
        name: of the checkpoint; lines of another run are told by it, the task and the settings.
        image_options: how pictures are cut, where it is not as the checkpoint says.
        options: how answers are generated; else greedily, with the longest answer of the task, and
            ended where they go in circles.

    Raises:
        GenerationError: the task's schema cannot be used, or comes with stop texts, which would cut
            the JSON.
    """

    def __init__(
        self,
        model: SmolVLM,
        processor: Processor,
        task: Task,
        name: str = "",
        image_options: ImageOptions | None = None,
        options: Options | None = None,
    ):
        self._engine, self._model, self._processor = Engine(model, processor), model, processor
        self._image_options = image_options or ImageOptions()
        options = options or replace(CAPTIONS, max_tokens=task.max_tokens)
        if task.words and options.skip_special_tokens is None:
            options = replace(options, skip_special_tokens=True)
        self._options = options
        self._task = task = replace(task, max_tokens=self._options.max_tokens)
        if task.schema is not None and self._options.stop:
            raise GenerationError("stop: an answer that fits a schema ends by itself; leave it out")
        run = json.dumps(
            [name, asdict(task), self._image_options.given, asdict(self._options)], sort_keys=True
        )
        self.run = sha256(run.encode()).hexdigest()[:8]
        self._known: dict[str, Line] = {}  # by digest
        self._engine.row(self._options, task.schema)  # tells what is wrong with the schema

    def write_in_steps(
        self, files: Sequence[Path], out: Path
    ) -> Generator[Reading, None, list[Line]]:
        """A line in `out` for each file; those that are there already are not answered again,
        unless they failed or their files were changed.

        Args:
            out: .jsonl, or .csv, which is made at the end from the .jsonl beside it.

        Returns:
            The lines of all files, in their order.

        Raises:
            DataError: `out` cannot be written, or holds lines of another run.
        """
        group = mx.distributed.init()
        if out.suffix.lower() not in (".jsonl", ".csv"):
            raise DataError(f"{out}: captions are written as .jsonl or .csv")
        whole = out.with_suffix(".jsonl")
        if out.exists() and not whole.exists():  # a table of captions has its lines beside it
            raise DataError(f"{out}: holds something else than captions; choose another --out")
        journal = whole if group.size() == 1 else whole.with_stem(f"{whole.stem}-{group.rank()}")
        with written(out, DataError), lock(journal if group.rank() else whole):
            return (yield from self._write(files, group, out, journal))

    write = at_once(write_in_steps)

    def _write(
        self, files: Sequence[Path], group: mx.distributed.Group, out: Path, journal: Path
    ) -> Generator[Reading, None, list[Line]]:
        whole = out.with_suffix(".jsonl")
        done = yield from self._share(files, group, whole, journal)
        if group.size() > 1:
            done = _merge(group, done)
            if any(str(path) not in done for path in files):
                raise DataError(
                    "the machines do not see the same files; give all of them the same folders"
                )
        lines = {str(path): done[str(path)] for path in files}
        if group.rank() == 0:
            others = [line for path, line in done.items() if path not in lines]
            everything = [*others, *lines.values()]
            write_lines(whole, everything)
            if out != whole:
                write_csv(out, everything)
        if journal != whole:
            mx.eval(mx.distributed.all_sum(mx.array(1)))  # not before the first process has written
            journal.unlink()
        return list(lines.values())

    def _share(
        self, files: Sequence[Path], group: mx.distributed.Group, whole: Path, journal: Path
    ) -> Generator[Reading, None, dict[str, Line]]:
        """Lines of this process's share of the files, and of those that are there, by path."""
        picture = USUAL_TILES * 3 * self._processor.settings.tile_size**2  # bytes
        size = max(1, min(MOST_FILES, WINDOW_BYTES // picture))
        windows = [
            [str(path) for path in files[start : start + size]]
            for start in range(0, len(files), size)
        ]
        windows = windows[group.rank() :: group.size()]
        found, is_cut = read_lines(whole, self.run)
        if journal != whole:
            of_this, is_cut = read_lines(journal, self.run)
            found += of_this
        own = {path for window in windows for path in window}
        done = _kept(found, own, {str(path) for path in files})
        # What is answered together stays together: a window that was cut off is answered again.
        there = {line["path"] for line in found}
        last = next((w for w in windows if is_cut and found and found[-1]["path"] in w), [])
        if not there.issuperset(last):
            done = {path: line for path, line in done.items() if path not in last}
            found = [line for line in found if line["path"] not in last]
        self._known |= {line["sha256"]: line for line in found if "error" not in line}
        write_lines(journal, done.values())
        missing = [[path for path in window if path not in done] for window in windows]
        total = len(done) + sum(map(len, missing))
        if not any(missing):
            yield Reading(total, total, "files")
        for lines in self._answered([window for window in missing if window]):
            write_lines(journal, lines, append=True)
            done |= {line["path"]: line for line in lines}
            yield Reading(len(done), total, "files")
        return done

    def _answered(self, windows: Sequence[Sequence[str]]) -> Iterator[list[Line]]:
        """Lines of each window; the files of the next are read meanwhile."""
        with ThreadPoolExecutor(READERS) as pool:
            for read in prefetch((list(pool.map(self._read, window)) for window in windows), 1):
                self._answer(read)
                yield [self._line(file) for file in read]

    def _read(self, path: str) -> _Read:
        digest, stat = "", stat_of(path)  # before its bytes: what changes meanwhile is seen later
        try:
            attachment = attach(path)
            digest = attachment.digest
            if digest in self._known:
                return _Read(path, stat, digest, None, note=attachment.note)
            inputs = self._processor(
                [user_message(self._task.prompt, [attachment])], self._image_options
            )
            if len(inputs.input_ids) >= self._model.config.text_config.max_position_embeddings:
                raise DataError(
                    f"{len(inputs.input_ids)} tokens, more than the model's context; use "
                    "--max-tiles"
                )
            return _Read(path, stat, digest, inputs, note=attachment.note)
        except SmolVLMError as error:
            return _Read(path, stat, digest, None, str(error))
        except FILE_ERRORS as error:
            return _Read(path, stat, digest, None, f"cannot be read: {cut(repr(error))}")

    def _answer(self, files: Sequence[_Read]) -> None:
        """Answer what is not known yet, prompts of one length together."""
        lengths: dict[int, dict[str, Inputs]] = {}
        for file in files:
            if file.inputs is not None and file.digest not in self._known:
                lengths.setdefault(len(file.inputs.input_ids), {})[file.digest] = file.inputs
        for length, inputs in lengths.items():
            size, names = self._batch_size(length), list(inputs)
            for start in range(0, len(names), size):
                self._known |= self._ask(
                    {name: inputs[name] for name in names[start : start + size]}
                )

    def _ask(self, inputs: Mapping[str, Inputs]) -> dict[str, Line]:
        """Answers by digest; if they fail together each alone, so that one does not end all."""
        try:
            answers = self._engine.batch(
                list(inputs.values()), self._options, schema=self._task.schema
            )
        except SmolVLMError as error:
            if len(inputs) == 1:
                return {name: {"error": str(error)} for name in inputs}
            alone = [self._ask({name: each}) for name, each in inputs.items()]
            return {name: line for answer in alone for name, line in answer.items()}
        ended: dict[str, Line] = {"repetition": {"ended_by": "repetition"}}  # else nothing is said
        return {
            name: ended.get(reason, {}) | self._task.fields(text)
            for name, (text, reason) in zip(inputs, answers, strict=True)
        }

    def _batch_size(self, length: int) -> int:
        row = self._engine.token_bytes * (length + self._options.max_tokens)
        return max(1, min(CACHE_BYTES, self._engine.memory.answers) // row)

    def _line(self, file: _Read) -> Line:
        line: Line = {
            "path": file.path,
            "stat": file.stat,
            "sha256": file.digest,
            "run": self.run,
        }
        answer = {"error": file.error} if file.error else self._known.get(file.digest, {})
        line |= {"note": file.note} if file.note else {}
        # The line's own fields first: an answer may come from the line of an equal file.
        return line | {name: value for name, value in answer.items() if name not in line}


def _kept(found: Iterable[Line], own: Set[str], asked: Set[str]) -> dict[str, Line]:
    """By path, lines of this process's own files that are as they were, and of files that no
    process asks about and that are there."""

    def kept(line: Line) -> Line | None:
        if line["path"] in own:
            return current(line)
        return None if line["path"] in asked or stat_of(line["path"]) is None else line

    with ThreadPoolExecutor(READERS) as pool:
        return {line["path"]: line for line in pool.map(kept, found) if line is not None}


def _merge(group: mx.distributed.Group, done: Mapping[str, Line]) -> dict[str, Line]:
    """The lines of all processes, which need no common folder for that."""
    data = np.frombuffer(json.dumps(list(done.values())).encode(), np.uint8)
    sizes = ints(mx.distributed.all_gather(mx.array([len(data)])))
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(data)] = data
    gathered = np.array(mx.distributed.all_gather(mx.array(padded)[None]))  # (processes, bytes)
    parts = [json.loads(row[:size].tobytes()) for row, size in zip(gathered, sizes, strict=True)]
    return {line["path"]: line for part in parts for line in part}
