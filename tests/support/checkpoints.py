"""Checkpoints that are changed, read and asked."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from smolvlm_mlx.checkpoint.adapters import fingerprint, save_adapter
from smolvlm_mlx.checkpoint.choices import AdapterForm
from smolvlm_mlx.checkpoint.lora import AdapterConfig, adapter_weights, add_adapter, layers_of
from smolvlm_mlx.checkpoint.reader import load, open_checkpoint
from smolvlm_mlx.config import ModelConfig
from smolvlm_mlx.files import read_json
from smolvlm_mlx.inputs.processor import Processor
from smolvlm_mlx.model import SmolVLM

import mlx.core as mx
import numpy as np

Loaded = tuple[SmolVLM, Processor]
Tensors = dict[str, mx.array]


def load_processor(folder: Path) -> Processor:
    """Of a folder that needs no weights."""
    return Processor.from_folder(folder, ModelConfig.from_dict(read_json(folder / "config.json")))


def load_for_training(folder: Path) -> Loaded:
    """Nothing is joined, and pictures are two tiles at most."""
    model, processor = load(folder, fuse=False)
    processor.settings = replace(processor.settings, max_tiles=2)
    return model, processor


def weights_of(folder: Path) -> Tensors:
    """By our names and in mlx-community's layout."""
    return dict(open_checkpoint(folder).read())


def copy(
    source: Path, out: Path, tensors: Mapping[str, mx.array] | None = None, **config: Any
) -> Path:
    """A copy with other tensors, and other values in config.json (None: without that key)."""
    shutil.copytree(source, out)
    if tensors is not None:
        (out / "model.safetensors").unlink()
        whole = {name: mx.contiguous(array) for name, array in tensors.items()}
        mx.save_safetensors(str(out / "model.safetensors"), whole, {"format": "mlx"})
    raw = {**json.loads((source / "config.json").read_text()), **config}
    (out / "config.json").write_text(
        json.dumps({key: value for key, value in raw.items() if value is not None})
    )
    return out


def random_adapter(
    base: Path,
    out: Path,
    kind: Literal["lora", "dora"] = "lora",
    form: AdapterForm = "mlx",
) -> Path:
    """An adapter of all parts of a checkpoint, that changes all it is around."""
    model, _ = load(base, "float32", fuse=False)
    modules = layers_of(model, ("decoder", "connector", "vision"))
    config = AdapterConfig(kind, 4, 2.0, 0.0, modules, fingerprint(weights_of(base)), "base")
    add_adapter(model, config)
    rng = np.random.default_rng(0)
    values = [
        (
            name,
            array * mx.array(rng.uniform(0.8, 1.2, array.shape), mx.float32)
            if name.endswith(".m")
            else mx.array(rng.normal(0, 0.05, array.shape), mx.float32),
        )
        for name, array in adapter_weights(model, config).items()
    ]
    model.load_weights(values, strict=False)
    out.mkdir()
    save_adapter(model, config, out, form)
    return out


def logits(
    folder: Path, adapter: Path | None = None, fuse: bool = True, dtype: str = "float32"
) -> np.ndarray:
    """Of a few words and a picture."""
    model, _ = load(folder, dtype, adapter=adapter, fuse=fuse)
    ids = mx.array(
        [[5, 9, 200] + [model.config.image_token_id] * model.config.tokens_per_tile + [31, 7]]
    )
    side = model.config.vision_config.image_size
    pixel_values = mx.array(
        np.random.default_rng(0).standard_normal((1, side, side, 3), np.float32)
    )
    return np.array(model(ids, pixel_values).astype(mx.float32))
