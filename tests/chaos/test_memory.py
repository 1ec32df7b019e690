"""Requests of random lengths and tile counts take no more memory than is said."""

from pathlib import Path

from smolvlm_mlx import load
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.scheduler import Scheduler
from tests.support.crowd import crowd
from tests.support.tally import tally

import mlx.core as mx
import pytest

REQUESTS = 40


@pytest.mark.usefixtures("on_the_cpu")
def test_a_crowd(tiny: Path) -> None:
    freed = mx.set_cache_limit(0)
    before = mx.get_memory_limit(), mx.get_active_memory()
    scheduler = Scheduler(
        lambda: Engine(*load(tiny, "float32", memory="90MB"), conversations=16), most_waiting=100
    )
    engine = scheduler.start()
    with tally("memory, random requests") as count:
        seen = crowd(scheduler, engine, REQUESTS, 1)
        scheduler.close()
        for number in range(REQUESTS):
            count.case(number < seen.answered, "lost", seen.errors)
        most = seen.most - before[1]
        count.case(most <= engine.memory.total, "wrong", f"{most} bytes, not {engine.memory}")
    mx.set_memory_limit(before[0])
    mx.set_cache_limit(freed)
