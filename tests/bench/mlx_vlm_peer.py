"""mlx-vlm through its public functions. See `Peer` in worker.py; runs in an environment without
this project."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_vlm import load, stream_generate
from mlx_vlm.prompt_utils import apply_chat_template


class MLXVLM:
    """One checkpoint, in the float32 of its file."""

    def __init__(self, checkpoint: Path, pictures: bool):
        self.model, self.processor = load(str(checkpoint))

    def read(self) -> None:
        """They are read already."""

    def _prompt(self, text: Any, images: int) -> str:
        prompt: str = apply_chat_template(
            self.processor, self.model.config, text, num_images=images
        )
        return prompt

    def _answer(
        self, prompt: str, images: Sequence[Any], count: int, **options: Any
    ) -> Iterator[Any]:
        answer: Iterator[Any] = stream_generate(
            self.model,
            self.processor,
            prompt,
            image=list(images) or None,
            max_tokens=count,
            temperature=0.0,
            **options,
        )
        return answer

    def first_token(self, text: str, pictures: Sequence[Path], one_tile: bool) -> None:
        self.processor.image_processor.do_image_splitting = not one_tile
        next(self._answer(self._prompt(text, len(pictures)), list(map(str, pictures)), 1))

    def preprocess(self, picture: Path, text: str, one_tile: bool) -> Any:
        from mlx_vlm.utils import prepare_inputs

        self.processor.image_processor.do_image_splitting = not one_tile
        inputs = prepare_inputs(
            self.processor, images=[str(picture)], prompts=self._prompt(text, 1)
        )
        mx.eval(inputs["pixel_values"])
        return inputs

    def encode(self, inputs: Any) -> int:
        rest = {
            key: value for key, value in inputs.items() if key not in ("input_ids", "pixel_values")
        }
        mx.eval(
            self.model.get_input_embeddings(
                inputs["input_ids"], inputs["pixel_values"], **rest
            ).inputs_embeds
        )
        return int(inputs["pixel_values"].shape[1])

    def tokens(self, ids: list[int], count: int) -> Iterator[Any]:
        from mlx_vlm.generate import generate_step

        steps: Iterator[Any] = generate_step(
            mx.array([ids]), self.model, None, None, max_tokens=count, temperature=0.0
        )
        return steps

    def turns(self, picture: Path, questions: Sequence[str], count: int) -> Iterator[None]:
        """As mlx_vlm's own chat (chat.py) asks: with its vision cache and its prompt cache."""
        from mlx_vlm.generate import PromptCacheState
        from mlx_vlm.vision_cache import VisionFeatureCache

        caches = {"vision_cache": VisionFeatureCache(), "prompt_cache_state": PromptCacheState()}
        history: list[dict[str, Any]] = []
        for question in questions:
            history.append({"role": "user", "content": [{"type": "text", "text": question}]})
            pieces = self._answer(self._prompt(history, 1), [str(picture)], count, **caches)
            first = next(pieces)
            yield
            text = first.text + "".join(chunk.text for chunk in pieces)
            history.append({"role": "assistant", "content": [{"type": "text", "text": text}]})

    def video(self, path: Path, text: str) -> int:
        """As its command line does with models of pictures: the frames are pictures, without times.

        It would split each into 13 tiles, 53,000 tokens in all, which is more than the model's
        context: off here.
        """
        from mlx_vlm.generate.video import resolve_video_inputs

        settings = self.processor.image_processor
        settings.do_image_splitting, settings.size = False, settings.max_image_size
        frames = resolve_video_inputs(self.processor, [str(path)], fps=1.0, max_frames=64).images
        assert len(frames) == 64
        return int(next(self._answer(self._prompt(text, len(frames)), frames, 1)).prompt_tokens)

    def folder(self, pictures: Sequence[Path], text: str, count: int) -> None:
        """All together; SmolVLM2's processor takes them only one by one."""
        from mlx_vlm import batch_generate

        self.processor.image_processor.do_image_splitting = False
        if self.model.config.model_type == "idefics3":
            texts = [text] * len(pictures)
            batch_generate(
                self.model,
                self.processor,
                list(map(str, pictures)),
                prompts=texts,
                max_tokens=count,
            )
            return
        for picture in pictures:
            list(self._answer(self._prompt(text, 1), [str(picture)], count))
