"""The bundled model by hand, and a machine that is made up."""

import json
from typing import Any

from smolvlm_mlx.bench.roofline import Machine
from smolvlm_mlx.checkpoint.hub import TINY
from smolvlm_mlx.config import ModelConfig

BUNDLED = ModelConfig.from_dict(json.loads((TINY / "config.json").read_text()))

# 4 layers of width 192, 6 heads and 3 key-value heads of 32, 512 inside, 576 tokens.
LAYERS = 4 * (192 * 192 + 2 * 192 * 96 + 192 * 192 + 3 * 192 * 512)
HEAD = 576 * 192

MACHINE: dict[str, Any] = {
    "device": "made up",
    "backend": "cpu",
    "dtype": "float32",
    "bandwidth": 1e9,
    "flops": 10e9,
    "kernel_seconds": 1e-6,
    "memory": 0,
}


def machine(**changes: Any) -> Machine:
    return Machine(**{**MACHINE, **changes})
