"""This project, through its public functions and, for token ids and tiles, the functions below
them. See `Peer` in worker.py."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from smolvlm_mlx import Options, load, stream_generate
from smolvlm_mlx.events import Statistics, Text
from smolvlm_mlx.generation.decoding import Row
from smolvlm_mlx.generation.prefill import PromptReader
from smolvlm_mlx.inputs.messages import user_message
from smolvlm_mlx.inputs.processor import Inputs
from smolvlm_mlx.inputs.settings import ImageOptions

import mlx.core as mx
import numpy as np


class Ours:
    """One checkpoint in float32."""

    def __init__(self, checkpoint: Path, pictures: bool):
        self.model, self.processor = load(
            checkpoint, dtype="float32", lazy=True if pictures else "vision"
        )

    def read(self) -> None:
        mx.eval(self.model.parameters())

    def first_token(self, text: str, pictures: Sequence[Path], one_tile: bool) -> None:
        messages, options = [user_message(text, pictures)], {"split": False} if one_tile else {}
        self._first(messages, image_options=ImageOptions(**options), keep_vision=False)

    def _first(self, messages: Any, **options: Any) -> Statistics:
        stream = stream_generate(
            self.model, self.processor, messages, Options(max_tokens=1), **options
        )
        list(stream)
        return stream.statistics

    def preprocess(self, picture: Path, text: str, one_tile: bool) -> Inputs:
        """Tiles are uint8: `encode` makes floats of them, and counts it."""
        return self.processor([user_message(text, [picture])], ImageOptions(split=not one_tile))

    def encode(self, inputs: Inputs) -> int:
        from smolvlm_mlx.generation.image_cache import encode_tiles

        encode_tiles(self.model, inputs.tiles, inputs.settings)  # evaluates
        return len(inputs.tiles)

    def tokens(self, ids: list[int], count: int) -> Iterator[str]:
        inputs = Inputs(np.array(ids, np.int32), (), self.processor.settings)
        events = PromptReader(self.model).answer(inputs, Row(Options(max_tokens=count)))
        return (event.piece for event in events if isinstance(event, Text))

    def turns(self, picture: Path, questions: Sequence[str], count: int) -> Iterator[None]:
        from smolvlm_mlx import Chat

        chat = Chat(self.model, self.processor, Options(max_tokens=count))
        for number, question in enumerate(questions):
            pieces = iter(chat.ask(question, [] if number else [picture]))
            next(pieces, None)
            yield
            list(pieces)

    def video(self, path: Path, text: str) -> int:
        """SmolVLM2's frames with their times; the first family's without."""
        part = {"type": "video", "path": str(path), "max_frames": 64}
        found = self._first([{"role": "user", "content": [part, {"type": "text", "text": text}]}])
        assert found.tiles == 64
        return found.prompt_tokens

    def folder(self, pictures: Sequence[Path], text: str, count: int) -> None:
        """As `smolvlm-mlx caption` does."""
        from smolvlm_mlx.tasks.captions import Captioner, Task

        with tempfile.TemporaryDirectory() as out:
            captioner = Captioner(
                self.model,
                self.processor,
                Task(text, count),
                image_options=ImageOptions(split=False),
            )
            captioner.write(pictures, Path(out) / "captions.jsonl")
