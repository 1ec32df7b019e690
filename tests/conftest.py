"""What many tests use: the small random checkpoint, made once a process, and the bundled one; a
device that sums the same way each time; the command line and the server; and what the end of a run
says."""

import gc
import importlib
import io
import json
import os
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

if "PYTEST_XDIST_WORKER" in os.environ:
    # The others have the other cores. BLAS and torch read it when loaded, here and in children.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")

# Numbers are compared: on GPUs with units for it (M5, NVIDIA) MLX multiplies float32 in TF32,
# unless told not to.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

from convert.random_checkpoint import make
from convert.tiny.conversations import write_questions
from smolvlm_mlx import load
from smolvlm_mlx.inputs import prompt as template
from smolvlm_mlx.inputs.tokenizer import Tokenizer
from tests.support.browser import HAS_BROWSER
from tests.support.checkpoints import Loaded
from tests.support.family import FIRST, SECOND, SOURCES, make_tokenizer_folder
from tests.support.places import REAL_FILES
from tests.support.rows import KINDS, SHORT

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, settings
from safetensors.numpy import load_file, save_file

# The health check allows 30 seconds for the first ten examples, which a busy machine may need.
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")

if TYPE_CHECKING:
    from smolvlm_mlx.generation.scheduler import Job
    from tests.support.http import Running

LONGEST = 10.0  # seconds that no test without the mark slow takes; on an idle machine it is 3


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SmolVLM2 checkpoint in Hugging Face's layout. Only for reading."""
    return make(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def tiny_v1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the first family (`idefics3`)."""
    return make(tmp_path_factory.mktemp("checkpoints") / "tiny-v1", "idefics3")


@pytest.fixture(scope="session")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With fewer layers, to train: MLX's own BLAS, which is what trains where there is no OpenBLAS,
    is slow. Only for reading."""
    return make(tmp_path_factory.mktemp("checkpoints") / "shallow", layers=(1, 2))


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of the family's tokenizers, without weights."""
    folder = tmp_path_factory.mktemp("family")
    for name in (FIRST, SECOND):
        make_tokenizer_folder(folder / name, name)
    return folder


@pytest.fixture(params=SOURCES)
def family(request: pytest.FixtureRequest, stand_ins: Path) -> Path:
    """The same, and, where they are beside the checkout, the published files."""
    return stand_ins if request.param == "stand-in" else REAL_FILES


@pytest.fixture(scope="module")
def short_questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 short questions, most of them with a picture."""
    return write_questions(tmp_path_factory.mktemp("data"), 6, "unit", SHORT)


@pytest.fixture(scope="module")
def mixed_questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 questions, one of each kind."""
    return write_questions(tmp_path_factory.mktemp("data"), 6, "unit", KINDS)


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> Loaded:
    return load(tiny, "float32")


@pytest.fixture(scope="module")
def bundled() -> Loaded:
    """The bundled checkpoint, which sees."""
    return load("tiny", "float32")


@pytest.fixture
def endless(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint that goes on until it is interrupted: no end token is ever the likeliest."""
    folder = tmp_path / "endless"
    shutil.copytree(tiny, folder)
    weights = load_file(folder / "model.safetensors")
    for id in Tokenizer.from_folder(folder).end_ids:
        weights["lm_head.weight"][id] = 0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 100_000
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def on_the_cpu() -> Iterator[None]:
    """Where sums come out the same each time, and in float32, whatever machine this is."""
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(device)


@pytest.fixture(scope="session")
def mlx_lm_imported() -> None:
    """It takes a second or two, which are no test's own."""
    importlib.import_module("mlx_lm.tuner")


@pytest.fixture(autouse=True)
def patient_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a process that is started may take longer than a template is given."""
    monkeypatch.setattr(template, "SECONDS", 60.0)


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """The command line in this process: exit code, stdout, stderr. It keeps its token apart."""
    from smolvlm_mlx.cli import main, token

    kept = tmp_path_factory.mktemp("kept") / "token"
    monkeypatch.setattr(token, "token_file", lambda: kept)

    def call(*arguments: object, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["smolvlm-mlx", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        capsys.readouterr()
        code = 0
        try:
            main.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        return (code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Running]":
    from tests.support.http import serving

    with serving(tiny, tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Running]":
    """A server with the bundled checkpoint."""
    from smolvlm_mlx.checkpoint.hub import TINY
    from tests.support.http import serving

    with serving(TINY, tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def url(seeing: "Running") -> str:
    """What people set as the base URL."""
    return f"http://127.0.0.1:{seeing.port}/v1"


@pytest.fixture(scope="module")
def tidy() -> "Iterator[None]":
    """What a file's clients leave open is gone before other files' tests."""
    yield
    gc.collect()


@pytest.fixture
def slow_model(server: "Running", monkeypatch: pytest.MonkeyPatch) -> "list[Job]":
    """Each token takes 40 ms or more and no answer ends by itself. The jobs that come meanwhile."""
    from tests.support.http import slow_down

    return slow_down(server, monkeypatch)


@pytest.fixture
def jobs(server: "Running", monkeypatch: pytest.MonkeyPatch) -> "list[Job]":
    """Those that come to the server."""
    jobs: list[Job] = []
    submit = server.scheduler.submit

    def watched(job: "Job") -> None:
        jobs.append(job)
        submit(job)

    monkeypatch.setattr(server.scheduler, "submit", watched)
    return jobs


# ---- the beginning and the end of a run


class Unseen(pytest.Directory):
    """The tests of the page, where it cannot be looked at: skipped as one."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip("need Chromium and playwright")


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> Unseen | None:
    if path.name != "page" or HAS_BROWSER:
        return None
    return Unseen.from_parent(parent, path=path)


def pytest_report_header() -> str:
    """Say which clients the server's tests have."""
    names = ("openai", "litellm", "langchain-openai", "llm", "docling-slim")
    versions = {each.name: each.version for each in distributions() if each.name in names}
    return "clients: " + ", ".join(f"{name} {versions.get(name, '(none)')}" for name in names)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say in one line what was skipped and why, and which tests are too slow. Nothing fails by the
    clock."""
    reports = terminalreporter.stats
    if skipped := reports.get("skipped"):
        terminalreporter.write_line(summary_of([_reason(report) for report in skipped]))
    slow = [
        report
        for report in reports.get("passed", [])
        if report.when == "call" and report.duration > LONGEST
    ]
    if "not slow" in config.option.markexpr:
        for report in slow:
            terminalreporter.write_line(
                f"slow without the mark: {report.nodeid} took {report.duration:.0f} s"
            )


def summary_of(skipped: list[tuple[str, str]]) -> str:
    """Each reason, with how many tests of which files it kept from running."""
    files = defaultdict(list)
    for file, reason in skipped:
        files[reason].append(file)
    parts = (
        f"{len(named)} {reason}: {', '.join(sorted(set(named)))}"
        for reason, named in sorted(files.items())
    )
    return f"skipped: {len(skipped)} ({'; '.join(parts)})"


def _reason(report: pytest.TestReport | pytest.CollectReport) -> tuple[str, str]:
    """The file and, in a few words, why it or its test was skipped."""
    said = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    return report.nodeid.partition("::")[0], re.sub(
        r"^Skipped: |\s+", lambda found: " " if found[0].isspace() else "", said
    )


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The datasets package, without a network and with a cache of its own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return datasets
