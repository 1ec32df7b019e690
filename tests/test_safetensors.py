"""What is written is what safetensors and MLX read."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

from smolvlm_mlx.checkpoint.safetensors import (
    MAX_HEADER_BYTES,
    listed,
    read_header,
    same_bytes,
    save_safetensors,
    write_safetensors,
    write_safetensors_in_steps,
)
from smolvlm_mlx.errors import CheckpointError
from smolvlm_mlx.events import Reading

import mlx.core as mx
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

DTYPES = (mx.float32, mx.float16, mx.bfloat16, mx.uint32)


def arrays() -> dict[str, mx.array]:
    made = {
        f"{dtype}".split(".")[-1]: (mx.arange(30).reshape(2, 3, 5) * 7 - 9).astype(dtype)
        for dtype in DTYPES
    }
    made["transposed"] = made["float32"].transpose(2, 0, 1)
    made["one ünï"] = mx.array([-0.0, float("inf"), float("nan")], mx.bfloat16)
    made["scalar"], made["empty"] = mx.array(3.5, mx.float16), mx.zeros((0, 4), mx.float32)
    return made


def test_bytes_are_what_safetensors_reads_back(tmp_path: Path) -> None:
    made, path = arrays(), tmp_path / "a.safetensors"
    calls = list(write_safetensors_in_steps(path, made, iter(made.values())))
    total = sum(array.nbytes for array in made.values())
    assert calls[-1] == Reading(total, total, "bytes")
    assert len(calls) == len(made)
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "mlx"}
        assert list(file.keys()) == sorted(made)
        for name, array in made.items():
            assert tuple(file.get_slice(name).get_shape()) == array.shape
            if array.dtype == mx.bfloat16:
                have, want = np.array(loaded[name].view(mx.uint16)), np.array(array.view(mx.uint16))
            else:
                have, want = file.get_tensor(name), np.array(array)
            np.testing.assert_array_equal(have, want)
            assert loaded[name].dtype == array.dtype


def test_tensors_begin_at_a_multiple_of_eight(tmp_path: Path) -> None:
    for length in range(1, 10):
        path = tmp_path / f"{length}.safetensors"
        write_safetensors(path, {"x" * length: mx.zeros((1,))}, [mx.array([1.5])])
        written = path.read_bytes()
        size = int.from_bytes(written[:8], "little")
        assert size % 8 == 0
        assert json.loads(written[8 : 8 + size])["x" * length]["data_offsets"] == [0, 4]
        assert written[8 + size :] == np.float32(1.5).tobytes()
        assert b" " not in written[8 : 8 + size].rstrip()


def test_all_is_on_disk_before_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "a.safetensors", list[int]()
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    write_safetensors(path, {"x": mx.zeros((3,))}, [mx.zeros((3,))])
    assert synced == [path.stat().st_size]


@pytest.mark.parametrize("nbytes", [1, 2, 2**20, 2**20 + 1, 2**21 + 7])
def test_bytes_are_the_same_to_the_last(nbytes: int, tmp_path: Path) -> None:
    path, base = tmp_path / "a.safetensors", np.random.default_rng(0).bytes(nbytes)
    made = {"base": base, "copy": base} | {
        f"other at {at}": base[:at] + bytes([base[at] ^ 1]) + base[at + 1 :]
        for at in {0, nbytes // 2, nbytes - 1}
    }
    save_file({name: np.frombuffer(data, np.uint8) for name, data in made.items()}, path)
    tensors = {tensor.key: tensor for tensor in read_header(path)}
    same = {name for name, tensor in tensors.items() if same_bytes(tensors["base"], tensor)}
    assert same == {"base", "copy"}


def test_bytes_are_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sizes, opened = tmp_path / "a.safetensors", list[int](), Path.open
    save_file({name: np.zeros(2**21 + 7, np.uint8) for name in "ab"}, path)
    first, second = read_header(path)

    def recorded(path: Path, mode: str) -> Any:
        file = Mock(wraps=opened(path, mode))
        file.__enter__ = lambda _: file
        file.__exit__ = lambda *_: file.close()
        read = file.read

        def counted(size: int) -> bytes:
            sizes.append(size)
            data: bytes = read(size)
            return data

        file.read = counted
        return file

    monkeypatch.setattr(Path, "open", recorded)
    assert same_bytes(first, second)
    assert sizes == [2**20] * 4 + [7] * 2


def test_bytes_of_another_kind_are_not_the_same(tmp_path: Path) -> None:
    path, zeros = tmp_path / "a.safetensors", np.zeros((2, 4), np.float32)
    kinds = {"a": zeros, "b": zeros.T.copy(), "c": zeros.view(np.int32)}
    save_file(kinds, path)
    a, b, c = read_header(path)
    assert (same_bytes(a, a), same_bytes(a, b), same_bytes(a, c)) == (True, False, False)


@pytest.mark.parametrize(
    ("count", "end"), [(1, "p0"), (20, "p19"), (21, "p19; and 1 more"), (50, "p19; and 30 more")]
)
def test_of_many_problems_twenty_are_named(count: int, end: str) -> None:
    text = listed([f"p{number}" for number in range(count)])
    assert text.endswith(end)
    assert text.count("p") == min(count, 20)


def test_nothing_to_write(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {}, [])
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        assert list(file.keys()) == []


def test_an_existing_file_is_replaced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write fails; in between there is the old one."""
    path, write, left = tmp_path / "a.safetensors", os.write, 0
    save_safetensors(path, {"a": mx.array([1.0, 2.0]), "step": mx.array(7, mx.uint64)})
    before = path.read_bytes()

    def failing(descriptor: int, data: bytes) -> int:
        nonlocal left
        left -= 1
        assert path.read_bytes() == before
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", failing)
    for nth in (1, 2):
        left = nth
        with pytest.raises(OSError, match="No space left"):
            save_safetensors(path, {"b": mx.zeros((3,))})
        assert [(file, file.read_bytes()) for file in tmp_path.iterdir()] == [(path, before)]
    save_safetensors(path, {"b": mx.zeros((3,))})
    assert [*cast(dict[str, mx.array], mx.load(str(path)))] == ["b"]


