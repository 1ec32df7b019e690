"""Messages, which own their pictures -> Inputs: token ids with placeholders, and the tiles that
belong there.

Tiles and placeholders come from one `TileLayout`, so they cannot disagree.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import CheckpointError, PromptError
from ..events import Work
from ..files import read_json_if_there
from .media import Cutting
from .messages import ImagePart, Message, Messages, TextPart, VideoPart, parse_messages
from .prompt import IMAGE, ChatTemplate, free_character, image_text
from .settings import ImageOptions, ImageSettings, preprocessor_config
from .tiles import TiledImage, TileLayout, normalize, plan_tiles
from .tokenizer import Tokenizer, chat_template, special_tokens
from .video import Clip, Frame, VideoSampling, plan_clip, words


@dataclass(frozen=True)
class Inputs:
    """What a model needs to answer. T tokens, N tiles of H x W pixels in the order of their
    placeholders. Where the answer `goes_on`, the tokens end within it. `media` are what each of the
    messages' pictures and videos became, where that is known: pictures that are cut, and words."""

    input_ids: NDArray[np.int32]  # (T,)
    pictures: tuple[TiledImage, ...]
    settings: ImageSettings
    goes_on: bool = False
    media: tuple[Sequence[str | TiledImage], ...] = ()

    @cached_property
    def tiles(self) -> NDArray[np.uint8]:
        """(N, H, W, 3)."""
        size = self.settings.tile_size
        tiles = [picture.tiles for picture in self.pictures] or [
            np.empty((0, size, size, 3), np.uint8)
        ]
        return tiles[0] if len(tiles) == 1 else np.concatenate(tiles)

    @property
    def layouts(self) -> tuple[TileLayout, ...]:
        """How each picture was cut."""
        return tuple(picture.layout for picture in self.pictures)

    @cached_property
    def pixel_values(self) -> NDArray[np.float32]:
        """(N, H, W, 3) float32, rescaled and normalized."""
        return normalize(self.tiles, self.settings)

    @cached_property
    def tile_digests(self) -> list[bytes]:
        """A name for each tile."""
        return [digest for picture in self.pictures for digest in picture.digests]


@dataclass(frozen=True)
class Turn:
    """A message as the template and the model see it: words, and pictures that are cut. `media` are
    those parts that each of its pictures and videos became."""

    role: str
    parts: Sequence[str | TiledImage]
    media: Sequence[Sequence[str | TiledImage]]


