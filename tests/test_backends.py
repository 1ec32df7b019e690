"""The same answers on whatever device: a GPU where there is one, or one that MLX is said to have
(tests/support/as_metal.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

from smolvlm_mlx import device, load
from smolvlm_mlx.model import SmolVLM
from tests.support import as_metal
from tests.support.places import ROOT

import mlx.core as mx
import numpy as np
import pytest

ATOL = {"float32": 5e-3, "bfloat16": 0.25}  # logits are up to 5
CHILD = """
import json
from smolvlm_mlx import device
from smolvlm_mlx.bench import diagnostics as checks, machine as calibration
import mlx.core as mx
import numpy as np

seen = {"import": device.name()}
mx.set_default_device(mx.cpu)
seen["set"] = device.name()
mx.set_default_device(mx.gpu)
stream = mx.new_thread_local_stream(mx.gpu)
with mx.stream(mx.cpu):
    seen["stream"] = device.name()
    with mx.stream(stream):
        seen["inner"] = device.name()
        seen["sum"] = mx.arange(4).sum().item()
seen["after"] = device.name()
try:
    mx.set_wired_limit(mx.device_info()["max_recommended_working_set_size"] + 1)
except ValueError:
    seen["wired"] = mx.set_wired_limit(2**30) + mx.set_wired_limit(0)
seen["dtype"], seen["name"] = device.default_dtype(), calibration.device_name()
seen["memory"], seen["info"] = device.total_memory(), mx.device_info()
forms = ((64, 64), (72, 64), (72, 1), (32, 64))
seen["fused"] = [calibration.is_fused(width, queries) for width, queries in forms]
seen["checks"] = [check.value for check in checks.machine_checks()]
print(json.dumps(seen))
"""


def test_what_is_started_is_on_the_device_of_the_suite() -> None:
    """And as if on Metal, where that was asked for."""
    show = [sys.executable, "-c", "from smolvlm_mlx import device; print(device.name())"]
    environments = dict(os.environ), {**os.environ, **as_metal.environment(ROOT)}
    names = [
        subprocess.check_output(show, cwd=ROOT, env=environment, text=True)
        for environment in environments
    ]
    suite = "metal" if "AS_METAL" in os.environ else device.name()
    assert [device.name(), *map(str.strip, names)] == [suite] * 3


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has a GPU of its own")
@pytest.mark.parametrize("chip", sorted(as_metal.CHIPS))
def test_what_is_seen_of_a_mac(chip: str) -> None:
    environment = {**os.environ, **as_metal.environment(ROOT, chip=chip)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seen, (name, architecture, memory, working_set) = json.loads(done.stdout), as_metal.CHIPS[chip]
    devices = [seen[when] for when in ("import", "set", "stream", "inner", "after")]
    assert devices == ["metal", "cpu", "cpu", "metal", "metal"]
    assert (seen["sum"], seen["wired"], seen["dtype"], seen["fused"]) == (
        6,
        2**30,
        "bfloat16",
        [True, True, False, False],
    )
    assert (seen["name"], seen["memory"], seen["info"]["architecture"]) == (
        name,
        memory,
        architecture,
    )
    assert (
        seen["info"]["max_buffer_length"]
        < seen["info"]["max_recommended_working_set_size"]
        == working_set
        < memory
    )
    assert seen["checks"][0] == "head width 64: yes, head width 72: yes"
    assert seen["checks"][1].startswith("NOT USED" if chip == "m5" else f"none in {architecture}")


def test_an_unknown_chip_ends_the_run() -> None:
    environment = {**os.environ, **as_metal.environment(ROOT, chip="m0")}
    done = subprocess.run(
        [sys.executable, "-c", ""], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "AS_METAL=m0: one of m1, m3, m5" in done.stderr


# ---- loaded on one device, used on another


def answers(model: SmolVLM) -> list[np.ndarray]:
    """Logits of a prompt with a picture, and of the two tokens after it."""
    tiles = mx.array(np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32))
    ids = mx.array([[5, *[model.config.image_token_id] * 32, 9, 200, 31]])
    cache = model.language_model.make_cache()
    embeddings = model.merge(ids, model.encode_images(tiles))
    logits = [model.language_model(ids, cache, embeddings)]
    logits += [model.language_model(mx.array([[token]]), cache) for token in (7, 120)]
    return [np.array(each.astype(mx.float32)) for each in logits]


DEVICES = ("gpu", "cpu") if mx.device_count(mx.gpu) else ("cpu",)


@pytest.mark.usefixtures("on_the_cpu")  # which puts the default device back
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("used", DEVICES)
@pytest.mark.parametrize("loaded", DEVICES)
def test_loaded_on_one_device_and_used_on_another(
    loaded: str, used: str, dtype: str, tiny: Path
) -> None:
    want = answers(load(tiny, dtype, fuse=False)[0])
    mx.set_default_device(getattr(mx, loaded))
    model, _ = load(tiny, dtype)
    mx.set_default_device(getattr(mx, used))
    for have, plain in zip(answers(model), want, strict=True):
        np.testing.assert_allclose(have, plain, rtol=0, atol=ATOL[dtype])
