"""The chat as a person has it: typed lines, commands, a pipe, and a whole session in a real
terminal (tmux)."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, cast

from smolvlm_mlx import Chat, Options
from smolvlm_mlx.cli.chat import hints
from smolvlm_mlx.cli.chat.commands import COMMANDS, handle
from smolvlm_mlx.cli.chat.completion import in_question
from smolvlm_mlx.cli.chat.hints import take_first_start
from smolvlm_mlx.cli.chat.markdown import Answer
from smolvlm_mlx.cli.chat.session import Session
from smolvlm_mlx.cli.chat.terminal import Lines
from smolvlm_mlx.cli.history import as_text
from smolvlm_mlx.cli.show import print_picture
from smolvlm_mlx.cli.tiles import SeenTiles
from smolvlm_mlx.errors import (
    ContextFullError,
    EngineError,
    FetchError,
    GenerationError,
    HistoryError,
    ImageError,
    PromptError,
    SmolVLMError,
    quote,
)
from smolvlm_mlx.generation.stream import TextStream
from smolvlm_mlx.inputs.media import Attachment, Video
from smolvlm_mlx.inputs.messages import Message, TextPart, to_json, user_message
from smolvlm_mlx.inputs.processor import Processor
from smolvlm_mlx.inputs.settings import ImageOptions, ImageSettings
from smolvlm_mlx.model import SmolVLM
from smolvlm_mlx.server import conversations
from smolvlm_mlx.tasks.history import History
from smolvlm_mlx.tasks.saving import Saved
from tests.support import as_metal
from tests.support.checkpoints import load_processor
from tests.support.faults import file_limit
from tests.support.http import Running, always, question
from tests.support.messages import media_of
from tests.support.pictures import noise
from tests.support.tmux import Terminal
from tests.support.videos import encode_video

import pytest
from PIL import Image
from rich.cells import cell_len
from rich.console import Console


class Screen:
    """Keeps what it is shown, and answers what it is asked."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.said: list[str] = []
        self.pictures: list[str] = []
        self.copied = ""
        self.chosen, self.typed = "n", ""

    def answer(self, begin: Callable[..., Any]) -> None:
        self.answers.append("".join(begin()))

    def picture(self, attachment: Attachment | Video) -> None:
        self.pictures.append(attachment.name)

    def conversation(self, messages: Sequence[Message]) -> None:
        self.said.append(as_text(messages))

    def tiles(self, seen: SeenTiles) -> None:
        self.said.append(seen.describe())

    def copy(self, text: str) -> None:
        self.copied = text

    def say(self, text: str) -> None:
        self.said.append(text)

    def choose(self, question: str, answers: str) -> str:
        return self.chosen

    def line(self, prompt: str, default: str) -> str:
        return f"{default}{self.typed}"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "my picture.png"
    noise(90, 60).save(path)
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


# ---- commands