class Processor:
    """Turns messages into `Inputs`, as the checkpoint's own processor in transformers does.

    Attributes:
        tokenizer: text to ids and back.
        settings: how pictures become tiles; replace it, or pass other values to a call.
        sampling: which frames of a video are seen; a video part may have its own fps, max_frames,
            start and end.
        vocab_size: of the model; a token beyond it is refused.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        settings: ImageSettings,
        tokens_per_tile: int,
        template: ChatTemplate | None = None,
        sampling: VideoSampling | None = None,
        vocab_size: int = 2**31,
    ):
        if IMAGE not in tokenizer.added:
            raise CheckpointError(
                f"tokenizer.json: no {IMAGE} token; copy tokenizer.json from the original "
                "checkpoint"
            )
        self.tokenizer, self.settings, self.tokens_per_tile = tokenizer, settings, tokens_per_tile
        self.vocab_size = vocab_size
        self._marks: dict[tuple[int, int], int] = {}
        self.template = template or ChatTemplate(None)
        self.sampling = sampling or VideoSampling(longest_edge=settings.tile_size)

    @classmethod
    def from_folder(cls, folder: Path, config: ModelConfig) -> "Processor":
        """Read tokenizer, template and preprocessor files, and check that they fit the model.

        Raises:
            CheckpointError: a file is missing or damaged, or belongs to another checkpoint.
        """
        tokenizer = Tokenizer.from_folder(folder)
        raw, name = preprocessor_config(folder)
        settings = ImageSettings.from_dict(raw, name)
        if settings.tile_size != config.vision_config.image_size:
            raise CheckpointError(
                f"{folder}: {name} makes tiles of {settings.tile_size} pixels, "
                f"the vision tower wants {config.vision_config.image_size}; it belongs to another "
                "checkpoint"
            )
        sampling = VideoSampling.from_dict(raw, settings.tile_size)
        template = ChatTemplate(chat_template(folder), special_tokens(folder))
        vocab_size = config.text_config.vocab_size
        processor = cls(tokenizer, settings, config.tokens_per_tile, template, sampling, vocab_size)
        if tokenizer.added[IMAGE] != config.image_token_id:
            raise CheckpointError(
                f"{folder}: {IMAGE} is {tokenizer.added[IMAGE]} in tokenizer.json, "
                f"{config.image_token_id} in config.json"
            )
        _check_ends(folder, tokenizer, config)
        return processor

    @property
    def one_tile(self) -> ImageOptions:
        """For pictures that are one tile each, made as those of a video's frames are."""
        return ImageOptions(split=False, longest_edge=self.sampling.longest_edge)

    def count_tiles(
        self, messages: Sequence[Message], image_options: ImageOptions | None = None
    ) -> int:
        """Return how many tiles the pictures of messages make, without cutting them."""
        settings = (image_options or ImageOptions()).applied(self.settings)
        parts = [part for message in messages for part in message.parts]
        return sum(
            plan_tiles(part.image.size, part.options.applied(settings)).tiles
            for part in parts
            if isinstance(part, ImagePart)
        )

    def plan_video(
        self, seconds: float, options: Mapping[str, object], image_options: ImageOptions
    ) -> list[str | TileLayout]:
        """Return what a video of so many seconds is to become, words and frames, as far as that can
        be known beforehand.

        Args:
            options: its own fps, max_frames, start and end.

        Raises:
            VideoError: one is out of range.
        """
        sampling = self.sampling.changed(options)
        settings = self.one_tile.applied(image_options.applied(self.settings))
        return _with_words(plan_clip(seconds, sampling, plan_tiles((1, 1), settings)), sampling)

    def count_tokens(self, parts: Iterable[str | TileLayout]) -> int:
        """Return how many tokens of a prompt pictures take, and words beside them: placeholders,
        and the marks around and between tiles."""
        return sum(
            self._mark_tokens(part.rows, part.cols) + part.tiles * self.tokens_per_tile
            if isinstance(part, TileLayout)
            else len(self.tokenizer.encode_text(part))
            for part in parts
        )

    def _mark_tokens(self, rows: int, cols: int) -> int:
        if (rows, cols) not in self._marks:
            text = image_text(TileLayout(rows, cols, (0, 0), (0, 0)), 0)
            ids = self.tokenizer.encode_prompt(text, free_character([text]))
            self._marks[rows, cols] = len(ids)
        return self._marks[rows, cols]

    def __call__(
        self,
        messages: Messages,
        image_options: ImageOptions | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> Inputs:
        """Make the inputs of a conversation.

        Args:
            messages: parsed ones, or such as `inputs.messages` parses.
            image_options: how pictures are cut, where it is not as the checkpoint says.
            add_generation_prompt: end with `Assistant:`, for an answer to follow.
            continue_final_message: end with the last message, an answer of words that goes on.

        Raises:
            PromptError, ImageError, VideoError, FetchError: what the messages hold cannot be used.
        """
        return Work(
            self.prepare(
                messages,
                image_options,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
        ).finish()

    def prepare(
        self,
        messages: Messages,
        image_options: ImageOptions | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> Cutting[Inputs]:
        """As a call, in steps: yields each frame of a video while the next are decoded, and how
        many there are."""
        settings = (image_options or ImageOptions()).applied(self.settings)
        turns = yield from self._turns(parse_messages(messages), settings)
        goes_on = continue_final_message and _begun(turns[-1]) != ""
        if continue_final_message and not goes_on:
            turns = turns[:-1]
        pictures = tuple(
            part for turn in turns for part in turn.parts if isinstance(part, TiledImage)
        )
        ids = self._encode(turns, add_generation_prompt, goes_on)
        count = sum(len(picture.tiles) for picture in pictures)
        placeholders = ids.count(self.tokenizer.added[IMAGE])
        if placeholders != count * self.tokens_per_tile:
            raise PromptError(
                f"{placeholders} placeholders for {count} tiles of {self.tokens_per_tile} tokens"
            )
        media = tuple(each for turn in turns for each in turn.media)
        return Inputs(np.array(ids, np.int32), pictures, settings, goes_on, media)

    def loss_mask(self, messages: Sequence[Message], inputs: Inputs) -> NDArray[np.bool_]:
        """Which of `inputs.input_ids` (T,), made of the same messages, are the assistant's words
        and ends of utterance.

        Raises:
            PromptError: the chat template changes what comes before a turn, so that its tokens
                cannot be told.
        """
        turns = Work(self._turns(messages, inputs.settings)).finish()
        ids = inputs.input_ids.tolist()
        mask = np.zeros(len(ids), np.bool_)
        for index, turn in enumerate(turns):
            if turn.role == "assistant":
                before = self._encode(turns[:index], True) if index else []
                after = self._encode(turns[: index + 1], False)
                if ids[: len(after)] != after or after[: len(before)] != before:
                    raise PromptError(
                        f"message {index + 1}: the chat template does not keep what comes before a "
                        "turn"
                    )
                # A line break may follow.
                ends = [n for n, id in enumerate(after, 1) if id in self.tokenizer.end_ids]
                mask[len(before) : ends[-1] if ends and ends[-1] > len(before) else len(after)] = (
                    True
                )
        return mask

    def _turns(self, messages: Sequence[Message], settings: ImageSettings) -> Cutting[list[Turn]]:
        """Messages with their pictures cut, and their videos taken apart into frames and the words
        around them."""
        turns = []
        for message in messages:
            parts: list[str | TiledImage] = []
            media: list[Sequence[str | TiledImage]] = []
            for part in message.parts:
                if isinstance(part, TextPart):
                    parts.append(part.text)
                    continue
                if isinstance(part, ImagePart):
                    media.append([part.image.tiled(part.options.applied(settings))])
                else:
                    media.append((yield from self._frames(part, self.one_tile.applied(settings))))
                parts += media[-1]
            turns.append(Turn(message.role, parts, media))
        return turns

    def _frames(self, part: VideoPart, settings: ImageSettings) -> Cutting[list[str | TiledImage]]:
        sampling = self.sampling.changed(part.options)
        clip = yield from part.video.clip(sampling, settings)
        return _with_words(clip, sampling)

    def _encode(
        self, turns: Sequence[Turn], add_generation_prompt: bool, goes_on: bool = False
    ) -> list[int]:
        layouts = [
            part.layout for turn in turns for part in turn.parts if isinstance(part, TiledImage)
        ]
        mark = free_character(
            [part for turn in turns for part in turn.parts if isinstance(part, str)]
        )
        guarded = [
            {"role": turn.role, "content": [self._guard(part, mark) for part in turn.parts]}
            for turn in turns
        ]
        if goes_on:
            pieces = self._up_to_the_last_word(guarded, mark).split(IMAGE)
        else:
            pieces = self.template.render(guarded, add_generation_prompt).split(IMAGE)
        if len(pieces) != len(layouts) + 1:
            raise PromptError(
                f"the chat template placed {len(pieces) - 1} of {len(layouts)} pictures"
            )
        images = [image_text(layout, self.tokens_per_tile) for layout in layouts]
        prompt = pieces[0] + "".join(
            image + piece for image, piece in zip(images, pieces[1:], strict=True)
        )
        ids = self.tokenizer.encode_prompt(prompt, mark)
        if max(ids, default=0) >= self.vocab_size:
            raise PromptError(
                f"a token of the prompt has number {max(ids)}, beyond the model's vocabulary of "
                f"{self.vocab_size}; copy tokenizer.json from the original checkpoint"
            )
        return ids

    def _up_to_the_last_word(self, messages: list[dict[str, Any]], mark: str) -> str:
        """A prompt that ends with the words of the last message."""
        last = messages[-1]["content"][-1]
        end = free_character(
            [mark, *(part.get("text", "") for each in messages for part in each["content"])]
        )
        last["text"] += end
        prompt, _, rest = self.template.render(messages, False).rpartition(end)
        if not prompt or IMAGE in rest:
            raise PromptError("the chat template does not let the last message go on")
        return prompt

    def _guard(self, part: str | TiledImage, mark: str) -> dict[str, str]:
        """What a template gets of a part: no more than it needs."""
        if isinstance(part, str):
            return {"type": "text", "text": self.tokenizer.guard(part, mark)}
        return {"type": "image"}


def _with_words(clip: Clip[Frame], sampling: VideoSampling) -> list[str | Frame]:
    """The frames of a video, and the words around them."""
    # The last words are alone.
    pairs = zip_longest(words(clip, sampling.with_times), clip.frames, fillvalue="")
    return [part for pair in pairs for part in pair if part != ""]


def _begun(turn: Turn) -> str:
    """The words of an answer that goes on.

    Raises:
        PromptError: it is none of words alone.
    """
    words = [part for part in turn.parts if isinstance(part, str)]
    if turn.role != "assistant" or len(words) < len(turn.parts):
        raise PromptError("only an answer of words goes on, and the last message is none")
    return "".join(words)


def _check_ends(folder: Path, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Check that all ends of answers that its files name are tokens of the model."""
    raw, size = read_json_if_there(folder / "config.json"), config.text_config.vocab_size
    text = raw.get("text_config")
    named = [raw.get("eos_token_id"), text.get("eos_token_id") if isinstance(text, dict) else None]
    listed = [each for ends in named for each in (ends if isinstance(ends, list) else [ends])]
    ends = {*tokenizer.end_ids, *(end for end in listed if isinstance(end, int))}
    if bad := sorted(end for end in ends if not 0 <= end < size):
        raise CheckpointError(
            f"{folder}: the end token {bad[0]} is not in the vocabulary of {size} tokens; copy "
            "config.json, generation_config.json and tokenizer.json from the original checkpoint"
        )
