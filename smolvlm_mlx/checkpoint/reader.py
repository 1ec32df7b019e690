"""A folder or hub id -> (model, processor). Everything is checked before MLX reads a byte of the
weights.

Two layouts are known, and told apart by key names: Hugging Face's (`model.text_model.*`, or
`text_model.*` as saved without the head, convolution kernels (O, I, kH, kW)) and mlx-community's
(`language_model.*`, kernels (O, kH, kW, I), possibly quantized). Names, shapes and dtypes in the
headers (see `safetensors`) are compared with those of the module tree that the validated config
describes.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx

from .. import device
from ..config import ModelConfig
from ..errors import CheckpointError, quote
from ..files import read_json
from ..inputs.processor import Processor
from ..model import SmolVLM, optimize
from .choices import ADAPTER_CONFIG
from .hub import find
from .quantization import Quantization, quantize_modules
from .safetensors import Tensor, find_shards, listed, read_header, read_tensor, same_bytes

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
FLOATS = {"F64", "F32", "F16", "BF16"}
# Of packed weights, and of scales that are 8-bit floats.
_INTEGERS = {mx.uint32: {"U32"}, mx.uint8: {"U8"}}
# Of Hugging Face's layout, behind `model.` where a file has that.
HF_PARTS = {
    "text_model.": "language_model.",
    "vision_model.": "vision_model.",
    "connector.": "connector.",
}
# Computed from the config; files of older versions of transformers hold them.
_BUFFERS = (".rotary_emb.inv_freq", ".embeddings.position_ids")
PATCH_KERNEL = "vision_model.embeddings.patch_embedding.weight"
_HEAD, _TABLE = "language_model.lm_head", "language_model.embed_tokens"


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint folder whose weights have not been read yet."""

    folder: Path
    raw_config: Mapping[str, Any]
    config: ModelConfig
    quantization: Quantization | None
    tensors: Mapping[str, Tensor]
    is_hf_layout: bool
    left_out: tuple[str, ...] = ()  # keys of tensors that are computed and not read

    @property
    def has_head(self) -> bool:
        """Whether lm_head is in the file. Config flags about tying moved over time and lie."""
        return f"{_HEAD}.weight" in self.tensors

    @cached_property
    def is_tied(self) -> bool:
        """Whether logits come from the embedding table: there is no lm_head, or it is a copy of the
        table."""
        head = {name: self.tensors[name] for name in self.tensors if name.startswith(_HEAD)}
        table = {
            name.replace(_TABLE, _HEAD): self.tensors[name]
            for name in self.tensors
            if name.startswith(_TABLE)
        }
        return not head or (
            head.keys() == table.keys()
            and all(same_bytes(head[name], table[name]) for name in head)
        )

    def is_quantized(self, module: str) -> bool:
        return f"{module}.scales" in self.tensors

    @cached_property
    def nbytes(self) -> int:
        return sum(
            shard.stat().st_size for shard in {tensor.shard for tensor in self.tensors.values()}
        )

    def loaded_nbytes(self, dtype: mx.Dtype) -> int:
        """Bytes of the weights in memory: what is quantized as it is, all else in `dtype`."""
        return sum(
            math.prod(tensor.shape) * dtype.size if tensor.dtype in FLOATS else tensor.nbytes
            for tensor in self.tensors.values()
        )

    def parts(self) -> dict[str, tuple[int, int]]:
        """(parameters, bytes) of tower, connector and decoder; scales and biases are no
        parameters."""
        parameters = SmolVLM(self.config, tied=not self.has_head).named_parameters()
        return {
            part: (
                sum(array.size for name, array in parameters.items() if name.startswith(part)),
                sum(
                    tensor.nbytes for name, tensor in self.tensors.items() if name.startswith(part)
                ),
            )
            for part in ("vision_model", "connector", "language_model")
        }

    def read(self, stream: mx.Stream | None = None) -> Iterator[tuple[str, mx.array]]:
        """Our name and a lazy array of each tensor, in mlx-community's layout; a tensor is read
        when evaluated, at once in a file that has float64.

        Args:
            stream: of the CPU, which reads; the thread's own by default.
        """
        shards: dict[Path, dict[str, mx.array]] = {}
        doubles = {tensor.shard for tensor in self.tensors.values() if tensor.dtype == "F64"}
        for name, tensor in self.tensors.items():
            if tensor.shard in doubles:  # mx.load takes no file with float64
                array = read_tensor(self._as_stored(name, tensor))
            else:
                if tensor.shard not in shards:
                    loaded = mx.load(str(tensor.shard), stream=stream)
                    shards[tensor.shard] = loaded  # type: ignore[assignment]  # no .npy
                array = shards[tensor.shard].pop(tensor.key)
            if self.is_hf_layout and name == PATCH_KERNEL:
                array = array.transpose(0, 2, 3, 1)  # (O, I, kH, kW) -> (O, kH, kW, I)
            yield name, array

    def _as_stored(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor with the shape that it has in its file."""
        if not (self.is_hf_layout and name == PATCH_KERNEL):
            return tensor
        O, kH, kW, I = tensor.shape
        return replace(tensor, shape=(O, I, kH, kW))

    def build(self, tied: bool) -> SmolVLM:
        """The module tree this checkpoint fills, with unevaluated random weights."""
        model = SmolVLM(self.config, tied)
        if self.quantization is not None:
            quantize_modules(model, self.quantization, self.is_quantized)
        return model


def load(
    path_or_id: str | Path,
    dtype: str | None = None,
    revision: str | None = None,
    *,
    adapter: str | Path | None = None,
    fuse: bool = True,
    lazy: bool | Literal["vision"] = False,
    memory: int | str | None = None,
) -> tuple[SmolVLM, Processor]:
    """Load a checkpoint for inference, by any thread, whichever loads it.

    Args:
        path_or_id: a folder, a name such as "500M" (`checkpoint.names`), or a hub id such as
            "HuggingFaceTB/SmolVLM2-500M-Video-Instruct".
        dtype: to compute in, "bfloat16" (default on a GPU), "float16", "float32" (on a CPU).
        revision: branch, tag or commit of the hub repository.
        adapter: folder of a LoRA or DoRA adapter for this checkpoint, see `adapters`.
        fuse: join QKV and gate/up projections; off, parameters keep their names, for training.
        lazy: read weights when they are first used: all of them, or with "vision" only those of the
            vision tower. The files must not change meanwhile, and only one thread at a time may use
            the model until they are read.
        memory: most that this process may take, in bytes or as "6GB"; by default half of the
            machine's. MLX's limits are set for it, and caches scaled (`generation.memory`).

    Raises:
        CheckpointError: not found, incomplete, damaged, or not a SmolVLM.
        AdapterError: the adapter is damaged or belongs to another base.
        DeviceError: `memory` is no size, or not enough.
    """
    dtype = dtype or device.default_dtype()
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype {quote(dtype)} is not one of {', '.join(DTYPES)}")
    checkpoint = open_checkpoint(find(path_or_id, revision))
    device.limit_memory(memory, checkpoint.loaded_nbytes(DTYPES[dtype]))
    return _load(checkpoint, DTYPES[dtype], adapter, fuse, lazy)


def _load(
    checkpoint: Checkpoint,
    dtype: mx.Dtype,
    adapter: str | Path | None,
    fuse: bool,
    lazy: bool | Literal["vision"],
) -> tuple[SmolVLM, Processor]:
    with ThreadPoolExecutor(1) as pool:  # the tokenizer is parsed while MLX reads weights
        processor = pool.submit(Processor.from_folder, checkpoint.folder, checkpoint.config)
        if lazy:  # what is not computed yet has to be on a stream that any thread can use
            with mx.stream(mx.new_thread_unsafe_stream(mx.default_device())):
                reading = mx.new_thread_unsafe_stream(mx.cpu)
                model = _fill(checkpoint, dtype, adapter, fuse, reading)
                if lazy == "vision":
                    mx.eval(model.language_model.parameters())
        else:
            model = _fill(checkpoint, dtype, adapter, fuse)
    return model, processor.result()


def _fill(
    checkpoint: Checkpoint,
    dtype: mx.Dtype,
    adapter: str | Path | None,
    fuse: bool,
    reading: mx.Stream | None = None,
) -> SmolVLM:
    """Build a checkpoint's model with its weights; with `reading`, they are read on that stream
    when they are first used."""
    weights, lazy = dict(checkpoint.read(reading)), reading is not None
    if checkpoint.is_tied:
        for name in [name for name in weights if name.startswith(f"{_HEAD}.")]:
            del weights[name]
    model = checkpoint.build(checkpoint.is_tied)
    # Packed weights and their 8-bit scales stay as they are; older conversions hold float16
    # scales, biases and norms.
    cast = [
        (name, w.astype(dtype) if mx.issubdtype(w.dtype, mx.floating) else w)
        for name, w in weights.items()
    ]
    adapt = _adapting(adapter, weights)
    weights.clear()
    model.load_weights(cast)
    del cast
    adapt(model)
    model.eval()
    if fuse:
        optimize(model, lazy)
    if not lazy:
        mx.eval(model.parameters())
    if dtype == mx.float16:
        parameters = model.named_parameters().items()
        if bad := [name for name, w in parameters if not bool(mx.isfinite(w).all())]:
            raise CheckpointError(
                f"{bad[0]}: values beyond float16's range ({len(bad)} tensors); use bfloat16 or "
                "float32"
            )
    return model


# ---- checking its files


def _adapting(
    adapter: str | Path | None, weights: Mapping[str, mx.array]
) -> Callable[[SmolVLM], object]:
    """What adds an adapter to the model of these weights, of which none is kept."""
    if adapter is None:
        return lambda model: None
    from .adapters import fingerprint, load_adapter  # 20 ms that most do not need

    base = fingerprint(weights)
    return lambda model: load_adapter(model, adapter, base)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config.json and the headers of the weight files, and compare every name, shape and
    dtype.

    Raises:
        CheckpointError: anything missing, extra, misshapen or mistyped; all of it is named at once.
    """
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").exists():
        raise CheckpointError(f"{folder}: an adapter; give it as adapter, beside its base")
    raw = read_json(folder / "config.json")
    config, quantization = ModelConfig.from_dict(raw), Quantization.from_config(raw)
    held = [tensor for shard in find_shards(folder) for tensor in read_header(shard)]
    found = [tensor for tensor in held if not tensor.key.endswith(_BUFFERS)]
    prefix = _hf_prefix([tensor.key for tensor in held])
    is_hf_layout = prefix is not None
    names = [tensor.key if prefix is None else _our_name(tensor.key, prefix) for tensor in found]
    twice = [quote(name) for name, count in Counter(names).items() if count > 1]
    if twice:
        raise CheckpointError(f"{folder}: there twice: {listed(twice)}; download it again")
    tensors = {}
    for name, tensor in zip(names, found, strict=True):
        shape = tensor.shape
        if is_hf_layout and name == PATCH_KERNEL and len(shape) == 4:
            shape = (shape[0], shape[2], shape[3], shape[1])
        tensors[name] = replace(tensor, shape=shape)
    left_out = tuple(tensor.key for tensor in held if tensor.key.endswith(_BUFFERS))
    checkpoint = Checkpoint(folder, raw, config, quantization, tensors, is_hf_layout, left_out)
    _compare(checkpoint)
    return checkpoint


def _hf_prefix(keys: Sequence[str]) -> str | None:
    """What stands before the parts' names in Hugging Face's layout; None in the other."""
    if any(key.startswith("model.") for key in keys):
        return "model."
    return "" if any(key.startswith("text_model.") for key in keys) else None


def _our_name(key: str, prefix: str) -> str:
    if key.startswith("lm_head."):
        return f"language_model.{key}"
    for theirs, ours in HF_PARTS.items():
        if key.startswith(prefix + theirs):
            return ours + key.removeprefix(prefix + theirs)
    return f"{key} (in a file of Hugging Face's layout)"


def _compare(checkpoint: Checkpoint) -> None:
    tensors = checkpoint.tensors
    scales = [name for name in tensors if name.endswith(".scales")]
    if scales and checkpoint.quantization is None:
        raise CheckpointError(
            f"{checkpoint.folder}: {len(scales)} quantized layers, but config.json has no "
            "quantization"
        )
    expected = checkpoint.build(tied=not checkpoint.has_head).named_parameters()
    problems = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [
        f"unexpected {quote(tensors[name].key)}"
        for name in sorted(tensors.keys() - expected.keys())
    ]
    for name in sorted(tensors.keys() & expected.keys()):
        tensor, array = tensors[name], expected[name]
        if tensor.shape != array.shape:
            problems.append(f"{tensor.key} has shape {list(tensor.shape)}, not {list(array.shape)}")
        if tensor.dtype not in _INTEGERS.get(array.dtype, FLOATS):
            problems.append(f"{tensor.key} is {tensor.dtype}")
    if problems:
        raise CheckpointError(
            f"{checkpoint.folder}: the weights do not fit config.json: {listed(problems)}"
        )
