"""What a line of a chat does: ask, attach, or one of the /commands."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_origin

from ...errors import GenerationError, ImageError, PromptError, quote, reason
from ...generation.options import Options
from ...inputs.media import Attachment, Video
from ...inputs.settings import ImageOptions
from ...options import Option, options_of
from ...tasks.options import CHAT
from ..history import as_text
from .command import WITHOUT
from .completion import split_pictures, split_words
from .session import Session

HELP = """\
A question is answered; paths of pictures and videos in it, typed or dropped, are attached.
Enter sends, Alt-Enter or Esc Enter begins a new line, Ctrl-C stops an answer, Ctrl-D leaves.

"""


def handle(session: Session, line: str) -> None:
    """Do what a line says.

    Raises:
        SmolVLMError: it cannot be done; the conversation is as it was.
    """
    command, _, rest = line.strip().partition(" ")
    if command in COMMANDS:
        COMMANDS[command](session, rest.strip())
        return
    text, paths = split_pictures(line.strip())
    if text.startswith("/") and " " not in text and text[1:].isalpha():
        raise PromptError(f"no command {quote(text)}; /help lists them")
    session.attach([*paths])
    if text:
        session.ask(text)


def _parse(option: Option, value: str, default: Any) -> Any:
    """A setting's value as it was typed; `none` and `default` are the default."""
    if value in ("", "none", "default"):
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
    if isinstance(value, bool):
        return "on" if value else "off"
    return (
        "none"
        if value in (None, ())
        else " ".join(value)
        if isinstance(value, tuple)
        else str(value)
    )


# ---- each docstring is a line of /help


def image(session: Session, rest: str) -> None:
    """PATH or URL ...: attach pictures to the next question; none: forget those that are
    attached."""
    words = split_words(rest)
    if not words:
        count = len(session.pending)
        session.screen.say(f"{count} pictures forgotten" if count else "no pictures are attached")
        session.pending.clear()
    session.attach([word if "://" in word else Path(word).expanduser() for word in words])


def video(session: Session, rest: str) -> None:
    """PATH or URL ...: attach videos, whatever their names end in"""
    words = split_words(rest)
    if not words:
        raise PromptError("which? /video PATH")
    session.attach([Video({"url" if "://" in word else "path": word}) for word in words])


def paste(session: Session, rest: str) -> None:
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
    session.chat.system = rest or None
    session.keep()
    session.screen.say(f"system: {rest or 'none'}")


def undo(session: Session, rest: str) -> None:
    """forget the last question and its answer"""
    question = session.chat.undo()
    session.keep()
    session.screen.say(f"forgotten: {question.text}")


def retry(session: Session, rest: str) -> None:
    """answer the last question again"""
    session.answer(session.chat.retry)


def edit(session: Session, rest: str) -> None:
    """TEXT: ask this in place of the last question; none: change its text"""
    questions = [message for message in session.chat.messages if message.role == "user"]
    text = rest or session.screen.line("edit> ", questions[-1].text if questions else "")
    if text:
        images = [*(questions[-1].media_parts if questions else ()), *session.pending]
        session.answer(lambda: session.chat.edit(text, images))
        session.pending.clear()


def history(session: Session, rest: str) -> None:
    """WORDS: the latest conversations, or those that contain the words"""
    if session.history is None:
        raise PromptError("no history is kept (--no-history)")
    found = session.history.list(20, rest)
    lines = [
        f"{s.id}  {s.turns} turns  {s.title}{'  (this one)' if s.id == session.id else ''}"
        for s in found
    ]
    session.screen.say("\n".join(lines) or "no conversations")


def save(session: Session, rest: str) -> None:
    """FILE: write the conversation with its pictures to a JSON file"""
    if not rest:
        raise PromptError("save where? /save FILE")
    session.chat.save(split_words(rest)[0])
    session.screen.say(f"saved: {split_words(rest)[0]}")


def open(session: Session, rest: str) -> None:
    """ID or FILE: go on with a conversation from the history, or from a file that /save wrote"""
    if not rest:
        raise PromptError("open what? /open ID or /open FILE; /history lists ids")
    name = split_words(rest)[0]
    if Path(name).expanduser().is_file() or session.history is None:
        session.chat.open(name)
        session.restart(session.chat.messages)
    else:
        id = session.history.find(name)
        session.restart(session.history.load(id), id)
    session.screen.say(as_text(session.chat.messages))


def new(session: Session, rest: str) -> None:
    """begin a new conversation; the history keeps this one"""
    system = session.chat.system
    session.restart([])
    session.chat.system = system


def settings(session: Session, rest: str) -> None:
    """NAME VALUE: change how answers are generated and pictures are cut; none: show it"""
    name, _, value = rest.partition(" ")
    chat = session.chat
    known = {
        o.name: o
        for kind in (Options, ImageOptions)
        for o in options_of(kind)
        if o.name not in WITHOUT
    }
    if not name:
        values = {**vars(chat.options), **vars(chat.image_options)}
        session.screen.say("\n".join(f"{name:20} {_written(values[name])}" for name in known))
        return
    if name not in known:
        raise GenerationError(f"no setting {quote(name)}; there are {', '.join(known)}")
    parsed = _parse(known[name], value.strip(), vars(CHAT).get(name, known[name].default))
    if name in vars(CHAT):
        chat.options = replace(chat.options, **{name: parsed})
    else:
        chat.image_options = replace(chat.image_options, **{name: parsed})
    session.screen.say(f"{name} {_written(parsed)}")


def stats(session: Session, rest: str) -> None:
    """what the last answer and the conversation take"""
    if session.last is not None:
        session.screen.say(session.last.describe())
    used, context = session.chat.tokens(), session.chat.context
    pictures = sum(len(message.media) for message in session.chat.messages)
    session.screen.say(f"conversation: {used} of {context} tokens, {pictures} pictures")


def help(session: Session, rest: str) -> None:
    """this"""
    width = max(map(len, COMMANDS))
    lines = [
        f"{name:{width}}  {' '.join((command.__doc__ or '').split())}"
        for name, command in COMMANDS.items()
    ]
    session.screen.say(HELP + "\n".join(lines))


def quit(session: Session, rest: str) -> None:
    """leave"""
    session.over = True


COMMANDS: dict[str, Callable[[Session, str], None]] = {
    "/image": image,
    "/video": video,
    "/paste": paste,
    "/system": system,
    "/undo": undo,
    "/retry": retry,
    "/edit": edit,
    "/new": new,
    "/history": history,
    "/open": open,
    "/save": save,
    "/settings": settings,
    "/stats": stats,
    "/help": help,
    "/quit": quit,
}
