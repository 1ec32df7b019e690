"""Hugging Face's layout, written: its names and shapes, its config.json, and files of at most so
many bytes with an index, as transformers reads them.

A tower that was padded for quantization stays as wide as it is (4352 in place of 4304 in the 2.2B):
what was added meets zeros, and the config says the width.
"""

import json
from collections.abc import Generator, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..events import Reading
from ..files import write_file
from .reader import HF_PARTS, PATCH_KERNEL
from .safetensors import write_safetensors_in_steps

SHARD_BYTES = 5_000_000_000  # of one file, as transformers and the hub have it
_CLASSES = {
    "smolvlm": "SmolVLMForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
}


def hf_name(name: str) -> str:
    """Return the key that transformers has for a parameter of the module tree."""
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    for theirs, ours in HF_PARTS.items():
        if name.startswith(ours):
            return f"model.{theirs}{name.removeprefix(ours)}"
    raise AssertionError(name)  # the tree has no other parts


def hf_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return a config.json for transformers: `config` with its class, with the dtype by its older
    and its newer name, and without code of others, which did not come along."""
    kept = {key: value for key, value in config.items() if key != "auto_map"}
    named = {"architectures": [_CLASSES[config["model_type"]]]}
    return {**kept, **named, "torch_dtype": dtype, "dtype": dtype}


def write_shards_in_steps(
    folder: Path,
    forms: Mapping[str, mx.array],
    arrays: Iterator[mx.array],
    most: int | None = None,
) -> Generator[Reading]:
    """Write `arrays`, which come in the order of `forms` under the module tree's names, in Hugging
    Face's layout. Yields how many bytes are written.

    Args:
        forms: arrays of the same shapes and dtypes by name, which are not evaluated.
        most: bytes of tensors in a file, unless one tensor has more; SHARD_BYTES by default.

    Raises:
        OSError: no space, read-only, ...
    """
    shards = _split(forms, SHARD_BYTES if most is None else most)
    total, done = sum(form.nbytes for form in forms.values()), 0
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        one = len(shards) == 1
        file = "model.safetensors" if one else f"model-{number:05}-of-{len(shards):05}.safetensors"
        theirs = {hf_name(name): _as_theirs(name, form) for name, form in shard.items()}
        taken = map(_as_theirs, shard, islice(arrays, len(shard)))
        for step in write_safetensors_in_steps(folder / file, theirs, taken, "pt"):
            yield Reading(done + step.done, total, step.what)
        done += sum(form.nbytes for form in theirs.values())
        files |= dict.fromkeys(theirs, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
        text = json.dumps(index, indent=2) + "\n"
        write_file(folder / "model.safetensors.index.json", text.encode())


def _split(forms: Mapping[str, mx.array], most: int) -> list[dict[str, mx.array]]:
    shards: list[dict[str, mx.array]] = [{}]
    held = 0
    for name, form in forms.items():
        if shards[-1] and held + form.nbytes > most:
            shards.append({})
            held = 0
        shards[-1][name] = form
        held += form.nbytes
    return shards


def _as_theirs(name: str, array: mx.array) -> mx.array:
    """A tensor in the shape that PyTorch has for it."""
    if name != PATCH_KERNEL:
        return array
    return mx.contiguous(array.transpose(0, 3, 1, 2))  # (O, kH, kW, I) -> (O, I, kH, kW)
