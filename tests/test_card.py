"""README.md of a result: what the hub and people read of it, and nothing of this machine."""

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from convert.random_checkpoint import make
from smolvlm_mlx.checkpoint.card import README, metadata_of, origin_of, write_card
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.cli.main import app
from smolvlm_mlx.cli.publish import command_line
from smolvlm_mlx.errors import CheckpointError
from tests.support.checkpoints import copy, random_adapter

import pytest
import typer
import yaml

REPO = "HuggingFaceTB/SmolVLM2-256M-Video-Instruct"


def metadata(folder: Path) -> Any:
    return yaml.safe_load((folder / README).read_text().split("---\n")[1])


def with_card(tiny: Path, out: Path, front: str) -> Path:
    folder = copy(tiny, out)
    (folder / README).write_text(f"---\n{front}\n---\n\n# Words\n")
    return folder


def cached(tiny: Path, cache: Path, repo: str = REPO) -> Path:
    """A source as the hub's cache has it."""
    snapshot = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    return copy(tiny, snapshot)


def test_of_a_checkpoint_of_the_hub(tiny: Path, tmp_path: Path) -> None:
    convert(cached(tiny, tmp_path / "hub"), tmp_path / "out", "4bit")
    assert metadata(tmp_path / "out") == {
        "license": "apache-2.0",
        "base_model": REPO,
        "base_model_relation": "quantized",
        "library_name": "mlx",
        "pipeline_tag": "image-text-to-text",
        "tags": ["mlx", "smolvlm"],
    }
    text = (tmp_path / "out" / README).read_text()
    assert f"[{REPO}](https://huggingface.co/{REPO}) in MLX's layout" in text
    assert re.search(r"\| decoder \| [\d,]+ \| [\d.]+ \| 4\.\d+ \| 4 bits in groups of 64; ", text)
    assert 'smolvlm-mlx generate --model out --image cat.jpg "What is in the picture?"' in text


def test_a_card_of_others_is_read(tiny: Path, tmp_path: Path) -> None:
    """And goes on through one conversion and the next; a colon breaks nothing, no is a language."""
    front = yaml.safe_dump(
        {
            "license": "other",
            "license_name": 'the: "odd" one',
            "license_link": "LICENSE",
            "base_model": [REPO],
            "language": ["no", "en", "<script>"],
            "model-index": [{"name": "x"}],
        }
    )
    source = with_card(tiny, tmp_path / "a: #b", front)
    (source / "LICENSE.txt").write_text("Do.")
    (source / "NOTICE").write_text("Note.")
    convert(source, tmp_path / "4", "4bit")
    convert(tmp_path / "4", tmp_path / "back", layout="huggingface")
    for name, relation in (("4", "quantized"), ("back", "quantized")):
        found = metadata(tmp_path / name)
        assert found["license_name"] == 'the: "odd" one'
        assert (found["license"], found["license_link"]) == ("other", "LICENSE")
        assert (found["base_model"], found["base_model_relation"]) == (REPO, relation)
        assert found["language"] == ["no", "en"]
        assert (tmp_path / name / "LICENSE.txt").read_text() == "Do."
        assert (tmp_path / name / "NOTICE").read_text() == "Note."
    assert metadata(tmp_path / "back")["library_name"] == "transformers"
    text = (tmp_path / "back" / README).read_text()
    assert "dequantized from 4 bits in groups of 64" in text
    assert "from_pretrained('back')" in text


