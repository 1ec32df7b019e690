"""Every flag of every command does something: with it the command's work is called with something
else, or something else comes out. test_commands_options.py has those of answers and pictures."""

import shutil
from collections.abc import Callable
from copy import copy
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from smolvlm_mlx import load
from smolvlm_mlx.bench import bench
from smolvlm_mlx.checkpoint import convert, reader
from smolvlm_mlx.cli.main import app
from smolvlm_mlx.cli.options import flag_of
from smolvlm_mlx.data import rows
from smolvlm_mlx.errors import SmolVLMError, TrainingError, VideoError
from smolvlm_mlx.generation.options import Options
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.options import options_of
from smolvlm_mlx.tasks import captions, documents, evaluation
from smolvlm_mlx.tasks.history import History
from smolvlm_mlx.tasks.live import Live
from smolvlm_mlx.training import run
from smolvlm_mlx.training.plan import Plan
from tests.support.checkpoints import Loaded
from tests.support.cli import check_refused, let_answer
from tests.support.http import question
from tests.support.pdfs import pictures_as_pdf
from tests.support.pictures import PICTURE
from tests.support.places import ROOT
from tests.support.rows import write_rows
from tests.support.videos import encode_video

import httpx2
import pytest
import typer

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
LOADING = [
    "| -m other",
    "| --dtype float16",
    "| --revision v1",
    "| --adapter {folder}",
    "| --memory 3GB",
]
WORDS = {  # of a command that does its work
    "generate": "generate Hi -n 4",
    "chat": "chat -n 4",
    "caption": "caption {folder}/a.png -o {out}/a.jsonl",
    "document": "document {folder}/a.pdf --output text",
    "live": "live {folder}/clip.mp4 -n 1",
    "evaluate": "evaluate {folder}/rows.jsonl",
    "finetune": "finetune {folder}/rows.jsonl {out}/run",
    "convert": "convert tiny {out}/new",
    "info": "info tiny",
    "bench": "bench tiny",
    "serve": "serve -n 4 --port 0",
}
# By command: flags | and others beside them with which it does something else.
FLAGS: dict[str, list[str]] = {
    "generate": [
        *LOADING,
        "| -i {folder}/a.png",
        "| -v {folder}/clip.mp4",
        "| --system Be",
        "| --json",
    ],
    "chat": [*LOADING, "| -i {folder}/a.png", "| --system Be", "| --no-history"],
    "caption": [*LOADING, "| --preset alt", "| --prompt Hi", "| --schema {folder}/schema.json"],
    "document": [*LOADING, "| --pages 2", "| --dpi 30", "| --prompt Hi"],
    "live": [*LOADING, "| --prompt Hi", "| --question-first", "| --every 0.01"],
    "evaluate": [
        *LOADING,
        "| --metric contains",
        "| -o {out}/b",
        "| --limit 1",
        "| --subset train",
    ],
    "finetune": [
        "| -m other",
        "| --dtype float16",
        "| --revision v1",
        "| --memory 3GB",
        "| --preset 8gb",
        "| --validation {folder}/rows.jsonl",
        "| --subset train",
    ],
    "convert": [
        "| --adapter {folder}",
        "| --revision v1",
        "| --recipe 4bit",
        "| --bits 4",
        "--bits 4 | --embedding-bits 8",
        "--bits 4 | --group-size 32",
        "--bits 4 | --quantize-vision",
        "| --dtype float32",
        "| --layout huggingface",
    ],
    "info": ["| -i {folder}/a.png", "| --memory 100MB"],
    "bench": ["| --dtype float16", "| --revision v1", "| --memory 3GB", "| --runs 2", "| --quick"],
    "serve": [
        *LOADING,
        "| --token other",
        "| --no-token",
        "| --open",
        "--token other | --allow-urls",
        "--token other | --no-history",
        "--token other | --alias short",
    ],
}
# Where a flag is tried that needs more than this.
ELSEWHERE = {
    "generate": {
        f"--{name}": "test_commands_options.py::test_what_is_seen_of_a_video_reaches_the_engine"
        for name in ("fps", "max-frames", "start", "end")
    },
    "chat": {
        "--port": "test_access.py::test_the_page_has_a_port_of_its_own",
        "--video": "test_terminal.py::test_videos_are_attached_from_the_command_line",
        "--resume": "test_commands_options.py::test_instructions_go_before_those_of_a_conversation",
        "--web": "test_commands_options.py::test_what_is_typed_for_the_page_is_what_it_begins_with",
    },
    "caption": {"--out": "test_captions.py::test_the_command_says_what_failed_and_was_passed_over"},
    "document": {
        "--out": "test_documents.py::test_markdown_to_a_file",
        "--output": "test_documents.py::test_markdown_to_a_file",
    },
    "live": {
        "--camera": "test_flags.py::test_the_camera_is_the_one_that_is_named",
        "--count": "test_live.py::test_a_pipe_has_a_line_a_frame",
        "--mirror": "test_live.py::test_the_picture_is_mirrored_for_display_only",
    },
    "evaluate": {"--json": "test_evaluation.py::test_json_and_limit"},
    "finetune": {
        "--resume": "test_finetune.py::test_ctrl_c_keeps_the_step_and_resume_goes_on",
        "--estimate": "test_finetune.py::test_the_estimate_comes_first_and_may_be_all",
        **dict.fromkeys(
            map(flag_of, options_of(Plan)), "test_flags.py::test_every_option_of_a_plan_reaches_it"
        ),
    },
    "convert": {
        "--check": "test_cli.py::test_convert",
        "--check-data": "test_quality_report.py::test_rows_without_answers_are_refused",
        "--json": "test_quality_report.py::test_figures_as_json",
        **dict.fromkeys(
            ("--learn", "--learn-data"), "test_distillation.py::test_by_the_command_line"
        ),
        "--target-kl": "test_quality_bits.py::test_what_cannot_be_is_refused",
        "--target-size": "test_quality_bits.py::test_on_the_command_line",
        "--upload": "test_upload.py::test_a_result_goes_to_the_hub",
        "--public": "test_upload.py::test_a_result_goes_to_the_hub",
        "--dry-run": "test_upload.py::test_a_dry_run_shows_the_files",
    },
    "info": {"--revision": "test_commands_options.py::test_what_cannot_be_done_is_refused"},
    "bench": {
        "--random": "test_bench.py::test_too_little_memory",
        "--bits": "test_bench.py::test_what_cannot_be_measured_is_one_line",
        "--json": "test_bench.py::test_json",
        "--plot": "test_bench.py::test_plot",
    },
    "serve": {
        "--port": "test_server.py::test_a_port_that_is_taken",
        "--new-token": "test_access.py::test_a_browser_comes_back_after_a_restart",
        **dict.fromkeys(
            ("--host", "--allow-host", "--allow-origin"),
            "test_commands_options.py::test_names_and_origins_that_are_allowed_are_let_in",
        ),
    },
}


