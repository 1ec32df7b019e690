"""transformers on the CPU with its Pillow image processor. See `Peer` in worker.py; chat, folders
and conversion are not here."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch


class Transformers:
    """One checkpoint of Hugging Face's layout in float32."""

    def __init__(self, checkpoint: Path, pictures: bool):
        # Its image processors would be chosen.
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
        from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

        torch.set_grad_enabled(False)
        self.model = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=torch.float32
        ).eval()
        tokens_per_tile = json.loads((checkpoint / "processor_config.json").read_text())[
            "image_seq_len"
        ]
        images = AutoImageProcessor.from_pretrained(checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        # SmolVLM2's prompts, too.
        self.processor = Idefics3Processor(images, tokenizer, image_seq_len=tokens_per_tile)

    def read(self) -> None:
        """They are read already."""

    def _inputs(self, images: Sequence[Any], text: str, **options: Any) -> Any:
        """The family's chat template around a question."""
        prompt = (
            f"<|im_start|>User:{'<image>' * len(images) or ' '}{text}<end_of_utterance>\nAssistant:"
        )
        return self.processor(
            text=prompt, images=list(images) or None, return_tensors="pt", **options
        )

    def _first_token(self, inputs: Any) -> None:
        self.model.generate(**inputs, max_new_tokens=1, do_sample=False)

    def first_token(self, text: str, pictures: Sequence[Path], one_tile: bool) -> None:
        options = {"do_image_splitting": not one_tile} if pictures else {}
        self._first_token(self._inputs(list(map(str, pictures)), text, **options))

    def preprocess(self, picture: Path, text: str, one_tile: bool) -> Any:
        return self._inputs([str(picture)], text, do_image_splitting=not one_tile)

    def encode(self, inputs: Any) -> int:
        self.model.model.get_image_features(inputs["pixel_values"], inputs["pixel_attention_mask"])
        return int(inputs["pixel_values"].shape[1])

    def tokens(self, ids: list[int], count: int) -> Iterator[Any]:
        following, cache = torch.tensor([ids]), None
        for _ in range(count):
            out = self.model(
                input_ids=following, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            following, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
            yield following.item()

    def video(self, path: Path, text: str) -> int:
        """The frames are pictures of one tile, without times."""
        import av

        with av.open(str(path)) as file:
            frames = [frame.to_image() for frame in file.decode(video=0)]
        edge = self.processor.image_processor.max_image_size
        inputs = self._inputs(frames, text, do_image_splitting=False, size=edge)
        assert inputs["pixel_values"].shape[1] == 64
        self._first_token(inputs)
        return int(inputs["input_ids"].shape[1])
