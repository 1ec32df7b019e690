"""The default model: by memory, by what is downloaded, by the environment or the config file; and
what is said of it."""

from pathlib import Path
from typing import Any

from smolvlm_mlx import SmolVLMError
from smolvlm_mlx.checkpoint import cached
from smolvlm_mlx.checkpoint.names import KNOWN, known_as
from smolvlm_mlx.cli import choice
from smolvlm_mlx.cli.choice import AUTO, VARIABLE, Machine, choose, configured
from tests.support.cli import check_refused

import pytest
from huggingface_hub import constants

GB = 10**9


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No default but the machine's, and nothing downloaded."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(choice, "config_file", lambda: tmp_path / "config.toml")
    monkeypatch.setattr(cached, "is_here", lambda repo: False)


def test_by_memory() -> None:
    """What an answer takes is another on other devices."""

    def default(memory: int, has_gpu: bool = True) -> str:
        return Machine(memory, 2 if has_gpu else 4, has_gpu).default().name

    _, middle, large = (4 * Machine(0, 2, True).needs(known) for known in KNOWN[:3])
    assert 6 * GB < middle < 14 * GB < large < 40 * GB
    steps = {0: "256M", middle - 1: "256M", middle: "500M", large - 1: "500M", large: "2.2B"}
    assert {memory: default(memory) for memory in steps} == steps
    assert default(400 * GB, has_gpu=False) == "500M"


def test_what_is_downloaded_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that fit."""
    here = {"HuggingFaceTB/SmolVLM2-256M-Video-Instruct", "HuggingFaceTB/SmolVLM2-2.2B-Instruct"}
    monkeypatch.setattr(cached, "is_here", here.__contains__)
    assert Machine(16 * GB, 2, True).default().name == "256M"
    assert Machine(36 * GB, 2, True).default().name == "2.2B"


def test_what_fits() -> None:
    known = known_as("2.2B")
    assert known is not None
    need = Machine(0, 2, True).needs(known)
    assert known.parameters * 2 < need < known.parameters * 4
    fits = {
        memory: Machine(memory, 2, True).fits(known)
        for memory in (0, need, need * 4 // 3 + 1, 2 * need)
    }
    assert [*fits.values()] == ["?", "no", "tight", "yes"]
    assert all(
        Machine(0, 2, True).needs(known) < Machine(0, 4, True).needs(known) for known in KNOWN
    )


def test_what_was_chosen_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "of_this", classmethod(lambda cls: cls(16 * GB, 2, True)))
    repo = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
    assert choose(AUTO) == repo
    assert capsys.readouterr().err == (
        f"smolvlm-mlx: model 500M ({repo}), for 16 GB of memory; -m chooses another\n"
    )
    assert choose("500M") == repo
    assert capsys.readouterr().err == ""


def test_a_default_of_one_s_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text('model = "256M"  # small\n')
    assert configured() == ("256M", str(tmp_path / "config.toml"))
    assert choose(AUTO) == "HuggingFaceTB/SmolVLM2-256M-Video-Instruct"
    monkeypatch.setenv(VARIABLE, "tiny")
    assert choose(AUTO) == "tiny"
    monkeypatch.setenv(VARIABLE, "")
    assert configured() == ("256M", str(tmp_path / "config.toml"))
    assert capsys.readouterr().err == ""


def test_a_default_that_is_no_name_is_said_with_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text('model = "265M"')
    for place in (str(tmp_path / "config.toml"), VARIABLE):
        with pytest.raises(SmolVLMError) as caught:
            choose(AUTO)
        assert str(caught.value).startswith(f"{place}: no model '265M'; did you mean 256M?")
        monkeypatch.setenv(VARIABLE, "265M")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model = ", "cannot be read as TOML"),
        ("\xff", "cannot be read as TOML"),
        ("model = 256", 'give one line such as model = "500M"'),
        ('model = "256M"\ntemperature = 1', 'give one line such as model = "500M"'),
        ('model = ""', 'give one line such as model = "500M"'),
    ],
)
def test_a_config_file_of_something_else(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(SmolVLMError) as caught:
        configured()
    assert str(caught.value).startswith(f"{tmp_path / 'config.toml'}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", 'model = "auto"'])
def test_a_config_file_that_chooses_nothing(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(text)
    assert configured() is None
    monkeypatch.setenv(VARIABLE, AUTO)
    assert configured() is None
    (tmp_path / "config.toml").write_text('model = "256M"')
    assert configured() is None


def test_a_folder_in_the_place_of_a_name_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("500M", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"):
        Path(name).mkdir(parents=True)
        Path(name, "config.json").write_text("{}")
        assert choose(name) == name
        assert capsys.readouterr().err == (
            f"smolvlm-mlx: '{name}' is the folder here, and not "
            "HuggingFaceTB/SmolVLM2-500M-Video-Instruct of the hub\n"
        )


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name(name: str, call: Any) -> None:
    for arguments in (("generate", "Hi", "-m", name), ("info", name), ("convert", name, "out")):
        check_refused(call(*arguments), "the name of the model is empty; give one that `smolvlm-")


def test_a_hub_id_that_is_nearly_one_without_the_hub(
    call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    refused = call("generate", "Hi", "-m", "HuggingFaceTB/SmolVLM2-256M-Video-Instrukt")
    check_refused(refused, "the hub is not reachable; ")
    assert refused[2].endswith("; did you mean HuggingFaceTB/SmolVLM2-256M-Video-Instruct?\n")
    refused = call("generate", "Hi", "-m", "HuggingFaceTB/SmolVLM2-500M-Instruct")
    assert "; did you mean HuggingFaceTB/SmolVLM" in refused[2]
    assert "did you mean" not in call("generate", "Hi", "-m", "HuggingFaceTB/SmolVLM-Base")[2]


def test_commands_take_names_and_the_default(
    call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, "Tiny")
    answer = call("generate", "Hi", "-m", "TINY", "-n", 3)
    assert answer[0] == 0
    assert call("generate", "Hi", "-n", 3) == answer
    assert call("info", "Tiny")[0] == 0
    assert call("convert", "tiny", tmp_path / "out")[0] == 0
    assert call("generate", "Hi", "-m", "265M") == (
        1,
        "",
        "smolvlm-mlx: no model '265M'; did you mean 256M? `smolvlm-mlx models` lists all\n",
    )