def test_questions_and_pictures(session: Session, picture: Path) -> None:
    handle(session, f"'{picture}' What is this?")
    handle(session, f"/image '{picture}' {str(picture).replace(' ', chr(92) + ' ')}")
    handle(session, "And these?")
    handle(session, "And now?")
    assert questions(session) == [f"'{picture}' What is this?", "And these?", "And now?"]
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
    handle(session, f"'{picture}'")
    handle(session, "One")
    handle(session, "Two")
    handle(session, "/retry")
    handle(session, "/edit Zwei")
    assert questions(session) == ["One", "Zwei"]
    screen.typed = "!"
    handle(session, "/edit")
    assert questions(session) == ["One", "Zwei!"]
    handle(session, "/undo")
    assert screen.said[-1] == "taken back: Zwei!"
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
    assert re.fullmatch(rf"{first}  \d{{4}}-\d\d-\d\d \d\d:\d\d +1 turn  Uno", screen.said[-1])
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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with pictures in it."""
    for shade, name in enumerate(("cat.jpg", "b.jpg", "Bob's photo.jpg")):
        Image.new("RGB", (30, 20), (0, 80 * shade, 0)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(held: Sequence[Attachment | Video]) -> list[str]:
    return [each.name for each in held]


def test_a_picture_is_no_video(session: Session, folder: Path) -> None:
    with pytest.raises(SmolVLMError, match=r"is a picture; /image attaches it$"):
        handle(session, "/video cat.jpg")


def test_help_and_lists_fit_a_terminal(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    handle(session, "A question that is longer than a line of the list has room for, by far")
    said = screen_of(session).said
    handle(session, "/edit \u5706\u5728\u54ea\u91cc" + "\u554a" * 50)  # each is two columns wide
    for line in ("/help", "/history", "/branches"):
        handle(session, line)
        assert max(map(cell_len, said[-1].splitlines())) < 80
        if line != "/help":
            assert said[-1].endswith("…  (this one)")
    assert "pictures to the next question; none:\n           forget those" in said[-3]


LEAVING = ("exit", "QUIT", " :q ", "/exit", "/bye", "/q", "/Quit", "\ufeffexit")


def test_what_another_window_wrote_meanwhile_stays(session: Session, tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite3")

    def go_on(text: str) -> None:
        history.save(session.id, [*history.load(session.id), user_message(text)])

    def kept() -> list[str]:
        return [m.text for m in history.load(session.id) if m.role == "user"]

    handle(session, "One")
    handle(session, "Two")
    go_on("Elsewhere")
    handle(session, "/undo")
    assert kept() == ["One", "Two", "Elsewhere"]
    handle(session, "Here")
    assert kept() == ["One", "Here"]
    assert session.branches()[0].words == "Two"
    handle(session, "/undo")
    handle(session, "/undo")
    assert history.load(session.id) == []  # and not forgotten, for not all of it is this window's
    handle(session, "/branches 1")
    assert questions(session) == ["One", "Two", "Elsewhere"]
    assert len(history.list()) == 1
    handle(session, "/new")
    handle(session, "Alone")
    handle(session, "/undo")
    assert [talk.title for talk in history.list()] == ["One"]
    # What was said before it was resumed is not this session's to forget.
    history.save("abcdef01", [user_message("Before")])
    session.resume(history, "abcdef01")
    handle(session, "/undo")
    assert {talk.title for talk in history.list()} == {"One", "Before"}


def test_a_second_ctrl_c_keeps_no_answer_from_the_history(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = History.save

    def save(*arguments: Any) -> Saved:
        os.kill(os.getpid(), signal.SIGINT)
        return kept(*arguments)

    monkeypatch.setattr(History, "save", save)
    before = signal.getsignal(signal.SIGINT)
    handle(session, "One")
    assert len(History(tmp_path / "history.sqlite3").load(session.id)) == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_what_others_say_is_shown_and_gone_on_from(session: Session, tmp_path: Path) -> None:
    history, said = History(tmp_path / "history.sqlite3"), screen_of(session).said

    def turn(*texts: str, interrupted: bool = False) -> list[Message]:
        roles = ("user", "assistant")
        return [
            Message(roles[n % 2], (TextPart(text),), interrupted and text == texts[-1])
            for n, text in enumerate(texts)
        ]

    handle(session, "One")
    own = history.load(session.id)
    session.catch_up()
    assert said == []
    history.save(session.id, [*own, *turn("Two")])  # whose answer comes
    session.catch_up()
    assert said == []
    history.save(session.id, [*own, *turn("Two", "Second", interrupted=True)])
    session.catch_up()  # to which more may come
    assert said == []
    history.save(session.id, [*own, *turn("Two", "Second, at last")])
    session.catch_up()
    assert said == ["User: Two\n\nAssistant: Second, at last"]
    handle(session, "Three")
    assert questions(session) == ["One", "Two", "Three"]
    assert len(session.branches()) == 1
    before = list(said)
    history.save(session.id, [*own, *turn("Zwei", "Zweitens")])
    session.catch_up()
    session.catch_up()
    assert said == [*before, "Another went on elsewhere here; /branches 2 goes there."]
    elsewhere = history.leaf(session.id)
    handle(session, "/branches")
    first, second = said[-1].splitlines()
    assert (first.endswith("(this one)"), second.endswith("(this one)")) == (True, False)
    assert history.leaf(session.id) == elsewhere  # where the other still is
    handle(session, "/branches 2")
    assert questions(session) == ["One", "Zwei"]
    for _ in range(2):
        handle(session, "/undo")
    session.catch_up()
    assert questions(session) == []
    history.save(session.id, turn("Eins", "Erstens"))
    session.catch_up()
    assert said[-1] == "User: Eins\n\nAssistant: Erstens"
    handle(session, "/branches 2")
    assert questions(session) == ["One", "Zwei"]
    history.move(session.id, history.places(session.id)[0].id)
    history.delete(session.id)
    session.catch_up()
    assert questions(session) == ["One", "Zwei"]


def test_an_answer_that_was_stopped_elsewhere_is_shown_in_a_while(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(tmp_path / "history.sqlite3")
    handle(session, "One")
    stopped = Message("assistant", (TextPart("Second"),), interrupted=True)
    history.save(session.id, [*history.load(session.id), user_message("Two"), stopped])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 11)
    session.catch_up()
    assert screen_of(session).said == ["User: Two\n\nAssistant: Second (interrupted)"]


def test_an_answer_of_a_server_is_shown_once(
    server: Running, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is kept while it comes."""
    monkeypatch.setattr(conversations, "KEEP_SECONDS", 0.001)
    monkeypatch.setattr(server.service.conversations, "history", session.history)
    handle(session, "One")
    assert session.history is not None
    history, own, kept = session.history, to_json(session.chat.messages), set[str]()
    words = " ".join(map(str, range(60)))
    more = {"max_tokens": 2000, "conversation": session.id, **always(words)}
    asked = question("Two", **more)
    asked["messages"][:0] = own
    asking = threading.Thread(target=server.complete, args=(asked,))
    asking.start()
    while asking.is_alive():
        session.catch_up()
        kept |= {history.load(session.id)[-1].text}
    asking.join()
    session.catch_up()
    assert len(kept) > 2  # the question, and the answer in parts
    assert screen_of(session).said == [f'User: Two\n\nAssistant: "{words}"']


