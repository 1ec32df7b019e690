"""KV caches: the keys and values of tokens that were read, layer by layer."""

from typing import Any

import mlx.core as mx


class KVCache:
    """Keys and values of one layer in arrays that are made once for `capacity` tokens and grow by doubling.

    Has the interface of mlx_lm's caches (`update_and_fetch`, `offset`, `make_mask`, `trim`, `state`).
    """

    def __init__(self, capacity: int = 256):
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.offset = 0
        self.capacity = capacity
        self._seen = 0  # tokens that a fork sees too

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append (B, k, T, d) keys and values; returns all of them, (B, k, offset, d)."""
        end = self.offset + keys.shape[2]
        if self.keys is None or self.values is None or end > self.keys.shape[2]:
            self._grow(keys, values, end)
        assert self.keys is not None and self.values is not None
        self.keys[..., self.offset : end, :] = keys
        self.values[..., self.offset : end, :] = values
        self.offset = end
        return self.keys[..., :end, :], self.values[..., :end, :]

    def _grow(self, keys: mx.array, values: mx.array, end: int) -> None:
        while self.capacity < end:
            self.capacity *= 2
        (B, k, _, d), old = keys.shape, self.offset
        grown_keys = mx.zeros((B, k, self.capacity, d), keys.dtype)
        grown_values = mx.zeros((B, k, self.capacity, values.shape[3]), values.dtype)
        if self.keys is not None and self.values is not None:
            grown_keys[..., :old, :] = self.keys[..., :old, :]
            grown_values[..., :old, :] = self.values[..., :old, :]
        self.keys, self.values = grown_keys, grown_values

    def row(self) -> tuple[mx.array, mx.array]:
        """Keys and values (B, k, more than offset, d), not empty, whose row at `offset` may be written to in place."""
        assert self.keys is not None and self.values is not None
        if self.offset < self._seen or self.offset == self.keys.shape[2]:
            self._grow(self.keys, self.values, self.offset + 1)
            self._seen = 0
        return self.keys, self.values

    def make_mask(self, T: int, return_array: bool = False, window_size: int | None = None) -> mx.array | str | None:
        """None for one new token, which sees everything; otherwise MLX's causal mask, which needs no array."""
        if T == 1:
            return None
        if not return_array:
            return "causal"
        return mx.arange(self.offset, self.offset + T)[:, None] >= mx.arange(self.offset + T)[None]  # (T, offset + T)

    def is_trimmable(self) -> bool:
        return True

    def trim(self, count: int) -> int:
        """Forget the last `count` tokens; returns how many were there to forget."""
        count = min(self.offset, count)
        self.offset -= count
        return count

    def fork(self) -> "KVCache":
        """A second cache that begins with what this one holds."""
        other = KVCache(self.capacity)
        if self.keys is not None and self.values is not None:
            other.keys, other.values = self.keys[..., : self.offset, :], self.values[..., : self.offset, :]
        other.offset = self._seen = self.offset
        return other

    @property
    def state(self) -> list[Any]:
        """What has to be evaluated for the cache to be up to date."""
        return [array for array in (self.keys, self.values) if array is not None]


class QuantizedKVCache(KVCache):
    """A KV cache that holds keys and values quantized (8 or 4 bits, groups of 64 or 32 within a head)."""

    def __init__(self, bits: int, group_size: int = 64):
        super().__init__()
        self.bits, self.group_size = bits, group_size
        self._parts: list[mx.array] | None = None  # packed, scales, biases of keys, then of values

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append (B, k, T, d); returns all tokens dequantized. Memory, not speed, is what this cache is for."""
        new = [*mx.quantize(keys, self.group_size, self.bits), *mx.quantize(values, self.group_size, self.bits)]
        if self._parts is None:
            self._parts = new
        else:
            old = (part[..., : self.offset, :] for part in self._parts)
            self._parts = [mx.concatenate(list(pair), axis=2) for pair in zip(old, new, strict=True)]
        self.offset += keys.shape[2]
        return (
            self._dequantize(self._parts[:3], keys.dtype),
            self._dequantize(self._parts[3:], values.dtype),
        )

    def _dequantize(self, parts: list[mx.array], dtype: mx.Dtype) -> mx.array:
        packed, scales, biases = parts
        return mx.dequantize(packed, scales, biases, self.group_size, self.bits, dtype=dtype)

    def fork(self) -> "QuantizedKVCache":
        other = QuantizedKVCache(self.bits, self.group_size)
        other._parts, other.offset = self._parts, self.offset  # whose arrays are never written to
        return other

    @property
    def state(self) -> list[Any]:
        return self._parts or []