def test_arrays_have_to_be_those_announced(tmp_path: Path) -> None:
    form = {"a": mx.zeros((2,))}
    with pytest.raises(AssertionError, match="a"):
        write_safetensors(tmp_path / "1", form, [mx.zeros((3,))])
    with pytest.raises(AssertionError, match="a"):
        write_safetensors(tmp_path / "2", form, [mx.zeros((2,), mx.float16)])
    with pytest.raises(ValueError, match="shorter"):
        write_safetensors(tmp_path / "3", form, [])
    with pytest.raises(ValueError, match="longer"):
        write_safetensors(tmp_path / "4", {}, [mx.zeros((2,))])


def test_a_failed_write_leaves_no_open_file(tmp_path: Path) -> None:
    def failing() -> Iterator[mx.array]:
        yield mx.zeros((2,))
        raise OSError("gone")

    forms = {name: mx.zeros((2,)) for name in "ab"}
    descriptors = Path("/dev/fd")
    before = len(list(descriptors.iterdir()))
    with pytest.raises(OSError, match="gone"):
        write_safetensors(tmp_path / "a.safetensors", forms, failing())
    assert len(list(descriptors.iterdir())) == before
    (tmp_path / "a.safetensors").unlink()


def test_a_header_has_a_limit(tmp_path: Path) -> None:
    path, most = tmp_path / "a.safetensors", MAX_HEADER_BYTES
    assert most == 4 * 2**20
    for size in (most, most + 1):
        path.write_bytes(size.to_bytes(8, "little") + b"{}".ljust(size))
        if size == most:
            assert list(read_header(path)) == []
        else:
            with pytest.raises(CheckpointError, match=f"its header has {size} bytes, more than"):
                list(read_header(path))
