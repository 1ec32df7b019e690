"""Tiles -> image tokens, chunk by chunk, each distinct tile once.

A tile's row and column enter the model only as prompt text, so equal tiles have equal image tokens, and skipping repeats
(blank margins, slides, still frames) is exact.
"""

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from . import backend
from .inputs.image import ImageSettings, normalize
from .model import SmolVLM

# Tiles encoded at once: enough to fill a GPU; on a CPU one tile already does, and more would only take memory.
CHUNK = {"metal": 8, "cuda": 8, "cpu": 1}


def encode_tiles(model: SmolVLM, tiles: NDArray[np.uint8], settings: ImageSettings) -> mx.array | None:
    """Tiles (N, H, W, 3) uint8 -> image_tokens (N, S, Dt), evaluated; None for no tiles.

    Memory is bounded by one chunk's activations, whatever N is.
    """
    if not len(tiles):
        return None
    first_with: dict[bytes, int] = {}
    order = [first_with.setdefault(tile.tobytes(), len(first_with)) for tile in tiles]
    distinct = [order.index(n) for n in range(len(first_with))]
    chunk = CHUNK[backend.name()]
    encoded = []
    for start in range(0, len(distinct), chunk):
        pixel_values = mx.array(normalize(tiles[distinct[start : start + chunk]], settings))
        encoded.append(model.encode_images(pixel_values))
        mx.eval(encoded[-1])
    return mx.concatenate(encoded)[mx.array(order)]
