"""A folder, a hub id in the cache, a hub id to download: found, or told in one line why not.
Nothing here dials out."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smolvlm_mlx.checkpoint.hub import PATTERNS, find
from smolvlm_mlx.errors import CheckpointError
from tests.support import as_metal
from tests.support.places import ROOT

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import constants, errors

REPO = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refused(path_or_id: str | Path, revision: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        find(path_or_id, revision)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_folders(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(tiny) == tiny
    assert find(str(tiny)) == tiny
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert find(f"~/{tiny.name}") == tiny
    monkeypatch.chdir(tiny.parent)
    assert find(f"./{tiny.name}") == Path(tiny.name)


def test_a_folder_comes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / REPO).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find(REPO) == Path(REPO)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "nothing",
            "./nothing/there",
            "./nothing",
            "../nothing",
            "a/b/c",
            "/a/b",
            "a/",
            "-x/y",
            "a/..",
            "ö/ü",
            "a b/c",
        ),
        *(
            "hf://a/b",
            "https://huggingface.co/a/b",
            "~/no-such-folder",
            "~no-such-user/x",
            "x" * 5000,
            "a\0b",
            "\n",
        ),
        *("a/" + "b" * 500, "a/b.git", "a--b/c", "a/b..c"),
    ],
)
def test_neither_folder_nor_hub_id(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refused(name)
    assert len(said) < 800
    assert "hub id" in said


def test_a_file(tiny: Path) -> None:
    path = tiny / "model.safetensors"
    assert refused(path) == f"{path} is a file; give the folder that holds config.json"


def test_of_a_long_name_the_end_is_told(tmp_path: Path) -> None:
    """Which is where names of folders differ."""
    folder = tmp_path / ("a" * 90) / "the-end"
    folder.mkdir(parents=True)
    for path_or_id, revision, said in (
        (folder, "v2", "the-end' is a folder, and has no"),
        (f"{'x' * 5000}the-end", None, "the-end': File name too long; give a folder or hub id"),
        (f"{'x/' * 60}the-end", None, "the-end', and no hub id like HuggingFaceTB/"),
    ):
        assert said in refused(path_or_id, revision)


# ---- the cache, without a network


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_not_in_the_cache(cache: Path) -> None:
    said = refused(REPO)
    assert said.startswith(
        f"{REPO}: not, or not all of it, in the local cache, and the hub is not reachable; "
    )
    assert "--model FOLDER" in said


def test_in_the_cache(cache: Path) -> None:
    repo = cache / "models--HuggingFaceTB--SmolVLM2-500M-Video-Instruct"
    snapshot = repo / "snapshots" / COMMIT
    for folder in (repo / "refs", snapshot):
        folder.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repo / "refs" / "main").write_text(COMMIT)
    assert find(REPO) == snapshot
    assert find(REPO, "main") == snapshot
    assert find(REPO, COMMIT) == snapshot
    assert "not, or not all of it, in the local cache" in refused(REPO, "other")


def test_environment_offline(tmp_path: Path) -> None:
    """HF_HUB_OFFLINE and HF_HOME are read by huggingface_hub when it is imported: in a process of
    its own."""
    program = f"from smolvlm_mlx.checkpoint.hub import find; find({REPO!r})"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), **as_metal.environment(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert "CheckpointError: " + REPO + ": not, or not all of it, in the local cache" in done.stderr


ANSWERS = """
import os, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
code, kind, body = int(sys.argv[1]), sys.argv[2], sys.argv[3].encode()
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(code)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("retry-after", "7")
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *rest): pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
from smolvlm_mlx.checkpoint.hub import find
from smolvlm_mlx.errors import CheckpointError
try:
    find("a/b")
