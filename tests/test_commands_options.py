"""Every option of an answer, typed for every command: the engine is asked with it and the answer is
another, or it is refused by name."""

import base64
import json
import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from socket import EAI_NONAME, gaierror
from typing import Any

from smolvlm_mlx import load
from smolvlm_mlx.checkpoint import reader
from smolvlm_mlx.cli.options import flag_of
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.options import Options
from smolvlm_mlx.inputs.messages import Message, VideoPart, text_message, user_message
from smolvlm_mlx.inputs.processor import Processor
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.inputs.video import VIDEO_OPTIONS
from smolvlm_mlx.server import security
from smolvlm_mlx.tasks import evaluation
from smolvlm_mlx.tasks.history import History, new_id
from tests.support.changes import ANSWERS, CHANGES, EVERY, PICTURES, UNSEEN, VALUES
from tests.support.checkpoints import Loaded
from tests.support.cli import check_refused, let_answer
from tests.support.http import question
from tests.support.pictures import data_url, noise
from tests.support.rows import write_rows
from tests.support.videos import encode_video

import httpx2
import pytest
from PIL import Image

REFUSED = {
    "chat": {"skip_special_tokens"},
    "chat --web": {"skip_special_tokens", "kv_bits"},
    "document": {"skip_special_tokens"},
    "live": {"longest_edge", "max_tiles"},
    "serve": {"kv_bits"},
}
NAMES = [option.name for option in EVERY]


SWITCH = {True: "on", False: "off"}


def typed(**values: Any) -> list[str]:
    """The flags of options."""
    words = list[str]()
    for option in EVERY:
        flag, value = flag_of(option), values.get(option.name)
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif value is not None:
            each = value if isinstance(value, tuple) else (value,)
            words += [word for one in each for word in (flag, str(one))]
    return words


@dataclass
class Asked:
    """What the engine was asked with."""

    options: list[Options] = field(default_factory=list)
    image_options: list[ImageOptions] = field(default_factory=list)
    videos: list[dict[str, Any]] = field(default_factory=list)

    def has(self, name: str) -> set[object]:
        """The values of an option."""
        kinds = self.options if name in {option.name for option in ANSWERS} else self.image_options
        return {getattr(options, name) for options in kinds}


@pytest.fixture(scope="module")
def endless_answers(tiny: Path) -> Loaded:
    model, processor = load(tiny, "float32")
    processor.tokenizer.end_ids = frozenset()  # answers go on, and so have time to differ
    return model, processor


