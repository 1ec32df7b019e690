"""Checkpoints for the parity suite: the family's real configs with random weights, and the
reference beside ours."""

import sys
from pathlib import Path

from tests.parity.conftest import TOOLS
from tests.support.places import SHARED

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

FAMILY = (
    "SmolVLM-256M-Instruct",
    "SmolVLM-500M-Instruct",
    "SmolVLM-Instruct",
    "SmolVLM2-256M-Video-Instruct",
    "SmolVLM2-500M-Video-Instruct",
    "SmolVLM2-2.2B-Instruct",
)


def make(name: str, out: Path, *options: str) -> Path:
    """The real config and files of a checkpoint with random weights, saved by transformers."""
    sys.path.insert(0, str(TOOLS))
    import random_checkpoint  # type: ignore[import-not-found]

    arguments = sys.argv
    sys.argv = ["random_checkpoint.py", str(SHARED / "checkpoints" / name), str(out), *options]
    try:
        random_checkpoint.main()
    finally:
        sys.argv = arguments
    return out


def reference_model(folder: Path) -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def channels_first(pixel_values: np.ndarray) -> torch.Tensor:
    """(N, H, W, 3) -> the reference's (1, N, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(pixel_values.transpose(0, 3, 1, 2)))[None]


def picture(seed: int, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Smooth noise: every tile differs from every other."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
