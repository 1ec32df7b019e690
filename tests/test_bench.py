"""The bench: its arithmetic against counts by hand, its table and files; never a time."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from smolvlm_mlx import device
from smolvlm_mlx.bench import machine as calibration
from smolvlm_mlx.bench.bench import Phase, Plan, Result, Run, bench
from smolvlm_mlx.bench.diagnostics import SWITCHES, Check, machine_checks, matmul_units, model_checks
from smolvlm_mlx.bench.machine import count_kernels, is_fused
from smolvlm_mlx.bench.roofline import Machine, Sizes, Work, decoder, vision, vision_flops
from smolvlm_mlx.checkpoint.presets import SIZES, random_model
from smolvlm_mlx.cli import bench_report, main
from smolvlm_mlx.config import ModelConfig
from smolvlm_mlx.errors import BenchError
from smolvlm_mlx.generation import image_cache
from smolvlm_mlx.inputs.tiles import ImageSettings
from smolvlm_mlx.model import SmolVLM
from tests.support.places import REAL_FILES

import mlx.core as mx
import pytest

PARAMETERS = {"256M": 256_484_928, "500M": 507_482_304, "2.2B": 2_246_784_880}  # of the SmolVLM2 checkpoints
FOLDERS = {
    "256M": "SmolVLM2-256M-Video-Instruct",
    "500M": "SmolVLM2-500M-Video-Instruct",
    "2.2B": "SmolVLM2-2.2B-Instruct",
}
PACKAGE = Path(main.__file__).parents[1]
BUNDLED = ModelConfig.from_dict(json.loads((PACKAGE / "assets/tiny/config.json").read_text()))

# The bundled model by hand: 4 layers of width 192, 6 heads and 3 key-value heads of 32, 512 inside, 576 tokens.
LAYERS = 4 * (192 * 192 + 2 * 192 * 96 + 192 * 192 + 3 * 192 * 512)
HEAD = 576 * 192


def machine(**changes: Any) -> Machine:
    return Machine(**{**MACHINE, **changes})


MACHINE: dict[str, Any] = {
    "device": "made up",
    "backend": "cpu",
    "dtype": "float32",
    "bandwidth": 1e9,
    "flops": 10e9,
    "kernel_seconds": 1e-6,
    "memory": 0,
}


def sizes(model: SmolVLM, kv_width: int) -> Sizes:
    return Sizes.of(model.config, {name: array.nbytes for name, array in model.named_parameters().items()}, kv_width)


@pytest.fixture
def run(call: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line in this process, where how fast is not the point."""
    for module, name, least in ((calibration, "MATRIX_BYTES", 2**24), (image_cache, "CHUNK", 1024)):
        monkeypatch.setattr(module, name, dict.fromkeys(getattr(module, name), least))
    return call


# ---- formulas


def test_decoder_flops_and_bytes() -> None:
    assert LAYERS == 1_622_016
    found = sizes(SmolVLM(BUNDLED), 4)
    norms = 4 * 2 * 192
    assert (found.layers, found.head) == (4 * (LAYERS + norms), 4 * (HEAD + 192))
    assert found.kv_token == 4 * 2 * 4 * 3 * 32
    prefill = decoder(BUNDLED, found, 100)
    assert prefill.flops == 2 * LAYERS * 100 + 2 * 100**2 * 6 * 32 * 4 + 2 * HEAD
    assert prefill.bytes == found.layers + found.head + 100 * 3072
    step = decoder(BUNDLED, found, 1, cached=100, kernels=7)
    assert step.flops == 2 * (LAYERS + HEAD) + (2 + 400) * 6 * 32 * 4
    assert step.bytes == found.layers + found.head + 101 * 3072
    assert step.kernels == 7


def test_a_prompt_in_two_parts_is_the_same_attention() -> None:
    found = sizes(SmolVLM(BUNDLED), 4)
    whole, first, second = (decoder(BUNDLED, found, *part).flops for part in ((100,), (60,), (40, 60)))
    assert first + second == whole + 2 * HEAD


def test_tied_head_is_the_table() -> None:
    assert sizes(SmolVLM(BUNDLED, tied=True), 4) == sizes(SmolVLM(BUNDLED), 4)


def test_vision_flops() -> None:
    layer = 2 * 64 * (4 * 128 * 128 + 2 * 128 * 512) + 4 * 64 * 64 * 128
    assert vision_flops(BUNDLED) == 4 * layer + 2 * 64 * 128 * 192 + 2 * 16 * 512 * 192
    found = sizes(SmolVLM(BUNDLED), 4)
    assert found.vision == 4 * (826_240 + 98_304)  # tower and connector
    assert vision(BUNDLED, found, 3) == Work(3 * vision_flops(BUNDLED), found.vision)


