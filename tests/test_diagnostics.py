"""What is said of a machine and a model: what fell back, what is mixed, what an environment
changes."""

import shutil
from pathlib import Path
from typing import Any

from smolvlm_mlx import device
from smolvlm_mlx.bench.diagnostics import (
    SWITCHES,
    Check,
    machine_checks,
    matmul_units,
    model_checks,
)
from smolvlm_mlx.bench.machine import is_fused
from smolvlm_mlx.checkpoint.presets import random_model
from smolvlm_mlx.model import SmolVLM
from tests.support.bundled import BUNDLED, HEAD

import mlx.core as mx
import pytest


@pytest.mark.usefixtures("on_the_cpu")
def test_checks_on_a_cpu() -> None:
    assert not is_fused(64)
    shown = {check.name: check for check in machine_checks()}
    assert "none on a CPU" in shown["fused attention"].value
    model = random_model(BUNDLED, mx.float32)
    assert [check.fine for check in model_checks(model, {"logits": mx.float32})] == [True]


@pytest.mark.usefixtures("on_the_cpu")
def test_checks_see_what_fell_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(BUNDLED, mx.float32)
    model.language_model.layers[1].mlp.down_proj.weight = mx.zeros((192, 512), mx.bfloat16)
    (mixed,) = model_checks(model, {"logits": mx.float32, "keys": mx.float16})
    assert not mixed.fine
    assert mixed.value == "MIXED, weights: bfloat16, float32; keys: float16"
    slow = model_checks(random_model(BUNDLED, mx.bfloat16), {})[0]
    assert not slow.fine
    assert "float32" in slow.value
    monkeypatch.setattr(device, "name", lambda: "metal")
    *_, joined = model_checks(SmolVLM(BUNDLED), {})
    assert joined == Check("joined projections", "0 of 12; the rest differ in bits or dtype", False)


@pytest.mark.usefixtures("on_the_cpu")
# 512 inputs are a multiple of 512 and of 256; 192 of neither.
@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_products_of_one_row(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "name", lambda: "metal")
    *_, rows = model_checks(random_model(BUNDLED, mx.float32, bits=bits), {})
    # Only `down` has 512 inputs.
    down, layer = 512 * 192, 2 * 192 * 192 + 2 * 192 * 96 + 3 * 512 * 192
    assert rows == Check(
        "quantized products of one row",
        f"{4 * down / (4 * layer + HEAD):.0%} of their bytes by the fastest kernel",
    )


MACOS_26, MACOS_15 = "py3-none-macosx_26_0_arm64", "py3-none-macosx_15_0_arm64"


@pytest.mark.parametrize(
    ("architecture", "macos", "wheel", "value", "fine"),
    [
        ("applegpu_g13s", "15.1", MACOS_15, "none in applegpu_g13s", True),
        ("applegpu_g16d", "26.4", MACOS_26, "none in applegpu_g16d", True),
        ("applegpu_g17p", "26.4", MACOS_26, "none in applegpu_g17p", True),
        ("applegpu_g17s", "26.2", MACOS_26, "used, but for float32", True),
        ("applegpu_g18p", "27.0.1", MACOS_26, "used, but for float32", True),
        ("applegpu_g17s", "26.1", MACOS_26, "NOT USED on macOS 26.1 with", False),
        (
            "applegpu_g17s",
            "26.4",
            MACOS_15,
            "NOT USED on macOS 26.4 with py3-none-macosx_15_0",
            False,
        ),
        ("applegpu_g17s", "26.4", "", "NOT USED on macOS 26.4 with no wheel", False),
        ("a GPU", "26.4", MACOS_26, "unknown architecture 'a GPU'", True),
    ],
)
def test_matmul_units(architecture: str, macos: str, wheel: str, value: str, fine: bool) -> None:
    check = matmul_units(architecture, macos, wheel)
    assert check.value.startswith(value)
    assert check.fine == fine


@pytest.mark.usefixtures("on_the_cpu")
def test_environment_that_changes_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    usual = machine_checks()
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    assert machine_checks() == [
        *usual,
        Check("environment", "MLX_ENABLE_TF32=0: MLX may take other kernels", fine=False),
    ]


def test_info_names_mixed_dtypes(tiny: Path, tmp_path: Path, call: Any) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "mixed"))
    weights: Any = mx.load(str(folder / "model.safetensors"))
    name = "model.text_model.norm.weight"
    mx.save_safetensors(
        str(folder / "model.safetensors"), {**weights, name: weights[name].astype(mx.float16)}
    )
    code, out, _ = call("info", folder)
    assert code == 0
    assert "dtypes: MIXED, F16, F32" in out
