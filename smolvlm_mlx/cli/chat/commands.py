"""What a line of a chat does: ask, attach, or one of the /commands."""

import math
import os
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from string import whitespace
from typing import Any, get_args, get_origin

from ...errors import FetchError, GenerationError, ImageError, PromptError, quote, reason
from ...generation.options import Options
from ...inputs.media import Attachment, Video
from ...inputs.settings import ImageOptions
from ...options import Option, options_of
from ...tasks.options import CHAT
from ..history import as_text
from .command import WITHOUT
from .line import Line, read_line
from .paths import INVISIBLE, expanded, no_such_file, read_path, read_sources, split_words
from .session import Session

HELP = """\
A question is answered; paths and URLs of pictures and videos in it, typed or dropped, are
attached. A line of nothing else waits for the question. A name without a file is an error, except
after /ask.
Enter sends, Alt-Enter or Esc Enter begins a new line, Ctrl-C stops an answer, Ctrl-D leaves.

"""


ASK = "/ask TEXT asks a line as it is"


def handle(session: Session, line: str) -> None:
    """Do what a line says.

    Raises:
        SmolVLMError: it cannot be done; the conversation is as it was.
    """
    line = line.lstrip(INVISIBLE + whitespace)
    first, rest = [*line.split(None, 1), "", ""][:2]
    name = "/quit" if line.strip().lower() in LEAVE else first.lower()
    name = SYNONYMS.get(name, name)
    if name in WITH_TEXT:
        WITH_TEXT[name](session, rest)
    elif name in ALONE:
        if rest.strip():
            raise PromptError(f"{first} takes nothing after it, not {quote(rest.strip())}; {ASK}")
        ALONE[name](session)
    else:
        _say(session, line)


def _say(session: Session, line: str) -> None:
    """Attach what a line names, and ask what it asks."""
    read = _read(session, line)
    if read.text:
        session.ask(read.text, read.sources)
    else:
        session.attach(read.sources)


def _read(session: Session, text: str) -> Line:
    """Read a line in which every name means something."""
    read = read_line(text, session.names())
    first = text.split()[0] if text.strip() else ""
    if re.fullmatch(r"/[\w?-]*", first) and read.begins_with != "path":
        begun = [name for name in COMMANDS if len(first) > 2 and name.startswith(first.lower())]
        near = begun or get_close_matches(first.lower(), COMMANDS, 1)
        hint = f"is it {near[0]}? " if near else ""
        raise PromptError(f"no command {quote(first)}; {hint}/help lists them, {ASK}")
    missing = read.missing
    if read.begins_with == "no path" and not missing:
        missing = [first.strip("'\"")]
    if missing:
        if read.text:
            session.let_go()
        raise FetchError(f"{', '.join(map(no_such_file, missing))}; {ASK}")
    for name in read.mentioned:
        session.screen.say(f"{quote(name, end=True)} is text: there is no such file")
    for page in read.pages:
        session.screen.say(f"{page} is text; /image attaches a picture, whatever its URL ends in")
    return read


def _parse(option: Option, value: str, default: Any) -> Any:
    """A setting's value as it was typed; `none` and `default` are the default."""
    if value in ("none", "default"):
        return default
    if get_origin(option.type) is tuple:
        return tuple(split_words(value))
    kinds = get_args(option.type) or (option.type,)
    if bool in kinds:
        if value not in ("on", "off"):
            raise GenerationError(f"{option.name} is on or off, not {quote(value)}")
        return value == "on"
    try:
        number = float(value) if float in kinds else int(value)
    except ValueError as error:
        kind = "number" if float in kinds else "whole number"
        raise GenerationError(f"{option.name} is a {kind}, not {quote(value)}") from error
    if not math.isfinite(number):
        raise GenerationError(f"{option.name} is a number, not {quote(value)}")
    return number


def _written(value: object) -> str:
    """A setting's value as `_parse` takes it."""
    if value in (None, ()):
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return shlex.join(value) if isinstance(value, tuple) else str(value)


# ---- each docstring is a line of /help


def ask(session: Session, rest: str) -> None:
    """TEXT: ask this as it is, without looking for names of files in it"""
    if not rest.strip():
        raise PromptError("ask what? /ask TEXT")
    session.ask(rest.strip())


def image(session: Session, rest: str) -> None:
    """PATH or URL ...: attach pictures to the next question; none: forget those that are
    attached."""
    if not rest.strip():
        count = len(session.pending)
        session.screen.say(f"{count} pictures forgotten" if count else "no pictures are attached")
        session.pending.clear()
    session.attach(read_sources(rest))


def video(session: Session, rest: str) -> None:
    """PATH or URL ...: attach videos, whatever their names end in"""
    if not rest.strip():
        raise PromptError("which? /video PATH")
    session.attach(
        [
            Video({"url" if isinstance(source, str) else "path": source})
            for source in read_sources(rest)
        ]
    )


def paste(session: Session) -> None:
    """attach the picture in the clipboard"""
    from PIL import Image, ImageGrab

    try:
        found = ImageGrab.grabclipboard()
    except (OSError, NotImplementedError) as error:
        raise ImageError(f"the clipboard cannot be read here ({reason(error)})") from error
    if found is None:
        raise ImageError("there is no picture in the clipboard")
    session.attach(
        [Attachment(found)] if isinstance(found, Image.Image) else [Path(path) for path in found]
    )