@pytest.mark.slow
def test_what_others_say_comes_above_the_prompt(
    open_terminal: Callable[[str], Terminal], tmp_path: Path
) -> None:
    terminal = open_terminal("-n 5")
    terminal.wait("/help lists commands")
    terminal.type("Hello", "Enter")
    terminal.wait("first after")
    terminal.wait_for_prompt(1)
    terminal.type("half a question")
    terminal.wait_for_line("half a question")
    history = history_in(tmp_path)
    (talk,) = history.list()
    other = [user_message("Elsewhere"), Message("assistant", (TextPart("An answer."),))]
    history.save(talk.id, [*history.load(talk.id), *other])
    screen = terminal.wait("An answer.")
    assert screen.index("> Elsewhere") < screen.index("An answer.")
    terminal.wait_for_line("> half a question")
    terminal.type("Enter")
    terminal.wait_for_prompt(3)
    terminal.type("C-d")
    terminal.wait("left 0")
    asked = [m.text for m in history.load(talk.id) if m.role == "user"]
    assert asked == ["Hello", "Elsewhere", "half a question"]


def test_edit_and_retry_keep_the_branch_before(session: Session) -> None:
    with pytest.raises(PromptError, match="there is nothing to answer again yet"):
        handle(session, "/retry")
    handle(session, "/branches")
    assert screen_of(session).said[-1] == "no branches yet"
    handle(session, "One")
    handle(session, "Two")
    handle(session, "/edit Three")
    handle(session, "/branches")
    first, second = screen_of(session).said[-1].splitlines()
    assert re.fullmatch(r"  1  [-\d]{10} [:\d]{5}  Two", first)
    assert re.fullmatch(r"  2  [-\d]{10} [:\d]{5}  Three  \(this one\)", second)
    handle(session, "/branches 1")
    assert questions(session) == ["One", "Two"]
    assert screen_of(session).said[-1].startswith("User: Two\n\nAssistant: ")
    for wrong in ("0", "3", "x"):
        with pytest.raises(PromptError, match=f"no branch '{wrong}'; /branches lists 2"):
            handle(session, f"/branches {wrong}")
    session.history = None
    with pytest.raises(PromptError, match="no history is kept"):
        handle(session, "/branches")