@pytest.fixture
def asked(endless_answers: Loaded, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The commands have a model that was loaded once, and its engine keeps what it is asked. Each
    has a copy, of which `generate` throws the vision tower away."""
    found, row, prepare = Asked(), Engine.row, Processor.prepare
    model, processor = endless_answers

    def keep_options(self: Engine, options: Options, *more: Any) -> Any:
        found.options.append(options)
        return row(self, options, *more)

    def keep_messages(
        self: Processor, messages: Any, image_options: ImageOptions | None = None, **more: Any
    ) -> Any:
        found.image_options.append(image_options or ImageOptions())
        parts = [part for message in messages for part in parts_of(message)]
        found.videos += [dict(part.options) for part in parts if isinstance(part, VideoPart)]
        return prepare(self, messages, image_options, **more)

    monkeypatch.setattr(Engine, "row", keep_options)
    monkeypatch.setattr(Processor, "prepare", keep_messages)
    for module in (reader, evaluation):
        monkeypatch.setattr(module, "load", lambda *_, **__: (copy(model), processor))
    return found


def parts_of(message: Any) -> Sequence[Any]:
    return message.parts if isinstance(message, Message) else ()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, a video, and a question of a data set."""
    folder = tmp_path_factory.mktemp("files")
    noise(90, 60).save(folder / "a.png")
    (folder / "clip.mp4").write_bytes(encode_video(40, 10))
    write_rows(
        folder / "rows.jsonl", {"image": "a.png", "question": "What color?", "answer": "red"}
    )
    return folder


class Commands:
    """Each command with a short question about a picture, by its name."""

    def __init__(self, folder: Path, out: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._out, self._call = folder, out, call
        self._monkeypatch, self._runs = monkeypatch, 0

    def run(self, command: str, *flags: str) -> tuple[int, str, str]:
        """Exit code, answer and stderr."""
        self._runs += 1
        out = self._out / f"{self._runs}.jsonl"
        picture, stdin, lines = self._folder / "a.png", "", list[str]()
        arguments: dict[str, list[object]] = {
            "generate": ["Hi", "-i", picture],
            "caption": [picture, "-o", out, "--prompt", "Hi"],
            "chat": ["--no-history", "-i", picture],
            "chat --web": ["--no-history"],
            "document": [picture, "--output", "text"],
            "evaluate": [self._folder / "rows.jsonl", "-o", out.with_suffix("")],
            "live": [self._folder / "clip.mp4", "--count", "1"],
            "serve": ["--port", "0", "--open", "--no-history"],
        }
        if command in ("serve", "chat --web"):
            let_answer(self._monkeypatch, lambda client: lines.append(answer_of(client)))
        if command == "chat":
            stdin = "Hi\n"
        words: list[object] = [*command.split(), *arguments[command], "-m", "tiny", *flags]
        code, shown, err = self._call(*words, stdin=stdin)
        if command == "caption" and code == 0:
            lines += [json.loads(line)["caption"] for line in out.read_text().splitlines()]
        return code, "".join(lines) or shown, err


def answer_of(client: httpx2.Client) -> str:
    said = client.post("/v1/chat/completions", json=question("Hi", data_url())).json()
    return str(said["choices"][0]["message"]["content"])


@pytest.fixture
def commands(folder: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(folder, tmp_path, call, monkeypatch)


def one_tile(name: str) -> list[str]:
    """For a test of an option that is none of pictures, which is then quicker."""
    return [] if name in {option.name for option in PICTURES} else ["--no-split"]


COMMANDS = [
    "generate", "caption", "chat", "chat --web", "document", "evaluate", "live", "serve",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_reaches_the_engine_or_is_refused_by_name(
    command: str, name: str, commands: Commands, asked: Asked
) -> None:
    value = (command, name) == ("live", "split") or VALUES[name]  # a frame is one tile
    flags = typed(**{name: value})
    code, _, err = commands.run(command, "-n", "2", *one_tile(name), *flags)
    if name in REFUSED.get(command, ()):
        assert code in (1, 2)
        assert flags[0] in err
        assert asked.options == []
    else:
        assert (code, asked.has(name)) == (0, {value}), err


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", ["generate", "caption", "chat"])
def test_an_option_changes_the_answer(
    command: str, name: str, commands: Commands, asked: Asked
) -> None:
    if name in UNSEEN or name in REFUSED.get(command, ()):
        return
    beside, value = CHANGES[name]
    before = ["-n", "24", *one_tile(name), *typed(**beside)]
    flags = [*before, *typed(**{name: value})]
    tried = [before, flags, flags] if "--seed" in flags else [before, flags]
    answers = [commands.run(command, *words) for words in tried]
    assert {code for code, _, _ in answers} == {0}
    assert answers[0][1] != answers[1][1] == answers[-1][1]


FRAMES = {"fps": 0.5, "max_frames": 2, "start": 1.5, "end": 2.5}


@pytest.mark.parametrize("name", VIDEO_OPTIONS)
def test_what_is_seen_of_a_video_reaches_the_engine_and_changes_the_answer(
    name: str, folder: Path, asked: Asked, call: Any
) -> None:
    flag = [f"--{name.replace('_', '-')}", FRAMES[name]]
    asking = ("generate", "Hi", "-m", "tiny", "-n", 24)
    answers = [call(*asking, "-v", folder / "clip.mp4", *more) for more in ([], flag)]
    assert asked.videos == [{}, {name: FRAMES[name]}]
    assert [code for code, _, _ in answers] == [0, 0]
    assert answers[0][1] != answers[1][1]


# ---- the page, and everything else that a server is told


def test_what_is_typed_for_the_page_is_what_it_begins_with(
    folder: Path, tmp_path: Path, asked: Asked, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smolvlm_mlx.tasks.history.data_folder", lambda: tmp_path)
    id, found = new_id(), list[Any]()
    History().save(id, [user_message("Before?")])
    opened = let_answer(monkeypatch, lambda client: found.append(client.get("/page/start").json()))
    flags = ["-n", 30, "--stop", "a", "--stop", "b", "--max-tiles", 3, "--system", "Be brief."]
    media = ["-i", folder / "a.png", "-i", folder / "clip.mp4"]
    assert call("chat", "--web", "-m", "tiny", "--resume", "last", *flags, *media)[0] == 0
    assert len(opened) == 1
    ((start,), content) = found, found[0]["content"]
    assert [(part["type"], part.get("name")) for part in content] == [
        ("image", "a.png"),
        ("video", "clip.mp4"),
        ("text", None),
    ]
    assert base64.b64decode(content[0]["base64"]) == (folder / "a.png").read_bytes()
    assert (start["system"], start["conversation"]) == ("Be brief.", id)
    values = {setting["name"]: setting["value"] for setting in start["settings"]}
    assert values["max_tokens"] == 30
    assert values["stop"] == ["a", "b"]
    assert values["max_tiles"] == 3
    given = {setting["name"] for setting in start["settings"] if setting["typed"]}
    assert given == {"max_tokens", "stop", "max_tiles"}
    assert values.keys() == {*NAMES} - REFUSED["chat --web"]


def test_a_request_goes_before_what_was_typed_for_the_server(
    commands: Commands, asked: Asked, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(client: httpx2.Client) -> None:
        for more in ({}, {"temperature": 0.5, "stop": "b"}, {"temperature": None, "stop": None}):
            client.post("/v1/chat/completions", json=question("Hi", max_tokens=2, **more))

    let_answer(monkeypatch, ask)
    flags = ["-t", "1", "--stop", "a", "--port", "0", "--open", "--no-history"]
    assert call("serve", "-m", "tiny", *flags)[0] == 0
    found = [(options.temperature, options.stop) for options in asked.options]
    assert found == [(1.0, ("a",)), (0.5, ("b",)), (1.0, ("a",))]


def test_instructions_go_before_those_of_a_conversation_that_goes_on(
    tmp_path: Path, asked: Asked, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smolvlm_mlx.tasks.history.data_folder", lambda: tmp_path)
    for before, flags, now in [
        ("Be long.", ["--system", "Be brief."], "Be brief."),
        ("Be long.", [], "Be long."),
        ("Be long.", ["--system", ""], None),
    ]:
        id = new_id()
        History().save(id, [text_message("system", before), user_message("Before?")])
        asking = ("chat", "-m", "tiny", "-n", 2, "--resume", id)
        assert call(*asking, *flags, stdin="And now?\n")[0] == 0
        systems = [message.text for message in History().load(id) if message.role == "system"]
        assert systems == ([now] if now else [])


# ---- what would change nothing, and what contradicts itself


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("chat --resume last --no-history", "--resume needs the history"),
        ("chat --web --kv-bits 4", "--kv-bits: not with --web"),
        ("info --image {a}", "--image: of which checkpoint?"),
        ("live {a} --camera 0", "a file and --camera"),
        ("serve --no-token --token x", "--token and --no-token"),
        ("serve --token=", "--token is empty"),
        ("serve --token a --new-token", "--token and --new-token; give one"),
        ("serve --new-token --no-token", "--new-token and --no-token; give one"),
        ("serve --token ä", "--token: give ASCII letters"),
        ("serve --allow-origin friend.example", "'friend.example': give one such as https://"),
        ("serve --allow-origin https://a.example/b", "'https://a.example/b': give one such as"),
        *[
            (f"{words} --revision v1", "revision 'v1': 'tiny' is a folder")
            for words in (
                "generate Hi -m tiny",
                "chat -m tiny --no-history",
                "info tiny",
                "convert tiny {out}",
                "bench tiny --quick",
                "caption {a} -m tiny -o {out}.jsonl",
                "document {a} -m tiny --output text",
                "evaluate {rows} -m tiny -o {out}",
                "finetune {rows} {out} -m tiny",
                "live {clip} -m tiny",
                "serve -m tiny --port 0 --no-history",
            )
        ],
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    words: str, error: str, folder: Path, tmp_path: Path, call: Any
) -> None:
    names = {"a": "a.png", "rows": "rows.jsonl", "clip": "clip.mp4"}
    places = {name: str(folder / file) for name, file in names.items()}
    code, out, err = call(*words.format(**places, out=tmp_path / "out").split())
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("smolvlm-mlx: ")
    assert error in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "flags", "why"),
    [
        ("generate Hi -m tiny -n 2 --fps 2 --end 3", "--fps, --end", "there is no --video"),
        ("info tiny --max-tiles 3", "--max-tiles", "there is no --image"),
        ("info --revision v1", "--revision", "there is no checkpoint"),
        ("document {a} -m tiny --output text --pages 2", "--pages", "no page is a PDF's"),
        ("document {a} -m tiny --output text --dpi 99", "--dpi", "no page is a PDF's"),
        ("chat -m tiny --no-history --port 5", "--port", "without --web"),
        ("convert tiny {out} --group-size 32", "--group-size", "nothing is quantized"),
        ("generate Hi -m tiny -n 2 --revision main", "", ""),
    ],
)
def test_what_changes_nothing_is_told_and_done_without(
    words: str, flags: str, why: str, folder: Path, tmp_path: Path, call: Any
) -> None:
    code, _, err = call(*words.format(a=folder / "a.png", out=tmp_path / "out").split())
    assert code == 0
    assert err.startswith(f"smolvlm-mlx: {flags}: changes nothing, {why}" if flags else "")


def test_a_host_that_is_not_there_is_said_in_words(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise gaierror(EAI_NONAME, "no such name")

    monkeypatch.setattr("smolvlm_mlx.cli.serve.getaddrinfo", getaddrinfo)
    error = "smolvlm-mlx: x.y:80: cannot listen there (no such name); choose another --host or"
    assert call("serve", "-m", "tiny", "--host", "x.y", "--port", "80")[2].startswith(error)


def test_the_user_s_own_large_picture_is_shown_to_the_page_and_answered(
    tmp_path: Path, asked: Asked, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of more pixels than others may send."""
    Image.new("RGB", (8000, 6300)).save(tmp_path / "photo.jpg")
    found = list[httpx2.Response]()

    def ask(client: httpx2.Client) -> None:
        part = client.get("/page/start").json()["content"][0]
        body = question("Hi", f"data:image/jpeg;base64,{part['base64']}", max_tokens=2)
        found.append(client.post("/v1/chat/completions", json=body))

    let_answer(monkeypatch, ask)
    flags = ["-m", "tiny", "--no-history", "-i", tmp_path / "photo.jpg"]
    assert call("chat", "--web", *flags)[0] == 0
    assert found[0].status_code == 200, found[0].text
    monkeypatch.setattr(security, "MAX_BODY_BYTES", 1000)
    check_refused(call("chat", "--web", *flags), "--image, --video: ", "the page can send 700")


@pytest.mark.parametrize(
    ("words", "flags", "why"),
    [
        ("--method full --rank 4 --dropout 0", "--rank, --dropout", "--method full has no adapter"),
        ("--steps 4 --epochs 2", "--epochs", "--steps stands in its place"),
        ("--validation a --validation-share 0.1", "--validation-share", "--validation stands"),
    ],
)
def test_training_tells_of_what_changes_nothing_before_it_begins(
    words: str, flags: str, why: str, tmp_path: Path, call: Any
) -> None:
    arguments = [tmp_path / "no.jsonl", tmp_path / "out", "-m", "tiny", *words.split()]
    note, error = call("finetune", *arguments)[2].splitlines()
    assert note.startswith(f"smolvlm-mlx: {flags}: changes nothing, {why}")
    assert "no.jsonl" in error


def test_a_revision_is_of_the_hub_s_checkpoints_where_folders_are_compared_with_them(
    folder: Path, tmp_path: Path, asked: Asked, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, load = list[object](), reader.load

    def keep(model: str, dtype: None, revision: str | None, **more: Any) -> Any:
        loaded.append((model, revision))
        return load(model, dtype, revision, **more)

    monkeypatch.setattr(evaluation, "load", keep)
    rows, out = folder / "rows.jsonl", tmp_path / "out"
    assert call("evaluate", rows, "-m", "a/b", "-m", "tiny", "--revision", "v1", "-o", out)[0] == 0
    assert loaded == [("a/b", "v1"), ("tiny", None)]


ONLY_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="all of 127.* is local on Linux")


@pytest.mark.parametrize(
    ("flags", "names", "origin"),
    [
        ("", [], None),
        ("--allow-host box.local --allow-host box:80", ["box.local:{port}", "box:80"], None),
        pytest.param("--host 127.0.0.2", ["127.0.0.2:{port}"], None, marks=ONLY_LINUX),
        ("--allow-origin https://Friend.example/", [], "https://friend.example"),
        ("--allow-origin null", [], "null"),
    ],
)
def test_names_and_origins_that_are_allowed_are_let_in(
    flags: str,
    names: list[str],
    origin: str | None,
    asked: Asked,
    call: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: dict[str, int] = {}

    def ask(client: httpx2.Client) -> None:
        port = client.base_url.port
        for name in ("localhost:{port}", *names, "other.example:{port}"):
            headers = {"host": name.format(port=port), "authorization": "Bearer t"}
            headers |= {"origin": origin} if origin else {}
            found[name] = client.get("/v1/models", headers=headers).status_code

    opened = let_answer(monkeypatch, ask)
    words = f"serve -m tiny --port 0 --open --no-history --token t {flags}"
    assert call(*words.split())[0] == 0
    assert found == {
        **dict.fromkeys(("localhost:{port}", *names), 200),
        "other.example:{port}": 403,
    }
    assert opened[0].startswith("http://127.0.0.2:" if "--host" in flags else "http://127.0.0.1:")


@pytest.mark.parametrize("name", NAMES)
def test_an_option_is_set_in_a_running_chat_or_refused_by_name(
    name: str, folder: Path, asked: Asked, call: Any
) -> None:
    value = VALUES[name]
    words = " ".join(value) if isinstance(value, tuple) else SWITCH.get(value, value)
    flags = ["-m", "tiny", "-n", 2, "--no-history", "-i", folder / "a.png"]
    code, _, err = call("chat", *flags, stdin=f"/settings {name} {words}\nHi\n")
    if name in REFUSED["chat"]:
        assert (code, f"no setting '{name}'" in err) == (1, True)
    else:
        assert (code, asked.has(name)) == (0, {value}), err


def test_a_setting_that_is_named_alone_is_shown_and_stays(asked: Asked, call: Any) -> None:
    lines = ["/settings temperature 0.5", "/settings --temperature", "/settings top-k 5", "Hi"]
    flags = ["-m", "tiny", "-n", 2, "--no-history"]
    code, _, err = call("chat", *flags, stdin="\n".join(lines))
    assert (code, asked.has("temperature"), asked.has("top_k")) == (0, {0.5}, {5})
    assert [line.split() for line in err.splitlines()][:2] == [["temperature", "0.5"]] * 2
