"""Tiles -> image tokens, chunk by chunk, each distinct tile once, and, with an `ImageCache`, once
for all questions.

A tile's row and column enter the model only as prompt text, so equal tiles have equal image tokens,
and skipping repeats (blank margins, slides, still frames, the pictures of earlier turns) is exact.
"""

import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from .. import device
from ..config import ModelConfig
from ..events import Reading, at_once
from ..inputs.image import Pixels
from ..inputs.settings import ImageSettings
from ..inputs.tiles import digest_tiles, normalize
from ..model import SmolVLM

# Patches encoded at once: enough to fill a GPU; on a CPU a tile of 1,024 does, and more would only
# take memory.
CHUNK = {"metal": 8192, "cuda": 8192, "cpu": 1024}


class ImageCache:
    """Image tokens (S, Dt) of one model's tiles, by the tiles' digests; those not used for longest
    are forgotten first.

    Args:
        folder: keep them there too, in a file that processes and models share; begun anew when it
            is damaged.
        memory_bytes, disk_bytes: most that is held.
    """

    def __init__(
        self,
        model: SmolVLM,
        folder: Path | None = None,
        memory_bytes: int = 2**28,
        disk_bytes: int = 2**30,
    ):
        self.model, self._memory_bytes, self.nbytes = model, memory_bytes, 0
        self._held: OrderedDict[bytes, mx.array] = OrderedDict()
        self._file = None if folder is None else _File(folder / "features.sqlite3", disk_bytes)

    def get(self, digests: Iterable[bytes], settings: ImageSettings) -> dict[bytes, mx.array]:
        """Those that are known."""
        keys = {digest: self._key(settings, digest) for digest in digests}
        unknown = [key for key in keys.values() if key not in self._held]
        if self._file is not None and unknown:
            for key, data in self._file.read(unknown).items():
                tokens = mx.array(np.frombuffer(data, np.uint8)).view(self._dtype)
                mx.eval(tokens)  # here, as in encode_tiles
                self._hold(key, tokens)
        known = {digest: self._held[key] for digest, key in keys.items() if key in self._held}
        for digest in known:
            self._held.move_to_end(keys[digest])
        return {
            digest: tokens.reshape(self.model.config.tokens_per_tile, -1)
            for digest, tokens in known.items()
        }

    def put(self, encoded: Mapping[bytes, mx.array], settings: ImageSettings) -> None:
        """Keep what was encoded."""
        keys = {self._key(settings, digest): tokens for digest, tokens in encoded.items()}
        for key, tokens in keys.items():
            self._hold(key, tokens)
        if self._file is not None:
            self._file.write(
                {key: np.array(tokens.view(mx.uint8)).tobytes() for key, tokens in keys.items()}
            )

    def _hold(self, key: bytes, tokens: mx.array) -> None:
        if key not in self._held:
            self._held[key] = tokens
            self.nbytes += tokens.nbytes
        while self.nbytes > self._memory_bytes and len(self._held) > 1:
            self.nbytes -= self._held.popitem(last=False)[1].nbytes

    def _key(self, settings: ImageSettings, digest: bytes) -> bytes:
        """A tile's name under these values of the preprocessing (tiles are uint8, before them), and
        in the file of this model."""
        weights = self._weights if self._file else b""
        return blake2b(weights + settings.normalization + digest, digest_size=16).digest()

    @cached_property
    def _dtype(self) -> mx.Dtype:
        return self.model.language_model.norm.weight.dtype

    @cached_property
    def _weights(self) -> bytes:
        """A name for tower and connector: their parameters' names, types and two sums of each."""
        digest = blake2b(str(self._dtype).encode(), digest_size=16)
        parameters = [self.model.vision_model.parameters(), self.model.connector.parameters()]
        for name, weight in dict(tree_flatten(parameters)).items():
            values = weight.astype(mx.float32)
            sums = np.array(mx.stack([values.sum(), values.square().sum()]))
            digest.update(f"{name} {weight.dtype} {weight.shape}".encode() + sums.tobytes())
        return digest.digest()


