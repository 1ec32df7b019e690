"""Steps of training: those of AdamW by hand, batches that are one, layers that are computed again,
and when there is a validation and a saved state."""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from convert.random_checkpoint import TILE
from smolvlm_mlx.checkpoint.choices import Form
from smolvlm_mlx.checkpoint.lora import AdapterConfig, add_adapter, layers_of
from smolvlm_mlx.checkpoint.quantization import Quantization, quantize_modules
from smolvlm_mlx.errors import TrainingError
from smolvlm_mlx.model import SmolVLM
from smolvlm_mlx.model.language import DecoderLayer
from smolvlm_mlx.model.vision import EncoderLayer
from smolvlm_mlx.training.dataset import Batch, Batches, collate
from smolvlm_mlx.training.loop import Settings, Trainer, image_tokens_of, loss_sum
from tests.support.checkpoints import load_for_training
from tests.support.processes import Group
from tests.support.rows import examples_of

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

pytestmark = pytest.mark.usefixtures("mlx_lm_imported", "on_the_cpu")
# Steps are some 1e-3 a weight.
TOLERANCE = 2e-6


def gradients_of(model: SmolVLM, batch: Any) -> dict[str, np.ndarray]:
    _, gradients = nn.value_and_grad(model, loss_sum)(model, batch, image_tokens_of(model, batch))
    return {name: np.array(array) for name, array in dict(tree_flatten(gradients)).items()}


# ---- steps, by hand

Weights = dict[str, np.ndarray]
Gradients = Callable[[Weights, Batch], tuple[float, Weights]]  # with the loss, at some weights


def of_text(folder: Path) -> tuple[SmolVLM, Batches]:
    """A model of which one layer's attention is trained, and the batches of each step: two of
    unequal length, then one, then two. Without pictures, which take time."""
    model, processor = load_for_training(folder)
    model.freeze()
    model.language_model.layers[-1].self_attn.unfreeze()
    rng, no_tiles = np.random.default_rng(0), np.zeros((0, TILE, TILE, 3), np.uint8)
    made = [
        Batch(
            rng.integers(3, 250, (rows, length)).astype(np.int32),
            rng.random((rows, length)) < share,
            no_tiles,
            processor.settings,
        )
        for rows, length, share in ((1, 9, 0.3), (2, 14, 0.8))
    ]
    return model, lambda step: made if step % 2 == 0 else made[:1]


def of_pictures(folder: Path, questions: Path) -> tuple[SmolVLM, Batches]:
    """A model whose connector is trained, and the batch of each step."""
    model, processor = load_for_training(folder)
    model.freeze()
    model.connector.unfreeze()
    batch = collate(examples_of(processor, questions, 0))
    return model, lambda step: [batch]


def trained_weights(model: SmolVLM) -> Weights:
    return {
        name: np.array(array, np.float64)
        for name, array in dict(tree_flatten(model.trainable_parameters())).items()
    }


def rate_by_hand(settings: Settings, step: int) -> float:
    """Of a step counted from 0: a line up to the peak, then a cosine down to a hundredth of it."""
    peak, lowest = settings.learning_rate, settings.learning_rate / 100
    if step < settings.warmup:
        return peak * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * min(1, done))) / 2


def gradients_of_mlx(model: SmolVLM) -> Gradients:
    """Of a model's own parameters."""

    def gradients(weights: Weights, batch: Batch) -> tuple[float, Weights]:
        model.load_weights([(name, mx.array(w, mx.float32)) for name, w in weights.items()], False)
        image_tokens = image_tokens_of(model, batch)
        loss, found = nn.value_and_grad(model, loss_sum)(model, batch, image_tokens)
        return loss.item(), {name: np.array(g) for name, g in dict(tree_flatten(found)).items()}

    return gradients


