"""The memory of a process has one limit, all that it keeps is scaled by it, and no crowd of
requests takes more than is said."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from smolvlm_mlx import Options, device, load
from smolvlm_mlx.config import ModelConfig
from smolvlm_mlx.errors import DeviceError
from smolvlm_mlx.events import Text
from smolvlm_mlx.generation.decoding import Decoder
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.memory import Memory, token_bytes
from smolvlm_mlx.generation.scheduler import Scheduler
from tests.support import as_metal
from tests.support.crowd import Asked, crowd
from tests.support.family import FAMILY
from tests.support.places import ROOT

import mlx.core as mx
import pytest

GIB = 2**30


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """They are the process's, and other tests'."""
    before = mx.get_memory_limit()
    freed = mx.set_cache_limit(0)
    mx.set_cache_limit(freed)
    yield
    mx.set_memory_limit(before)
    mx.set_cache_limit(freed)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 8 GB."""
    monkeypatch.setattr(device, "total_memory", lambda: 8 * 10**9)


# ---- the limit


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("size", "want"),
    [
        (None, 4 * 10**9),
        ("6GB", 6 * 10**9),
        ("6 gb", 6 * 10**9),
        ("6g", 6 * 10**9),
        ("1.5GiB", 3 * GIB // 2),
        ("800M", 8 * 10**8),
        ("900000kB", 9 * 10**8),
        ("8e9", None),
        (" 3000000000 ", 3 * 10**9),
        (3 * 10**9, 3 * 10**9),
        ("8GB", 8 * 10**9),
        ("8.1GB", None),
        ("1TB", None),
        ("600MB", 6 * 10**8),
        ("599MB", None),
        ("0", None),
        ("", None),
        ("-1GB", None),
        ("6QB", None),
        ("GB", None),
        ("nan", None),
        ("6 GB please", None),
        (-(10**9), None),
        (True, None),
        ("9" * 400 + "GB", None),
    ],
)
def test_a_size_is_taken_or_refused(size: Any, want: int | None) -> None:
    before = mx.get_memory_limit()
    if want is None:
        with pytest.raises(DeviceError, match="memory"):
            device.limit_memory(size, 6 * 10**8)
        assert mx.get_memory_limit() == before
    else:
        device.limit_memory(size, 6 * 10**8)
        assert device.memory_limit() == mx.get_memory_limit() == want


@pytest.mark.usefixtures("machine")
def test_of_its_own_accord_it_is_half_the_machine_or_what_is_needed() -> None:
    device.limit_memory(None, 3 * 10**9)
    assert device.memory_limit() == 4 * 10**9
    device.limit_memory(None, 4 * 10**9)
    assert device.memory_limit() == 5 * 10**9


def test_a_checkpoint_says_what_it_needs(tiny: Path) -> None:
    with pytest.raises(DeviceError, match=r"'2MB': the model needs 0.00 GB; allow more"):
        load(tiny, "float32", memory="2MB")
    model, _ = load(tiny, "float32", memory="5MB")
    assert 2e6 < sum(array.nbytes for array in model.named_parameters().values()) < 5e6
    assert device.memory_limit() == 5 * 10**6


