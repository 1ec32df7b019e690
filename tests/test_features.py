"""Equal tiles are encoded once, chunks are the whole, and every result is at its place."""

from pathlib import Path
from typing import Any

from convert.random_checkpoint import TILE
from smolvlm_mlx import backend, features, load
from smolvlm_mlx.features import encode_tiles
from smolvlm_mlx.inputs.image import normalize

import mlx.core as mx
import numpy as np
import pytest


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> Any:
    return load(tiny, "float32")


def tiles(*seeds: int) -> np.ndarray:
    return np.stack([np.random.default_rng(seed).integers(0, 256, (TILE, TILE, 3), np.uint8) for seed in seeds])


@pytest.mark.parametrize("chunk", [1, 2, 3, 8])
def test_chunked_is_whole_and_equal_tiles_are_encoded_once(
    chunk: int, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = loaded
    monkeypatch.setattr(features, "CHUNK", dict.fromkeys(features.CHUNK, chunk))
    some = tiles(1, 2, 1, 3, 3, 1, 4, 2)
    want = np.array(model.encode_images(mx.array(normalize(some, processor.settings))))
    encode, sizes = type(model).encode_images, []

    def counting(self: Any, pixel_values: mx.array) -> mx.array:
        sizes.append(pixel_values.shape[0])
        result: mx.array = encode(self, pixel_values)
        return result

    monkeypatch.setattr(type(model), "encode_images", counting)
    have = encode_tiles(model, some, processor.settings)
    assert have is not None
    assert sum(sizes) == 4
    assert max(sizes) <= chunk
    np.testing.assert_allclose(np.array(have), want, rtol=0, atol=1e-4 if backend.name() == "cpu" else 5e-3)
    np.testing.assert_array_equal(np.array(have[0]), np.array(have[5]))
    assert not np.array_equal(np.array(have[0]), np.array(have[1]))


def test_no_tiles(loaded: Any) -> None:
    model, processor = loaded
    assert encode_tiles(model, np.empty((0, TILE, TILE, 3), np.uint8), processor.settings) is None
