"""Short names: what each means, what was meant by another, and that the counts are those of the
published files."""

import json
import math
from pathlib import Path

from smolvlm_mlx import SmolVLMError, load
from smolvlm_mlx.checkpoint.hub import find, find_folder
from smolvlm_mlx.checkpoint.names import KNOWN, Known, known_as, nearest, resolve
from smolvlm_mlx.checkpoint.presets import config_of
from smolvlm_mlx.config import ModelConfig
from smolvlm_mlx.model import SmolVLM
from tests.support.family import FAMILY
from tests.support.places import REAL_FILES

import pytest
from huggingface_hub import constants

TB = "HuggingFaceTB/"


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("256M", f"{TB}SmolVLM2-256M-Video-Instruct"),
        ("500m", f"{TB}SmolVLM2-500M-Video-Instruct"),
        ("2.2b", f"{TB}SmolVLM2-2.2B-Instruct"),
        ("2.2B-V1", f"{TB}SmolVLM-Instruct"),
        ("Docling", "ibm-granite/granite-docling-258M"),
        ("granite-docling-258m", "ibm-granite/granite-docling-258M"),
        ("SmolDocling", "ds4sd/SmolDocling-256M-preview"),
        ("smolvlm-base", f"{TB}SmolVLM-Base"),
        ("TINY", "tiny"),
        ("mlx-community/256M", "mlx-community/256M"),
        ("./256M", "./256M"),
        ("a folder", "a folder"),
    ],
)
def test_what_a_name_means(name: str, repo: str) -> None:
    assert resolve(name) == repo


def test_names_are_of_one_checkpoint_each() -> None:
    names = [known.name.casefold() for known in KNOWN]
    names += [known.repo.partition("/")[2].casefold() for known in KNOWN]
    assert len(set(names)) == len(names)
    for known in KNOWN:
        for name in (known.name, known.repo, known.repo.partition("/")[2]):
            assert known_as(name) == known


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("265M", "256M"),
        ("500", "500M"),
        ("docing", "docling"),
        ("tinny", "tiny"),
        ("SmolVLM2-2.2B-Instuct", "SmolVLM2-2.2B-Instruct"),
        (f"{TB}SmolVLM2-500M-Vido-Instruct", f"{TB}SmolVLM2-500M-Video-Instruct"),
        ("smolvlm2-500m", "SmolVLM2-500M-Video-Instruct"),
        ("receipts-model", None),
        ("", None),
        ("nobody/nothing", None),
        (f"{TB}SmolVLM2-500M-Video-Instruct", None),
        ("x" * 5000, None),
    ],
)
def test_what_was_probably_meant(name: str, meant: str | None) -> None:
    assert nearest(name) == meant


def test_a_name_that_is_near_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, meant in (("265M", "256M"), ("tinny", "tiny")):
        with pytest.raises(SmolVLMError) as caught:
            load(name)
        assert str(caught.value) == (
            f"no model '{name}'; did you mean {meant}? `smolvlm-mlx models` lists all"
        )


def test_a_folder_that_holds_a_checkpoint_comes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that holds something else does not: a checkout of docling, notes about a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "docling"
    folder.mkdir()
    assert find_folder("docling") is None
    with pytest.raises(SmolVLMError, match=r"^ibm-granite/granite-docling-258M: .*--model tiny"):
        find("docling")
    (folder / "config.json").write_text("{}")
    assert find("docling") == Path("docling")


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_the_shape_of_each(known: Known) -> None:
    """As the published config has it; parameters as the file does, whose size is known of some."""
    config = config_of(known)
    is_tied = known.name == "docling"
    arrays = SmolVLM(config, is_tied).named_parameters().values()  # not evaluated
    assert sum(math.prod(array.shape) for array in arrays) == known.parameters
    folder = known.repo.partition("/")[2]
    published = [FAMILY[folder]] if folder in FAMILY else []
    if (REAL_FILES / folder / "config.json").is_file():
        published.append(json.loads((REAL_FILES / folder / "config.json").read_text()))
    for raw in published:
        real = ModelConfig.from_dict(raw)
        assert real.parameters == config.parameters
        text, ours = real.text_config, config.text_config
        assert text.max_position_embeddings == ours.max_position_embeddings
        assert (text.vocab_size, text.num_key_value_heads) == (
            ours.vocab_size,
            ours.num_key_value_heads,
        )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("256M-v1", 513_028_808),
        ("500M-v1", 1_015_025_832),
        ("500M", 2_029_990_624),
        ("2.2B", 4_959_390_584 + 4_027_833_472),
        ("docling", 515_093_104),
    ],
)
def test_a_download_is_as_large_as_said(name: str, size: int) -> None:
    """Of the published files' sizes the rest is their header."""
    known = known_as(name)
    assert known is not None
    assert 0 < size - known.download < 100_000