CHILD = """
import json, sys
from smolvlm_mlx import device, load
from smolvlm_mlx.events import Text
from smolvlm_mlx.generation.decoding import Decoder
from smolvlm_mlx.generation.engine import Engine
import mlx.core as mx
engine = Engine(*load(sys.argv[1], memory=sys.argv[2] if sys.argv[2:] else None))
freed = mx.set_cache_limit(0)
print(json.dumps([mx.get_memory_limit(), freed, mx.set_wired_limit(0), engine.memory.total]))
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has a GPU of its own")
@pytest.mark.parametrize("size", [None, "3GB", "7GB"])
def test_on_a_mac_buffers_are_wired_and_freed_ones_limited(tiny: Path, size: str | None) -> None:
    environment = {**os.environ, **as_metal.environment(ROOT, chip="m1")}
    command = [sys.executable, "-c", CHILD, str(tiny), *([size] if size else [])]
    told = subprocess.check_output(command, env=environment, cwd=ROOT, text=True)
    limit, freed, wired, total = json.loads(told)
    _, _, memory, working_set = as_metal.CHIPS["m1"]
    assert limit == (memory // 2 if size is None else int(size[0]) * 10**9)
    assert freed == limit // 8
    assert wired == min(limit, working_set)
    assert total <= limit


# ---- how it is shared out


@pytest.mark.parametrize("gigabytes", [3, 6, 8, 16, 64])
@pytest.mark.parametrize("name", FAMILY)
def test_the_parts_are_no_more_than_the_whole(name: str, gigabytes: int) -> None:
    config, weights = ModelConfig.from_dict(FAMILY[name]), 10**9
    mx.set_memory_limit(gigabytes * 10**9)
    memory = Memory.share(config, weights, 2)
    assert memory.total == sum(vars(memory).values()) <= gigabytes * 10**9
    assert memory.weights == weights
    assert memory.freed == device.most_freed()
    context = config.text_config.max_position_embeddings * token_bytes(config, 2)
    assert memory.answers <= 16 * context
    assert memory.conversations <= 8 * context
    assert 0 < memory.conversations <= memory.answers
    assert 0 < memory.image_tokens <= 2**28
    assert f"up to {memory.total / 1e9:.2f} GB" in memory.describe()


def test_a_token_takes_keys_and_values_in_every_layer() -> None:
    config = ModelConfig.from_dict(FAMILY["SmolVLM2-2.2B-Instruct"])
    assert token_bytes(config, 2) == 2 * 24 * 32 * 64 * 2


def test_weights_that_leave_nothing_are_still_answered_with(tiny: Path) -> None:
    model, processor = load(tiny, "float32", memory="5MB")
    engine = Engine(model, processor)
    memory = engine.memory
    assert (memory.answers, memory.conversations, memory.image_tokens) == (0, 0, 0)
    assert engine.fits([100_000])
    assert not engine.fits([1, 1])
    assert len(list(engine.stream("Hello", Options(max_tokens=2)))) > 2


def test_answers_that_do_not_fit_side_by_side_wait(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token takes 3 layers x 2 heads x 32 numbers x 2 x 4 bytes. The second of these answers
    waits for the first, the third begins beside the second."""
    engine = Engine(*load(tiny, "float32"))
    assert engine.token_bytes == 1536
    engine.memory = replace(engine.memory, answers=2 * 2 * 120 * 1536)
    assert [engine.fits(each) for each in ([120, 120], [121, 1], [90, 90, 60])] == [
        True,
        False,
        False,
    ]
    step, beside = Decoder.step, set[tuple[int, int]]()

    def watched(decoder: Decoder) -> Any:
        rows = scheduler.occupancy[0]
        beside.add((rows, max(len(job.inputs.input_ids) for job in jobs if not job.over.is_set())))
        return step(decoder)

    monkeypatch.setattr(Decoder, "step", watched)
    scheduler = Scheduler(lambda: engine)
    scheduler.start()
    jobs = [Asked(engine.processor, "so " * n, Options(max_tokens=30)) for n in (80, 1, 1)]
    lengths = [len(job.inputs.input_ids) + 30 for job in jobs]
    assert lengths[0] > 120 > lengths[1] == lengths[2]
    for job in jobs:
        scheduler.submit(job)
    together = [job.wait() for job in jobs]
    scheduler.close()
    assert beside == {(1, lengths[0] - 30), (1, lengths[1] - 30), (2, lengths[1] - 30)}
    monkeypatch.undo()
    for job, text in zip(jobs, together, strict=True):
        events = Engine(*load(tiny, "float32")).stream(job.inputs, job.options)
        assert text == "".join(event.piece for event in events if isinstance(event, Text))


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("count", [6, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("most", [None, "90MB"])
def test_a_crowd_stays_within_what_is_said(tiny: Path, most: str | None, count: int) -> None:
    scheduler = Scheduler(
        lambda: Engine(*load(tiny, "float32", memory=most), conversations=16), most_waiting=100
    )
    engine = scheduler.start()
    before = mx.get_active_memory() - engine.memory.weights  # models of other tests
    seen = crowd(scheduler, engine, count, 0)
    scheduler.close()
    assert (seen.answered, seen.errors) == (count, [])
    assert engine.memory.weights < seen.most - before <= engine.memory.total
    assert engine.prompts.image_cache.nbytes <= engine.memory.image_tokens
