"""Each field of a training plan does what it says and nothing else, and a run goes on only with all
of them as they were."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smolvlm_mlx.checkpoint.lora import PARTS
from smolvlm_mlx.errors import TrainingError
from smolvlm_mlx.options import options_of
from smolvlm_mlx.training.plan import Plan
from smolvlm_mlx.training.run import Run, prepare
from tests.support.rows import write_rows

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from PIL import Image

pytestmark = pytest.mark.usefixtures("mlx_lm_imported", "on_the_cpu")

BASE = Plan(epochs=2.0, accumulate=2, warmup=0.3, validation_share=0.2)


@dataclass(frozen=True)
class Change:
    """Another value of a field, and the facts about the run that are others with it."""

    value: Any
    facts: Mapping[str, object]


CHANGES = {
    "save_as": Change("peft", {"saved_as": "peft"}),
    "method": Change("dora", {"layers": {"DoRALinear"}, "trained": {"lora_a", "lora_b", "m"}}),
    "parts": Change(("connector",), {"parts": {"connector"}}),
    "rank": Change(2, {"rank": 2, "scale": 8.0}),
    "alpha": Change(4.0, {"scale": 0.5}),
    "dropout": Change(0.5, {"dropout": 0.5}),
    "epochs": Change(3.0, {"steps": 12, "warmup": 4}),
    "steps": Change(20, {"steps": 20, "warmup": 6}),
    "batch_size": Change(2, {"batches": [2, 2], "steps": 4, "warmup": 1}),
    "accumulate": Change(4, {"batches": [1] * 4, "steps": 4, "warmup": 1}),
    "learning_rate": Change(1e-3, {"learning_rate": 1e-3}),
    "warmup": Change(0.5, {"warmup": 4}),
    "weight_decay": Change(0.2, {"weight_decay": 0.2}),
    "clip": Change(0.5, {"clip": 0.5}),
    # The row with the picture, which has 9 tiles, is left out.
    "max_tokens": Change(100, {"skipped": 1, "tiles": 0, "steps": 6}),
    "max_tiles": Change(3, {"tiles": 3}),
    "checkpoint_layers": Change(True, {"checkpointed": (True, True)}),
    "validation_share": Change(0.4, {"validated": 3, "steps": 6}),
    "validate_every": Change(7, {"validate_every": 7}),
    "save_every": Change(7, {"save_every": 7}),
    "seed": Change(1, {"seed": 1}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight questions, the last with a picture of 9 tiles."""
    folder = tmp_path_factory.mktemp("data")
    Image.new("RGB", (256, 128), "red").save(folder / "red.png")
    rows = [{"question": f"{'Why? ' * n}", "answer": f"So {n}."} for n in range(1, 9)]
    rows[-1] = {"question": "What?", "answer": "Red.", "image": "red.png"}
    return write_rows(folder / "rows.jsonl", *rows)


