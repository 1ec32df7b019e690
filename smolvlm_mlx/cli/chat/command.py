"""`smolvlm-mlx chat`: a conversation in the terminal, or line by line over a pipe."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import PromptError, SmolVLMError, escaped
from ...generation.options import Options
from ...inputs.settings import ImageOptions
from ...tasks.options import CHAT
from .. import completion
from ..history import as_text
from ..options import DEFAULT_MODEL, Flags, Images, Loading, Model, Videos, given, note_unused
from ..serve import PAGE_PORT, leaving_at_once, listen_for_page, load_service, run_server
from ..token import kept_token

if TYPE_CHECKING:
    from ...generation.stream import TextStream
    from ...inputs.media import Attachment, Video
    from ...inputs.messages import Message
    from ...server.start import Start
    from ...tasks.history import History
    from ..tiles import SeenTiles
    from .session import Session
    from .terminal import TerminalScreen

# Special tokens would come back as plain text with the next question.
WITHOUT = ("skip_special_tokens",)

Resume = Annotated[
    str | None,
    typer.Option(
        metavar="ID",
        help="Go on with this conversation; `last` is the latest.",
        autocompletion=completion.resumable,
    ),
]
Web = Annotated[
    bool, typer.Option("--web", help="In the browser instead: a server for this machine alone.")
]
Port = Annotated[
    int | None,
    typer.Option(
        help="Port of the page; 0 for any.",
        show_default=f"{PAGE_PORT}, or the next that is free",
        min=0,
        max=65535,
    ),
]
NoHistory = Annotated[bool, typer.Option("--no-history", help="Keep nothing of this conversation.")]


def chat(
    context: typer.Context,
    model: Model = DEFAULT_MODEL,
    image: Images = None,
    video: Videos = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    resume: Resume = None,
    web: Web = False,
    port: Port = None,
    no_history: NoHistory = False,
    options: Annotated[Options, Flags(WITHOUT)] = CHAT,
    image_options: ImageOptions = ImageOptions(),
    loading: Loading = Loading(),
) -> None:
    """Talk about pictures in the terminal, or with --web in the browser."""
    if no_history and resume is not None:
        raise PromptError("--resume needs the history, which --no-history leaves out")
    if web and options.kv_bits is not None:
        raise PromptError("--kv-bits: not with --web, where several answers are made at once")
    from ...tasks.chat import Chat
    from ...tasks.history import History, cache_folder
    from .session import Session

    history = None if no_history else History()
    id = None if history is None or resume is None else _find(history, resume)
    media = _media(image, video)  # what cannot be read is told before a model is loaded
    if web:
        typed = [*given(context, options), *given(context, image_options)]
        settings = (options, image_options, _start(typed, system, media, id, options))
        return _run_page(model, loading, settings, not no_history, port)
    note_unused(context, "without --web", "port")
    loaded, folder = loading.load(model), None if no_history else cache_folder()
    conversation = Chat(
        *loaded, options, system=system, image_options=image_options, cache_folder=folder
    )
    screen = _screen(model, history, context.obj.debug)
    session = Session(conversation, screen, model, history)
    _begin(session, id, system, media)
    with _ended_by_signals(session):
        screen.run(session)


def _begin(
    session: "Session", id: str | None, system: str | None, media: "list[Attachment | Video]"
) -> None:
    """Go on with a conversation of the history, if one is named, under another system message if
    one is given; and attach what is for the next question."""
    if session.history is not None and id is not None:
        session.resume(session.history, id)
        session.chat.system = session.chat.system if system is None else system
        session.screen.conversation(session.chat.messages)
    session.attach(media)


@contextmanager
def _ended_by_signals(session: "Session") -> Iterator[None]:
    """Within, SIGTERM and SIGHUP end the chat with what is said kept, as Ctrl-C ends an answer; a
    second one at once. `nohup` is obeyed."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        session.keep()  # also where one came into that
        raise
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def _run_page(
    model: str,
    loading: Loading,
    settings: "tuple[Options, ImageOptions, Start]",
    keep_history: bool,
    port: int | None,
) -> None:
    """The conversation in the browser, until Ctrl-C."""
    from ...server.security import MAX_BODY_BYTES

    with leaving_at_once(), listen_for_page(port) as listener:
        service = load_service(model, loading, *settings, keep_history)
        # Whoever has the token is the user, whose own pictures may be large.
        service.limits = replace(service.limits, max_bytes=MAX_BODY_BYTES, max_pixels=None)
        run_server(service, listener, kept_token(), open_page=True)


def _media(images: list[str] | None, videos: list[str] | None) -> "list[Attachment | Video]":
    """The pictures and videos for the first question."""
    from ...inputs.media import Video, attach

    seen = [Video({"url" if "://" in source else "path": source}) for source in videos or []]
    return [*map(attach, images or []), *seen]


def _start(
    typed: list[str],
    system: str | None,
    media: "list[Attachment | Video]",
    id: str | None,
    options: Options,
) -> "Start":
    """What the page begins with."""
    from ...server.security import MAX_BODY_BYTES
    from ...server.start import Start

    size, most = sum(len(each.data) for each in media), MAX_BODY_BYTES * 7 // 10  # in base64
    if size > most:
        raise PromptError(
            f"--image, --video: {size:,} bytes, and the page can send {most:,}; make them smaller, "
            "or leave out --web"
        )
    return Start(typed, system, media, id, options)


def _screen(model: str, history: "History | None", debug: bool) -> "PipeScreen | TerminalScreen":
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return PipeScreen()
    from ...tasks.history import data_folder, private_folder
    from .hints import HINTS, take_first_start
    from .terminal import TerminalScreen

    inputs = None if history is None else private_folder(history.path.parent) / "inputs"
    screen = TerminalScreen(inputs, debug)
    screen.say(f"{model}; /help lists commands, Ctrl-D leaves")
    if take_first_start(data_folder()):
        screen.say(HINTS)
    return screen


def _find(history: "History", name: str) -> str:
    if name != "last":
        return history.find(name)
    latest = history.list(1)
    if not latest:
        raise PromptError("there is no conversation to go on with")
    return latest[0].id


class PipeScreen:
    """Answers go to stdout as they come, everything else to stderr; nobody is asked."""

    def run(self, session: "Session") -> None:
        """Handle stdin line by line; an error is one line, and the next line goes on. Exits, with 1
        if there was an error."""
        from .commands import handle

        failed = 0
        for line in sys.stdin:
            try:
                handle(session, line.rstrip("\n"))
            except SmolVLMError as error:
                print(f"smolvlm-mlx: {error}", file=sys.stderr)
                failed = 1
            if session.over:
                break
        raise typer.Exit(failed)

    def answer(self, begin: "Callable[[], TextStream]") -> None:
        for piece in begin():
            sys.stdout.write(piece)
            sys.stdout.flush()
        print(flush=True)

    def picture(self, attachment: "Attachment | Video") -> None:
        """Not shown; only what is unusual about it is said."""
        if attachment.note:
            self.say(f"{escaped(attachment.name)}: {attachment.note}")

    def conversation(self, messages: "Sequence[Message]") -> None:
        self.say(as_text(messages))

    def tiles(self, seen: "SeenTiles") -> None:
        self.say(seen.describe())

    def copy(self, text: str) -> None:
        from .clipboard import copy

        program = copy(text)
        if program is None:
            raise PromptError("no program is here that fills the clipboard")
        self.say(f"copied with {program}: {len(text):,} characters")

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)

    def choose(self, question: str, answers: str) -> str:
        return answers[-1]

    def line(self, prompt: str, default: str) -> str:
        return ""