def test_without_a_licence_that_is_said(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out")
    assert not {"license", "base_model", "base_model_relation"} & metadata(tmp_path / "out").keys()
    assert "What licence it has is not known here" in (tmp_path / "out" / README).read_text()
    other = cached(tiny, tmp_path / "hub", "ds4sd/SmolDocling-256M-preview")
    assert origin_of(other).licence == {}


def chain(first: str, link: str) -> str:
    """Values that each name the one before it twice."""
    names = [f"n{number}" for number in range(24)]
    links = (link.format(old, new) for old, new in pairwise(names))
    return "\n".join([f"n0: &n0 {first}", *links])


BOMB = chain("[x, x]", "{1}: &{1} [*{0}, *{0}]")
MERGED = chain("{x: y}", "{1}: &{1} {{<<: [*{0}, *{0}]}}")


@pytest.mark.parametrize("bomb", [BOMB, MERGED], ids=["aliases", "merges"])
def test_what_is_named_again_and_again_is_not_copied(tiny: Path, tmp_path: Path, bomb: str) -> None:
    source = with_card(tiny, tmp_path / "in", f"license: mit\n{bomb}")
    assert origin_of(source).licence == {"license": "mit"}


@pytest.mark.parametrize(
    "front",
    [
        "license: [",
        "a: *b",
        "{" * 3000,
        "? [a]: b\n? {c: d}",
        "license: mit\n" + "x" * 70_000,
        "\0",
    ],
)
def test_a_damaged_card_is_left_out_with_a_note(
    tiny: Path, tmp_path: Path, call: Any, front: str
) -> None:
    source = with_card(tiny, tmp_path / "in", front)
    with pytest.raises(CheckpointError):
        metadata_of(source)
    code, _, err = call("convert", source, tmp_path / "out")
    assert code == 0
    assert "its metadata is " in err
    assert err.count("\n") == 1
    assert "license" not in metadata(tmp_path / "out")


@pytest.mark.parametrize(
    "front",
    [
        "license: !!python/object/apply:os.system [x]",
        "- license: mit",
        "license: [mit]",
        f"license: {'m' * 300}",
        'license: "m\\e[31m"',
        "base_model: ../../x",
        "base_model: 'a/b](http://c) [d'",
        "",
    ],
)
def test_what_is_no_value_is_left_out(tiny: Path, tmp_path: Path, front: str) -> None:
    found = origin_of(with_card(tiny, tmp_path / "in", front))
    assert (found.licence, found.base, found.note) == ({}, None, None)


def test_it_names_no_path_of_this_machine(
    tiny: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    source = copy(tiny, secret / "model")
    random_adapter(tiny, secret / "mine")
    (secret / "rows.jsonl").write_text('{"question": "What is it?", "answer": "A circle."}\n')
    monkeypatch.chdir(tmp_path)
    code, _, _ = call(
        "convert",
        source,
        secret / "o`ut",
        "--adapter",
        "secret/mine",
        "--recipe",
        "8bit",
        "--check-data",
        "secret/rows.jsonl",
    )
    assert code == 0
    text = (secret / "o`ut" / README).read_text()
    assert "smolvlm-mlx convert model 'o`ut' --recipe 8bit --adapter mine" in text
    assert "with the adapter mine" in text
    assert "measured against the source" in text
    assert "secret" not in text
    assert os.fspath(tmp_path) not in text
    monkeypatch.chdir(secret)  # a folder by a word without a slash
    call("convert", "model", "out")
    assert "smolvlm-mlx convert model out" in (secret / "out" / README).read_text()


def test_ids_and_branches_of_the_hub_are_as_they_were_typed() -> None:
    words = ["me/mine", "out", "--learn-data", "me/rows:all", "--revision", "refs/pr/3"]
    command = typer.main.get_command(app).commands["convert"]  # type: ignore[attr-defined]
    said = command_line(command.make_context("convert", [*words]))
    assert said == "smolvlm-mlx convert me/mine out --revision refs/pr/3 --learn-data me/rows:all"


def test_of_mlx_vlm_only_where_it_has_the_head_that_it_looks_for(
    tiny: Path, tmp_path: Path
) -> None:
    tied = make(tmp_path / "tied", tied=True, layers=(1, 1))
    for source, said in ((tiny, True), (tied, False)):
        out = convert(source, tmp_path / f"of-{source.name}").out
        assert ("mlx-vlm loads it too" in (out / README).read_text()) == said


def test_figures_are_a_table(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out")
    figures = {"mean KL (nats)": 0.012345, "positions": 2000, "odd|name\n": "*a*"}
    write_card(tmp_path / "out", origin_of(tiny), figures, name="me/out", command="x")
    text = (tmp_path / "out" / README).read_text()
    for row in ("mean KL (nats) | 0.0123", "positions | 2000", "odd\\|name\\n | \\*a\\*"):
        assert f"| {row} |" in text.replace("\\\\n", "\\n"), row
    assert "--model me/out" in text
    assert text.startswith("---\n")