class _File:
    """Bytes by name in SQLite. What goes wrong with it costs time, never an answer: the file is
    given up for this run."""

    def __init__(self, path: Path, most_bytes: int):
        self._path, self._most_bytes, self._works = path, most_bytes, True

    def read(self, names: Iterable[bytes]) -> dict[bytes, bytes]:
        found = {}

        def run(database: sqlite3.Connection) -> None:
            for name in names:
                row = database.execute(
                    "SELECT digest, data FROM tiles WHERE name = ?", (name,)
                ).fetchone()
                if row is not None and blake2b(row[1], digest_size=16).digest() == row[0]:
                    found[name] = row[1]
            now = time.time()
            database.executemany(
                "UPDATE tiles SET used = ? WHERE name = ?", [(now, name) for name in found]
            )

        self._try(run)
        return found

    def write(self, values: Mapping[bytes, bytes]) -> None:
        now = time.time()
        rows = [
            (name, blake2b(data, digest_size=16).digest(), now, data)
            for name, data in values.items()
        ]

        def run(database: sqlite3.Connection) -> None:
            database.executemany("INSERT OR REPLACE INTO tiles VALUES (?, ?, ?, ?)", rows)
            (nbytes,) = database.execute("SELECT total(length(data)) FROM tiles").fetchone()
            oldest = database.execute("SELECT name, length(data) FROM tiles ORDER BY used")
            while nbytes > self._most_bytes and (row := oldest.fetchone()) is not None:
                database.execute("DELETE FROM tiles WHERE name = ?", row[:1])
                nbytes -= row[1]

        self._try(run)

    def _try(self, run: Callable[[sqlite3.Connection], None]) -> None:
        for _ in range(2):
            if not self._works:
                return
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with closing(sqlite3.connect(self._path)) as database, database:
                    database.execute("PRAGMA journal_mode = WAL")
                    # What a power cut loses is computed again.
                    database.execute("PRAGMA synchronous = NORMAL")
                    columns = "name BLOB PRIMARY KEY, digest BLOB, used REAL, data BLOB"
                    database.execute(f"CREATE TABLE IF NOT EXISTS tiles ({columns})")
                    return run(database)
            except (sqlite3.OperationalError, OSError):  # read-only, full, held by another for long
                self._works = False
            except sqlite3.DatabaseError:  # damaged
                self._remove()

    def _remove(self) -> None:
        try:
            for end in ("", "-wal", "-shm"):
                self._path.with_name(self._path.name + end).unlink(missing_ok=True)
        except OSError:
            self._works = False


def tiles_at_once(model: SmolVLM) -> int:
    """How many tiles are encoded at once on this backend."""
    return tiles_of(model.config)


def tiles_of(config: ModelConfig) -> int:
    """As `tiles_at_once`, of the model of this config."""
    return max(1, CHUNK[device.name()] // config.vision_config.patches_per_side**2)


def encode_tiles_in_steps(
    model: SmolVLM,
    tiles: Pixels,
    settings: ImageSettings,
    cache: ImageCache | None = None,
    digests: Sequence[bytes] | None = None,
    computed: set[bytes] | None = None,
) -> Generator[Reading, None, mx.array | None]:
    """Tiles (N, H, W, 3) uint8 -> image_tokens (N, S, Dt), evaluated; None for no tiles.

    Memory is bounded by one chunk's activations, whatever N is.

    Args:
        digests: of the tiles, where they are known.
        computed: takes the digests of those that were not in the cache.
    """
    if not len(tiles):
        return None
    digests = digest_tiles(tiles) if digests is None else digests
    # The place of each digest's first tile.
    place = {digest: number for number, digest in reversed(list(enumerate(digests)))}
    known = {} if cache is None else cache.get(place, settings)
    unknown = [digest for digest in dict.fromkeys(digests) if digest not in known]
    chunk = tiles_at_once(model)
    for start in range(0, len(unknown), chunk):
        yield Reading(start, len(unknown), "tiles")
        part = unknown[start : start + chunk]
        encoded = _encode(model, tiles[[place[digest] for digest in part]], settings, part)
        if cache is not None:
            cache.put(encoded, settings)
        known.update(encoded)
        if computed is not None:
            computed.update(part)
    yield Reading(len(unknown), len(unknown), "tiles")
    image_tokens = mx.stack([known[digest] for digest in digests])
    mx.eval(image_tokens)
    return image_tokens


encode_tiles = at_once(encode_tiles_in_steps)


def _encode(
    model: SmolVLM, tiles: Pixels, settings: ImageSettings, digests: Sequence[bytes]
) -> dict[bytes, mx.array]:
    tokens = model.encode_images(mx.array(normalize(tiles, settings)))
    # Copies, which do not hold the whole chunk; and evaluated, or only this thread could use what
    # is kept.
    encoded = {digest: mx.take(tokens, mx.array(row), axis=0) for row, digest in enumerate(digests)}
    mx.eval(list(encoded.values()))
    return encoded
