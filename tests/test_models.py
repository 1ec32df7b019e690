"""`smolvlm-mlx models`: the list, and how checkpoints come and go; a stand-in on this machine in
the place of the hub."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smolvlm_mlx import SmolVLMError
from smolvlm_mlx.checkpoint.cached import Cached, cached, is_here, remove
from smolvlm_mlx.checkpoint.hub import TINY
from smolvlm_mlx.checkpoint.names import KNOWN
from smolvlm_mlx.cli import choice
from smolvlm_mlx.cli.choice import VARIABLE, Machine
from tests.support.cli import ENVIRONMENT, check_refused, run
from tests.support.hub import COMMIT, serving

import pytest
from huggingface_hub import constants

REPO = "HuggingFaceTB/SmolVLM2-256M-Video-Instruct"
OTHER = "somebody/SmolVLM-of-mine"
NEEDED = {path.name for path in TINY.iterdir()} - {"README.md"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a machine of 16 GB with a GPU, and no default of one's own."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(Machine, "of_this", classmethod(lambda cls: cls(16 * 10**9, 2, True)))
    monkeypatch.setattr(choice, "config_file", lambda: tmp_path / "config.toml")
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path / "hub"


def put(cache: Path, repo: str, names: set[str] = NEEDED) -> Path:
    """Files of a checkpoint as the hub's cache holds them; returns the folder of the whole."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for each in (folder / "refs", folder / "blobs", snapshot):
        each.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for name in names:
        shutil.copy(TINY / name, folder / "blobs" / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    return folder


def break_off(cache: Path, repo: str, size: int) -> Path:
    """A download that has not got further than a part of one file."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "abc.incomplete").write_bytes(bytes(size))
    return folder


def size_of(names: set[str]) -> int:
    return sum((TINY / name).stat().st_size for name in names)


# ---- the cache


def test_what_is_in_the_cache(cache: Path) -> None:
    assert cached() == []
    part = {"config.json", "tokenizer.json"}
    folders = [
        put(cache, REPO),
        put(cache, "HuggingFaceTB/SmolVLM-Base", part),
        put(cache, OTHER),
        break_off(cache, "HuggingFaceTB/SmolVLM-Instruct", 1000),
    ]
    stranger = put(cache, "somebody/else")
    (stranger / "blobs" / "config.json").write_text('{"model_type": "llama"}')
    put(cache, "somebody/damaged", {"model.safetensors"})
    break_off(cache, "somebody/unknown", 5)
    whole = size_of(NEEDED) + len(COMMIT)
    assert cached() == [
        Cached("HuggingFaceTB/SmolVLM-Base", folders[1], size_of(part) + len(COMMIT), False),
        Cached("HuggingFaceTB/SmolVLM-Instruct", folders[3], 1000, False),
        Cached(REPO, folders[0], whole, True),
        Cached(OTHER, folders[2], whole, True),
    ]
    assert [is_here(each.repo) for each in cached()] == [False, False, True, True]
    assert not is_here("HuggingFaceTB/SmolVLM2-2.2B-Instruct")


def test_what_goes_takes_nothing_else_along(cache: Path) -> None:
    folders = [put(cache, REPO), put(cache, OTHER), break_off(cache, KNOWN[7].repo, 1000)]
    for found in cached():
        if found.repo != OTHER:
            remove(found)
    assert [folder.exists() for folder in folders] == [False, True, False]
    assert is_here(OTHER)


def test_what_is_damaged_is_listed_and_goes(cache: Path, call: Any) -> None:
    unlinked, lost, stray, blobs = (put(cache, known.repo) for known in KNOWN[:4])
    (unlinked / "blobs" / "config.json").unlink()
    shutil.rmtree(lost / "snapshots" / COMMIT)
    for folder in (stray, blobs):
        shutil.rmtree(folder / "snapshots")
    (stray / "snapshots").mkdir()
    (stray / "snapshots" / "file").write_text("")
    assert [(each.is_whole, each.is_damaged) for each in cached()] == [(False, True)] * 4
    _, out, _ = call("models")
    assert out.count("\tdamaged\t") == 4
    assert call("models", "rm", *(known.name for known in KNOWN[:4]), "--yes")[0] == 0
    assert cached() == []
    assert not any(folder.exists() for folder in (unlinked, lost, stray, blobs))


def test_what_links_lead_to_stays(cache: Path, tmp_path: Path, call: Any) -> None:
    linked = put(tmp_path / "elsewhere", REPO)
    cache.mkdir()
    (cache / linked.name).symlink_to(linked)
    beside = put(cache, OTHER)
    weights, snapshot = tmp_path / "mine" / "model.safetensors", beside / "snapshots" / COMMIT
    weights.parent.mkdir()
    (beside / "blobs" / weights.name).rename(weights)
    (snapshot / weights.name).unlink()
    (snapshot / weights.name).symlink_to(weights)
    size = size_of(NEEDED - {weights.name}) + len(COMMIT)
    assert [(each.is_whole, each.bytes) for each in cached()] == [
        (True, 0),
        (True, size),
    ]
    code, _, err = call("models", "rm", "256M", OTHER, "-y")
    assert code == 0
    assert err.splitlines()[:2] == [
        f"{REPO}: linked to {linked}, which stays",
        f"{OTHER}: linked to {weights.parent}, which stays",
    ]
    assert cached() == []
    assert weights.is_file()
    assert (linked / "blobs" / weights.name).is_file()


def test_a_cache_that_is_a_file(cache: Path) -> None:
    cache.write_text("")
    with pytest.raises(SmolVLMError, match="see HF_HOME"):
        cached()


# ---- the list


def test_what_goes_while_it_is_looked_at_has_no_size(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, walk = put(cache, "a/b"), os.walk
    (folder / "blobs" / "gone").touch()

    def late(at: Path) -> Iterator[Any]:
        found = [*walk(at)]
        (folder / "blobs" / "gone").unlink(missing_ok=True)
        return iter(found)

    monkeypatch.setattr(os, "walk", late)
    assert [(each.repo, each.bytes) for each in cached()] == [
        ("a/b", size_of(NEEDED) + len(COMMIT))
    ]


def test_the_list_for_scripts(cache: Path, call: Any) -> None:
    put(cache, REPO)
    put(cache, OTHER)
    break_off(cache, "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", 20_000_000)
    code, out, err = call("models", "--json")
    found = json.loads(out)
    assert (code, err, found["memory"], found["default"]) == (0, "", 16 * 10**9, REPO)
    rows = {row["name"]: row for row in found["models"]}
    assert list(rows) == ["tiny", *(known.name for known in KNOWN), OTHER]
    assert [name for name, row in rows.items() if row["default"]] == ["256M"]
    row = rows["256M"]
    assert 0.5e9 < row.pop("memory") < 2e9
    assert row == {
        "name": "256M",
        "checkpoint": REPO,
        "about": "pictures, videos",
        "parameters": 256_484_928,
        "download": 1_025_939_712,
        "fits": "yes",
        "downloaded": "yes",
        "disk": size_of(NEEDED) + len(COMMIT),
        "default": True,
    }
    assert rows["500M"]["downloaded"] == "partly"
    assert rows["2.2B"]["downloaded"] == "no"
    assert (rows[OTHER]["parameters"], rows[OTHER]["downloaded"]) == (None, "yes")


@pytest.mark.parametrize("columns", [40, 60, 80, 130])
def test_names_are_whole_on_a_narrow_terminal(
    columns: int, cache: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache, OTHER)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = re.sub(r"\x1b\[[\d;]*m", "", call("models")[1])
    assert max(map(len, out.splitlines())) <= columns
    for known in KNOWN:
        assert re.search(rf"^ {re.escape(known.name)} ", out, re.MULTILINE)


def test_the_list_has_a_name_too(cache: Path, call: Any) -> None:
    for options in ((), ("--json",)):
        assert call("models", "list", *options) == call("models", *options)


def test_the_list_in_a_pipe_is_lines_with_tabs(cache: Path, call: Any) -> None:
    code, out, err = call("models")
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert [line[0] for line in lines][:4] == ["tiny", "256M", "500M *", "2.2B"]
    assert {len(line) for line in lines} == {8}
    assert lines[2][1:3] == ["507M", "2.0 GB"]
    assert lines[2][4:] == [
        "yes",
        "no",
        "pictures, videos",
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    ]
    assert err.startswith("* default: 500M, for this machine's 16.0 GB of memory\n")
    assert err.endswith(f"{cache.parent / 'config.toml'}\n")


def test_a_default_of_one_s_own_is_marked(
    cache: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "docling")
    _, out, err = call("models")
    assert [line.split("\t")[0] for line in out.splitlines() if "*" in line] == ["docling *"]
    assert err.startswith(f"* default: docling, by {VARIABLE}\n")


def test_a_wrong_default_is_said_beside_the_list(
    cache: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cache.parent / "config.toml"
    file.write_text("model = ")
    for begin in (f"{file}: cannot be read as TOML", f"{VARIABLE}: no folder 'nosuchthing'"):
        code, out, err = call("models")
        assert (code, len(out.splitlines()), "*" in out) == (1, 1 + len(KNOWN), False)
        assert err.startswith(f"smolvlm-mlx: {begin}")
        assert err.count("\n") == 1
        monkeypatch.setenv(VARIABLE, "nosuchthing")


# ---- rm


def test_rm_asks_or_is_told(cache: Path, call: Any) -> None:
    put(cache, REPO)
    check_refused(call("models", "rm", "256m"), f"rm would delete {REPO} (5.6 MB); --yes does")
    check_refused(call("models", "rm", "256M", "500M", "-y"), "500M: not downloaded; what is: 256M")
    check_refused(call("models", "rm", "tiny", "-y"), "tiny: comes with the program")
    check_refused(call("models", "rm", "265M", "-y"), "no model '265M'; did you mean 256M?")
    assert is_here(REPO)
    assert call("models", "rm", "256m", REPO, "--yes") == (0, "", "freed: 5.6 MB\n")
    assert cached() == []


# ---- pull, from a stand-in


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The environment of a process whose hub has one checkpoint, and the names of files that were
    fetched from it."""
    repo, asked = tmp_path / "repo", list[str]()
    shutil.copytree(TINY, repo)
    (repo / "pytorch_model.bin").write_bytes(b"x")
    (repo / "run.py").write_text("print()")
    with serving({REPO: repo}, asked) as address:
        places = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        yield {**ENVIRONMENT, **places, "HF_HUB_OFFLINE": "0"}, asked


@pytest.mark.slow
def test_pull_fetches_what_is_needed_and_once(
    stand_in: tuple[dict[str, str], list[str]], tmp_path: Path
) -> None:
    environment, asked = stand_in
    folder = tmp_path / "home" / "hub" / f"models--{REPO.replace('/', '--')}"
    for _ in range(2):
        code, out, err = run("models", "pull", "256M", env=environment)
        assert (code, out) == (0, f"{folder / 'snapshots' / COMMIT}\n"), err
        assert err.startswith(f"{REPO}, 1.0 GB\n")
        assert sorted(asked) == sorted(NEEDED)
    answer = run(
        "generate", "Hi", "-m", "256M", "-n", 2, env={**environment, "HF_HUB_OFFLINE": "1"}
    )
    assert answer == run("generate", "Hi", "-m", "tiny", "-n", 2)
    assert run("models", "rm", "256M", "-y", env=environment)[0] == 0
    assert not folder.exists()


@pytest.mark.slow
def test_pull_of_what_the_hub_has_not(stand_in: tuple[dict[str, str], list[str]]) -> None:
    environment, asked = stand_in
    code, out, err = run("models", "pull", f"{REPO}s", env=environment)
    assert (code, out, asked) == (1, "", [])
    assert err.splitlines()[-1].endswith(f"(`hf auth login`); did you mean {REPO}?")
