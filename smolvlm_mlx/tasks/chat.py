"""A conversation that reuses its work: each turn computes only what the turns before it have not.

    chat = Chat(*load("HuggingFaceTB/SmolVLM2-500M-Video-Instruct"))
    for piece in chat.ask("What is this?", "cat.jpg"):
        print(piece, end="", flush=True)

Every turn renders the whole conversation again, so what the model reads is what an uncached run
would read; keys and values are reused up to the first difference. Knows nothing of terminals or
browsers.
"""

import json
from collections.abc import Generator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Unpack

from ..errors import PromptError, SmolVLMError, reason
from ..events import Event, Text
from ..files import expanded, read_file, write_file, written
from ..generation.engine import Engine
from ..generation.keywords import Keywords, changed, takes_options
from ..generation.options import Options
from ..generation.stream import Stream, TextStream
from ..inputs.messages import (
    Message,
    Messages,
    TextPart,
    from_json,
    parse_messages,
    text_message,
    to_json,
    user_message,
)
from ..inputs.processor import Processor
from ..inputs.settings import ImageOptions
from ..model import SmolVLM
from .stored import trimmed

MAX_FILE_BYTES = 2**30  # of a saved conversation, with its pictures and videos
RESERVED_TOKENS = 256  # tokens for an answer, if it may be as long


