"""Write tests/goldens/model.json and model_16bit.json: what transformers computes with the small
random checkpoints.

    python -m convert.goldens.model        (needs the `reference` extra)

The default test suite compares with these files, so that it proves parity without torch and without
network. The last digits are the machine's.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from convert.random_checkpoint import TILE, make
from smolvlm_mlx.inputs.prompt import image_text
from smolvlm_mlx.inputs.tiles import TileLayout

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

FOLDER = Path(__file__).parents[2] / "tests" / "goldens"
QUESTION = "What is in the picture? 42"
NEW_TOKENS = 24


def pattern(tiles: int) -> np.ndarray:
    """Tiles (N, H, W, 3) uint8 that differ everywhere, the same on every machine."""
    n, y, x, c = np.meshgrid(range(tiles), range(TILE), range(TILE), range(3), indexing="ij")
    levels: np.ndarray = (n * 37 + y * 5 + x * 3 + c * 50 + (x * y) // 7) % 256
    return levels.astype(np.uint8)


def values(array: torch.Tensor) -> list[float]:
    return [round(float(value), 6) for value in array.flatten()]


def golden(folder: Path) -> dict[str, Any]:
    """Stages, logits and greedy tokens in float32."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image = image_text(TileLayout(1, 2, (0, 0), (0, 0)), 16)
    prompt = f"<|im_start|>User:{image}{QUESTION}<end_of_utterance>\nAssistant:"
    text = f"<|im_start|>User: {QUESTION}<end_of_utterance>\nAssistant:"
    ids, text_ids = (
        tokenizer(each, add_special_tokens=False)["input_ids"] for each in (prompt, text)
    )
    pixels = normalized(torch.float32)
    with torch.no_grad():
        generated = model.generate(
            input_ids=torch.tensor([ids]),
            pixel_values=pixels[None],
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
    return {
        "prompt": prompt,
        "input_ids": ids,
        **stages(model, ids, text_ids, pixels),
        "text_input_ids": text_ids,
        "generated": generated[0, len(ids) :].tolist(),
    }


def stages(
    model: Any, ids: list[int], text_ids: list[int], pixels: torch.Tensor
) -> dict[str, list[float]]:
    """Some of the numbers of each stage."""
    with torch.no_grad():
        features = model.model.vision_model(pixels).last_hidden_state
        tokens = model.model.connector(features)
        logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels[None]).logits
        text_logits = model(input_ids=torch.tensor([text_ids])).logits
    return {
        "image_features": values(features[:, ::21, ::32]),
        "image_tokens": values(tokens[:, ::5, ::32]),
        "logits": values(logits[0, ::16, ::16]),
        "text_logits": values(text_logits[0, ::4, ::16]),
    }


def normalized(dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(
        ((pattern(3) / 255 - 0.5) / 0.5).astype(np.float32).transpose(0, 3, 1, 2)
    ).to(dtype)


def in_16_bits(folder: Path, whole: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """The same stages in each type of 16 bits; tokens are left out, for near ties may fall either
    way."""
    stages_of = {}
    for dtype in (torch.bfloat16, torch.float16):
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
        name = str(dtype).removeprefix("torch.")
        stages_of[name] = stages(
            model, whole["input_ids"], whole["text_input_ids"], normalized(dtype)
        )
    return stages_of


def main() -> None:
    goldens, goldens_16bit = {}, {}
    for model_type in ("smolvlm", "idefics3"):
        with tempfile.TemporaryDirectory() as name:
            folder = make(Path(name), model_type)
            goldens[model_type] = golden(folder)
            goldens_16bit[model_type] = in_16_bits(folder, goldens[model_type])
    for file, content in (("model.json", goldens), ("model_16bit.json", goldens_16bit)):
        (FOLDER / file).write_text(json.dumps(content, indent=None, separators=(",", ":")) + "\n")
        print(FOLDER / file, f"{(FOLDER / file).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
