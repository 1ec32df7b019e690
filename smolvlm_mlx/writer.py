"""A safetensors file, written tensor by tensor: its header is known beforehand, so nothing is kept.

`mx.save_safetensors` wants all tensors at once and truncates in place. The format is public: 8 bytes of header length, the
header in JSON, the tensors' bytes (github.com/huggingface/safetensors, README).
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

_CODES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32"}


@dataclass(frozen=True)
class Entry:
    """One tensor to come."""

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size


def write_safetensors(
    path: Path, entries: Sequence[Entry], arrays: Iterable[mx.array], progress: Callable[[int, int], None]
) -> None:
    """Write `arrays`, which must come in the order and form of `entries`, and sync the file to disk.

    `progress` is called with bytes written and bytes in all.

    Raises:
        OSError: no space, read-only, ...
    """
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.nbytes
        header[entry.name] = {"dtype": _CODES[entry.dtype], "shape": entry.shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors begin at a multiple of 8
    with path.open("xb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        done = 0
        for entry, array in zip(entries, arrays, strict=True):
            assert (tuple(array.shape), array.dtype) == (entry.shape, entry.dtype), entry.name
            if array.dtype == mx.bfloat16:
                array = array.view(mx.uint16)  # NumPy has no bfloat16
            file.write(np.ascontiguousarray(np.asarray(array)).data)
            done += entry.nbytes
            progress(done, end)
        file.flush()
        os.fsync(file.fileno())
