"""Equal tiles are encoded once, chunks are the whole, and every result is at its place."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from convert.random_checkpoint import TILE, make
from smolvlm_mlx import device, load
from smolvlm_mlx.generation import image_cache
from smolvlm_mlx.generation.image_cache import ImageCache, encode_tiles
from smolvlm_mlx.inputs.tiles import digest_tiles, normalize

import mlx.core as mx
import numpy as np
import pytest


def tiles(*seeds: int) -> np.ndarray:
    return np.stack(
        [np.random.default_rng(seed).integers(0, 256, (TILE, TILE, 3), np.uint8) for seed in seeds]
    )


@pytest.mark.parametrize("chunk", [1, 2, 3, 8])
def test_chunked_is_whole_and_equal_tiles_are_encoded_once(
    chunk: int, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = loaded
    monkeypatch.setattr(
        image_cache,
        "CHUNK",
        dict.fromkeys(image_cache.CHUNK, chunk * model.config.vision_config.patches_per_side**2),
    )
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
    np.testing.assert_allclose(
        np.array(have), want, rtol=0, atol=1e-4 if device.name() == "cpu" else 5e-3
    )
    np.testing.assert_array_equal(np.array(have[0]), np.array(have[5]))
    assert not np.array_equal(np.array(have[0]), np.array(have[1]))


def test_no_tiles(loaded: Any) -> None:
    model, processor = loaded
    assert encode_tiles(model, np.empty((0, TILE, TILE, 3), np.uint8), processor.settings) is None


# ---- kept for later


def encoded(
    loaded: Any, cache: ImageCache, some: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, np.ndarray]:
    """How many tiles were encoded, and the result."""
    count, encode = 0, type(loaded[0]).encode_images

    def counting(self: Any, pixel_values: mx.array) -> mx.array:
        nonlocal count
        count += pixel_values.shape[0]
        result: mx.array = encode(self, pixel_values)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(type(loaded[0]), "encode_images", counting)
        tokens = encode_tiles(loaded[0], some, loaded[1].settings, cache)
    return count, np.array(tokens)


def test_known_tiles_are_not_encoded_again(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ImageCache(loaded[0])
    count, first = encoded(loaded, cache, tiles(1, 2), monkeypatch)
    assert count == 2
    count, second = encoded(loaded, cache, tiles(2, 3, 1), monkeypatch)
    assert count == 1
    np.testing.assert_array_equal(second[[2, 0]], first)
    # Other pixel values of the same tiles.
    other = replace(loaded[1].settings, mean=(0.4, 0.5, 0.6))
    assert cache.get(digest_tiles(tiles(1)), other) == {}


def test_memory_is_bounded(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = encode_tiles(loaded[0], tiles(1), loaded[1].settings)
    assert one is not None
    cache = ImageCache(loaded[0], memory_bytes=3 * one.nbytes)
    encoded(loaded, cache, tiles(1, 2, 3), monkeypatch)
    assert encoded(loaded, cache, tiles(1), monkeypatch)[0] == 0  # used: 2 is the oldest now
    encoded(loaded, cache, tiles(4), monkeypatch)
    assert cache.nbytes == 3 * one.nbytes
    assert [encoded(loaded, cache, tiles(n), monkeypatch)[0] for n in (1, 3, 4)] == [0, 0, 0]
    assert encoded(loaded, cache, tiles(2), monkeypatch)[0] == 1
    cache = ImageCache(loaded[0], memory_bytes=0)  # the last is held however large it is
    encoded(loaded, cache, tiles(1, 2, 3), monkeypatch)
    assert cache.nbytes == one.nbytes
    assert encoded(loaded, cache, tiles(3), monkeypatch)[0] == 0


def test_the_next_process_finds_them(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "made" / "cache"
    _, first = encoded(loaded, ImageCache(loaded[0], folder), tiles(1, 2), monkeypatch)
    count, second = encoded(loaded, ImageCache(loaded[0], folder), tiles(2, 1), monkeypatch)
    assert count == 0
    np.testing.assert_array_equal(second[::-1], first)
    assert folder.stat().st_mode & 0o777 == 0o700
    with closing(sqlite3.connect(folder / "features.sqlite3")) as database:  # as it has always been
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        lengths = database.execute("SELECT length(name), length(digest) FROM tiles").fetchall()
    assert lengths == [(16, 16)] * 2


def test_the_file_is_for_one_model_and_dtype(tiny: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", seed=1)
    for checkpoint, dtype in ((tiny, "float32"), (tiny, "bfloat16"), (other, "float32")):
        model, processor = load(checkpoint, dtype)
        names = digest_tiles(tiles(1))
        assert ImageCache(model, tmp_path).get(names, processor.settings) == {}
        tokens = encode_tiles(model, tiles(1), processor.settings, ImageCache(model, tmp_path))
        assert tokens is not None
        (found,) = ImageCache(model, tmp_path).get(names, processor.settings).values()
        assert found.dtype == tokens.dtype
        assert mx.array_equal(found, tokens[0])


def test_the_file_is_bounded(loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = encode_tiles(loaded[0], tiles(1), loaded[1].settings)
    assert tokens is not None
    for number in (1, 2, 3, 1, 4):
        encoded(
            loaded,
            ImageCache(loaded[0], tmp_path, disk_bytes=3 * tokens.nbytes),
            tiles(number),
            monkeypatch,
        )
    counts = [
        encoded(loaded, ImageCache(loaded[0], tmp_path), tiles(n), monkeypatch)[0]
        for n in (1, 3, 4, 2)
    ]
    assert counts == [0, 0, 0, 1]


def test_a_damaged_file_costs_time_only(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "features.sqlite3"
    file.write_bytes(b"no database" * 1000)
    assert encoded(loaded, ImageCache(loaded[0], tmp_path), tiles(1), monkeypatch)[0] == 1
    assert encoded(loaded, ImageCache(loaded[0], tmp_path), tiles(1), monkeypatch)[0] == 0
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE tiles SET data = zeroblob(length(data))")
    count, tokens = encoded(loaded, ImageCache(loaded[0], tmp_path), tiles(1), monkeypatch)
    assert count == 1
    assert tokens.any()
    (tmp_path / "no folder").write_text("")
    assert (
        encoded(loaded, ImageCache(loaded[0], tmp_path / "no folder"), tiles(1), monkeypatch)[0]
        == 1
    )


def test_what_is_in_memory_is_not_looked_for_in_the_file(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, settings = ImageCache(loaded[0], tmp_path), loaded[1].settings
    assert encode_tiles(loaded[0], tiles(1, 2), settings, cache) is not None
    asked, connect = list[str](), sqlite3.connect

    def connected(path: Path, **options: Any) -> Any:
        database = connect(path, **options)
        if Path(path).is_relative_to(tmp_path):  # coverage has a database too
            database.set_trace_callback(asked.append)
        return database

    monkeypatch.setattr(sqlite3, "connect", connected)
    assert len(cache.get(digest_tiles(tiles(1, 2)), settings)) == 2
    assert asked == []
    assert len(cache.get(digest_tiles(tiles(1, 2, 3)), settings)) == 2
    assert [text.startswith("SELECT digest") for text in asked].count(True) == 1
    # What a power cut loses is computed again.
    assert "PRAGMA synchronous = NORMAL" in asked


@pytest.mark.parametrize(
    ("error", "undeletable", "tries"),
    [
        (sqlite3.OperationalError("locked"), False, [1, 1]),
        (OSError("read-only"), False, [1, 1]),
        (sqlite3.DatabaseError("damaged"), False, [2, 4]),  # each time begun anew once
        (sqlite3.DatabaseError("damaged"), True, [1, 1]),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_used_is_given_up(
    loaded: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    undeletable: bool,
    tries: list[int],
) -> None:
    """It may take seconds to find out that another process holds it."""
    connect, others = Mock(side_effect=error), sqlite3.connect

    def connected(path: Path, **options: Any) -> Any:
        is_own = Path(path).is_relative_to(tmp_path)  # coverage has a database too
        return connect(path) if is_own else others(path, **options)

    monkeypatch.setattr(sqlite3, "connect", connected)
    if undeletable:
        (tmp_path / "features.sqlite3").mkdir()  # which is no file to delete
    cache, settings = ImageCache(loaded[0], tmp_path), loaded[1].settings
    assert cache.get(digest_tiles(tiles(1)), settings) == {}
    found = [connect.call_count]
    cache.put({b"name": mx.zeros((4, 4))}, settings)
    assert [*found, connect.call_count] == tries
