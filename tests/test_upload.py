"""A result goes to the hub whole, and to whom was said; what is in the way is told before."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.cli import ENVIRONMENT, check_refused, run
from tests.support.hub import Uploads, receiving

import pytest

WHO: dict[str, Any] = {
    "name": "me",
    "orgs": [{"name": "team", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}],
    "auth": {"accessToken": {"role": "write"}},
}


@pytest.fixture
def hub() -> Iterator[Uploads]:
    uploads = Uploads(WHO)
    with receiving(uploads):
        yield uploads


def convert(hub: Uploads, tiny: Path, out: Path, *options: object, **environment: str) -> Any:
    """In a process of its own, because the hub's address is read when its package is imported."""
    variables = {
        **ENVIRONMENT,
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": "hf_x",
        "HF_HOME": str(out.parent / "home"),
        "HF_HUB_DISABLE_XET": "1",
        **environment,
    }
    return run("convert", tiny, out, *options, env=variables)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("options", "repo", "private"), [((), "me/out", True), (("--public",), "team/out", False)]
)
def test_a_result_goes_to_the_hub(
    hub: Uploads, tiny: Path, tmp_path: Path, options: tuple[str, ...], repo: str, private: bool
) -> None:
    out = tmp_path / "out"
    code, said, err = convert(hub, tiny, out, "--recipe", "8bit", "--upload", repo, *options)
    assert (code, err) == (0, "")
    assert hub.repos == {repo: (private, files(out))}
    assert said.endswith(f"{hub.address}/{repo}: {'private' if private else 'public'}\n")
    assert f"--model {repo} " in (out / "README.md").read_text()


def test_into_an_empty_repository(hub: Uploads, tiny: Path, tmp_path: Path) -> None:
    hub.repos["me/out"] = (True, {".gitattributes": b"x"})
    code, _, err = convert(hub, tiny, tmp_path / "out", "--upload", "me/out")
    assert (code, err) == (0, "")
    assert hub.repos["me/out"] == (True, {".gitattributes": b"x", **files(tmp_path / "out")})


def test_a_dry_run_shows_the_files(hub: Uploads, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said, err = convert(hub, tiny, out, "--upload", "me/out", "--dry-run")
    assert (code, err) == (0, "")
    for name, data in files(out).items():
        assert f" {name} " in said
        assert f" {len(data):,} " in said
    assert f"hf upload me/out {out} . --private" in said
    assert not hub.repos
    assert all(line.startswith("GET ") for line in hub.asked)


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...], dict[str, str], str]] = {
    "name": ({}, ("--upload", "me/a b"), {}, "--upload 'me/a b': no name on the hub"),
    "no owner": ({}, ("--upload", "out"), {}, "--upload 'out': give ORG/NAME"),
    "offline": ({}, ("--upload", "me/out"), {"HF_HUB_OFFLINE": "1"}, "while HF_HUB_OFFLINE is set"),
    "no login": ({}, ("--upload", "me/out"), {"HF_TOKEN": ""}, "nobody is logged in"),
    "token": ({"who": None}, ("--upload", "me/out"), {}, "the hub does not know the token"),
    "reads": (
        {"who": {**WHO, "auth": {"accessToken": {"role": "read"}}}},
        ("--upload", "me/out"),
        {},
        "the token that is logged in may only read",
    ),
    "owner": ({}, ("--upload", "you/out"), {}, "'me', who is logged in, may not write to 'you'"),
    "org": ({}, ("--upload", "readers/out"), {}, "may not write to 'readers', but to 'me', 'team'"),
    "files": (
        {"repos": {"me/out": (True, {"a": b"", "b": b""})}},
        ("--upload", "me/out"),
        {},
        "me/out: has 2 files already ('a', 'b'), which are not written over",
    ),
    "public": (
        {"repos": {"me/out": (False, {})}},
        ("--upload", "me/out"),
        {},
        "me/out: is public already; add --public",
    ),
    "private": (
        {"repos": {"me/out": (True, {})}},
        ("--upload", "me/out", "--public"),
        {},
        "me/out: is private already; leave out --public",
    ),
    "busy": ({"failing": ("whoami", 429)}, ("--upload", "me/out"), {}, "too many requests"),
    "broken": ({"failing": ("whoami", 500)}, ("--upload", "me/out"), {}, "the hub answers 500"),
    "nowhere": (
        {},
        ("--upload", "me/out"),
        {"HF_ENDPOINT": "http://127.0.0.1:9"},
        "the hub cannot be reached",
    ),
    "not the hub": ({"who": []}, ("--upload", "me/out"), {}, "is not the hub"),
    "nothing to upload": ({}, ("--dry-run",), {}, "--dry-run needs --upload ORG/NAME"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_in_the_way_is_told_before_the_work(
    hub: Uploads, tiny: Path, tmp_path: Path, name: str
) -> None:
    changes, options, environment, said = REFUSED[name]
    for attribute, value in changes.items():
        setattr(hub, attribute, value)
    before = {repo: dict(held[1]) for repo, held in hub.repos.items()}
    check_refused(convert(hub, tiny, tmp_path / "out", *options, **environment), said)
    assert not (tmp_path / "out").exists()
    assert {repo: held[1] for repo, held in hub.repos.items()} == before


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        (("create", 403), "the token may not write there"),
        (("commit", 403), "the token may not write there"),
        (("validate-yaml", 400), "does not take it"),
    ],
)
def test_what_fails_leaves_the_folder_and_says_how_to_go_on(
    hub: Uploads, tiny: Path, tmp_path: Path, failing: tuple[str, int], said: str
) -> None:
    hub.failing, out = failing, tmp_path / "out"
    code, _, err = convert(hub, tiny, out, "--upload", "me/out")
    assert (code, err.count("\n")) == (1, 1)
    assert said in err
    assert f"{out} is complete: `hf upload me/out {out} . --private` uploads it" in err
    assert (out / "model.safetensors").is_file()
    assert not hub.repos.get("me/out", (True, {}))[1]
