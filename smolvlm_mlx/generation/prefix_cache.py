"""KV caches of prompts that were read, for prompts that begin in the same way.

A prompt is compared by keys: token ids, but at a placeholder the name of its tile, so that
equal-looking prompts with different pictures share nothing beyond their first picture.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..inputs.processor import Inputs
from ..model import KVCache

Key = int | bytes


def prefix_keys(inputs: Inputs, image_token_id: int, tokens_per_tile: int) -> list[Key]:
    """One key for each of `inputs.input_ids`."""
    how = inputs.settings.normalization
    names = (digest + how for digest in inputs.tile_digests for _ in range(tokens_per_tile))
    return [
        next(names) if token == image_token_id else token for token in inputs.input_ids.tolist()
    ]


def common(first: Sequence[Key], second: Sequence[Key]) -> int:
    """How many keys two prompts have in common from their beginning."""
    pairs = zip(first, second, strict=False)
    return next(
        (n for n, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second))
    )


@dataclass
class _Entry:
    keys: list[Key]
    layers: list[KVCache]  # of len(keys) tokens, or more
    kv_bits: int | None


class PrefixCache:
    """The KV caches of the last prompts and their answers: at most `entries`, and beyond the last
    one `most_bytes`.

    What is popped is the caller's, to be put back with what it then holds.
    """

    def __init__(self, entries: int = 1, most_bytes: int = 2**31):
        self._most_entries, self._most_bytes = entries, most_bytes
        self._entries: list[_Entry] = []  # the last given is last
        self._lock = threading.Lock()

    def pop(
        self, keys: Sequence[Key], kv_bits: int | None = None
    ) -> tuple[list[KVCache] | None, int]:
        """The KV cache that has most of a prompt's beginning, and how much; at least one token is
        left to be read."""
        with self._lock:
            found = [
                (min(common(e.keys, keys), len(keys) - 1), e)
                for e in self._entries
                if e.kv_bits == kv_bits
            ]
            count, entry = max(found, key=lambda pair: pair[0], default=(0, None))
            if entry is None or count == 0:
                return None, 0
            if self._most_entries == 1 or count == len(entry.keys):
                self._entries.remove(entry)
                layers = entry.layers
            else:  # another conversation may go on from what this one does not share
                layers = [layer.fork() for layer in entry.layers]
            for layer in layers:
                layer.trim(layer.offset - count)
            return layers, count

    def put(self, keys: Sequence[Key], layers: list[KVCache], kv_bits: int | None = None) -> None:
        """Hold a KV cache whose tokens have these keys, in place of those that it begins with; ones
        given longest ago make room.

        Of an interrupt between two layers the tokens stay that all layers have. What it left
        uncomputed is computed now: another thread, which may be the next to use it, could not.
        """
        count = min(layer.offset for layer in layers)
        if not count:
            return
        mx.async_eval([layer.state for layer in layers])
        held = list(keys[:count])
        with self._lock:
            self._entries = [
                entry
                for entry in self._entries
                if entry.kv_bits != kv_bits or entry.keys != held[: len(entry.keys)]
            ]
            self._entries.append(_Entry(held, layers, kv_bits))
            while len(self._entries) > self._most_entries or (
                len(self._entries) > 1 and self._nbytes > self._most_bytes
            ):
                del self._entries[0]

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._entries.clear()

    @property
    def _nbytes(self) -> int:
        return sum(
            array.nbytes
            for entry in self._entries
            for layer in entry.layers
            for array in layer.state
        )