@pytest.fixture(scope="module")
def base(shallow: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose first state is saved."""
    with mx.stream(mx.cpu):
        run = prepare(shallow, data, tmp_path_factory.mktemp("base") / "out", BASE)
        run.trainer.save()
    return run


def facts(run: Run) -> dict[str, Any]:
    """What can be seen of a prepared run."""
    trained = dict(tree_flatten(run.model.trainable_parameters()))
    layers = [module for _, module in run.model.named_modules() if "lora_a" in module]
    plan, rows = run.plan, (*run.training.rows, *run.validation.rows)
    first = run.training.batches(plan.batch_size, plan.accumulate, plan.seed)(0)
    return {
        **vars(run.trainer.settings),
        "layers": {type(layer).__name__ for layer in layers},
        "trained": {name.rpartition(".")[2] for name in trained},
        "parts": {part for part in PARTS if any(n.startswith(PARTS[part]) for n in trained)},
        "rank": min(layers[0].lora_a.shape),
        "scale": layers[0].scale,
        "dropout": run.adapter.dropout if run.adapter else None,
        "batches": [len(batch.input_ids) for batch in first],
        "skipped": len(run.skipped),
        "tiles": max(row.tiles for row in rows),
        "validated": len(run.validation),
        "saved_as": run.plan.save_as,
        "checkpointed": (
            run.model.language_model.checkpointed,
            run.model.vision_model.encoder.checkpointed,
        ),
    }


@pytest.mark.parametrize("name", [option.name for option in options_of(Plan)])
def test_a_field_changes_what_it_says_and_nothing_else(
    name: str, base: Run, shallow: Path, data: Path
) -> None:
    change, before = CHANGES[name], facts(base)
    run = prepare(shallow, data, base.out, replace(BASE, **{name: change.value}))
    after = facts(run)
    assert {key: value for key, value in after.items() if value != before[key]} == change.facts
    # And a run that was begun without does not go on with it.
    with pytest.raises(TrainingError, match=rf"begun with .*\b{name} .*resume with the same"):
        run.trainer.resume()


def test_the_seed_is_of_the_order_and_of_the_adapter(
    shallow: Path, data: Path, tmp_path: Path
) -> None:
    def drawn(seed: int) -> tuple[list[float], list[int]]:
        run = prepare(shallow, data, tmp_path / "out", replace(BASE, seed=seed, validation_share=0))
        batches = run.training.batches(1, 8, seed)
        weights = dict(tree_flatten(run.model.trainable_parameters()))
        first = next(array for name, array in weights.items() if name.endswith("lora_a"))
        return first[0].tolist(), [batch.input_ids.size for batch in batches(0)]

    (weights, order), (same_weights, same_order) = drawn(0), drawn(0)
    other_weights, other_order = drawn(1)
    assert (weights, order) == (same_weights, same_order)
    assert weights != other_weights
    assert order != other_order
    assert sorted(order) == sorted(other_order)


def test_a_short_run_has_a_step_of_warmup(shallow: Path, data: Path, tmp_path: Path) -> None:
    run = prepare(shallow, data, tmp_path / "out", replace(BASE, steps=2, warmup=0.0))
    assert run.trainer.settings.warmup == 1


def test_what_is_trained_in_full_is_float32(shallow: Path, data: Path, tmp_path: Path) -> None:
    """Small steps are lost in 16 bits; the rest stays as it is."""
    plan = replace(BASE, method="full", parts=("connector",))
    model = prepare(shallow, data, tmp_path / "out", plan, dtype="bfloat16").model
    trained = dict(tree_flatten(model.trainable_parameters()))
    assert {name: array.dtype for name, array in trained.items()} == {
        "connector.modality_projection.proj.weight": mx.float32
    }
    assert model.language_model.norm.weight.dtype == mx.bfloat16


@pytest.mark.parametrize("changed", ["data", "validation", "dtype"])
def test_a_run_goes_on_only_with_what_it_was_begun_with(
    changed: str, base: Run, shallow: Path, data: Path, tmp_path: Path
) -> None:
    other = write_rows(tmp_path / "other.jsonl", {"question": "?", "answer": "!"})
    given: dict[str, Any] = {"data": data, changed: "bfloat16" if changed == "dtype" else other}
    again = prepare(shallow, out=base.out, plan=BASE, **given)
    with pytest.raises(TrainingError, match=rf"begun with .*{changed} "):
        again.trainer.resume()
    assert prepare(shallow, data, base.out, BASE).trainer.resume()


def test_the_least_values_are_taken() -> None:
    ones = ("rank", "steps", "batch_size", "accumulate", "max_tokens", "max_tiles")
    zeros = ("weight_decay", "dropout", "warmup", "validation_share", "seed")
    given: dict[str, Any] = {**dict.fromkeys(ones, 1), **dict.fromkeys(zeros, 0)}
    plan = Plan(validate_every=1, save_every=1, **given)
    assert {name: getattr(plan, name) for name in given} == given


COUNTS, POSITIVE, SHARES = (-1, 0), (-1, 0, math.nan, math.inf), (-0.1, 1, math.nan)
REFUSED: dict[str, Sequence[Any]] = {
    "method": ("magic",),
    "save_as": ("onnx",),
    "parts": ((), ("nose",)),
    **dict.fromkeys(("rank", "steps", "batch_size", "accumulate", "max_tokens"), COUNTS),
    **dict.fromkeys(("max_tiles", "validate_every", "save_every"), COUNTS),
    **dict.fromkeys(("alpha", "epochs", "learning_rate", "clip"), POSITIVE),
    **dict.fromkeys(("dropout", "warmup", "validation_share"), SHARES),
    "weight_decay": (-1, math.nan, math.inf),
    "seed": (-1,),
    "checkpoint_layers": (),
}


@pytest.mark.parametrize("name", [option.name for option in options_of(Plan)])
def test_a_value_that_cannot_be_is_refused_by_name(name: str) -> None:
    for value in REFUSED[name]:
        with pytest.raises(TrainingError, match=f"^{name} "):
            replace(BASE, **{name: value})
