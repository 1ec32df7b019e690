"""The chat as a person has it: typed lines, commands, a pipe, and a whole session in a real
terminal (tmux)."""

import io
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from smolvlm_mlx import Chat, Options
from smolvlm_mlx.cli.chat.commands import COMMANDS, handle
from smolvlm_mlx.cli.chat.completion import CommandCompleter, split_pictures, split_words
from smolvlm_mlx.cli.chat.session import Session
from smolvlm_mlx.cli.chat.terminal import markdown
from smolvlm_mlx.errors import GenerationError, PromptError, SmolVLMError
from smolvlm_mlx.inputs.media import Attachment, Video
from smolvlm_mlx.inputs.processor import Processor
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.model import SmolVLM
from smolvlm_mlx.tasks.history import History
from tests.support import as_metal
from tests.support.messages import media_of

import pytest
from PIL import Image
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from rich.console import Console


class Screen:
    """Keeps what it is shown, and answers what it is asked."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.said: list[str] = []
        self.pictures: list[str] = []
        self.chosen, self.typed = "n", ""

    def answer(self, begin: Callable[..., Any]) -> None:
        self.answers.append("".join(begin()))

    def picture(self, attachment: Attachment | Video) -> None:
        self.pictures.append(attachment.name)

    def say(self, text: str) -> None:
        self.said.append(text)

    def choose(self, question: str, answers: str) -> str:
        return self.chosen

    def line(self, prompt: str, default: str) -> str:
        return f"{default}{self.typed}"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "my picture.png"
    Image.effect_noise((90, 60), 60).convert("RGB").save(path)
    return path


@pytest.fixture
def session(loaded: tuple[SmolVLM, Processor], tmp_path: Path) -> Session:
    chat = Chat(*loaded, Options(max_tokens=4))
    return Session(chat, Screen(), "tiny", History(tmp_path / "history.sqlite3"))


def screen_of(session: Session) -> Screen:
    assert isinstance(session.screen, Screen)
    return session.screen


def questions(session: Session) -> list[str]:
    return [message.text for message in session.chat.messages if message.role == "user"]


# ---- what is typed


def test_paths_in_a_line(tmp_path: Path) -> None:
    for name in ("a b.png", "it's.JPG", "c.png"):
        (tmp_path / name).touch()
    plain, spaced = tmp_path / "c.png", tmp_path / "a b.png"
    for line, rest, paths in (
        (f"What is {plain}?", f"What is {plain}?", []),  # a question mark belongs to no file
        (f"What is {plain} ?", "What is  ?", [plain]),
        (f"'{spaced}' {plain}", "", [spaced, plain]),
        (str(spaced).replace(" ", "\\ "), "", [spaced]),
        (f'"{spaced}" and   so', "and   so", [spaced]),
        (f"file://{str(spaced).replace(' ', '%20')} Look", "Look", [spaced]),
        (f'"{tmp_path}/it\'s.JPG"', "", [tmp_path / "it's.JPG"]),
        (f"Is {tmp_path}/none.png there?", f"Is {tmp_path}/none.png there?", []),
        ("It's what's\\ \\", "It's what's\\ \\", []),
        (
            "~nobody/x.png \0.png " + "x" * 5000 + ".png",
            "~nobody/x.png \0.png " + "x" * 5000 + ".png",
            [],
        ),
    ):
        have, found = split_pictures(line)
        assert found == paths
        assert " ".join(have.split()) == " ".join(rest.split())
    assert split_words("a 'b c' d\\ e file:///x%20y") == ["a", "b c", "d e", "/x y"]
    assert split_words("it's") == ["it's"]


def test_completion(picture: Path) -> None:
    completer = CommandCompleter(COMMANDS, ["/image"])

    def complete(text: str) -> list[str]:
        return [found.text for found in completer.get_completions(Document(text), CompleteEvent())]

    assert complete("/hi") == ["/history"]
    assert complete("hi") == complete("/undo x") == []
    assert complete(f"/image {picture.parent}/my") == ["\\ picture.png"]
    assert complete(f"/image a.png {picture.parent}/my\\ pic") == ["ture.png"]


# ---- commands


def test_questions_and_pictures(session: Session, picture: Path) -> None:
    handle(session, f"'{picture}' What is this?")
    handle(session, f"/image '{picture}' {str(picture).replace(' ', chr(92) + ' ')}")
    handle(session, "And these?")
    handle(session, "And now?")
    assert questions(session) == ["What is this?", "And these?", "And now?"]
    assert [len(message.media) for message in session.chat.messages[::2]] == [1, 2, 0]
    assert screen_of(session).pictures == ["my picture.png"] * 3
    handle(session, f"/image '{picture}'")
    handle(session, "/image")
    assert session.pending == []
    handle(session, "   ")
    assert len(screen_of(session).answers) == 3


def test_commands(session: Session, tmp_path: Path, picture: Path) -> None:
    screen = screen_of(session)
    assert session.history is not None
    handle(session, f"'{picture}' One")
    handle(session, "Two")
    handle(session, "/retry")
    handle(session, "/edit Zwei")
    assert questions(session) == ["One", "Zwei"]
    screen.typed = "!"
    handle(session, "/edit")
    assert questions(session) == ["One", "Zwei!"]
    handle(session, "/undo")
    assert screen.said[-1] == "forgotten: Zwei!"
    handle(session, "/edit Uno")
    assert len(media_of(session.chat.messages)) == 1
    handle(session, "/system Be brief.")
    assert session.chat.system == "Be brief."
    first = session.id
    handle(session, f"/save {tmp_path}/talk.json")
    handle(session, "/new")
    assert [message.role for message in session.chat.messages] == ["system"]
    handle(session, "Other")
    handle(session, "/history uno")
    assert screen.said[-1].startswith(f"{first}  1 turns  Uno")
    assert "\n" not in screen.said[-1]
    handle(session, f"/open {first}")
    assert (questions(session), session.id) == (["Uno"], first)
    assert "User: [my picture.png] Uno" in screen.said[-1]
    handle(session, f"/open {tmp_path}/talk.json")
    assert (questions(session), session.id != first) == (["Uno"], True)
    handle(session, "/stats")
    handle(session, "/help")
    assert all(name in screen.said[-1] for name in COMMANDS)
    handle(session, "/quit")
    assert session.over


def test_settings(session: Session) -> None:
    for line in (
        "temperature 0.5",
        "max_tokens 7",
        "stop 'a b' c",
        "split off",
        "max_tiles 3",
        "seed 1",
    ):
        handle(session, f"/settings {line}")
        assert screen_of(session).said[-1] == line.replace("'", "")
    options = session.chat.options
    assert (options.temperature, options.max_tokens, options.stop, options.seed) == (
        0.5,
        7,
        ("a b", "c"),
        1,
    )
    assert session.chat.image_options == ImageOptions(split=False, max_tiles=3)
    handle(session, "/settings stop none")
    handle(session, "/settings split default")
    handle(session, "/settings max_tokens default")
    handle(session, "/settings")
    assert "temperature          0.5\n" in screen_of(session).said[-1]
    for line, error in {
        "colour red": "no setting 'colour'",
        "temperature hot": "temperature is a number, not 'hot'",
        "temperature 99": "temperature 99.0 is not in 0..10",
        "max_tokens 1.5": "max_tokens is a whole number",
        "max_tiles 0": "max_tiles is 0, must be a whole number above 0",
        "split maybe": "split is on or off",
    }.items():
        with pytest.raises(SmolVLMError, match=error):
            handle(session, f"/settings {line}")


def test_what_cannot_be_done_is_one_line(session: Session, tmp_path: Path) -> None:
    handle(session, "Hello")
    before = list(session.chat.messages)
    for line in (
        "/nonsense",
        "/image none.png",
        f"/image {tmp_path}",
        "/save",
        "/open",
        "/open zzz",
        "/save /no/where",
    ):
        with pytest.raises(SmolVLMError) as caught:
            handle(session, line)
        assert "\n" not in str(caught.value)
    assert session.chat.messages == before
    handle(session, "/undo")
    assert session.history is not None
    assert session.history.list() == []  # nothing is left of it
    for line in ("/undo", "/retry", "/edit x"):
        with pytest.raises(PromptError, match="there is no question"):
            handle(session, line)


@pytest.mark.parametrize(("choice", "left"), [("y", 0), ("p", 1), ("n", None)])
def test_a_full_context(choice: str, left: int | None, session: Session, picture: Path) -> None:
    handle(session, f"'{picture}' {'One ' * 25}")
    handle(session, "Two")
    screen_of(session).chosen = choice
    words = "word " * ((session.chat.context - session.chat.tokens()) // 5 + 6)
    if left is None:
        with pytest.raises(GenerationError, match="leaves no room"):
            handle(session, words)
        assert questions(session)[-1] == "Two"
        return
    handle(session, words)
    assert questions(session)[-1] == words.strip()
    assert len(media_of(session.chat.messages)) == left
    assert "% of the model's context" in screen_of(session).said[-1]


def test_model_text_is_shown_as_it_is() -> None:
    console = Console(width=60, record=True, file=io.StringIO(), markup=False, highlight=False)
    text = "See [/etc/hosts], [red]and[/red] <b>bold</b> &lt; [x](http://a.example) \x1b[31m\x9b2J"
    console.print(markdown(text))
    shown = console.export_text()
    assert "See [/etc/hosts], [red]and[/red] <b>bold</b>" in " ".join(shown.split())
    assert "x (http://a.example)" in " ".join(shown.split())
    assert not set(shown) & {"\x1b", "\x9b"}


# ---- the program


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    folders = {"XDG_DATA_HOME": "data", "XDG_CACHE_HOME": "cache"}
    return {
        "HOME": str(tmp_path),
        **{name: str(tmp_path / folder) for name, folder in folders.items()},
    }


def history_in(home: Path) -> History:
    return History(home / "data" / "smolvlm-mlx" / "history.sqlite3")


def test_over_a_pipe(tiny: Path, tmp_path: Path, picture: Path, home: dict[str, str]) -> None:
    def chat(lines: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        options = ["-m", str(tiny), "-n", "4", *arguments]
        command = [sys.executable, "-m", "smolvlm_mlx", "chat", *options]
        environment = {**os.environ, **home}
        return subprocess.run(
            command,
            input=lines,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )

    one = chat("Hello\n")
    assert (one.returncode, one.stderr) == (0, "")
    assert one.stdout.endswith("\n")
    assert "\x1b" not in one.stdout
    more = chat(
        f"/image '{picture}'\nWhat is this?\n/image none.png\n/quit\nNever asked\n",
        "--resume",
        "last",
    )
    assert more.returncode == 1
    assert "smolvlm-mlx: no such file: 'none.png'" in more.stderr
    assert "User: Hello" in more.stderr
    (talk,) = history_in(tmp_path).list()
    assert talk.turns == 2
    assert chat("Hello\n", "--no-history").returncode == 0
    assert len(history_in(tmp_path).list()) == 1


class Terminal:
    """A tmux window with a shell command in it."""

    def __init__(self, command: str, environment: dict[str, str]):
        self._tmux = ["tmux", "-L", f"smolvlm-mlx-{secrets.token_hex(4)}"]
        variables = [
            f"{name}={value}" for name, value in {**environment, "TERM": "xterm-256color"}.items()
        ]
        shell = [
            "env",
            "-i",
            *variables,
            "sh",
            "-c",
            f"trap : INT; {command}; echo left $?; sleep 600",
        ]
        self._call("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "50", *shell)

    def _call(self, *arguments: str) -> str:
        result = subprocess.run(
            [*self._tmux, *arguments], check=False, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def type(self, *keys: str) -> None:
        self._call("send-keys", *keys)

    def screen(self) -> str:
        return self._call("capture-pane", "-p", "-S", "-500")

    def wait(self, text: str, count: int = 1) -> str:
        deadline = time.monotonic() + 60
        # Whatever lines are wrapped.
        while " ".join((screen := self.screen()).split()).count(text) < count:
            assert time.monotonic() < deadline, f"no {text!r} on the screen:\n{screen}"
            time.sleep(0.05)
        return screen

    def wait_for_change(self) -> None:
        before, deadline = self.screen(), time.monotonic() + 60
        while self.screen() == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, check=False)


@pytest.fixture
def open_terminal(endless: Path, home: dict[str, str]) -> Iterator[Callable[[str], Terminal]]:
    if shutil.which("tmux") is None:
        pytest.skip("need tmux")
    opened: list[Terminal] = []

    def open_chat(arguments: str) -> Terminal:
        for terminal in opened:
            terminal.close()
        environment = {
            **home,
            **as_metal.environment(),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HF_HUB_OFFLINE": "1",
        }
        opened.append(
            Terminal(f"{sys.executable} -m smolvlm_mlx chat -m {endless} {arguments}", environment)
        )
        return opened[-1]

    yield open_chat
    for terminal in opened:
        terminal.close()


def test_a_whole_session(
    open_terminal: Callable[[str], Terminal], picture: Path, tmp_path: Path
) -> None:
    terminal = open_terminal("-n 5")
    terminal.wait("/help lists commands")
    terminal.type(f"'{picture}' What is this?", "Enter")
    screen = terminal.wait("first after", 1)
    assert "my picture.png: 90 x 60" in screen
    assert "▀" in screen  # the picture, in blocks
    terminal.type("Is it [red] in [/etc/hosts]?", "Enter")
    assert "> Is it [red] in [/etc/hosts]?" in terminal.wait("first after", 2)
    terminal.type("/settings max_tokens 90000", "Enter")
    terminal.wait("max_tokens 90000", 2)
    terminal.type("And now?", "Enter")
    terminal.wait("> And now?")
    terminal.wait_for_change()  # the answer has begun
    terminal.type("C-c")
    terminal.wait("· interrupted")
    terminal.type("/undo", "Enter")
    terminal.wait("forgotten: And now?")
    terminal.type(f"/save {tmp_path}/talk.json", "Enter")
    terminal.wait("saved: ")
    terminal.type("C-d")
    terminal.wait("left 0")
    assert (tmp_path / "talk.json").stat().st_size > picture.stat().st_size
    (talk,) = history_in(tmp_path).list()
    assert (talk.title, talk.turns) == ("What is this?", 2)
    assert "And now?" not in str(history_in(tmp_path).load(talk.id))


def test_a_session_goes_on(
    open_terminal: Callable[[str], Terminal], session: Session, picture: Path, tmp_path: Path
) -> None:
    handle(session, f"'{picture}' What is this?")
    handle(session, "Is it [red] in [/etc/hosts]?")
    history_in(tmp_path).save("0" * 16, session.chat.messages)
    terminal = open_terminal("--resume last -n 5")
    screen = terminal.wait("User: Is it [red] in [/etc/hosts]?")
    assert "User: [my picture.png] What is this?" in screen
    terminal.type("/retry", "Enter")
    assert (
        " reused" not in terminal.wait("first after").rpartition("first after")[0].splitlines()[-1]
    )
    terminal.type("/quit", "Enter")
    terminal.wait("left 0")
