"""Gradients are PyTorch's, and a step of each kind runs on the whole 256M."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from smolvlm_mlx import load
from smolvlm_mlx.checkpoint.choices import Part
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.inputs.messages import user_message
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.inputs.tiles import normalize
from smolvlm_mlx.training.dataset import Batch, collate, make_example
from smolvlm_mlx.training.loop import loss_sum
from smolvlm_mlx.training.plan import Plan
from smolvlm_mlx.training.run import prepare
from tests.parity.checkpoints import channels_first, make, picture, reference_model

import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

pytestmark = pytest.mark.parity

HF_PREFIXES = {"language_model.lm_head.": "lm_head.", "language_model.": "model.text_model."}
PARTS: tuple[Part, ...] = ("decoder", "connector", "vision")


def hf_name(name: str) -> str:
    ours = next((prefix for prefix in HF_PREFIXES if name.startswith(prefix)), "")
    return HF_PREFIXES.get(ours, "model.") + name.removeprefix(ours)


def test_gradients_are_pytorchs(tmp_path: Path) -> None:
    """Of two conversations padded to one length, with a picture each, for every parameter of two
    layers of the 256M."""
    folder = make("SmolVLM2-256M-Video-Instruct", tmp_path, "--layers", "2", "--dtype", "float32")
    model, processor = load(folder, "float32", fuse=False)
    conversations = [
        [
            user_message("What is this?", [picture(1)]),
            {"role": "assistant", "content": "A picture of noise."},
        ],
        [
            user_message("And this one, please?", [picture(2)]),
            {"role": "assistant", "content": "More."},
        ],
    ]
    batch = collate(
        [make_example(processor, messages, ImageOptions(split=False)) for messages in conversations]
    )
    _, gradients = nn.value_and_grad(model, loss_sum)(model, batch)
    ours = dict(tree_flatten(gradients))

    reference = reference_model(folder).float()
    reference_loss(reference, batch).backward()
    theirs = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, gradient in ours.items():
        want = theirs[hf_name(name)].numpy()
        have = np.array(gradient)
        if name.endswith("patch_embedding.weight"):
            have = have.transpose(0, 3, 1, 2)
        error = float(np.linalg.norm(have - want)) / max(float(np.linalg.norm(want)), 1e-6)
        # k_proj's biases have no gradient but rounding: softmax does not change when all scores
        # move together.
        assert error < 1e-3 or name.endswith("k_proj.bias"), f"{name}: {error:.1e}"


def reference_loss(reference: Any, batch: Batch) -> torch.Tensor:
    """The same sum over the same tokens, by the reference: a picture is one of the batch's tiles a
    row."""
    tiles = channels_first(normalize(batch.tiles, batch.settings)).reshape(
        len(batch.input_ids), 1, 3, *batch.tiles.shape[1:3]
    )
    ids = torch.from_numpy(batch.input_ids.astype(np.int64))
    logits = reference(input_ids=ids, pixel_values=tiles).logits
    learned = torch.from_numpy(batch.loss_mask[:, 1:])
    return torch.nn.functional.cross_entropy(
        logits[:, :-1][learned], ids[:, 1:][learned], reduction="sum"
    )


@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
def test_a_step_on_the_whole_256m(kind: str, tmp_path: Path) -> None:
    folder = make("SmolVLM2-256M-Video-Instruct", tmp_path / "source")
    if kind == "qlora":
        convert(folder, tmp_path / "4bit", "4bit")
        folder = tmp_path / "4bit"
    picture(3).save(tmp_path / "picture.png")
    row = {"image": "picture.png", "question": "What is this?", "answer": "Noise.", "split": False}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    plan = Plan(steps=2, batch_size=1, accumulate=1, warmup=0.5, learning_rate=1e-3)
    plan = replace(plan, method="full", parts=PARTS, learning_rate=1e-5) if kind == "full" else plan
    run = prepare(folder, tmp_path / "data.jsonl", tmp_path / "out", plan, dtype="float32")
    result = run.train()
    first, second = run.trainer.history
    assert second.loss < first.loss
    assert result is not None
    if kind == "full":
        load(result, lazy=True)
    else:
        load(folder, adapter=result, lazy=True)
