"""The small random checkpoint that most tests use, made once a run; and a device that sums the same way each time."""

from collections.abc import Iterator
from pathlib import Path

from convert.random_checkpoint import make

import mlx.core as mx
import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SmolVLM2 checkpoint in Hugging Face's layout. Only for reading."""
    return make(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def tiny_v1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the first family (`idefics3`)."""
    return make(tmp_path_factory.mktemp("checkpoints") / "tiny-v1", "idefics3")


@pytest.fixture
def on_the_cpu() -> Iterator[None]:
    """Where sums come out the same each time, and in float32, whatever machine this is."""
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(device)
