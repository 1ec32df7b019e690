"""Messages, which own their pictures -> Inputs: token ids with placeholders, and the tiles that belong there.

Tiles and placeholders come from one `TileLayout`, so they cannot disagree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import CheckpointError, PromptError, named
from ..files import read_json_if_there
from .media import Attachment, Tiled, Video
from .prompt import IMAGE, ChatTemplate, Message, free_character, image_text, name_of, normalize_messages
from .tiles import ImageOptions, ImageSettings, TileLayout, load_image, make_tiles, normalize
from .tokenizer import Tokenizer, chat_template
from .video import Clip, OnFrame, VideoSampling, decode, from_frames, read_video, words


@dataclass(frozen=True)
class Inputs:
    """What a model needs to answer. T tokens, N tiles of H x W pixels in the order of their placeholders."""

    input_ids: NDArray[np.int32]  # (T,)
    pictures: tuple[Tiled, ...]
    settings: ImageSettings

    @cached_property
    def tiles(self) -> NDArray[np.uint8]:
        """(N, H, W, 3)."""
        size = self.settings.tile_size
        tiles = [picture.tiles for picture in self.pictures] or [np.empty((0, size, size, 3), np.uint8)]
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


class Processor:
    """Turns messages into `Inputs`, as the checkpoint's own processor in transformers does.

    Attributes:
        tokenizer: text to ids and back.
        settings: how pictures become tiles; replace it, or pass other values to a call.
        sampling: which frames of a video are seen; a video part may have its own fps, max_frames, start and end.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        settings: ImageSettings,
        tokens_per_tile: int,
        template: str | None = None,
        sampling: VideoSampling | None = None,
    ):
        if IMAGE not in tokenizer.added:
            raise CheckpointError(f"tokenizer.json: no {IMAGE} token; copy tokenizer.json from the original checkpoint")
        self.tokenizer, self.settings, self.tokens_per_tile = tokenizer, settings, tokens_per_tile
        self.template = ChatTemplate(template)
        self.sampling = sampling or VideoSampling(longest_edge=settings.tile_size)

    @classmethod
    def from_folder(cls, folder: Path, config: ModelConfig) -> "Processor":
        """Read tokenizer, template and preprocessor files, and check that they fit the model.

        Raises:
            CheckpointError: a file is missing or damaged, or belongs to another checkpoint.
        """
        tokenizer = Tokenizer.from_folder(folder)
        raw = read_json_if_there(folder / "preprocessor_config.json")
        settings = ImageSettings.from_dict(raw)
        if settings.tile_size != config.vision_config.image_size:
            raise CheckpointError(
                f"{folder}: preprocessor_config.json makes tiles of {settings.tile_size} pixels, "
                f"the vision tower wants {config.vision_config.image_size}; it belongs to another checkpoint"
            )
        sampling = VideoSampling.from_dict(raw, settings.tile_size)
        processor = cls(tokenizer, settings, config.tokens_per_tile, chat_template(folder), sampling)
        if tokenizer.added[IMAGE] != config.image_token_id:
            raise CheckpointError(
                f"{folder}: {IMAGE} is {tokenizer.added[IMAGE]} in tokenizer.json, {config.image_token_id} in config.json"
            )
        return processor

    @property
    def one_tile(self) -> ImageOptions:
        """For pictures that are one tile each, made as those of a video's frames are."""
        return ImageOptions(split=False, longest_edge=self.sampling.longest_edge)

    def __call__(
        self,
        messages: Sequence[Message],
        image_options: ImageOptions | None = None,
        *,
        add_generation_prompt: bool = True,
        on_frame: OnFrame[Tiled] = lambda frame, count: None,
    ) -> Inputs:
        """Make the inputs of a conversation.

        Args:
            messages: transformers' chat schema, see `inputs.prompt`.
            image_options: how pictures are cut, where it is not as the checkpoint says.
            add_generation_prompt: end with `Assistant:`, for an answer to follow.
            on_frame: called with each frame of a video while the next are decoded, and how many there are.

        Raises:
            PromptError, ImageError, FetchError: what the messages hold cannot be used.
        """
        settings = (image_options or ImageOptions()).applied(self.settings)
        checked = self._checked(messages, settings, on_frame)
        parts = [part for message in checked for part in message["content"] if part["type"] == "image"]
        pictures = tuple(part["tiled"] if "tiled" in part else _tiled(part, settings) for part in parts)
        ids = self._encode(checked, [picture.layout for picture in pictures], add_generation_prompt)
        count, placeholders = sum(len(picture.tiles) for picture in pictures), ids.count(self.tokenizer.added[IMAGE])
        if placeholders != count * self.tokens_per_tile:
            raise PromptError(f"{placeholders} placeholders for {count} tiles of {self.tokens_per_tile} tokens")
        return Inputs(np.array(ids, np.int32), pictures, settings)

    def answers(self, messages: Sequence[Message], inputs: Inputs) -> NDArray[np.bool_]:
        """Which of `inputs.input_ids` (T,), made of the same messages, are the assistant's words and ends of utterance.

        Raises:
            PromptError: the chat template changes what comes before a turn, so that its tokens cannot be told.
        """
        checked, ids = self._checked(messages, inputs.settings), inputs.input_ids.tolist()
        pictures = [sum(part["type"] == "image" for part in message["content"]) for message in checked]
        mask = np.zeros(len(ids), np.bool_)
        for index, message in enumerate(checked):
            if message["role"] == "assistant":
                before, after = sum(pictures[:index]), sum(pictures[: index + 1])
                prompt = self._encode(checked[:index], inputs.layouts[:before], True) if index else []
                turn = self._encode(checked[: index + 1], inputs.layouts[:after], False)
                if ids[: len(turn)] != turn or turn[: len(prompt)] != prompt:
                    raise PromptError(f"message {index + 1}: the chat template does not keep what comes before a turn")
                ends = [n for n, id in enumerate(turn, 1) if id in self.tokenizer.end_ids]  # a line break may follow
                mask[len(prompt) : ends[-1] if ends and ends[-1] > len(prompt) else len(turn)] = True
        return mask

    def _checked(
        self, messages: Sequence[Message], settings: ImageSettings, on_frame: OnFrame[Tiled] = lambda frame, count: None
    ) -> list[dict[str, Any]]:
        """Messages in one form, their videos taken apart into cut frames and the words around them."""
        one_tile = self.one_tile.applied(settings)
        return [
            {
                **message,
                "content": [small for part in message["content"] for small in self._frames(part, one_tile, on_frame)],
            }
            for message in normalize_messages(messages)
        ]

    def _frames(self, part: dict[str, Any], settings: ImageSettings, on_frame: OnFrame[Tiled]) -> list[dict[str, Any]]:
        if part["type"] != "video":
            return [part]
        sampling = self.sampling.changed(part)
        clip = _clip(part, sampling, settings, on_frame)
        texts = [[{"type": "text", "text": text}] if text else [] for text in words(clip, sampling.with_times)]
        images = [[{"type": "image", "tiled": frame}] for frame in clip.frames]
        return [small for pair in zip(texts, [*images, []], strict=True) for smalls in pair for small in smalls]

    def _encode(
        self, messages: list[dict[str, Any]], layouts: Sequence[TileLayout], add_generation_prompt: bool
    ) -> list[int]:
        texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
        mark = free_character(texts)
        guarded = [
            {"role": message["role"], "content": [self._guard(part, mark) for part in message["content"]]}
            for message in messages
        ]
        pieces = self.template.render(guarded, add_generation_prompt).split(IMAGE)
        if len(pieces) != len(layouts) + 1:
            raise PromptError(f"the chat template placed {len(pieces) - 1} of {len(layouts)} pictures")
        images = [image_text(layout, self.tokens_per_tile) for layout in layouts]
        prompt = pieces[0] + "".join(image + piece for image, piece in zip(images, pieces[1:], strict=True))
        return self.tokenizer.encode_prompt(prompt, mark)

    def _guard(self, part: dict[str, Any], mark: str) -> dict[str, Any]:
        if part["type"] == "text":
            return {"type": "text", "text": self.tokenizer.guard(part["text"], mark)}
        return {"type": part["type"]}  # a template needs no more, and gets no more


def _tiled(part: Any, settings: ImageSettings) -> Tiled:
    image = part.get("image") if isinstance(part, Mapping) else None
    return image.tiled(settings) if isinstance(image, Attachment) else Tiled(*make_tiles(load_image(part), settings))


def _clip(
    part: dict[str, Any], sampling: VideoSampling, settings: ImageSettings, on_frame: OnFrame[Tiled]
) -> Clip[Tiled]:
    if part.get("frames") is not None:
        return from_frames([_tiled(frame, settings) for frame in part["frames"]], part.get("fps"))
    video = part.get("video")
    if isinstance(video, Video):
        return video.clip(sampling, settings, on_frame)
    data = read_video(part)
    with named(name_of(part, "video")):
        return decode(data, sampling, lambda frame: Tiled(*make_tiles(frame, settings)), on_frame)
