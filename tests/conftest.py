"""The small random checkpoint that most tests use, made once a run."""

from pathlib import Path

from convert.random_checkpoint import make

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SmolVLM2 checkpoint in Hugging Face's layout. Only for reading."""
    return make(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def tiny_v1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the first family (`idefics3`)."""
    return make(tmp_path_factory.mktemp("checkpoints") / "tiny-v1", "idefics3")
