"""Weight files: what their headers say of the tensors, and how one is written tensor by tensor.

`mx.load` accepts files that `safetensors` rejects, and crashes on some, so `safetensors` opens each
file first. Pickles are refused by name. `mx.save_safetensors` wants all tensors at once and
truncates in place; here a header that is known beforehand is written first, and nothing is kept.
The format is public (github.com/huggingface/safetensors, README): 8 bytes of header length, the
header in JSON, the tensors' bytes.
"""

import json
import os
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, quote, reason
from ..events import Reading, at_once
from ..files import is_utf8, new_file, read_json, write_all

_BLOCK = 2**20
MAX_HEADER_BYTES = 4 * 2**20  # the family's largest has 150 kB
_CODES = {
    mx.float32: "F32",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint8: "U8",
    mx.uint32: "U32",
    mx.uint64: "U64",  # steps that an optimizer counts
}
# What a file's bytes are to NumPy, which has no bfloat16; safetensors are little-endian.
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "U32": "<u4"}
_SHARD_NAME = re.compile(r"[\w.-]+\.safetensors")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file, as its header describes it."""

    key: str
    shard: Path
    shape: tuple[int, ...]
    dtype: str
    start: int  # of its bytes in the file
    nbytes: int


def find_shards(folder: Path) -> list[Path]:
    """The weight files: model.safetensors, or those that the index names, or the only one there
    is."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():  # before an index, as in transformers
        return [whole]
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        names = list(weight_map.values()) if isinstance(weight_map, dict) else []
        bad = [
            name for name in names if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name)
        ]
        if not names or bad:
            what = f"{quote(bad[0])}, not a .safetensors file of this folder" if bad else "no files"
            raise CheckpointError(f"{index}: weight_map names {what}; download it again")
        shards = [folder / name for name in sorted(set(names))]
        absent = [shard.name for shard in shards if not shard.is_file()]
        if absent:
            raise CheckpointError(f"{folder}: missing {listed(absent)}; download it again")
        return shards
    shards = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if len(shards) == 1:
        return shards
    if shards:
        raise CheckpointError(
            f"{folder}: {len(shards)} .safetensors files and no model.safetensors.index.json"
        )
    others = sorted(
        p.name
        for kind in ("bin", "pt", "pth", "pkl", "npz", "gguf")
        for p in folder.glob(f"*.{kind}")
    )
    hint = f" ({others[0]} is not read: only safetensors files are safe to open)" if others else ""
    raise CheckpointError(f"{folder}: no model.safetensors{hint}")


def read_header(shard: Path) -> Iterator[Tensor]:
    """Each tensor of a file that `safetensors` accepts; also those that are there twice, which it
    hides."""
    if not is_utf8(shard):
        raise CheckpointError(
            f"{quote(shard, end=True)}: MLX reads only files whose names are UTF-8; rename the "
            "folder, or make a link to it"
        )
    try:
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            held = os.fstat(file.fileno()).st_size
        if held > length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{shard}: its header has {length} bytes, more than {MAX_HEADER_BYTES}; download "
                "it again"
            )
        with safe_open(shard, framework="numpy"), shard.open("rb") as file:
            file.seek(8)
            for key, pairs in json.loads(file.read(length), object_pairs_hook=list):
                if key != "__metadata__":
                    entry = dict(pairs)
                    start, end = entry["data_offsets"]
                    yield Tensor(
                        key,
                        shard,
                        tuple(entry["shape"]),
                        entry["dtype"],
                        8 + length + start,
                        end - start,
                    )
    except (SafetensorError, OSError) as error:
        text = reason(error)
        raise CheckpointError(
            f"{shard}: damaged, or no safetensors file ({text}); download it again"
        ) from error


def read_tensor(tensor: Tensor) -> mx.array:
    """Read one tensor at once, by NumPy; what is float64 comes as float32."""
    raw = np.fromfile(tensor.shard, np.uint8, tensor.nbytes, offset=tensor.start)
    array = raw.view(_NUMPY[tensor.dtype]).reshape(tensor.shape)
    if tensor.dtype == "F64":
        array = array.astype(np.float32)
    return mx.array(array).view(mx.bfloat16) if tensor.dtype == "BF16" else mx.array(array)


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, read block by block, up to the first difference."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    with a.shard.open("rb") as first, b.shard.open("rb") as second:
        first.seek(a.start)
        second.seek(b.start)
        for left in range(a.nbytes, 0, -_BLOCK):
            if first.read(min(left, _BLOCK)) != second.read(min(left, _BLOCK)):
                return False
    return True


def listed(problems: list[str]) -> str:
    return "; ".join(problems[:20]) + (
        f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
    )


# ---- writing


def write_safetensors_in_steps(
    path: Path, forms: Mapping[str, mx.array], arrays: Iterable[mx.array], made_for: str = "mlx"
) -> Generator[Reading]:
    """Write `arrays`, which must come in the order of `forms`, and sync the file to disk.

    Yields how many bytes are written.

    Args:
        forms: arrays of the same shapes and dtypes by name, which are not evaluated.
        made_for: what the file says of itself: "pt" is PyTorch.

    Raises:
        OSError: no space, read-only, ...
    """
    header: dict[str, object] = {"__metadata__": {"format": made_for}}
    end = 0
    for name, form in forms.items():
        start, end = end, end + form.nbytes
        header[name] = {
            "dtype": _CODES[form.dtype],
            "shape": form.shape,
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors begin at a multiple of 8
    with path.open("wb", buffering=0) as file:
        write_all(file.fileno(), len(encoded).to_bytes(8, "little") + encoded)
        done = 0
        for (name, form), array in zip(forms.items(), arrays, strict=True):
            assert (array.shape, array.dtype) == (form.shape, form.dtype), name
            if array.dtype == mx.bfloat16:
                array = array.view(mx.uint16)  # NumPy has no bfloat16
            flat = np.ascontiguousarray(np.asarray(array)).reshape(-1).view(np.uint8)
            write_all(file.fileno(), flat.data)
            done += form.nbytes
            yield Reading(done, end, "bytes")
        os.fsync(file.fileno())


write_safetensors = at_once(write_safetensors_in_steps)


def save_safetensors(path: Path, arrays: Mapping[str, mx.array]) -> None:
    """Write arrays as a file that appears whole or not at all; `mx.save_safetensors` truncates in
    place, and where a disk is full raises no OSError.

    Raises:
        OSError: no space, read-only, ...
    """
    with new_file(path) as partial:
        write_safetensors(partial, arrays, arrays.values())
