"""Damaged and hostile weight files: refused in one line, or loaded; no crash, no hang, nothing that
safetensors refuses.

Mutations run in a process of their own, so that a crash is a failed test that names the seed. To
repeat one by hand:

    python tests/test_checkpoint_fuzz.py FOLDER SEED 1
"""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

from smolvlm_mlx import load
from smolvlm_mlx.errors import CheckpointError
from tests.support import as_metal
from tests.support.mutated import make_small
from tests.support.places import ROOT
from tests.support.safetensor_files import accepted_by_safetensors, mutate

import mlx.core as mx
import pytest

# ---- one process: seeds one by one, the counts to stdout, the seed at work to stderr


def run(folder: Path, first: int, count: int) -> Counter[str]:
    """Mutate `folder`'s weights, which are overwritten."""
    outcomes: Counter[str] = Counter()
    weights = folder / "model.safetensors"
    original = weights.read_bytes()
    for seed in range(first, first + count):
        print(seed, file=sys.stderr, flush=True)
        rng = random.Random(seed)
        mutated = mutate(rng, original)
        weights.write_bytes(mutated)
        try:
            model, _ = load(folder, "float32")
            mx.eval(model(mx.array([[1, 2, 3]])))
            outcomes["loaded"] += 1
        except CheckpointError as error:
            message = str(error)
            assert message.isprintable(), message
            assert len(message) < 6000, message
            outcomes["refused"] += 1
        else:
            assert accepted_by_safetensors(weights), "loaded, but safetensors refuses it"
    weights.write_bytes(original)
    return outcomes


def in_a_process(folder: Path, first: int, count: int, seconds: float) -> Counter[str]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(Path(__file__)),
        str(folder),
        str(first),
        str(count),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, f"exit code {done.returncode}, at the end: {done.stderr[-2000:]}"
    return Counter(json.loads(done.stdout))


def environment() -> dict[str, str]:
    import os

    return {**os.environ, **as_metal.environment(ROOT)}


# ---- tests


@pytest.fixture
def small(tmp_path: Path, tiny: Path) -> Path:
    """A checkpoint of 200 kB in the tiny one's form."""
    return make_small(tiny, tmp_path / "small")


def test_200_mutated_files(small: Path) -> None:
    outcomes = in_a_process(small, first=0, count=200, seconds=60)
    assert outcomes.total() == 200
    assert outcomes["refused"] > 100
    assert outcomes["loaded"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(20))
def test_20000_mutated_files(small: Path, batch: int) -> None:
    outcomes = in_a_process(small, first=1000 * (batch + 1), count=1000, seconds=300)
    assert outcomes.total() == 1000
    assert outcomes["loaded"] > 0


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
