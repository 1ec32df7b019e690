"""mlx-vlm in an environment of its own, and the logits of both for the same inputs.

Set SMOLVLM_MLX_PEER_PYTHON to a Python that has mlx_vlm (0.7.10 here); it needs no torch.
"""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from smolvlm_mlx.checkpoint.reader import load

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

PEER = os.environ.get("SMOLVLM_MLX_PEER_PYTHON", "")
needs_peer = pytest.mark.skipif(not PEER, reason="SMOLVLM_MLX_PEER_PYTHON is not set")

Logits = dict[str, NDArray[np.float32]]  # image tokens, logits with pictures, logits of text

# Without an attention mask: from one, mlx-vlm computes position ids in float32, which for the 27 x
# 27 patches of the 2.2B are one too small in rows and columns 5 to 14 (transformers 5.23 has plain
# ones). Embeddings in float32: a table of mxfp4, mxfp8 or nvfp4 gives bfloat16, to which mlx-vlm
# rounds the image tokens too.
_LOGITS = """
import sys
from pathlib import Path
import mlx.core as mx, numpy as np
from mlx_vlm.utils import load_model
data = np.load(sys.argv[1])
ids = mx.array(data["input_ids"])[None]
for folder in map(Path, sys.argv[3:]):
    model = load_model(folder)
    model.set_dtype(mx.float32)
    features, *_ = model.vision_model(mx.array(data["pixel_values"]))
    tokens = model.connector(features)
    embeddings = model._prepare_inputs_for_multimodal(
        tokens.reshape(-1, tokens.shape[-1]),
        model.language_model.embed_tokens(ids).astype(mx.float32),
        ids,
    )
    logits = model.language_model(inputs=ids, inputs_embeds=embeddings).logits
    text = model.language_model(ids[:, :4]).logits
    arrays = {"tokens": tokens, "logits": logits, "text": text}
    out = Path(sys.argv[2]) / f"{folder.name}.npz"
    np.savez(out, **{name: np.array(array) for name, array in arrays.items()})
"""


def run_peer(cwd: Path, *arguments: str) -> None:
    """Run the peer's Python; its errors are the test's."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    done = subprocess.run(
        [PEER, *arguments], capture_output=True, text=True, env=environment, cwd=cwd
    )
    assert done.returncode == 0, done.stderr[-2000:]


def logits_of_both(folders: Iterable[Path], scratch: Path) -> dict[str, tuple[Logits, Logits]]:
    """Ours and theirs by the names of the folders, which are of one model."""
    folders = list(folders)
    config = load(folders[0], "float32")[0].config
    image, side = config.image_token_id, config.vision_config.image_size
    ids = np.array([5, 9, 200, 31] + [image] * 2 * config.tokens_per_tile + [7, 7, 120], np.int32)
    pixel_values = np.random.default_rng(0).standard_normal((2, side, side, 3), np.float32)
    inputs, out = scratch / "inputs.npz", scratch / "theirs"
    np.savez(inputs, input_ids=ids, pixel_values=pixel_values)
    out.mkdir()
    run_peer(scratch, "-c", _LOGITS, str(inputs), str(out), *map(str, folders))
    found: dict[str, tuple[Logits, Logits]] = {}
    for folder in folders:
        model, _ = load(folder, "float32")
        pixels = mx.array(pixel_values)
        ours = {
            "tokens": model.encode_images(pixels),
            "logits": model(mx.array(ids)[None], pixels),
            "text": model(mx.array(ids[:4])[None]),
        }
        with np.load(out / f"{folder.name}.npz") as theirs:
            found[folder.name] = (
                {name: np.array(array) for name, array in ours.items()},
                dict(theirs),
            )
    return found