def test_quantized_weights_count_as_stored() -> None:
    found = sizes(random_model(BUNDLED, mx.bfloat16, bits=4), 2)
    each = 0.5 + 2 * 2 / 64  # 4 bits, and a scale and a bias of 16 bits for 64 weights
    assert found.layers == LAYERS * each + 4 * 2 * 192 * 2
    assert found.head == HEAD * each + 192 * 2
    assert found.vision == 2 * (826_240 + 98_304)


def test_the_design_notes_numbers() -> None:
    assert round(vision_flops(SIZES["256M"].config) / 1e9) == round(vision_flops(SIZES["500M"].config) / 1e9) == 215
    assert round(vision_flops(SIZES["2.2B"].config) / 1e9) == 670
    m4, config = machine(bandwidth=120e9, flops=4e12, kernel_seconds=0), SIZES["256M"].config
    model = SmolVLM(config)
    model.set_dtype(mx.bfloat16)
    found = sizes(model, 2)
    assert round(1 / decoder(config, found, 1, cached=999).limit(m4)) == 411  # tokens a second
    turn = vision(config, found, 13) + decoder(config, found, 876)
    assert round(turn.limit(m4) * 1e3) == pytest.approx(751, abs=2)


# ---- the family


@pytest.mark.parametrize("size", SIZES)
def test_random_models_have_the_real_shapes(size: str) -> None:
    config = SIZES[size].config
    assert sum(array.size for array in SmolVLM(config).named_parameters().values()) == PARAMETERS[size]  # not evaluated
    assert SIZES[size].settings.tile_size == config.vision_config.image_size
    folder = REAL_FILES / FOLDERS[size]
    if folder.is_dir():
        assert config == ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
        raw = json.loads((folder / "preprocessor_config.json").read_text())
        assert SIZES[size].settings == ImageSettings.from_dict(raw)


def test_random_model_is_ready_to_answer() -> None:
    model = random_model(BUNDLED, mx.float16, bits=8)
    kinds = {array.dtype for array in model.named_parameters().values()}
    assert kinds == {mx.float16, mx.uint32}
    joined = device.name() != "cpu"
    assert all(("qkv_proj" in layer.self_attn) == joined for layer in model.language_model.layers)


# ---- limits


def test_limits() -> None:
    work = Work(flops=20e9, bytes=1e9, kernels=1000)  # 2 s, 1 s, 1 ms
    assert work.limit(machine()) == pytest.approx(2.001)
    assert work.limit(machine(flops=100e9)) == pytest.approx(1.001)
    bounds = [work.bound(machine(**change)) for change in ({}, {"flops": 100e9}, {"kernel_seconds": 1})]
    assert bounds == ["compute", "memory", "kernels"]
    assert work + work == Work(40e9, 2e9, 2000)


def test_phase() -> None:
    phase = Phase("decode", (5.0, 4.002, 3.0), 8, "tokens", Work(20e9, 1e9, 1000))
    assert phase.median == 4.002
    assert phase.rate == 8 / 4.002
    assert phase.spread == 2 / 4.002
    assert phase.share(machine()) == pytest.approx(0.5)
    assert Phase("load", (1.0,), 8, "bytes").share(machine()) is None


def test_plan_without_runs() -> None:
    with pytest.raises(BenchError, match="runs 0"):
        Plan(runs=0)


# ---- kernels and checks


def test_count_kernels() -> None:
    x, w = mx.ones((4, 4)), mx.ones((4, 4))
    mx.eval(x, w)
    y = mx.exp(x @ w.T).reshape(2, 8)[:1]
    assert count_kernels(y) == {"Matmul": 1, "Exp": 1}
    assert count_kernels(y, mx.sin(y)) == {"Matmul": 1, "Exp": 1, "Sin": 1}
    mx.eval(y)
    assert not count_kernels(y)


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
@pytest.mark.parametrize("bits", [4, 8])  # 512 inputs are a multiple of 512 and of 256; 192 of neither
def test_quantized_products_of_one_row(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "name", lambda: "metal")
    *_, rows = model_checks(random_model(BUNDLED, mx.float32, bits=bits), {})
    down, layer = 512 * 192, 2 * 192 * 192 + 2 * 192 * 96 + 3 * 512 * 192  # only `down` has 512 inputs
    assert rows == Check(
        "quantized products of one row", f"{4 * down / (4 * layer + HEAD):.0%} of their bytes by the fastest kernel"
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
        ("applegpu_g17s", "26.4", MACOS_15, "NOT USED on macOS 26.4 with py3-none-macosx_15_0", False),
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


def test_info_names_mixed_dtypes(tiny: Path, tmp_path: Path, run: Any) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "mixed"))
    weights: Any = mx.load(str(folder / "model.safetensors"))
    name = "model.text_model.norm.weight"
    mx.save_safetensors(str(folder / "model.safetensors"), {**weights, name: weights[name].astype(mx.float16)})
    code, out, _ = run("info", folder)
    assert code == 0
    assert "dtypes: MIXED, F16, F32" in out


