"""Adapters of PEFT, of mlx-vlm and ours: whoever writes one, everybody who reads it computes the
same logits; docs/checkpoints.md has the table."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from convert.random_checkpoint import make
from smolvlm_mlx.checkpoint.adapters import export_adapter
from smolvlm_mlx.checkpoint.choices import AdapterForm, Recipe
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.checkpoint.reader import load
from smolvlm_mlx.config import ModelConfig
from smolvlm_mlx.files import read_json
from tests.parity.checkpoints import channels_first, reference_model
from tests.parity.peer import needs_peer, run_peer
from tests.support.checkpoints import random_adapter
from tests.support.places import ROOT

import mlx.core as mx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model

pytestmark = pytest.mark.parity

Kind = Literal["lora", "dora"]
Logits = NDArray[np.float32]
DECODER = r".*text_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("peft") / "base", seed=3)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("peft") / "tied", seed=3, tied=True)


def inputs(base: Path) -> tuple[NDArray[np.int64], Logits]:
    """Token ids (T,) and two tiles (2, H, W, 3)."""
    config = ModelConfig.from_dict(read_json(base / "config.json"))
    ids = [5, 9, 200, 31] + [config.image_token_id] * 2 * config.tokens_per_tile + [7, 7, 120]
    side = config.vision_config.image_size
    pixel_values = np.random.default_rng(0).standard_normal((2, side, side, 3), np.float32)
    return np.array(ids), pixel_values


def ours(base: Path, adapter: Path | None = None, fuse: bool = True) -> Logits:
    model, _ = load(base, "float32", adapter=adapter, fuse=fuse)
    ids, pixel_values = inputs(base)
    logits: Logits = np.array(model(mx.array(ids)[None], mx.array(pixel_values))[0])
    return logits


def pefts(base: Path, model: Any) -> Logits:
    ids, pixel_values = inputs(base)
    with torch.no_grad():
        logits = model(
            input_ids=torch.from_numpy(ids)[None], pixel_values=channels_first(pixel_values)
        ).logits
    of_first: Logits = logits[0].numpy()
    return of_first


def of_peft(base: Path, out: Path, **settings: Any) -> Path:
    """An adapter that PEFT has made, with random values in all that is trained."""
    model = get_peft_model(reference_model(base), LoraConfig(**{"r": 4, **settings}))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = 0.05 * torch.randn(parameter.shape, generator=generator)
            is_low_rank = "lora_A" in name or "lora_B" in name
            parameter.data = noise if is_low_rank else parameter.data * (1 + 2 * noise) + noise
    model.save_pretrained(out)
    return out


def by_peft(base: Path, adapter: Path) -> Logits:
    return pefts(base, PeftModel.from_pretrained(reference_model(base), adapter).eval())


# ---- what PEFT has made, by its settings

SETTINGS: dict[str, dict[str, Any]] = {
    "all linear layers": {"target_modules": "all-linear", "lora_alpha": 8},
    "DoRA": {"target_modules": "all-linear", "use_dora": True},
    "names": {"target_modules": ["q_proj", "v_proj", "fc1", "proj"], "lora_alpha": 3},
    "an expression": {"target_modules": DECODER, "lora_alpha": 16},
    "rsLoRA": {"target_modules": DECODER, "use_rslora": True},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 2, r"vision_model\..*\.fc1": 6, r".*text_model.*\.0\.mlp.*": 3},
        "alpha_pattern": {"v_proj": 2, r"text_model.layers.1.mlp.up_proj": 32},
        "use_rslora": True,
    },
    "DoRA with patterns": {
        "target_modules": "all-linear",
        "use_dora": True,
        "rank_pattern": {"o_proj": 2},
        "alpha_pattern": {"fc2": 1},
    },
    "whole modules": {
        "target_modules": DECODER,
        "modules_to_save": ["lm_head", "embed_tokens", "modality_projection.proj"],
    },
    "the head": {"target_modules": ["lm_head", "q_proj"]},
    "all biases": {"target_modules": "all-linear", "bias": "all"},
    "biases of the layers": {"target_modules": ["fc1", "q_proj"], "bias": "lora_only"},
    "biases of the layers, DoRA": {
        "target_modules": ["fc1", "fc2"],
        "bias": "lora_only",
        "use_dora": True,
    },
}


def check_read(base: Path, adapter: Path, out: Path) -> None:
    """Loaded, its layers apart or joined, and fused by a conversion."""
    want = by_peft(base, adapter)
    assert np.abs(want - ours(base)).max() > 0.05
    for fuse in (True, False):
        np.testing.assert_allclose(ours(base, adapter, fuse), want, rtol=0, atol=1e-4)
    convert(base, out, Recipe(dtype="float32"), adapter=adapter)
    np.testing.assert_allclose(ours(out), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_pefts_are_read(name: str, base: Path, tmp_path: Path) -> None:
    check_read(base, of_peft(base, tmp_path / "adapter", **SETTINGS[name]), tmp_path / "fused")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("name", ["all linear layers", "whole modules", "the head", "embeddings"])
def test_pefts_of_a_tied_base_are_read(name: str, tied: Path, tmp_path: Path) -> None:
    embeddings = {"target_modules": DECODER, "modules_to_save": ["embed_tokens"]}
    settings = SETTINGS.get(name, embeddings)
    check_read(tied, of_peft(tied, tmp_path / "adapter", **settings), tmp_path / "fused")


# ---- four writers, three readers

_WRITE = """
import sys
from pathlib import Path
import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_vlm.trainer.peft import utils
from mlx_vlm.utils import load_model
model = load_model(Path(sys.argv[1]))
names = ["q_proj", "up_proj", "down_proj", "vision_model.encoder.layers.0.mlp.fc1"]
utils.get_peft_model(model, names, rank=4, alpha=8, use_dora=sys.argv[3] == "dora", verbose=False)
mx.random.seed(0)
values = [
    (name, array * mx.random.uniform(0.8, 1.2, array.shape) if name.endswith(".m")
     else 0.05 * mx.random.normal(array.shape))
    for name, array in tree_flatten(model.trainable_parameters())
]
model.load_weights(values, strict=False)
utils.save_adapter(model, Path(sys.argv[2]) / "adapters.safetensors")
"""
_READ = """
import sys
from pathlib import Path
import mlx.core as mx, numpy as np
from mlx_vlm.trainer.peft.utils import apply_lora_layers
from mlx_vlm.utils import load_model
data = np.load(sys.argv[2])
ids = mx.array(data["input_ids"])[None]
model = load_model(Path(sys.argv[1]))
try:
    model = apply_lora_layers(model, sys.argv[3])
