"""A conversation that reuses its work: each turn computes only what the turns before it have not.

    chat = Chat(*load("HuggingFaceTB/SmolVLM2-500M-Video-Instruct"))
    for piece in chat.ask("What is this?", ["cat.jpg"]):
        print(piece, end="", flush=True)

Every turn renders the whole conversation again, so what the model reads is what an uncached run would read; keys and values
are reused up to the first difference. Knows nothing of terminals or browsers.
"""

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from ..errors import PromptError, SmolVLMError, reason
from ..files import write_file
from ..generation.engine import stream_generate
from ..generation.image_cache import FeatureCache, Progress
from ..generation.prefix_cache import PrefixCache, Reuse
from ..generation.sampling import Options
from ..generation.stream import Stream
from ..inputs.media import Attachment, Video, as_part, attachments, from_json, to_json
from ..inputs.processor import Processor
from ..inputs.prompt import user_message
from ..inputs.tiles import ImageOptions
from ..model import SmolVLM

LEAST_ROOM = 256  # tokens for an answer, if it may be as long


class Chat:
    """Messages that own their pictures, and the model that answers them.

    Attributes:
        messages: of the conversation so far, in the schema of `inputs.prompt`. An answer that was cut off has
            `"interrupted": True`.
        options: for answers, unless `ask` is given others.
        image_options: how pictures are cut, where it is not as the checkpoint says.
    """

    def __init__(
        self,
        model: SmolVLM,
        processor: Processor,
        options: Options | None = None,
        *,
        system: str | None = None,
        image_options: ImageOptions | None = None,
        reuse: Reuse | None = None,
    ):
        self.model, self.processor, self.options = model, processor, options or Options()
        self.image_options = image_options or ImageOptions()
        self.messages: list[dict[str, Any]] = []
        self.system = system
        self._reuse = reuse or Reuse(FeatureCache(model), PrefixCache())
        self._stream: Stream | None = None

    @property
    def system(self) -> str | None:
        """The system message, which stands before all others."""
        return self.messages[0]["content"][0]["text"] if self._has_system else None

    @system.setter
    def system(self, text: str | None) -> None:
        self.messages[: int(self._has_system)] = (
            [{"role": "system", "content": [{"type": "text", "text": text}]}] if text else []
        )

    @property
    def _has_system(self) -> bool:
        return bool(self.messages) and self.messages[0]["role"] == "system"

    @property
    def context(self) -> int:
        """Tokens the model can attend to."""
        return self.model.config.text_config.max_position_embeddings

    def tokens(self) -> int:
        """Tokens of the conversation so far."""
        if not self.messages:
            return 0
        return len(self.processor(self.messages, self.image_options, add_generation_prompt=False).input_ids)

    def ask(
        self,
        text: str,
        images: Sequence[Any] = (),
        options: Options | None = None,
        progress: Progress | None = None,
    ) -> Stream:
        """Ask the next question; iterate over the result for the answer.

        Args:
            images: paths, URLs, PIL images, `Attachment`s or `Video`s, which go before the text.
            progress: called with tiles encoded and tiles to encode.

        Raises:
            ContextFullError: there is no room for an answer.
            SmolVLMError: a picture or an option cannot be used. The conversation is then as it was.
        """
        self._rest()
        return self._answer([*self.messages, _question(text, images)], options, progress)

    def retry(self, options: Options | None = None, progress: Progress | None = None) -> Stream:
        """Answer the last question again."""
        self._rest()
        return self._answer(self.messages[: self._question_at(-1) + 1], options, progress)

    def edit(
        self,
        text: str,
        images: Sequence[Any] | None = None,
        options: Options | None = None,
        progress: Progress | None = None,
        turn: int = -1,
    ) -> Stream:
        """Ask something else in place of a question (the last, or number `turn`), and forget what came after it.

        Args:
            images: other pictures; None keeps the question's own.
        """
        self._rest()
        at = self._question_at(turn)
        images = attachments(self.messages[at : at + 1]) if images is None else images
        return self._answer([*self.messages[:at], _question(text, images)], options, progress)

    def undo(self) -> dict[str, Any]:
        """Forget the last question and its answer; returns the question."""
        self._rest()
        at = self._question_at(-1)
        question = self.messages[at]
        del self.messages[at:]
        return question

    def drop_oldest(self, keep_pictures: bool = False) -> None:
        """Forget the first question and its answer; with `keep_pictures`, its pictures go to the next question.

        Raises:
            PromptError: there is only one.
        """
        first, second = self._question_at(0), self._question_at(1)
        pictures = attachments(self.messages[first:second]) if keep_pictures else []
        following = self.messages[second]
        parts = [as_part(picture) for picture in pictures]
        self.messages[first : second + 1] = [{**following, "content": [*parts, *following["content"]]}]

    def stop(self) -> None:
        """End the answer under way, if there is one; what came of it stays, marked as interrupted.

        Where another thread is making it, it ends after the step that is under way.
        """
        if self._stream is not None:
            self._stream.close()

    def _rest(self) -> None:
        """End the answer under way, and wait until it has ended: nothing else uses the model then."""
        if self._stream is not None:
            self._stream.close(wait=True)

    def save(self, path: str | Path) -> None:
        """Write the conversation with its pictures as JSON; a file that is there is replaced by the whole new one.

        Raises:
            PromptError: it cannot be written.
        """
        path = Path(path).expanduser()
        try:
            write_file(path, json.dumps({"messages": to_json(self.messages)}, indent=1).encode())
        except OSError as error:
            raise PromptError(f"{path}: cannot be written ({error.strerror})") from error

    def open(self, path: str | Path) -> None:
        """Go on with a conversation that `save` wrote.

        Raises:
            PromptError: the file cannot be read, or is no conversation; the present one is then as it was.
        """
        path = Path(path).expanduser()
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise PromptError(f"{path}: no conversation that can be read ({reason(error)})") from error
        self.messages = from_json(value.get("messages") if isinstance(value, dict) else None)

    def _question_at(self, turn: int) -> int:
        questions = [number for number, message in enumerate(self.messages) if message["role"] == "user"]
        if not -len(questions) <= turn < len(questions):
            raise PromptError(f"there is no question {turn}; the conversation has {len(questions)}")
        return questions[turn]

    def _answer(self, messages: list[dict[str, Any]], options: Options | None, progress: Progress | None) -> Stream:
        options = options or self.options
        stream = stream_generate(
            self.model,
            self.processor,
            messages,
            options,
            image_options=self.image_options,
            least_room=min(options.max_tokens, LEAST_ROOM),
            reuse=self._reuse,
            progress=progress,
        )
        answer = {"role": "assistant", "content": [{"type": "text", "text": ""}], "interrupted": True}
        before, self.messages = self.messages, [*messages, answer]
        stream.wrap(lambda pieces: self._keep(before, answer, pieces))
        self._stream = stream
        return stream

    def _keep(self, before: list[dict[str, Any]], answer: dict[str, Any], pieces: Generator[str]) -> Generator[str]:
        """The pieces of an answer, which is part of the conversation from the moment of the question."""
        part, text = answer["content"][0], ""
        try:
            for piece in pieces:
                if fresh := piece if text else piece.lstrip():  # the template has the space before it
                    text += fresh
                    part["text"] = text.rstrip()
                    yield fresh
            del answer["interrupted"]
        except SmolVLMError:
            if self.messages and self.messages[-1] is answer:
                self.messages = before
            raise
        finally:
            pieces.close()


def _question(text: str, images: Sequence[Any]) -> dict[str, Any]:
    owned = [image if isinstance(image, Attachment | Video) else Attachment(image) for image in images]
    return dict(user_message(text, [as_part(image) for image in owned]))