# ---- the whole


@pytest.fixture(scope="module")
def result() -> Result:
    config = replace(BUNDLED, text_config=replace(BUNDLED.text_config, max_position_embeddings=256))
    model, settings = random_model(config, mx.float32), ImageSettings(64, 128)
    told: list[str] = []
    result = bench(lambda: (model, settings), Plan(runs=1, contexts=(20, 40, 10**6), decoded=4), True, told.append)
    assert told[0] == "load"
    assert "prefill and decode, 251 tokens" in told  # what the context has room for
    return result


def test_result(result: Result) -> None:
    names = [phase.name for phase in result.phases]
    lengths = [f"{length} tokens" for length in (20, 40, 251)]
    assert names[:3] == ["load", "preprocess", f"vision, {result.phases[2].count} tiles"]
    assert names[3:9] == [*(f"prefill, {length}" for length in lengths), *(f"decode, {length}" for length in lengths)]
    assert names[9:] == ["first turn, 5 tiles", "second turn"]
    assert result.parameters == 2_769_472
    assert result.peak_memory > result.weights > 0
    assert all(phase.median > 0 and len(phase.seconds) == 1 for phase in result.phases)
    second = result.phases[-1]
    assert second.count == 16 + 1  # the new question, and the answer's last token, which was never read


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(("dtype", "matrices"), [(mx.bfloat16, 4 * 7 + 1), (mx.float32, 0)])
def test_kernels_of_a_step(dtype: mx.Dtype, matrices: int) -> None:
    kernels = Run(random_model(BUNDLED, dtype), ImageSettings(64, 128), Plan()).count_step()
    assert kernels["Matmul"] + kernels["AddMM"] - 4 * 2 * bool(matrices) == matrices  # without attention's two a layer
    assert kernels["ArgReduce"] == 1


def test_command(run: Any) -> None:
    code, out, err = run("bench", "tiny", "--quick", "--runs", 1)
    assert code == 0
    assert "measuring: vision" in err
    rows = ("load ", "preprocess ", "vision, ", "prefill, 100 tokens", "decode, 100 tokens", "first turn, a tile")
    assert all(row in out for row in (*rows, "second turn", "a decode step: ", "fused attention", "dtypes: "))


def test_json(run: Any) -> None:
    code, out, _ = run("bench", "tiny", "--quick", "--runs", 2, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["machine"]["bandwidth"] > 0
    assert found["decode_kernels"]["total"] == sum(found["decode_kernels"].values()) / 2
    phases = {phase["name"]: phase for phase in found["phases"]}
    decode = phases["decode, 100 tokens"]
    assert decode["runs"] == 2
    assert decode["seconds"]["min"] <= decode["seconds"]["median"] <= decode["seconds"]["max"]
    assert decode["share_of_limit"] == pytest.approx(decode["limit_seconds"] / decode["seconds"]["median"])
    assert decode["work"]["kernels"] == found["decode_kernels"]["total"]
    assert phases["preprocess"]["limit_seconds"] is None


def test_plot(result: Result, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "roofline.png"
    bench_report.draw("tiny", result, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(BenchError, match="cannot be written"):
        bench_report.draw("tiny", result, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "--random 256M"),
        (("tiny", "--random", "256M"), "--random 256M"),
        (("--random", "7B"), "'7B' is not one of 256M, 500M, 2.2B"),
        (("--random", "256M", "--dtype", "int8"), "'int8'"),
        (("--random", "256M", "--bits", 7), "--bits: 7 bits"),
        (("tiny", "--bits", 4), "convert tiny OUT --bits 4"),
        (("nowhere/at/all",), "nowhere/at/all"),
        (("tiny", "--plot", "roofline.jpg"), ".png"),
        (("tiny", "--plot", "nowhere/roofline.png"), "no folder nowhere"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments: tuple[object, ...], part: str, run: Any) -> None:
    code, out, err = run("bench", *arguments)
    assert (code, out) == (1, "")
    assert part in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("smolvlm-mlx: ")
    assert "Traceback" not in err


def test_too_little_memory(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smolvlm_mlx.bench.machine.total_memory", lambda: 8 * 10**9)
    code, _, err = run("bench", "--random", "2.2B", "--dtype", "float32")
    assert code == 1
    assert "this machine has 8.0" in err


def test_plot_without_matplotlib(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_report, "can_draw", lambda: False)
    code, _, err = run("bench", "tiny", "--plot", "roofline.png")
    assert code == 1
    assert "smolvlm-mlx[plot]" in err