except FileNotFoundError:
    sys.exit(0)
model.set_dtype(mx.float32)
model.eval()
features, *_ = model.vision_model(mx.array(data["pixel_values"]))
tokens = model.connector(features)
embeddings = model._prepare_inputs_for_multimodal(
    tokens.reshape(-1, tokens.shape[-1]), model.language_model.embed_tokens(ids), ids
)
np.save(sys.argv[4], np.array(model.language_model(inputs=ids, inputs_embeds=embeddings).logits[0]))
"""


def by_mlx_vlm(base: Path, adapter: Path) -> Logits | None:
    """None: it finds no adapter there."""
    scratch = adapter.parent
    ids, pixel_values = inputs(base)
    data, out = scratch / f"{adapter.name}-in.npz", scratch / f"{adapter.name}-out.npy"
    np.savez(data, input_ids=ids, pixel_values=pixel_values)
    run_peer(scratch, "-c", _READ, str(base), str(data), str(adapter), str(out))
    return np.load(out) if out.is_file() else None


def by_peft_if_its(base: Path, adapter: Path) -> Logits | None:
    """None: it finds no adapter there."""
    try:
        return by_peft(base, adapter)
    except KeyError as error:  # adapter_config.json is another's
        if error.args != ("peft_type",):
            raise
        return None


def mlx_vlms(base: Path, out: Path, kind: Kind) -> Path:
    out.mkdir()
    run_peer(out, "-c", _WRITE, str(base), str(out), kind)
    return out


WRITERS: dict[str, Callable[[Path, Path, Kind], Path]] = {
    "`finetune`": lambda base, out, kind: random_adapter(base, out, kind),
    "`finetune --save-as peft`": lambda base, out, kind: random_adapter(base, out, kind, "peft"),
    "PEFT (TRL, Unsloth)": lambda base, out, kind: of_peft(
        base, out, target_modules="all-linear", use_dora=kind == "dora"
    ),
    "mlx-vlm": mlx_vlms,
}
# How each reads, and how near to the numbers here, as a share of the largest.
READERS: dict[str, tuple[AdapterForm, Callable[[Path, Path], Logits | None], float]] = {
    "smolvlm-mlx": ("mlx", lambda base, adapter: ours(base, adapter), 0),
    "PEFT": ("peft", by_peft_if_its, 1e-4),
    "mlx-vlm": ("mlx", by_mlx_vlm, 1e-5),
}


def cell(base: Path, adapter: Path, reader: str) -> str:
    """How a reader comes to the logits that an adapter has here."""
    form, read, tolerance = READERS[reader]
    want, have, said = ours(base, adapter), read(base, adapter), "reads it"
    if have is None:
        exported = adapter.with_name(f"{adapter.name} for {form}")
        if not exported.exists():
            export_adapter(adapter, exported, form)
        have, said = read(base, exported), f"after `adapters export --as {form}`"
    assert have is not None
    assert np.abs(want - ours(base)).max() > 0.05
    np.testing.assert_allclose(have, want, rtol=0, atol=tolerance * np.abs(want).max())
    return said


@needs_peer
def test_everybody_reads_everybodys(base: Path, tmp_path: Path) -> None:
    tables = []
    for kind in get_args(Kind):
        rows = [f"| written by | {' | '.join(READERS)} |", "|---" * (len(READERS) + 1) + "|"]
        for number, (writer, write) in enumerate(WRITERS.items()):
            adapter = write(base, tmp_path / f"{kind}{number}", kind)
            cells = [cell(base, adapter, reader) for reader in READERS]
            rows.append(f"| {writer} | {' | '.join(cells)} |")
        tables.append("\n".join(rows))
    assert tables[0] == tables[1]
    page = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"\| written by \|.*?\n(?=\n)", page, re.DOTALL)
    assert told.strip() == tables[0]