class Chat:
    """Messages that own their pictures, and the model that answers them.

    Attributes:
        messages: of the conversation so far. An answer that did not come to its end by itself is
            `interrupted`.
        options: for answers, unless `ask` is given others.
        image_options: how pictures are cut, where it is not as the checkpoint says.

    Args:
        model, processor: of `load`.
        system: the system message.
        cache_folder: what is computed of pictures is kept there too, see `Engine`.
    """

    @takes_options
    def __init__(
        self,
        model: SmolVLM,
        processor: Processor,
        options: Options | None = None,
        *,
        system: str | None = None,
        image_options: ImageOptions | None = None,
        cache_folder: Path | None = None,
        **keywords: Unpack[Keywords],
    ):
        self.model, self.processor = model, processor
        self.options, self.image_options = changed(options, image_options, keywords)
        self.messages: list[Message] = []
        self.system = system
        self._engine = Engine(model, processor, cache_folder=cache_folder)
        self._stream: TextStream | None = None
        self._saved: bytes | None = None  # the digest of this conversation's last file

    @property
    def system(self) -> str | None:
        """The system message, which stands before all others."""
        return (
            self.messages[0].text if self.messages and self.messages[0].role == "system" else None
        )

    @system.setter
    def system(self, text: str | None) -> None:
        self.messages[: int(self.system is not None)] = (
            [text_message("system", text)] if text else []
        )

    @property
    def context(self) -> int:
        """Tokens the model can attend to."""
        return self.model.config.text_config.max_position_embeddings

    def tokens(self) -> int:
        """Tokens of the conversation so far."""
        if not self.messages:
            return 0
        return len(
            self.processor(self.messages, self.image_options, add_generation_prompt=False).input_ids
        )

    @takes_options
    def ask(
        self,
        text: str,
        images: object = (),
        options: Options | None = None,
        *,
        videos: object = (),
        **keywords: Unpack[Keywords],
    ) -> TextStream:
        """Ask the next question; iterate over the result for the answer.

        Args:
            text: the question.
            images: a picture or several (paths, URLs, bytes, open files, PIL pictures, arrays,
                `Attachment`s or `Video`s), which go before the text.
            options: how this answer is generated; else as the chat's are.
            videos: a video or several, or each a list of frames, which go before the text.

        Raises:
            ContextFullError: there is no room for an answer.
            SmolVLMError: a picture or an option cannot be used. The conversation is then as it was.
            TypeError: there is no such keyword.
        """
        self.stop(wait=True)
        question = user_message(text, images, videos)
        return self._answer([*self.messages, question], options, keywords)

    @takes_options
    def retry(self, options: Options | None = None, **keywords: Unpack[Keywords]) -> TextStream:
        """Answer the last question again.

        Args:
            options: how this answer is generated; else as the chat's are.
        """
        self.stop(wait=True)
        return self._answer(self.messages[: question_at(self.messages, -1) + 1], options, keywords)

    @takes_options
    def go_on(self, options: Options | None = None, **keywords: Unpack[Keywords]) -> TextStream:
        """Go on with the last answer, which was stopped, cut off or ended because it went in
        circles; iterate over the result for what is new.

        Args:
            options: how it goes on; else as the chat's are.

        Raises:
            PromptError: there is no such answer.
        """
        self.stop(wait=True)
        last = self.messages[-1] if self.messages else None
        if last is None or last.role != "assistant" or not last.interrupted:
            raise PromptError("there is nothing to continue: no answer was stopped or cut off last")
        return self._answer(self.messages[:-1], options, keywords, last)

    @takes_options
    def edit(
        self,
        text: str,
        images: object = None,
        options: Options | None = None,
        turn: int = -1,
        *,
        videos: object = None,
        **keywords: Unpack[Keywords],
    ) -> TextStream:
        """Ask something else in place of a question, and forget what came after it.

        Args:
            text: the new question.
            images: its pictures, as of `ask`.
            options: how this answer is generated; else as the chat's are.
            turn: number of the question from 0, or from the end; -1 is the last.
            videos: its videos, as of `ask`. Without images and videos it keeps its own.
        """
        self.stop(wait=True)
        at = question_at(self.messages, turn)
        if images is None and videos is None:
            images = self.messages[at].media_parts
        return self._answer(
            [*self.messages[:at], user_message(text, images, videos)], options, keywords
        )

    def undo(self) -> Message:
        """Forget the last question and its answer; returns the question."""
        self.stop(wait=True)
        at = question_at(self.messages, -1)
        question = self.messages[at]
        del self.messages[at:]
        return question

    def drop_oldest(self, keep_pictures: bool = False) -> None:
        """Forget the first question and its answer; with `keep_pictures`, its pictures go to the
        next question.

        Raises:
            PromptError: there is only one.
        """
        turn = oldest_turn(self.messages)
        forgotten, following = self.messages[turn], self.messages[turn.stop]
        kept = [part for message in forgotten for part in message.media_parts]
        parts = (*(kept if keep_pictures else ()), *following.parts)
        self.messages[turn.start : turn.stop + 1] = [replace(following, parts=parts)]

    def stop(self, wait: bool = False) -> None:
        """End the answer under way, if there is one; what came of it stays, marked as interrupted.

        Where another thread is making it, it ends after the step that is under way; with `wait`
        nothing uses the model then.
        """
        if self._stream is not None:
            self._stream.close(wait)

    def restart(self, messages: Messages = ()) -> None:
        """Go on from these messages, as another conversation; from none, as a new one.

        Raises:
            PromptError: they are no messages.
        """
        parsed = list[Message]() if messages in ([], ()) else parse_messages(messages)
        self.stop()
        self.messages, self._saved = parsed, None

    def save(self, path: str | Path) -> None:
        """Write the conversation with its pictures as JSON. A file that is there is replaced, as a
        whole, only if it is an earlier state of this conversation.

        Raises:
            PromptError: it cannot be written, or would replace something else.
        """
        if not self.messages:
            raise PromptError("there is nothing to save yet")
        path, messages = expanded(path), to_json(self.messages)
        data = json.dumps({"messages": messages}, indent=1).encode()
        with written(path, PromptError):
            if path.exists() and not self._is_earlier(path, messages):
                raise PromptError(
                    f"{path}: exists already, and is not this conversation; choose another name"
                )
            write_file(path, data)
        self._saved = sha256(data).digest()

    def _is_earlier(self, path: Path, messages: list[dict[str, object]]) -> bool:
        """Whether a file is what was saved or opened last, or its messages are the first of
        these."""
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            return False
        data = path.read_bytes()
        if sha256(data).digest() == self._saved:
            return True
        try:
            there = json.loads(data)["messages"]
            return bool(there) and there == messages[: len(there)]
        except (ValueError, KeyError, TypeError, RecursionError):
            return False

    def open(self, path: str | Path) -> None:
        """Go on with a conversation that `save` wrote.

        Raises:
            PromptError: the file cannot be read, or is no conversation; the present one is then as
                it was.
        """
        path = expanded(path)
        try:
            data = read_file(path, MAX_FILE_BYTES)
            value = json.loads(data)
        except (OSError, ValueError, RecursionError) as error:
            raise PromptError(
                f"{path}: no conversation that can be read ({reason(error)})"
            ) from error
        self.restart(from_json(value.get("messages") if isinstance(value, dict) else None))
        self._saved = sha256(data).digest()

    def _answer(
        self,
        messages: list[Message],
        options: Options | None,
        keywords: Keywords,
        begun: Message | None = None,
    ) -> TextStream:
        options, image_options = changed(
            self.options if options is None else options, self.image_options, keywords
        )
        reserve = min(options.max_tokens, RESERVED_TOKENS)
        if begun is None:
            begun = Message("assistant", (TextPart(""),), interrupted=True)
            stream = self._engine.stream(
                messages, options, image_options=image_options, reserve_tokens=reserve
            )
        else:
            inputs = self.processor([*messages, begun], image_options, continue_final_message=True)
            stream = self._engine.stream(inputs, options, reserve_tokens=reserve)
        before = self.messages
        self.messages = [*messages, begun]
        self._stream = answer = TextStream(
            Stream(self._keep(before, self.messages, stream), stream.row)
        )
        return answer

    def _keep(
        self, before: list[Message], messages: list[Message], events: Stream
    ) -> Generator[Event]:
        """The events of an answer, which is part of the conversation from the moment of the
        question."""
        text = messages[-1].text
        try:
            for event in events:
                if isinstance(event, Text):
                    text += event.piece
                    messages[-1] = replace(messages[-1], parts=(TextPart(trimmed(text)),))
                yield event
            is_whole = events.statistics.finish_reason == "stop"
            messages[-1] = replace(messages[-1], interrupted=not is_whole)
        except SmolVLMError:
            if self.messages is messages:
                self.messages = before
            raise
        finally:
            events.close()


def question_at(messages: Sequence[Message], turn: int) -> int:
    """Return where question number `turn` stands, from 0; -1 is the last.

    Raises:
        PromptError: there is none.
    """
    questions = [number for number, message in enumerate(messages) if message.role == "user"]
    if not -len(questions) <= turn < len(questions):
        raise PromptError(f"there is no question {turn}; the conversation has {len(questions)}")
    return questions[turn]


def oldest_turn(messages: Sequence[Message]) -> slice:
    """Return where the oldest turn stands, which is forgotten first: the first question and all
    before the second.

    Raises:
        PromptError: there is only one.
    """
    return slice(question_at(messages, 0), question_at(messages, 1))
