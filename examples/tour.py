"""Every station on the way from a picture and a question to an answer, with its shape.

python examples/tour.py [CHECKPOINT]      (a folder or hub id; without one, the bundled checkpoint)
"""

import sys
from pathlib import Path

from smolvlm_mlx import Options, load
from smolvlm_mlx.generation.decoding import Row
from smolvlm_mlx.generation.prefill import PromptReader, prefill
from smolvlm_mlx.inputs.messages import user_message

import mlx.core as mx
from PIL import Image


def show(station: str, what: object, where: str) -> None:
    print(f"{station:18} {what!s:46} {where}")


def tour(checkpoint: str | Path) -> None:
    model, processor = load(checkpoint)
    show("station", "shape", "made in")

    image = Image.radial_gradient("L").convert("RGB").resize((320, 240))
    show("image", f"{image.width} x {image.height} {image.mode}", "inputs/image.py")

    inputs = processor([user_message("What is this?", image)])
    show("tiles", f"{inputs.tiles.shape} {inputs.tiles.dtype}", "inputs/tiles.py")
    show("input_ids", inputs.input_ids.shape, "inputs/prompt.py, tokenizer.py, processor.py")
    pixel_values = mx.array(inputs.pixel_values)
    show("pixel_values", pixel_values.shape, "inputs/tiles.py")

    show("patch_embeddings", model.vision_model.embeddings(pixel_values).shape, "model/vision.py")
    show("image_features", model.vision_model(pixel_values).shape, "model/vision.py")
    image_tokens = model.encode_images(pixel_values)
    show("image_tokens", image_tokens.shape, "model/connector.py")
    show(
        "embeddings",
        model.merge(mx.array(inputs.input_ids)[None], image_tokens).shape,
        "model/smolvlm.py",
    )

    cache = model.language_model.make_cache(len(inputs.input_ids))
    logits = prefill(model, mx.array(inputs.input_ids)[None], image_tokens, cache)
    show("logits", f"{logits.shape}, last row only", "model/language.py, generation/prefill.py")
    keys, _ = cache[0].state
    show("cache", f"{len(cache)} layers of keys {keys.shape}", "model/cache.py")

    row = Row(Options(max_tokens=5))
    list(PromptReader(model).answer(inputs, row))
    show("token", row.token_ids, "generation/decoding.py")
    show("text", repr(processor.tokenizer.decode(row.token_ids)), "inputs/tokenizer.py")


if __name__ == "__main__":
    tour(sys.argv[1] if len(sys.argv) > 1 else "tiny")
