"""A safetensors file, written tensor by tensor: its header is known beforehand, so nothing is kept. And whole folders.

`mx.save_safetensors` wants all tensors at once and truncates in place. The format is public: 8 bytes of header length, the
header in JSON, the tensors' bytes (github.com/huggingface/safetensors, README).
"""

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
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


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` to write into, which becomes `out` at the end, or is gone if anything fails.

    A crash leaves `out` absent, never partial. Folders above it are made, and removed again on failure.

    Raises:
        OSError: no access, not a folder, ...
    """
    made = [folder for folder in out.parents if not folder.exists()]
    partial = out.with_name(f".{out.name[:40]}.partial-{secrets.token_hex(4)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        for path in (*partial.iterdir(), partial):
            _sync(path)
        partial.rename(out)
        try:
            _sync(out.parent)
        except OSError:
            out.rename(partial)
            raise
        made = []
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already, if all went well
        for folder in made:
            with suppress(OSError):  # not made after all, or someone else put something there
                folder.rmdir()


def write_file(path: Path, data: bytes) -> None:
    """Write a small file, which appears whole or not at all; one that is there is replaced.

    Raises:
        OSError: no access, no such folder, no space, ...
    """
    partial = path.with_name(f".{path.name[:40]}.partial-{secrets.token_hex(4)}")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
