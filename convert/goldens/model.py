"""Write tests/goldens/model.json: what transformers computes with the small random checkpoints.

    python -m convert.goldens.model        (needs the `reference` extra)

The default test suite compares with this file, so that it proves parity without torch and without network.
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

GOLDEN = Path(__file__).parents[2] / "tests" / "goldens" / "model.json"
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
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image = image_text(TileLayout(1, 2, (0, 0), (0, 0)), 16)
    prompt = f"<|im_start|>User:{image}{QUESTION}<end_of_utterance>\nAssistant:"
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    pixels = torch.from_numpy(((pattern(3) / 255 - 0.5) / 0.5).astype(np.float32).transpose(0, 3, 1, 2))
    with torch.no_grad():
        features = model.model.vision_model(pixels).last_hidden_state
        tokens = model.model.connector(features)
        logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels[None]).logits
        text_ids = tokenizer(f"<|im_start|>User: {QUESTION}<end_of_utterance>\nAssistant:", add_special_tokens=False)[
            "input_ids"
        ]
        text_logits = model(input_ids=torch.tensor([text_ids])).logits
        generated = model.generate(
            input_ids=torch.tensor([ids]), pixel_values=pixels[None], max_new_tokens=NEW_TOKENS, do_sample=False
        )
    return {
        "prompt": prompt,
        "input_ids": ids,
        "image_features": values(features[:, ::21, ::32]),
        "image_tokens": values(tokens[:, ::5, ::32]),
        "logits": values(logits[0, ::16, ::16]),
        "text_input_ids": text_ids,
        "text_logits": values(text_logits[0, ::4, ::16]),
        "generated": generated[0, len(ids) :].tolist(),
    }


def main() -> None:
    goldens = {}
    for model_type in ("smolvlm", "idefics3"):
        with tempfile.TemporaryDirectory() as folder:
            goldens[model_type] = golden(make(Path(folder), model_type))
    GOLDEN.write_text(json.dumps(goldens, indent=None, separators=(",", ":")) + "\n")
    print(GOLDEN, f"{GOLDEN.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