def watched_options(chat: Chat, method: str, monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """With which a method is called from now on."""
    used, call = list[Options](), getattr(chat, method)

    def watched(options: Options) -> TextStream:
        used.append(options)
        return cast(TextStream, call(options))

    monkeypatch.setattr(chat, method, watched)
    return used


def test_retry_samples_and_says_so(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    used = watched_options(session.chat, "retry", monkeypatch)
    handle(session, "One")
    for temperature, seed in ((0.0, None), (0.3, 5)):
        session.chat.options = replace(session.chat.options, temperature=temperature, seed=seed)
        said = len(screen_of(session).said)
        handle(session, "/retry")
        told = any("sampled at temperature 0.7" in line for line in screen_of(session).said[said:])
        assert told == (temperature == 0)
    assert [(each.temperature, each.seed) for each in used] == [(0.7, None), (0.3, None)]
    assert session.chat.options.seed == 5
    session.chat.options = replace(session.chat.options, temperature=0.0)
    assert session.last is not None
    session.last.finish_reason = "interrupted"
    said = len(screen_of(session).said)
    handle(session, "/retry")
    assert used[-1].temperature == 0
    assert screen_of(session).said[said:] == []
    # What is known of an answer that is taken back is not of the one before it.
    handle(session, "Two")
    assert session.last is not None
    session.last.finish_reason = "interrupted"
    handle(session, "/undo")
    handle(session, "/retry")
    assert used[-1].temperature == 0.7


def test_an_answer_that_was_cut_off_is_continued(session: Session) -> None:
    with pytest.raises(PromptError, match="there is nothing to continue yet; ask a question first"):
        handle(session, "/continue")
    handle(session, "One")
    begun = session.chat.messages[-1]
    assert begun.interrupted
    handle(session, "/continue")
    (question, answer) = session.chat.messages
    assert (question.text, answer.text[: len(begun.text)]) == ("One", begun.text)
    assert len(answer.text) > len(begun.text)
    assert session.history is not None
    assert session.history.load(session.id) == [question, answer]
    assert len(session.branches()) == 1  # it is the same answer
    session.chat.messages[-1] = replace(answer, interrupted=False)
    with pytest.raises(PromptError, match="there is nothing to continue: no answer was stopped"):
        handle(session, "/continue")


def test_out_of_a_circle_it_is_sampled_and_that_is_said(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = watched_options(session.chat, "go_on", monkeypatch)
    for text, temperature in (("Once. Not so.", 0.0), ("It goes on. " * 2, 0.3), ("ha " * 20, 1.0)):
        handle(session, "One")
        session.chat.messages[-1] = replace(session.chat.messages[-1], parts=(TextPart(text),))
        session.chat.options = Options(max_tokens=4, temperature=temperature, seed=5)
        handle(session, "/continue")
    assert [(each.temperature, each.seed) for each in used] == [(0, 5), (0.7, None), (1, None)]
    assert screen_of(session).said == [
        "sampled at temperature 0.7: at 0.3 it would go in the same circle"
    ]


@pytest.mark.parametrize("line", LEAVING)
def test_a_word_for_leaving_leaves(line: str, session: Session) -> None:
    handle(session, line)
    assert session.over


def test_a_sentence_with_such_a_word_is_asked(session: Session) -> None:
    handle(session, "exit signs are green?")
    handle(session, "/ASK /exit or dog.jpg?")
    assert questions(session) == ["exit signs are green?", "/exit or dog.jpg?"]
    assert not session.over


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/edti hello", "no command '/edti'; is it /edit?"),
        ("/imgae cat.jpg", "no command '/imgae'; is it /image?"),
        ("/sett seed 3", "no command '/sett'; is it /settings?"),
        ("/image *.gif", r"no picture or video is named '\*\.gif'"),
        ("/edti", "no command '/edti'; is it /edit?"),
        ("/xyzzy hello", "no command '/xyzzy'; /help lists them"),
        ("/ hello", "no command '/'"),
        ("/undo please", "/undo takes nothing after it, not 'please'"),
        ("/QUIT now", "/QUIT takes nothing after it, not 'now'"),
        ("/no/such/folder what?", "no such file: '/no/such/folder'"),
        ("'/no/such.dng' what?", "no such file: '/no/such.dng'"),
        ("~/no.such.kind", "no such file: '~/no.such.kind'"),
        ("/no/such cat.jpg what?", "no such file: '/no/such cat.jpg'"),
        ("/nope.png Describe the picture.", "no such file: '/nope.png'"),
        ("what is in dog.jpg?", "no such file: 'dog.jpg' .the nearest name is 'b.jpg'"),
        ("dog.jpg", "no such file: 'dog.jpg'"),
        ("cat.jpg, x.png and y.mp4", "'x.png'.*'y.mp4'.*; /ask TEXT asks a line as it is"),
        ("/image cat.jpg What is this?", "no such file: 'What'"),
        ("/video none.mp4", "no such file: 'none.mp4'"),
        ("what is http://[x.jpg ?", "is not a URL: Invalid IPv6 URL"),
        ("/ask", "ask what"),
    ],
)
def test_a_line_that_is_half_understood_is_told_and_does_nothing(
    line: str, error: str, session: Session, folder: Path
) -> None:
    with pytest.raises(SmolVLMError, match=error) as caught:
        handle(session, line)
    assert "\n" not in str(caught.value)
    assert (session.chat.messages, session.pending, session.over) == ([], [], False)


def test_a_page_is_text_and_that_is_said(session: Session) -> None:
    handle(session, "Do you know https://a.example/?")
    assert screen_of(session).said == [
        "https://a.example/ is text; /image attaches a picture, whatever its URL ends in"
    ]


def test_what_is_named_in_a_question_stays_in_it(session: Session, folder: Path) -> None:
    handle(session, "What's in cat.jpg and what's in Bob's photo.jpg?")
    handle(session, "b.jpg")
    assert names(session.pending) == ["b.jpg"]
    handle(session, "And here?")
    (folder / "cat.jpg").unlink()
    handle(session, "What else is in cat.jpg?")  # the conversation has it
    assert questions(session)[0] == "What's in cat.jpg and what's in Bob's photo.jpg?"
    assert [names(message.media) for message in session.chat.messages[::2]] == [
        ["cat.jpg", "Bob's photo.jpg"],
        ["b.jpg"],
        [],
    ]


def test_pictures_of_a_failed_question_do_not_go_with_the_next(
    session: Session, folder: Path
) -> None:
    words = "word " * session.chat.context
    with pytest.raises(GenerationError, match="leaves no room"):
        handle(session, f"cat.jpg {words}")
    assert screen_of(session).said == ["no longer attached: cat.jpg"]
    handle(session, "b.jpg What colour is the circle?")
    assert names(media_of(session.chat.messages)) == ["b.jpg"]


def test_pictures_that_waited_for_a_question_that_failed_wait_no_more(
    session: Session, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(begin: Callable[..., Any]) -> None:
        raise KeyboardInterrupt

    handle(session, "/image b.jpg")
    with pytest.raises(SmolVLMError, match="no such file"):
        handle(session, "dog.jpg")  # no question
    assert names(session.pending) == ["b.jpg"]
    (folder / "damaged.jpg").write_bytes(b"damaged")
    for name in ("dog.jpg", "damaged.jpg"):
        with pytest.raises(SmolVLMError, match=name):
            handle(session, f"Is it like {name}?")
        assert screen_of(session).said == ["no longer attached: b.jpg"]
        assert session.pending == []
        screen_of(session).said.clear()
        handle(session, "/image b.jpg")
    with monkeypatch.context() as patch:
        patch.setattr(session.screen, "answer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            handle(session, "What is in cat.jpg?")
    assert screen_of(session).said[-1] == "no longer attached: b.jpg, cat.jpg"
    assert session.pending == []


def test_one_of_several_that_cannot_be_read_costs_no_other(session: Session, folder: Path) -> None:
    for number in ("", *range(6)):
        (folder / f"damaged{number}.png").write_bytes(b"damaged")
    with pytest.raises(FetchError, match=r"^attached 2 of 3: 'damaged\.png' is text; [^;]*$"):
        handle(session, "/image c*.jpg damaged.png b.jpg")
    with pytest.raises(FetchError, match=r"^attached 1 of 2: 'damaged\.png'"):
        handle(session, "damaged.png 'Bob\\'s photo.jpg'")  # dropped, without a question
    assert names(session.pending) == ["cat.jpg", "b.jpg", "Bob's photo.jpg"]
    with pytest.raises(ImageError, match=r"^'damaged\.png'"):
        handle(session, "/image damaged.png")
    with pytest.raises(FetchError, match=r"^attached 0 of 2: .*; 'cat.*/image attaches it$"):
        handle(session, "/video damaged.png cat.jpg")
    with pytest.raises(FetchError, match=r"^attached 1 of 8: ('damaged.*; .*; ){5}and 2 more$"):
        handle(session, "/image *.png cat.jpg")
    assert len(session.pending) == 4


def file_not_utf8(folder: Path, picture: Image.Image) -> None:
    picture.save(folder / "latin.jpg")
    try:
        (folder / "latin.jpg").rename(folder / "caf\udce9 1.jpg")
    except OSError:
        pytest.skip("a file system of names that are UTF-8")


def test_a_name_that_is_not_utf8_is_completed_in_a_question(session: Session, folder: Path) -> None:
    file_not_utf8(folder, noise(30, 20))
    (found,) = in_question("What is in caf")
    handle(session, f"What is in {found.text}?")
    assert questions(session) == ["What is in caf\ufffd\\ 1.jpg?"]
    assert names(media_of(session.chat.messages)) == ["caf\udce9 1.jpg"]
    screen_of(session).typed = " And why?"
    handle(session, "/edit")
    assert questions(session) == ["What is in caf\ufffd\\ 1.jpg? And why?"]
    assert names(media_of(session.chat.messages)) == ["caf\udce9 1.jpg"]
    handle(session, "/edit What is in cat.jpg?")
    assert names(media_of(session.chat.messages)) == ["cat.jpg"]


def test_an_edited_question_is_about_the_pictures_that_it_names(
    session: Session, folder: Path
) -> None:
    def edited(text: str) -> list[str]:
        handle(session, f"/edit {text}")
        assert questions(session) == [text]
        return names(media_of(session.chat.messages))

    handle(session, "What is in cat.jpg?")
    assert edited("What colour is it?") == ["cat.jpg"]
    assert edited("What is in cat.jpg, in one word?") == ["cat.jpg"]
    assert edited("What is in b.jpg?") == ["b.jpg"]
    handle(session, "/image cat.jpg")
    assert edited("Is it like this one?") == ["b.jpg", "cat.jpg"]
    assert edited("And like Bob's photo.jpg?") == ["b.jpg", "cat.jpg", "Bob's photo.jpg"]
    with pytest.raises(SmolVLMError, match=r"no such file: 'dog\.jpg'"):
        handle(session, "/edit What is in dog.jpg?")


def test_no_picture_of_300_lines_is_dropped_unsaid(
    session: Session, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, asked = Random(14), list[str]()
    monkeypatch.setattr(session, "answer", lambda begin: asked.append("?"))
    for _ in range(300):
        words = rng.choices(("cat.jpg", "b.jpg?", "(Bob's photo.jpg)", "what's", "dog.jpg!"), k=4)
        named = [word.strip("()?!") for word in words if ".jpg" in word]
        screen_of(session).pictures.clear()
        if missing := named.count("dog.jpg"):
            with pytest.raises(SmolVLMError) as caught:
                handle(session, " ".join(words))
            assert str(caught.value).count("no such file: 'dog.jpg'") == missing
        else:
            handle(session, " ".join(words))
            assert screen_of(session).pictures == named
    assert asked


def test_save_keeps_what_is_there(session: Session, folder: Path) -> None:
    photo = (folder / "b.jpg").read_bytes()
    handle(session, "One")
    with pytest.raises(PromptError, match=r"b\.jpg: exists already"):
        handle(session, "/save b.jpg")
    assert (folder / "b.jpg").read_bytes() == photo
    handle(session, "/save my notes.json")
    handle(session, "Two")
    handle(session, "/save 'my notes.json'")
    handle(session, "/undo")
    handle(session, "/save my\\ notes.json")
    mine = (folder / "my notes.json").read_bytes()
    handle(session, "/new")
    handle(session, "Other")
    with pytest.raises(PromptError, match="is not this conversation; choose another name"):
        handle(session, "/save my notes.json")
    assert (folder / "my notes.json").read_bytes() == mine
    handle(session, "/open my notes.json")
    handle(session, "Three")
    handle(session, "/save my notes.json")
    assert questions(session) == ["One", "Three"]


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
        assert screen_of(session).said[-1] == line
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
        "colour red": "no setting 'colour'; there are max_tokens",
        "temprature 1": "no setting 'temprature'; is it temperature",
        "temperature hot": "temperature is a number, not 'hot'",
        "temperature 99": "temperature 99.0 is not in 0..10",
        "max_tokens 1.5": "max_tokens is a whole number",
        "max_tiles 0": "max_tiles is 0, must be a whole number above 0",
        "split maybe": "split is on or off",
    }.items():
        with pytest.raises(SmolVLMError, match=error):
            handle(session, f"/settings {line}")


def test_the_last_answer_is_copied(session: Session) -> None:
    with pytest.raises(PromptError, match="there is no answer to copy yet"):
        handle(session, "/copy")
    handle(session, "One")
    handle(session, "/copy")
    assert screen_of(session).copied == session.chat.messages[-1].text != ""


def test_tiles(session: Session, tmp_path: Path) -> None:
    """Where they are, what they cost, and which were computed for an earlier answer, or are equal
    to another."""

    def table() -> list[str]:
        handle(session, "/tiles")
        return screen_of(session).said[-1].splitlines()

    with pytest.raises(PromptError, match="there is no picture yet; /image attaches one"):
        handle(session, "/tiles")
    noise(128, 96).save(tmp_path / "noise.png")
    Image.new("RGB", (128, 64), "white").save(tmp_path / "white.png")
    handle(session, "/set longest_edge 128")
    handle(session, f"/image {tmp_path}/noise.png")
    head = "noise.png: 128 x 96 pixels, 2 rows x 2 columns and the global tile: 5 tiles, 94 tokens"
    part = "a tile is 64 x 48 pixels of the picture, seen as 64 x 64"
    new = [f"{head} (14 marks)", "        1   2", "1      16  16", "2      16  16", "global 16"]
    assert table() == [*new, part]
    handle(session, "What is this?")
    assert table() == [*new, f"{part}; 0 reused (*) for the last answer"]
    handle(session, "And now?")
    again = [
        *("1      16* 16*", "2      16* 16*", "global 16*"),
        f"{part}; 5 reused (*) for the last answer",
    ]
    assert table()[2:] == again
    handle(session, "/set split off")
    assert table()[2:] == again  # as it was seen
    handle(session, "/set split default")
    handle(session, f"{tmp_path}/white.png Is it white?")
    assert table()[1:] == [
        *("        1   2", "1      16  16*", "global 16*"),
        f"{part.replace('48', '64')}; 2 reused (*) for the last answer",
    ]
    handle(session, f"/open {session.id}")
    assert table()[-1] == part.replace("48", "64")


def test_tiles_of_all_pictures_of_the_last_question(session: Session, tmp_path: Path) -> None:
    for name, size in (("wide", (640, 1)), ("tall", (64, 128)), ("one", (1, 1))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    handle(session, "/set longest_edge 128")
    sources = " ".join(str(tmp_path / f"{name}.png") for name in ("wide", "tall", "one"))
    wanted = [
        "wide.png: 640 x 1 pixels, 1 row x 2 columns and the global tile: 3 tiles, 57 tokens",
        "a tile is 320 x 1 pixels of the picture, seen as 64 x 64",
        "tall.png: 64 x 128 pixels, 2 rows x 1 column and the global tile: 3 tiles, 58 tokens",
        "one.png: 1 x 1 pixels, ",
        "a tile is less than 1 x less than 1 pixels of the picture",
    ]
    for line in (f"/image {sources}", "What are these?"):
        handle(session, line)
        handle(session, "/tiles")
        said = "\n".join(screen_of(session).said[-3:])
        assert all(part in said for part in wanted), said


@pytest.mark.filterwarnings("default:Image.Image.getdata:DeprecationWarning")  # textual-image's
@pytest.mark.parametrize("columns", [1, 40, 80, 120])
def test_pictures_of_every_shape_are_shown(columns: int) -> None:
    file = io.StringIO()
    on: Any = Console(force_terminal=True, width=columns, file=file, color_system="truecolor")
    for size in [(8000, 1), (1200, 24), (400, 10), (40, 4), (4, 40), (10, 1200), (1, 8000)]:
        file.seek(file.truncate(0))
        print_picture(on, Image.new("RGB", size), 12)
        assert 1 <= len(file.getvalue().splitlines()) <= 12, size


def test_tiles_are_drawn_over_the_picture(tiny: Path) -> None:
    picture = Attachment(Image.new("RGB", (200, 100), "blue"))
    seen = SeenTiles(picture, ImageSettings(32, 128), load_processor(tiny), set())
    drawn = seen.drawn()
    assert drawn.size == (1024, 512)
    assert [drawn.getpixel((x, 128)) for x in (0, 200, 256, 512, 1023)] == [
        (0, 200, 120),
        (0, 0, 255),
        *[(0, 200, 120)] * 3,
    ]
    labels = [drawn.crop((x, y, x + 255, y + 255)) for x in (0, 768) for y in (0, 256)]
    for label in labels:
        assert (0, 0, 0) in [color for _, color in label.getcolors(2**16) or ()]


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
        "/save ~nobody.here/a.json",
        "/open ~nobody.here/a.json",
        "/image ~\0",
    ):
        with pytest.raises(SmolVLMError) as caught:
            handle(session, line)
        assert "\n" not in str(caught.value)
    assert session.chat.messages == before
    handle(session, "/undo")
    assert session.history is not None
    assert session.history.list() == []  # nothing is left of it
    for line in ("/undo", "/retry", "/edit x"):
        with pytest.raises(PromptError, match=r"there is nothing to .* yet; ask a question first"):
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


@pytest.mark.parametrize("words", [20000, 0])
def test_nothing_is_forgotten_for_a_question_that_fails(words: int, session: Session) -> None:
    """One that is too long whatever is forgotten is not offered that; another fails with a part of
    the conversation left."""
    for text in ("One", "Two", "Three"):
        handle(session, text)
    kept, asked = list(session.chat.messages), list[str]()

    def choose(question: str, answers: str) -> str:
        asked.append(question)
        return "y"

    session.screen.choose = choose  # type: ignore[method-assign]
    # So many that the last turn is too much beside it, if it is offered at all.
    count = words or session.chat.context // 5 - 10
    with pytest.raises(GenerationError, match="leaves no room"):
        handle(session, "word " * count)
    assert session.chat.messages == kept
    assert bool(asked) == (not words)


@pytest.mark.parametrize("error", [KeyboardInterrupt, EngineError])
def test_nothing_is_forgotten_for_a_question_that_is_given_up(
    error: type[BaseException], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("One", "Two"):
        handle(session, text)
    screen, kept, count = screen_of(session), list(session.chat.messages), 0
    screen.chosen = "y"

    def answer(begin: Callable[..., Any]) -> None:
        nonlocal count
        count += 1
        full = ContextFullError("too long")
        full.over = 1
        raise full if count == 1 else error("no")

    monkeypatch.setattr(screen, "answer", answer)
    with pytest.raises(error):
        handle(session, "Three")
    assert (count, session.chat.messages) == (2, kept)
    assert session.history is not None
    assert (session.history.load(session.id), len(session.branches())) == (kept, 1)


def test_what_the_history_refuses_is_not_done(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle(session, "One")
    before = list(session.chat.messages)

    def refuse(*arguments: object) -> None:
        raise HistoryError("it is locked")

    monkeypatch.setattr(session.history, "withdraw", refuse)
    with pytest.raises(HistoryError):
        handle(session, "/undo")
    assert session.chat.messages == before


def test_what_no_longer_waits_is_said(session: Session, picture: Path) -> None:
    handle(session, f"/image '{picture}'")
    handle(session, "/new")
    assert screen_of(session).said == ["no longer attached: my picture.png"]
    assert session.pending == []


def test_model_text_is_shown_as_it_is() -> None:
    console = Console(width=60, record=True, file=io.StringIO(), markup=False, highlight=False)
    text = "See [/etc/hosts], [red]and[/red] <b>bold</b> &lt; [x](http://a.example) \x1b[31m\x9b2J"
    console.print(Answer(text))
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
        f"/image '{picture}'\nWhat is this?\n/image none.png\n/undo all\nexit\nNever asked\n",
        "--resume",
        "last",
    )
    assert more.returncode == 1
    assert "smolvlm-mlx: no such file: 'none.png'" in more.stderr
    assert "smolvlm-mlx: /undo takes nothing after it, not 'all'" in more.stderr
    assert "User: Hello" in more.stderr
    (talk,) = history_in(tmp_path).list()
    assert talk.turns == 2
    assert chat("Hello\n", "--no-history").returncode == 0
    assert len(history_in(tmp_path).list()) == 1


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
    terminal.type(f"'{picture}'", "Enter")
    terminal.wait("1 attached >")
    terminal.type("What is this?", "Enter")
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
    terminal.wait("taken back: And now?")
    terminal.type(f"/image {picture.parent}/my", "Tab")
    terminal.wait("/my\\ picture.png")
    terminal.type("Enter")
    terminal.wait("1 attached >", 2)
    terminal.type("/ask What is /et", "Tab", "c")  # which is text there, not written as a path is
    terminal.wait_for_line("> /ask What is /etc")
    terminal.type("C-u")
    terminal.type(f"what is in {picture.parent}/mx.png", "Enter")
    terminal.wait("(the nearest name is 'my picture.png')")
    terminal.type(f"/save {tmp_path}/talk.json", "Enter")
    terminal.wait("saved: ")
    terminal.type("C-d")
    terminal.wait("left 0")
    assert (tmp_path / "talk.json").stat().st_size > picture.stat().st_size
    (talk,) = history_in(tmp_path).list()
    assert (talk.title, talk.turns) == ("What is this?", 2)
    assert "And now?" not in str(history_in(tmp_path).load(talk.id))


def test_what_is_typed_while_an_answer_comes_waits_for_its_prompt(
    open_terminal: Callable[[str], Terminal],
) -> None:
    terminal = open_terminal("--no-history -n 300")
    terminal.wait_for_prompt()
    terminal.type("One", "Enter")
    terminal.wait_until(lambda screen: len(screen.partition("> One")[2].strip()) > 20, "answer")
    terminal.type("Two", "Enter", "/quit", "Enter")
    screen = terminal.wait("left 0")
    assert screen.count("first after") == 2
    assert (screen.count("Two"), screen.count("/quit")) == (1, 1)
    assert "> Two" in screen


def test_a_line_that_reaches_the_edge_is_edited(open_terminal: Callable[[str], Terminal]) -> None:
    terminal = open_terminal("--no-history")
    terminal.resize(40)
    terminal.wait_for_prompt()
    terminal.type("What does the text in the picture say", "Home")
    terminal.wait_for_line("picture say")
    for key in "123":
        terminal.type(key)  # the first moves the last letter to the edge
    terminal.wait("> 123What does the text in the picture s ay")


def test_a_session_goes_on(
    open_terminal: Callable[[str], Terminal], session: Session, picture: Path, tmp_path: Path
) -> None:
    handle(session, f"/image {str(picture).replace(' ', chr(92) + ' ')}")
    handle(session, "What is this?")
    handle(session, "Is it [red] in [/etc/hosts]?")
    history_in(tmp_path).save("0" * 16, session.chat.messages)
    terminal = open_terminal("--resume last -n 5")
    screen = terminal.wait("> Is it [red] in [/etc/hosts]?")
    question = screen.partition("my picture.png: 90 x 60")[0]
    assert "> What is this?" in question
    assert "▀" in question
    terminal.type("/retry", "Enter")
    assert (
        " reused" not in terminal.wait("first after").rpartition("first after")[0].splitlines()[-1]
    )
    terminal.type("/quit", "Enter")
    terminal.wait("left 0")


def test_the_keys_are_told_once_to_each_user_and_by_each_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    assert [take_first_start(folder) for _ in range(3)] == [True, False, False]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "hints").stat().st_mode & 0o777 == 0o600
    assert max(map(len, hints.HINTS.splitlines())) < 80
    monkeypatch.setattr(hints, "version", lambda name: "99.0")
    assert [take_first_start(folder) for _ in range(2)] == [True, False]
    (tmp_path / "file").touch()
    assert not take_first_start(tmp_path / "file" / "data")  # where it would be told each time


def test_lines_that_cannot_be_kept_stay_in_the_session(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    reasons = {
        tmp_path / "file" / "inputs": "Not a directory",
        tmp_path / "folder": "Is a directory",
        tmp_path / "full": "File too large",
    }
    for path, reason in reasons.items():
        lines = Lines(path)
        with file_limit(0):
            assert [*lines.load_history_strings()] == []
            lines.append_string("One")
            lines.append_string("Two")
        assert lines.get_strings() == ["One", "Two"]
        assert [lines.pop_trouble() for _ in range(2)] == [
            f"{quote(path, end=True)}: {reason}",
            None,
        ]
    kept = Lines(tmp_path / "kept")
    kept.append_string("One")
    kept.append_string("caf\udce9.jpg")
    assert [*Lines(tmp_path / "kept").load_history_strings()] == ["caf�.jpg", "One"]
    assert kept.pop_trouble() is None


@pytest.mark.slow
def test_a_name_that_is_not_utf8_is_drawn_as_it_is_counted(
    open_terminal: Callable[[str], Terminal], tmp_path: Path
) -> None:
    file_not_utf8(tmp_path, noise(9, 9))
    terminal = open_terminal("-n 5")
    terminal.wait("/help lists commands")
    terminal.type(f"/image {tmp_path}/caf", "Tab")
    terminal.wait("\ufffd")
    terminal.type("Enter")
    screen = terminal.wait("1 attached >")
    assert screen.count("> /im") == 1  # the line was not drawn beside itself


@pytest.mark.slow
def test_a_chat_whose_lines_cannot_be_kept_goes_on(
    open_terminal: Callable[[str], Terminal], home: dict[str, str], tmp_path: Path
) -> None:
    (history_in(tmp_path).path.parent / "inputs").mkdir(parents=True)
    terminal = open_terminal("-n 5")
    for count in (1, 2):
        terminal.wait("/help lists commands")
        terminal.type("Hello", "Enter")
        screen = terminal.wait("first after", count)
    assert screen.count("arrows bring back the lines of this session alone") == 1
    assert "ENTER" not in screen


def test_videos_are_attached_from_the_command_line(
    tiny: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clip.bin").write_bytes(encode_video(3))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    flags = ("-m", tiny, "-n", 2, "--video", tmp_path / "clip.bin", "--no-history")
    code, out, err = call("chat", *flags, stdin="What happens?\n/stats\n")
    assert (code, bool(out.strip())) == (0, True)
    assert "conversation: " in err
    assert ", 1 picture" in err
    code, _, err = call("chat", "-m", "none", "--video", tmp_path / "none.mp4", stdin="Hi\n")
    assert (code, "none.mp4" in err) == (1, True)
