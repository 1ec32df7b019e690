"""The errors a user can fix. Each message is one line: what is wrong, which value, what to do.

Only `cli` and `server` catch them. Anything else that is raised is a bug and keeps its traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SmolVLMError(Exception):
    """Base of every error that the user, not the programmer, can do something about."""

    def __str__(self) -> str:
        """One line. Names of files and what is in them may hold control characters, which are not
        for a terminal to obey."""
        return escaped(super().__str__())


class CheckpointError(SmolVLMError):
    """A checkpoint folder or hub id cannot be read, is incomplete, damaged or not a SmolVLM."""


class ConversionError(SmolVLMError):
    """A conversion cannot be done as asked, or its result cannot be written."""


class UploadError(SmolVLMError):
    """A checkpoint cannot be given to the hub as asked."""


class DeviceError(SmolVLMError):
    """This machine, or the part of it that may be used, does not suffice."""


class FetchError(SmolVLMError):
    """Bytes named by a path, URL, data: URL or base64 text cannot be had within the limits."""


class ImageError(SmolVLMError):
    """A picture cannot be decoded, or is outside the limits."""


class VideoError(SmolVLMError):
    """A video cannot be decoded, or is outside the limits."""


class PromptError(SmolVLMError):
    """Messages, template or tokenizer do not make a prompt."""


class GenerationError(SmolVLMError):
    """An answer cannot be generated: bad options, context overflow, non-finite logits."""


class ContextFullError(GenerationError):
    """A conversation leaves no room for an answer in the model's context: it is so many tokens over
    that."""

    over = 0


class EngineError(GenerationError):
    """A step of an answer could not be computed: no memory, a GPU that gave up, or a bug."""


class AdapterError(SmolVLMError):
    """An adapter cannot be read, is damaged, or belongs to another base."""


class DataError(SmolVLMError):
    """A data set for training or evaluation, or one of its rows, cannot be used."""


class TrainingError(SmolVLMError):
    """A fine-tuning run cannot be done as asked."""


class EvaluationError(SmolVLMError):
    """An evaluation cannot be done as asked."""


class BenchError(SmolVLMError):
    """A measurement cannot be made as asked."""


class HistoryError(SmolVLMError):
    """The history of conversations cannot be read or written, or a conversation not be kept."""


class NoConversationError(HistoryError):
    """The history has no such conversation, or none is kept."""


class ServerError(SmolVLMError):
    """The server cannot be started as asked."""


# ---- foreign text in messages


def escaped(text: str) -> str:
    """Text on one line, with the escapes of Python for controls and whatever is not seen."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def quote(value: object, most: int = 80, *, end: bool = False) -> str:
    """Foreign text for a message: in quotes, one line, control characters escaped; what is no text
    as Python writes it.

    Of a long one only the beginning, or with `end` the end, which names a file.
    """
    if not isinstance(value, str | Path | Exception):
        return cut(repr(value), most)
    whole = str(value)
    text = repr(whole[-most:] if end else whole[:most])
    if len(text) <= most:
        return text
    return f"{text[0]}...{text[4 - most :]}" if end else f"{text[: most - 4]}...{text[0]}"


def counted(count: int, what: str) -> str:
    """A number of things, of one or of several."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def cut(text: str, most: int = 120) -> str:
    """The text, or its beginning."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def reason(error: Exception) -> str:
    """What an error says, without the path that an OSError repeats; not endless."""
    return (isinstance(error, OSError) and error.strerror) or cut(str(error))


@contextmanager
def named(file: str | None) -> Iterator[None]:
    """What is wrong with a picture or a video within begins with the name of its file, where it has
    one."""
    try:
        yield
    except (ImageError, VideoError) as error:
        if file is None:
            raise
        raise type(error)(f"{quote(file, end=True)}: {error}") from error
