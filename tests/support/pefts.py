"""PEFT's folders, made by hand with NumPy, and what they make of a checkpoint's weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.checkpoints import weights_of

import numpy as np
from safetensors.numpy import save_file

LAYER = "language_model.layers.0."
Q, UP = f"{LAYER}self_attn.q_proj", f"{LAYER}mlp.up_proj"
FC1, FC2 = (f"vision_model.encoder.layers.1.mlp.{name}" for name in ("fc1", "fc2"))
PROJ, HEAD = "connector.modality_projection.proj", "language_model.lm_head"
TABLE = "language_model.embed_tokens"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Arrays = dict[str, np.ndarray]
Forms = Mapping[str, tuple[int, float]]


def arrays_of(folder: Path) -> Arrays:
    return {name: np.array(array) for name, array in weights_of(folder).items()}


def theirs(path: str, names: str = "model.{}") -> str:
    """A layer's name in transformers' model; `names` holds what versions put around a part's."""
    if path == HEAD:
        return "lm_head"
    part, _, rest = path.replace("language_model", "text_model").partition(".")
    return f"{names.format(part)}.{rest}"


def write(out: Path, tensors: Arrays, **config: Any) -> Path:
    """A folder; what is None is left out of its config."""
    out.mkdir(parents=True)
    save_file({f"base_model.model.{key}": a for key, a in tensors.items()}, out / WEIGHTS)
    whole = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    kept = {name: value for name, value in whole.items() if value is not None}
    (out / CONFIG).write_text(json.dumps(kept))
    return out


def low_rank(
    base: Arrays, forms: Forms, dora: bool = False, names: str = "model.{}"
) -> tuple[Arrays, Arrays]:
    """Tensors of PEFT's file for layers of (rank, scale), and what the layers' weights become."""
    rng, tensors, want = np.random.default_rng(0), Arrays(), Arrays()
    for path, (rank, scale) in forms.items():
        weight, key = base[f"{path}.weight"], theirs(path, names)
        a, b = (
            rng.normal(0, 0.1, shape).astype(np.float32)
            for shape in ((rank, weight.shape[1]), (weight.shape[0], rank))
        )
        tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        changed = weight + scale * b.astype(np.float64) @ a
        if dora:
            norms = np.linalg.norm(weight, axis=1) * rng.uniform(0.8, 1.2, len(weight))
            m = tensors[f"{key}.lora_magnitude_vector"] = norms.astype(np.float32)
            changed *= (m / np.linalg.norm(changed, axis=1))[:, None]
        want[f"{path}.weight"] = changed
    return tensors, want
