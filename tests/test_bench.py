"""The bench: its table and files; never a time."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from smolvlm_mlx.bench import machine as calibration
from smolvlm_mlx.bench import roofline
from smolvlm_mlx.bench.bench import Phase, Result, Run, bench_in_steps
from smolvlm_mlx.bench.plan import Plan
from smolvlm_mlx.checkpoint.presets import random_model
from smolvlm_mlx.cli import bench as bench_command
from smolvlm_mlx.errors import BenchError
from smolvlm_mlx.events import Work
from smolvlm_mlx.generation import image_cache
from smolvlm_mlx.generation.decoding import Row
from smolvlm_mlx.inputs.settings import ImageSettings
from tests.support.bundled import BUNDLED, machine

import mlx.core as mx
import pytest
from PIL import Image


@pytest.fixture
def run(call: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line in this process, where how fast is not the point."""
    for module, name, least in ((calibration, "MATRIX_BYTES", 2**24), (image_cache, "CHUNK", 1024)):
        monkeypatch.setattr(module, name, dict.fromkeys(getattr(module, name), least))
    return call


def test_phase() -> None:
    phase = Phase("decode", (5.0, 4.002, 3.0), 8, "tokens", roofline.Work(20e9, 1e9, 1000))
    assert phase.median == 4.002
    assert phase.rate == 8 / 4.002
    assert phase.spread == 2 / 4.002
    assert phase.share(machine()) == pytest.approx(0.5)
    assert Phase("load", (1.0,), 8, "bytes").share(machine()) is None


def test_plan_without_runs() -> None:
    with pytest.raises(BenchError, match="runs 0"):
        Plan(runs=0)


# ---- the whole


def test_a_placeholder_that_a_random_model_says_is_no_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = random_model(BUNDLED, mx.float32)
    said = BUNDLED.image_token_id
    monkeypatch.setattr(
        Row, "choose", lambda self, logits: mx.full((len(logits),), said, dtype=mx.int32)
    )
    monkeypatch.setattr(Row, "sampler", None)
    plan = Plan(runs=1, contexts=(), decoded=1)
    steps = bench_in_steps(lambda: (model, ImageSettings(64, 128)), plan, True)
    phases = Work(steps).finish().phases
    assert [phase.name for phase in phases if "turn" in phase.name or "first" in phase.name]


@pytest.fixture(scope="module")
def result() -> Result:
    config = replace(BUNDLED, text_config=replace(BUNDLED.text_config, max_position_embeddings=256))
    model, settings = random_model(config, mx.float32), ImageSettings(64, 128)
    work = Work(
        bench_in_steps(
            lambda: (model, settings), Plan(runs=1, contexts=(20, 40, 10**6), decoded=4), True
        )
    )
    told = [reading.what for reading in work]
    assert told[0] == "load"
    assert "prefill and decode, 251 tokens" in told  # what the context has room for
    return work.result


def test_result(result: Result) -> None:
    names = [phase.name for phase in result.phases]
    lengths = [f"{length} tokens" for length in (20, 40, 251)]
    assert names[:3] == ["load", "preprocess", f"vision, {result.phases[2].count} tiles"]
    assert names[3:9] == [
        *(f"prefill, {length}" for length in lengths),
        *(f"decode, {length}" for length in lengths),
    ]
    assert names[9:] == ["first turn, 5 tiles", "second turn"]
    assert result.parameters == 2_769_472
    assert result.peak_memory > result.weights > 0
    assert all(phase.median > 0 and len(phase.seconds) == 1 for phase in result.phases)
    second = result.phases[-1]
    # The new question, and the answer's last token, which was never read.
    assert second.count == 16 + 1


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(("dtype", "matrices"), [(mx.bfloat16, 4 * 7 + 1), (mx.float32, 0)])
def test_kernels_of_a_step(dtype: mx.Dtype, matrices: int) -> None:
    kernels = Run(random_model(BUNDLED, dtype), ImageSettings(64, 128), Plan()).count_step()
    # Without attention's two a layer.
    assert kernels["Matmul"] + kernels["AddMM"] - 4 * 2 * bool(matrices) == matrices
    assert kernels["ArgReduce"] == 1


def test_command(run: Any) -> None:
    code, out, err = run("bench", "tiny", "--quick", "--runs", 1)
    assert code == 0
    assert "measuring: vision" in err
    rows = (
        "load ",
        "preprocess ",
        "vision, ",
        "prefill, 100 tokens",
        "decode, 100 tokens",
        "first turn, a tile",
    )
    assert all(
        row in out
        for row in (*rows, "second turn", "a decode step: ", "fused attention", "dtypes: ")
    )


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
    assert decode["share_of_limit"] == pytest.approx(
        decode["limit_seconds"] / decode["seconds"]["median"]
    )
    assert decode["work"]["kernels"] == found["decode_kernels"]["total"]
    assert phases["preprocess"]["limit_seconds"] is None


def test_plot(result: Result, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "roofline.png"
    bench_command.draw("tiny", result, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert b"Matplotlib" in path.read_bytes()[:1000]  # by which it is known as a plot
    with pytest.raises(BenchError, match="cannot be written"):
        bench_command.draw("tiny", result, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "--random 256M"),
        (("tiny", "--random", "256M"), "--random 256M"),
        (("tiny", "--runs", 0), "runs 0 is less than 1"),
        (("tiny", "--bits", 4), "convert tiny OUT --bits 4"),
        (("nowhere/at/all",), "nowhere/at/all"),
        (("tiny", "--plot", "roofline.jpg"), ".png"),
        (("tiny", "--plot", "nowhere/roofline.png"), "no folder nowhere"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: tuple[object, ...], part: str, run: Any
) -> None:
    code, out, err = run("bench", *arguments)
    assert (code, out) == (1, "")
    assert part in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("smolvlm-mlx: ")
    assert "Traceback" not in err


def test_a_plot_never_replaces_another_picture(run: Any, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "photo.png")
    before = (tmp_path / "photo.png").read_bytes()
    code, _, err = run("bench", "tiny", "--plot", tmp_path / "photo.png")
    assert (code, "another picture already" in err) == (1, True)
    assert (tmp_path / "photo.png").read_bytes() == before


def test_too_little_memory(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smolvlm_mlx.device.total_memory", lambda: 8 * 10**9)
    code, _, err = run("bench", "--random", "2.2B", "--dtype", "float32")
    assert code == 1
    assert "this machine has 8.0" in err


def test_plot_without_matplotlib(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_command, "find_spec", lambda name: None)
    code, _, err = run("bench", "tiny", "--plot", "roofline.png")
    assert code == 1
    assert "smolvlm-mlx[plot]" in err
