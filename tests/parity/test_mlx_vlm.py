"""Interchange with mlx-vlm: each reads what the other converts, and computes the same logits.

Set SMOLVLM_MLX_PEER_PYTHON to a Python that has mlx_vlm (0.7.10 here); it needs no torch.
Not covered: checkpoints with tied embeddings and no lm_head (granite-docling), which mlx-vlm's
idefics3 cannot load.
"""

import os
import subprocess
from pathlib import Path

from convert.random_checkpoint import make
from smolvlm_mlx.checkpoint.choices import RECIPES
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.checkpoint.reader import load, open_checkpoint

import mlx.core as mx
import numpy as np
import pytest

PEER = os.environ.get("SMOLVLM_MLX_PEER_PYTHON", "")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not PEER, reason="SMOLVLM_MLX_PEER_PYTHON is not set"),
]

# Without an attention mask: from one, mlx-vlm computes position ids in float32, which for the 27 x
# 27 patches of the 2.2B are one too small in rows and columns 5 to 14 (transformers 5.23 has plain
# ones).
PROGRAM = """
import sys
from pathlib import Path
import mlx.core as mx, numpy as np
from mlx_vlm.utils import load_model
model = load_model(Path(sys.argv[1]))
model.set_dtype(mx.float32)
data = np.load(sys.argv[2])
ids = mx.array(data["input_ids"])[None]
features, *_ = model.vision_model(mx.array(data["pixel_values"]))
tokens = model.connector(features)
embeddings = model._prepare_inputs_for_multimodal(
    tokens.reshape(-1, tokens.shape[-1]), model.language_model.embed_tokens(ids), ids
)
logits = model.language_model(inputs=ids, inputs_embeds=embeddings).logits
text = model.language_model(ids[:, :4]).logits
np.savez(sys.argv[3], tokens=np.array(tokens), logits=np.array(logits), text=np.array(text))
"""


def compare(folder: Path, scratch: Path) -> None:
    model, _ = load(folder, "float32")
    image, side = model.config.image_token_id, model.config.vision_config.image_size
    rng = np.random.default_rng(0)
    ids = np.array(
        [5, 9, 200, 31] + [image] * 2 * model.config.tokens_per_tile + [7, 7, 120], np.int32
    )
    pixel_values = rng.standard_normal((2, side, side, 3), np.float32)
    np.savez(scratch / "inputs.npz", input_ids=ids, pixel_values=pixel_values)
    command = [
        PEER,
        "-c",
        PROGRAM,
        str(folder),
        str(scratch / "inputs.npz"),
        str(scratch / "outputs.npz"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=peer_environment())
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.load(scratch / "outputs.npz")
    pixels = mx.array(pixel_values)
    ours = {
        "tokens": model.encode_images(pixels),
        "logits": model(mx.array(ids)[None], pixels),
        "text": model(mx.array(ids[:4])[None]),
    }
    for name, array in ours.items():
        np.testing.assert_allclose(np.array(array), theirs[name], rtol=0, atol=1e-3, err_msg=name)


def peer_environment() -> dict[str, str]:
    return {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }


@pytest.mark.parametrize("model_type", ["smolvlm", "idefics3"])
@pytest.mark.parametrize("recipe", [*RECIPES, None])
def test_mlx_vlm_reads_ours(tmp_path: Path, model_type: str, recipe: str | None) -> None:
    """None: the source itself, in Hugging Face's layout."""
    source = make(tmp_path / "in", model_type, dtype="bfloat16")
    if recipe is not None:
        convert(source, tmp_path / "out", recipe)
    compare(source if recipe is None else tmp_path / "out", tmp_path)


@pytest.mark.parametrize("model_type", ["smolvlm", "idefics3"])
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--dtype", "float16"],
        ["-q", "--q-bits", "4"],
        ["-q", "--q-bits", "8", "--q-group-size", "32"],
    ],
)
def test_we_read_mlx_vlms(tmp_path: Path, model_type: str, options: list[str]) -> None:
    source, out = make(tmp_path / "in", model_type, dtype="bfloat16"), tmp_path / "out"
    command = [
        PEER,
        "-m",
        "mlx_vlm",
        "convert",
        "--hf-path",
        str(source),
        "--mlx-path",
        str(out),
        *options,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=peer_environment(), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (open_checkpoint(out).quantization is not None) is ("-q" in options)
    compare(out, tmp_path)