class EnoughError(SmolVLMError):
    """What the command calls is known."""


Trace = list[object]


@pytest.fixture(scope="module")
def model(tiny: Path) -> Loaded:
    return load(tiny, "float32")


@pytest.fixture
def trace(model: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trace:
    """What the commands' work is called with, which is not done where it takes long."""
    found: Trace = []

    def watch(owner: Any, name: str, work: Callable[..., Any] | None = None) -> None:
        def called(*arguments: Any, **named: Any) -> Any:
            found.append((name, plain([*arguments, *sorted(named.items())])))
            if work is None:
                raise EnoughError("enough")
            return work(*arguments, **named)

        monkeypatch.setattr(owner, name, called)

    def opened(open_model: Callable[[], object], *more: Any) -> None:
        open_model()
        raise EnoughError("enough")

    watch(reader, "load", lambda *_, **__: (copy(model[0]), model[1]))
    watch(rows, "read_rows", lambda *_: ["one", "two"])
    watch(documents, "find_pages", documents.find_pages)
    watch(bench, "bench_in_steps", opened)
    watch(Live, "__init__", Live.__init__)
    watch(Live, "watch")
    watch(captions, "Captioner")
    watch(documents, "Reader")
    watch(evaluation, "evaluate_in_steps")
    watch(run, "prepare_in_steps")
    watch(convert, "convert_in_steps")
    monkeypatch.setattr("smolvlm_mlx.tasks.history.data_folder", lambda: tmp_path / "data")
    return found


def plain(value: Any) -> object:
    """What a call says, without models and other large things."""
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return repr(value)
    return value if isinstance(value, str | int | float | Path | None) else type(value).__name__


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    PICTURE.save(folder / "a.png")
    pictures_as_pdf(folder / "a.pdf")
    (folder / "clip.mp4").write_bytes(encode_video(3))
    (folder / "schema.json").write_text('{"type": "object", "properties": {"a": {}}}')
    write_rows(folder / "rows.jsonl", {"question": "What?", "answer": "red"})
    return folder


def outcome(
    words: str, trace: Trace, call: Any, monkeypatch: pytest.MonkeyPatch, out: Path
) -> object:
    """What a command line does: its calls, what it prints, what its server answers, the page it
    opens, and how much it keeps."""
    trace.clear()
    shutil.rmtree(out / "data", ignore_errors=True)
    answers: list[object] = []
    with monkeypatch.context() as only_here:
        opened = let_answer(only_here, lambda client: answers.extend(ask(client)))
        code, printed, err = call(*words.split(), stdin="Hi\n" if words[:4] == "chat" else "")
    assert code == 0 or "enough" in err, err
    command = words.split()[0]
    kept = len(History().list()) if command == "chat" else 0
    return repr(trace), "" if command == "serve" else printed, answers, bool(opened), kept


def ask(client: httpx2.Client) -> list[object]:
    """What a server says to somebody with a token, and to somebody without."""
    client.cookies.clear()
    found: list[object] = []
    for headers in ({"authorization": "Bearer other"}, {}):
        body = question("Hi", "http://127.0.0.1/a.png")
        told = client.post("/v1/chat/completions", json=body, headers=headers)
        found += [told.text, client.get("/conversations", headers=headers).text]
        found.append(client.get("/v1/models/short", headers=headers).status_code)
    return found


CASES = [(command, flags) for command, tried in FLAGS.items() for flags in tried]


@pytest.mark.parametrize(("command", "flags"), CASES)
def test_a_flag_does_something(
    command: str,
    flags: str,
    folder: Path,
    trace: Trace,
    call: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, more = flags.split("|")
    without, given = (
        outcome(typed.format(folder=folder, out=tmp_path), trace, call, monkeypatch, tmp_path)
        for typed in (f"{WORDS[command]} {before}", f"{WORDS[command]} {before} {more}")
    )
    assert without != given


def test_the_camera_is_the_one_that_is_named(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Camera:
        def __init__(self, *arguments: object) -> None:
            raise VideoError(f"camera {arguments}")

    monkeypatch.setattr("smolvlm_mlx.inputs.camera.Camera", Camera)
    check_refused(call("live", "-m", "tiny"), "camera ('0',)")
    check_refused(call("live", "-m", "tiny", "--camera", 2), "camera ('2',)")


PLAN: dict[str, tuple[str, Any]] = {
    "method": ("--method dora", "dora"),
    "parts": ("--train vision,connector --train decoder", ("vision", "connector", "decoder")),
    "save_as": ("--save-as peft", "peft"),
    "epochs": ("--epochs 2", 2.0),
    "checkpoint_layers": ("--checkpoint-layers", True),
    "alpha": ("--alpha 3", 3.0),
    "dropout": ("--dropout 0.25", 0.25),
    "learning_rate": ("--learning-rate 0.25", 0.25),
    "warmup": ("--warmup 0.25", 0.25),
    "weight_decay": ("--weight-decay 0.25", 0.25),
    "clip": ("--clip 0.25", 0.25),
    "validation_share": ("--validation-share 0.25", 0.25),
    **{
        name: (f"--{name.replace('_', '-')} 3", 3)
        for name in (
            *("rank", "steps", "batch_size", "accumulate", "max_tokens", "max_tiles"),
            *("validate_every", "save_every", "seed"),
        )
    },
}


@pytest.mark.parametrize("name", [option.name for option in options_of(Plan)])
def test_every_option_of_a_plan_reaches_it(
    name: str, folder: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []

    def prepare(model: str, data: str, out: Path, plan: Plan, **others: Any) -> None:
        plans.append(plan)
        raise TrainingError("enough")

    monkeypatch.setattr(run, "prepare_in_steps", prepare)
    flags, value = PLAN[name]
    check_refused(call("finetune", "a.jsonl", "out", "-m", "tiny", *flags.split()), "enough")
    assert plans == [replace(Plan(), **{name: value})]


def test_every_flag_is_tried() -> None:
    options = {flag_of(o) for kind in (Options, ImageOptions) for o in options_of(kind)}
    for name, command in COMMANDS.items():
        if name in ("adapters", "history", "models"):  # groups: their commands have tests of theirs
            continue
        flags = {
            parameter.name: {*parameter.opts}
            for parameter in command.params
            if parameter.param_type_name == "option"
        }
        words = " ".join(FLAGS[name]).split()
        for known in flags.values():
            tried = known & {*words, *ELSEWHERE.get(name, ()), "--debug", "--help"}
            assert tried or known & options, (name, known)


def test_tests_that_are_elsewhere_are_there() -> None:
    for tests in ELSEWHERE.values():
        for place in tests.values():
            file, _, name = place.partition("::")
            assert f"def {name}" in (ROOT / "tests" / file).read_text(encoding="utf-8")