def system(session: Session, rest: str) -> None:
    """TEXT: instructions that stand before the conversation; none: remove them"""
    session.chat.system = rest.strip() or None
    session.keep()
    session.screen.say(f"system: {rest.strip() or 'none'}")


def undo(session: Session) -> None:
    """go back before the last question"""
    session.screen.say(f"taken back: {session.undo().text}")


def retry(session: Session) -> None:
    """answer the last question again, beside the answer that is there; at temperature 0 it is
    sampled"""
    session.retry()


def edit(session: Session, rest: str) -> None:
    """TEXT: ask this beside the last question; none: change its text"""
    questions = [message for message in session.chat.messages if message.role == "user"]
    text = rest.strip() or session.screen.line("edit> ", questions[-1].text if questions else "")
    if text:
        read = _read(session, text)
        session.edit(read.text or text, read.sources)


def branches(session: Session, rest: str) -> None:
    """NUMBER: go on where the conversation went another way; none: list the ways it went, by the
    words with which each leaves this one"""
    found, number = session.branches(), rest.strip()
    if not number:
        lines = [
            f"{n:>3}  {time.strftime('%Y-%m-%d %H:%M', time.localtime(each.created))}  {each.words}"
            f"{'  (this one)' if each.is_current else ''}"
            for n, each in enumerate(found, 1)
        ]
        return session.screen.say("\n".join(lines) or "no branches yet")
    if not (number.isdecimal() and 1 <= int(number) <= len(found)):
        raise PromptError(f"no branch {quote(number)}; /branches lists {len(found)}")
    session.go(found[int(number) - 1])
    session.screen.say(as_text(session.chat.messages[-2:]))


def history(session: Session, rest: str) -> None:
    """WORDS: the latest conversations, or those that contain the words"""
    if session.history is None:
        raise PromptError("no history is kept (--no-history)")
    found = session.history.list(20, rest.strip())
    lines = [
        f"{s.id}  {s.turns} turns  {s.title}{'  (this one)' if s.id == session.id else ''}"
        for s in found
    ]
    session.screen.say("\n".join(lines) or "no conversations")


def save(session: Session, rest: str) -> None:
    """FILE: write the conversation with its pictures to a JSON file"""
    if not rest.strip():
        raise PromptError("save where? /save FILE")
    session.chat.save(read_path(rest))
    session.screen.say(f"saved: {read_path(rest)}")


def open(session: Session, rest: str) -> None:
    """ID or FILE: go on with a conversation from the history, or from a file that /save wrote"""
    if not rest.strip():
        raise PromptError("open what? /open ID or /open FILE; /history lists ids")
    name = read_path(rest)
    if os.path.isfile(expanded(name)) or session.history is None:
        session.open(name)
    else:
        session.resume(session.history, session.history.find(name))
    session.screen.say(as_text(session.chat.messages))


def new(session: Session) -> None:
    """begin a new conversation; the history keeps this one"""
    system = session.chat.system
    session.restart()
    session.chat.system = system


def settings(session: Session, rest: str) -> None:
    """NAME VALUE: change how answers are generated and pictures are cut; none: show it"""
    typed, _, value = rest.strip().partition(" ")
    name, chat = typed.lstrip("-").replace("-", "_"), session.chat  # as a flag, too
    known = {
        o.name: o
        for kind in (Options, ImageOptions)
        for o in options_of(kind)
        if o.name not in WITHOUT
    }
    if name and name not in known:
        raise GenerationError(f"no setting {quote(typed)}; there are {', '.join(known)}")
    if not value.strip():
        values = {**vars(chat.options), **vars(chat.image_options)}
        shown = [name] if name else known
        session.screen.say("\n".join(f"{name:20} {_written(values[name])}" for name in shown))
        return
    parsed = _parse(known[name], value.strip(), vars(CHAT).get(name, known[name].default))
    if name in vars(CHAT):
        chat.options = replace(chat.options, **{name: parsed})
    else:
        chat.image_options = replace(chat.image_options, **{name: parsed})
    session.screen.say(f"{name} {_written(parsed)}")


def stats(session: Session) -> None:
    """what the last answer and the conversation take"""
    if session.last is not None:
        session.screen.say(session.last.describe())
    used, context = session.chat.tokens(), session.chat.context
    pictures = sum(len(message.media) for message in session.chat.messages)
    session.screen.say(f"conversation: {used} of {context} tokens, {pictures} pictures")


def help(session: Session) -> None:
    """this"""
    width = max(map(len, COMMANDS))
    lines = [
        f"{name:{width}}  {' '.join((command.__doc__ or '').split())}"
        for name, command in COMMANDS.items()
    ]
    session.screen.say(HELP + "\n".join(lines))


def quit(session: Session) -> None:
    """leave"""
    session.over = True


WITH_TEXT: dict[str, Callable[[Session, str], None]] = {
    "/ask": ask,
    "/image": image,
    "/video": video,
    "/system": system,
    "/edit": edit,
    "/branches": branches,
    "/history": history,
    "/open": open,
    "/save": save,
    "/settings": settings,
}
ALONE: dict[str, Callable[[Session], None]] = {
    "/paste": paste,
    "/undo": undo,
    "/retry": retry,
    "/new": new,
    "/stats": stats,
    "/help": help,
    "/quit": quit,
}
COMMANDS = {**WITH_TEXT, **ALONE}
SYNONYMS = {"/exit": "/quit", "/bye": "/quit", "/q": "/quit", "/?": "/help"}
LEAVE = ("exit", "quit", "bye", ":q", ":q!", ":quit", ":wq")  # as a line of its own