except CheckpointError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "kind", "body", "said"),
    [
        (200, "text/html", "<title>Log in</title>", "is it the login page of a network?"),
        (200, "application/json", "{}", "is it the login page of a network?"),
        (200, "application/json", "[" * 100_000, "is it the login page of a network?"),
        (429, "text/plain", "busy", "too many requests (429); try again in 7 seconds"),
        (503, "text/plain", "busy", "not available now (503); try again in 7 seconds"),
        (401, "text/plain", "", "refuses access (401)"),
        (403, "text/plain", "", "refuses access (403)"),
    ],
)
def test_answers_of_a_hub(code: int, kind: str, body: str, said: str, tmp_path: Path) -> None:
    """A server in the hub's place; huggingface_hub reads its address when it is imported."""
    command = [sys.executable, "-c", ANSWERS, str(code), kind, body]
    environment = {"HF_HOME": str(tmp_path), **as_metal.environment(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.startswith("a/b: ")
    assert said in done.stdout
    assert done.stdout.count("\n") == 1


# ---- downloads


Download = Callable[..., str]


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch) -> Callable[[Download], None]:
    return lambda function: monkeypatch.setattr(huggingface_hub, "snapshot_download", function)


def test_what_is_asked_for(download: Callable[[Download], None], tmp_path: Path) -> None:
    asked: list[Any] = []

    def record(repo: str, **kwargs: Any) -> str:
        asked.append((repo, kwargs))
        return str(tmp_path)

    download(record)
    assert find(REPO, "v1") == tmp_path
    asked[0][1].pop("tqdm_class")  # the bar of a download, see test_gate.py
    assert asked == [(REPO, {"revision": "v1", "allow_patterns": PATTERNS})]


def test_patterns_bring_no_code_and_no_pickles() -> None:
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    wanted = [
        *(
            "config.json",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
        ),
        *(
            "tokenizer.json",
            "chat_template.jinja",
            "merges.txt",
            "vocab.json",
            "preprocessor_config.json",
        ),
    ]
    unwanted = [
        *(
            "pytorch_model.bin",
            "model.pt",
            "x.pkl",
            "modeling.py",
            "README.md",
            "model.gguf",
            "w.npz",
            "onnx/model.onnx",
        ),
        *("setup.sh", "a.exe", "requirements.txt", ".gitattributes"),
    ]
    assert list(filter_repo_objects([*wanted, *unwanted], allow_patterns=PATTERNS)) == wanted


def answer(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co"))


UNREACHABLE = "not, or not all of it, in the local cache, and the hub is not reachable"


def caused(error: Exception) -> Exception:
    """What huggingface_hub makes of an answer where the cache has no files."""
    wrapped = errors.LocalEntryNotFoundError("x")
    wrapped.__cause__ = error
    return wrapped


def status(number: int, wait: str | None = None) -> Exception:
    response = answer(number)
    if wait is not None:
        response.headers["retry-after"] = wait
    return errors.HfHubHTTPError("x\ny", response=response)


NOT_THE_HUB = "what answers in the hub's place is not the hub; is it the login page of a network?"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        *(
            (error, f"the hub says that there were too many requests (429); try again {when}")
            for error, when in (
                (status(429, "7"), "in 7 seconds"),
                (caused(status(429)), "later"),
                (caused(status(429, "Wed, 21 Oct 2026")), "later"),
            )
        ),
        (caused(status(503, "30")), "the hub is not available now (503); try again in 30 seconds"),
        (status(401), "the hub refuses access (401); see hf.co/HuggingFaceTB/"),
        (caused(status(403)), "the hub refuses access (403); see hf.co/HuggingFaceTB/"),
        (caused(status(502)), UNREACHABLE),
        (json.JSONDecodeError("Expecting value", "<html>", 0), NOT_THE_HUB),
        (KeyError("id"), NOT_THE_HUB),
        (TypeError("string indices must be integers"), NOT_THE_HUB),
        (OSError("Consistency check failed: file should be of size 100"), "a download broke off"),
        (
            errors.RepositoryNotFoundError("x\ny", response=answer(404)),
            "no such repository on the hub, or it needs a",
        ),
        (
            errors.GatedRepoError("x\ny", response=answer(403)),
            f"gated; ask for access at hf.co/{REPO}, then `hf auth",
        ),
        (
            errors.RevisionNotFoundError("x\ny", response=answer(404)),
            "no revision 'v1'; see hf.co/",
        ),
        (errors.HfHubHTTPError("500\n", response=answer(500)), UNREACHABLE),
        (errors.LocalEntryNotFoundError("x"), UNREACHABLE),
        (errors.OfflineModeIsEnabled("x"), UNREACHABLE),
        (errors.XetDownloadError("x"), UNREACHABLE),
        (errors.FileMetadataError("x"), UNREACHABLE),
        (httpx2.ConnectError("refused"), UNREACHABLE),
        (httpx2.ReadTimeout("slow"), UNREACHABLE),
        (httpx2.RemoteProtocolError("closed"), UNREACHABLE),
        (ConnectionResetError(), UNREACHABLE),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "cannot be saved to the cache (No space left on device)",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied"),
            "cannot be saved to the cache (Permission denied)",
        ),
        (
            OSError(errno.EROFS, "Read-only file system"),
            "cannot be saved to the cache (Read-only file system)",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_the_hub(
    download: Callable[[Download], None], error: BaseException, said: str
) -> None:
    def fail(repo: str, **kwargs: Any) -> str:
        raise error

    download(fail)
    assert refused(REPO, "v1").startswith(f"{REPO}: {said}")


def test_a_bug_keeps_its_traceback(download: Callable[[Download], None]) -> None:
    def fail(repo: str, **kwargs: Any) -> str:
        raise ZeroDivisionError

    download(fail)
    with pytest.raises(ZeroDivisionError):
        find(REPO)