def train_by_hand(
    gradients: Gradients, start: Weights, batches: Batches, settings: Settings
) -> tuple[list[float], list[float], Weights]:
    """Losses, rates and weights of AdamW (arXiv:1711.05101) in NumPy."""
    weights = {name: w.copy() for name, w in start.items()}
    mean, square = ({name: np.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    losses, rates = [], []
    for step in range(settings.steps):
        total, sums = 0.0, {name: np.zeros_like(w) for name, w in weights.items()}
        for batch in batches(step):
            loss, found = gradients(weights, batch)
            total += loss
            for name, gradient in found.items():
                sums[name] += gradient
        tokens = sum(int(batch.loss_mask[:, 1:].sum()) for batch in batches(step))
        norm = math.sqrt(sum(((g / tokens) ** 2).sum() for g in sums.values()))
        rates.append(rate_by_hand(settings, step))
        for name, w in weights.items():
            gradient = sums[name] / tokens * min(1, settings.clip / norm)
            mean[name] += 0.1 * (gradient - mean[name])
            square[name] += 0.05 * (gradient**2 - square[name])
            unbiased = mean[name] / (1 - 0.9 ** (step + 1))
            size = np.sqrt(square[name] / (1 - 0.95 ** (step + 1))) + 1e-8
            w *= 1 - rates[-1] * settings.weight_decay
            w -= rates[-1] * unbiased / size
        losses.append(total / tokens)
    return losses, rates, weights


BASE = Settings(steps=5, learning_rate=2e-3, warmup=2, weight_decay=0.3, clip=0.3)
# Each field of what a step is made of, changed alone.
CHANGES: dict[str, Any] = {
    "steps": 6,
    "learning_rate": 1e-3,
    "warmup": 3,
    "weight_decay": 3.0,
    "clip": 0.9,
}


@pytest.fixture(scope="module")
def base_weights(shallow: Path) -> Weights:
    """What BASE makes of the weights."""
    with mx.stream(mx.cpu):
        model, batches = of_text(shallow)
        return train_by_hand(gradients_of_mlx(model), trained_weights(model), batches, BASE)[2]


def assert_close(have: Weights, want: Weights) -> None:
    assert have.keys() == want.keys()
    for name in have:
        np.testing.assert_allclose(have[name], want[name], rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("changed", CHANGES)
def test_steps_are_adamws_by_hand(
    changed: str, shallow: Path, base_weights: Weights, tmp_path: Path
) -> None:
    settings = replace(BASE, **{changed: CHANGES[changed]})
    model, batches = of_text(shallow)
    by_hand = gradients_of_mlx(of_text(shallow)[0])
    losses, rates, weights = train_by_hand(by_hand, trained_weights(model), batches, settings)
    trainer = Trainer(model, settings, tmp_path)
    trainer.run(batches)
    np.testing.assert_allclose([record.loss for record in trainer.history], losses, rtol=1e-5)
    have = [record.learning_rate for record in trainer.history]
    np.testing.assert_allclose(have, rates, rtol=1e-5)
    first, other = (int(batch.loss_mask[:, 1:].sum()) for batch in batches(0))
    tokens = [first + other * (step % 2 == 0) for step in range(settings.steps)]
    assert [record.tokens for record in trainer.history] == tokens
    assert_close(trained_weights(model), weights)
    # Not obeyed, it would be seen.
    assert max(np.abs(base_weights[name] - w).max() for name, w in weights.items()) > 10 * TOLERANCE


def gradients_of_an_adapter(model: SmolVLM, path: str, base: np.ndarray, scale: float) -> Gradients:
    """Through the weight that it amounts to, in a model without it (LoRA: arXiv:2106.09685; DoRA,
    whose norm counts as a constant: arXiv:2402.09353)."""
    layer = dict(model.named_modules())[path]
    model.freeze()
    layer.unfreeze()

    def gradients(weights: Weights, batch: Batch) -> tuple[float, Weights]:
        a, b = (weights[f"{path}.{name}"] for name in ("lora_a", "lora_b"))
        m = weights.get(f"{path}.m")
        summed = base + scale * (a @ b).T  # (O, I)
        norm = np.linalg.norm(summed, axis=1, keepdims=True)
        size = 1.0 if m is None else m[:, None] / norm
        amount = {f"{path}.weight": size * summed}
        loss, found = gradients_of_mlx(model)(amount, batch)
        whole = found[f"{path}.weight"].astype(np.float64)
        parts = {"lora_a": scale * (size * whole).T @ b.T, "lora_b": scale * a.T @ (size * whole).T}
        if m is not None:
            parts["m"] = (whole * summed / norm).sum(axis=1)
        return loss, {f"{path}.{name}": part for name, part in parts.items()}

    return gradients


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_adapters_learn_as_by_hand(
    method: Literal["lora", "dora"], bits: int | None, shallow: Path, tmp_path: Path
) -> None:
    """Also beside a quantized weight."""
    model, batches = of_text(shallow)
    path, scale = "language_model.layers.1.mlp.up_proj", 1.5
    if bits is not None:
        quantize_modules(model, Quantization(Form(bits)), lambda module: module == path)
    layer = dict(model.named_modules())[path]
    base = layer.weight
    if bits is not None:
        base = mx.dequantize(base, layer.scales, layer.biases, layer.group_size, layer.bits)
    model.freeze()
    add_adapter(model, AdapterConfig(method, 4, scale, 0.0, (path,), "", ""))
    start = trained_weights(model)
    assert len(start) == {"lora": 2, "dora": 3}[method]
    by_hand = gradients_of_an_adapter(of_text(shallow)[0], path, np.array(base, np.float64), scale)
    losses, _, weights = train_by_hand(by_hand, start, batches, BASE)
    trainer = Trainer(model, BASE, tmp_path)
    trainer.run(batches)
    np.testing.assert_allclose([record.loss for record in trainer.history], losses, rtol=1e-5)
    for name, have in trained_weights(model).items():
        # An Adam's step of a number hardly pushed has the sign of a rounding.
        np.testing.assert_allclose(have, weights[name], rtol=0, atol=1e-4, err_msg=name)


def test_the_seed_is_of_dropout(shallow: Path, tmp_path: Path) -> None:
    losses = []
    for number, seed in enumerate((0, 0, 1)):
        model, batches = of_text(shallow)
        mx.random.seed(7)  # the adapter is the same
        path = layers_of(model, ["decoder"])[:1]
        add_adapter(model, AdapterConfig("lora", 4, 2.0, 0.5, path, "", ""))
        model.eval()  # as it is loaded
        settings = replace(BASE, learning_rate=0.1, seed=seed)
        trainer = Trainer(model, settings, tmp_path / f"{number}")
        trainer.run(batches)
        losses.append([record.loss for record in trainer.history])
    assert losses[0] == losses[1] != losses[2]


def test_each_setting_has_its_test() -> None:
    tested = {*CHANGES, "validate_every", "save_every", "seed"}
    assert tested == {field.name for field in fields(Settings)}


@pytest.mark.parametrize("model_type", ["smolvlm", "idefics3"])
def test_both_families_learn(
    model_type: str, tiny: Path, tiny_v1: Path, mixed_questions: Path, tmp_path: Path
) -> None:
    folder = tiny if model_type == "smolvlm" else tiny_v1
    settings = replace(BASE, steps=2)
    model, batches = of_pictures(folder, mixed_questions)
    by_hand = gradients_of_mlx(of_pictures(folder, mixed_questions)[0])
    losses, _, weights = train_by_hand(by_hand, trained_weights(model), batches, settings)
    trainer = Trainer(model, settings, tmp_path)
    trainer.run(batches)
    np.testing.assert_allclose([record.loss for record in trainer.history], losses, rtol=1e-5)
    assert_close(trained_weights(model), weights)


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_take_a_step_together(
    rank: int, shallow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its share of the batches, of which there may be none; the first alone writes."""
    settings, (model, batches) = replace(BASE, steps=3), of_text(shallow)
    norms, clip = list[float](), optimizers.clip_grad_norm

    def clipped(gradients: Any, largest: float) -> Any:
        found, norm = clip(gradients, largest)
        norms.append(norm.item())
        return found, norm

    monkeypatch.setattr(optimizers, "clip_grad_norm", clipped)
    alone = Trainer(model, settings, tmp_path / "alone")
    alone.run(batches, lambda: batches(1))
    model, _ = of_text(shallow)
    loss_and_gradients = nn.value_and_grad(model, loss_sum)

    def theirs() -> Sequence[Batch]:
        return batches(together.step)[1 - rank :: 2]

    def summed(own: mx.array) -> mx.array:
        return own + sum(loss_sum(model, batch) for batch in theirs())

    def mean(own: Any) -> Any:
        for batch in theirs():
            own = tree_map(mx.add, own, loss_and_gradients(model, batch)[1])
        return tree_map(lambda gradient: gradient / 2, own)

    monkeypatch.setattr(mx.distributed, "init", lambda: Group(rank))
    monkeypatch.setattr(mx.distributed, "all_sum", summed)
    monkeypatch.setattr(nn, "average_gradients", mean)
    together = Trainer(model, settings, tmp_path / "run")
    together.run(batches, lambda: batches(1))
    assert norms[:3] == pytest.approx(norms[3:], rel=1e-4)
    for have, want in zip(together.history, alone.history, strict=True):
        assert have.loss == pytest.approx(want.loss, rel=1e-5)
        assert have.tokens == want.tokens
    assert_close(trained_weights(together.model), trained_weights(alone.model))
    written = [path.name for path in sorted(tmp_path.glob("run/*"))]
    assert written == ["best.safetensors", "state-0000003"] * (rank == 0)


# ---- when it validates and saves


@pytest.mark.parametrize(
    ("validate_every", "save_every", "validated", "saved"),
    [
        (2, 3, [2, 4, 6, 7], [3, 6, 7]),
        (7, 9, [7], [7]),
        (1, 2, [1, 2, 3, 4, 5, 6, 7], [2, 4, 6, 7]),
    ],
)
def test_validations_and_states_come_when_they_are_due(
    validate_every: int,
    save_every: int,
    validated: list[int],
    saved: list[int],
    shallow: Path,
    tmp_path: Path,
) -> None:
    """The last step has both."""
    model, batches = of_text(shallow)
    settings = replace(BASE, steps=7, validate_every=validate_every, save_every=save_every)
    folder = tmp_path / "new" / "run"
    trainer = Trainer(model, settings, folder)

    def saved_states() -> list[str]:
        return [path.name for path in folder.glob("state-*")]

    seen = [saved_states() for _ in trainer.run_in_steps(batches, lambda: batches(1))]
    seen.append(saved_states())
    assert not model.training
    assert [r.step for r in trainer.history if r.validation_loss is not None] == validated
    last = [max((step for step in saved if step < n), default=0) for n in range(1, 8)]
    assert seen == [[f"state-{step:07d}"] if step else [] for step in [*last, 7]]


def test_a_validation_loss_is_the_mean_over_all_its_tokens(shallow: Path, tmp_path: Path) -> None:
    """And without dropout."""
    model, batches = of_text(shallow)
    paths = layers_of(model, ["decoder"])
    add_adapter(model, AdapterConfig("lora", 4, 2.0, 0.9, paths, "", ""))
    model.load_weights([(f"{path}.lora_b", mx.ones((4, 128))) for path in paths[:1]], strict=False)
    trainer = Trainer(model, BASE, tmp_path)
    model.eval()
    sums = [loss_sum(model, batch).item() for batch in batches(0)]
    want = sum(sums) / sum(int(batch.loss_mask[:, 1:].sum()) for batch in batches(0))
    model.train()
    assert trainer.validate(batches(0)) == pytest.approx(want, rel=1e-6)
    assert model.training


def test_a_stopped_run_may_go_on(shallow: Path, tmp_path: Path) -> None:
    model, batches = of_text(shallow)
    trainer = Trainer(model, BASE, tmp_path)
    for record in trainer.run_in_steps(batches):
        trainer.stop = record.step == 2
    assert trainer.step == 2
    trainer.run(batches)
    assert trainer.step == BASE.steps


def test_a_loss_that_is_not_finite_ends_training(shallow: Path, tmp_path: Path) -> None:
    model, batches = of_text(shallow)
    model.language_model.norm.weight = model.language_model.norm.weight * math.nan
    trainer = Trainer(model, BASE, tmp_path)
    with pytest.raises(TrainingError, match="step 1: the loss is nan; use a lower learning rate"):
        trainer.run(batches)
    assert not list(tmp_path.glob("state-*"))


# ---- batches and layers


def test_accumulated_batches_are_one_large_batch(
    shallow: Path, mixed_questions: Path, tmp_path: Path
) -> None:
    """Each token counts the same, in whichever batch it is."""
    weights = []
    for batches in ([[0, 2, 4]], [[0], [2, 4]]):
        model, processor = load_for_training(shallow)
        model.freeze()
        model.connector.unfreeze()
        made = [collate(examples_of(processor, mixed_questions, *rows)) for rows in batches]
        trainer = Trainer(model, Settings(steps=1, warmup=1), tmp_path / f"{len(batches)}")
        trainer.run(lambda step, made=made: made)  # type: ignore[misc]
        weights.append(np.array(model.connector.modality_projection.proj.weight))
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-5)  # of a step of 1e-4


def test_checkpointed_layers_have_the_same_gradients(shallow: Path, mixed_questions: Path) -> None:
    model, processor = load_for_training(shallow)
    batch = collate(examples_of(processor, mixed_questions, 0, 1))
    plain = gradients_of(model, batch)
    model.language_model.checkpointed = model.vision_model.encoder.checkpointed = True
    checkpointed = gradients_of(model, batch)
    assert plain.keys() == checkpointed.keys() == model.named_parameters().keys()
    for name, gradient in plain.items():
        np.testing.assert_allclose(checkpointed[name], gradient, atol=1e-5, err_msg=name)


def test_checkpointed_layers_are_computed_again(
    shallow: Path, mixed_questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer once, and once more on the way back; the others once."""
    model, processor = load_for_training(shallow)
    batch = collate(examples_of(processor, mixed_questions, 0))
    calls = {DecoderLayer: 0, EncoderLayer: 0}

    def count(kind: Any) -> None:
        call = kind.__call__

        def counted(self: nn.Module, *arguments: Any) -> Any:
            calls[kind] += 1
            return call(self, *arguments)

        monkeypatch.setattr(kind, "__call__", counted)

    for kind in calls:
        count(kind)
    for decoder, tower in ((1, 1), (2, 1), (1, 2), (2, 2)):
        calls.update(dict.fromkeys(calls, 0))
        model.language_model.checkpointed = decoder == 2
        model.vision_model.encoder.checkpointed = tower == 2
        gradients_of(model, batch)
        assert calls == {DecoderLayer: 2 * decoder, EncoderLayer: 1 * tower}


def test_the_rate_rises_and_falls() -> None:
    schedule = Settings(steps=100, learning_rate=1.0, warmup=10).schedule()
    rates = [float(schedule(mx.array(step))) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.01 < rates[-1] < 0.02
