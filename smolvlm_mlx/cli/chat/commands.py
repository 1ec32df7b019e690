"""What a line of a chat does: ask, attach, or one of the /commands."""

import os
import re
from collections.abc import Callable
from difflib import get_close_matches
from shutil import get_terminal_size
from string import whitespace
from textwrap import fill

from rich.cells import cell_len
from rich.text import Text

from ...errors import FetchError, PromptError, VideoError, counted, escaped, quote
from ...inputs.kinds import PICTURE
from ...inputs.media import Video
from ...inputs.messages import Message
from ..history import date
from .clipboard import read_pictures
from .line import Line, read_line
from .paths import INVISIBLE, expanded, no_such_file, read_path, read_sources
from .session import SHOWN, Attached, Session
from .settings import NAMED, change, find, value_of, written

HELP = (
    "A question is answered; paths and URLs of pictures and videos in it, typed or dropped, are "
    "attached. A line of nothing else waits for the question. A name without a file is an error, "
    "except after /ask.",
    "Enter sends, Alt-Enter or Esc Enter begins a new line, Ctrl-C stops an answer, Ctrl-D leaves.",
)

ASK = "/ask TEXT asks a line as it is"


def handle(session: Session, line: str) -> None:
    """Do what a line says.

    Raises:
        SmolVLMError: it cannot be done; the conversation is as it was.
    """
    session.catch_up()
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
        session.attach_readable(read.sources)


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
        more = [f"and {len(missing) - SHOWN} more"] * (len(missing) > SHOWN)
        raise FetchError(f"{', '.join([*map(no_such_file, missing[:SHOWN]), *more])}; {ASK}")
    for name in read.mentioned:
        session.screen.say(f"{quote(name, end=True)} is text: there is no such file")
    for page in read.pages:
        session.screen.say(f"{page} is text; /image attaches a picture, whatever its URL ends in")
    return read


# ---- each docstring is a line of /help


def ask(session: Session, rest: str) -> None:
    """TEXT: ask this as it is, without looking for names of files in it"""
    if not rest.strip():
        raise PromptError("ask what? /ask TEXT")
    session.ask(rest.strip())


def image(session: Session, rest: str) -> None:
    """PATH, URL or *.jpg ...: attach pictures to the next question; none: forget those that are
    attached."""
    if not rest.strip():
        count = len(session.pending)
        session.screen.say(f"{count} pictures forgotten" if count else "no pictures are attached")
        session.pending.clear()
    else:
        session.attach_readable(read_sources(rest))


def video(session: Session, rest: str) -> None:
    """PATH or URL ...: attach videos, whatever their names end in"""
    if not rest.strip():
        raise PromptError("which? /video PATH")

    def read(source: Attached) -> Video:
        try:
            return Video({"url" if isinstance(source, str) else "path": source})
        except VideoError as error:
            told = str(error).replace(PICTURE.advice, "/image attaches it")
            raise VideoError(told) from error

    session.attach_readable(read_sources(rest), read)


def paste(session: Session) -> None:
    """attach the picture in the clipboard, as Ctrl-V does"""
    session.attach_readable(read_pictures())


def copy(session: Session) -> None:
    """the last answer into the clipboard, as Markdown"""
    answers = [each.text for each in session.chat.messages if each.role == "assistant"]
    if not (answers and answers[-1]):
        raise PromptError("there is no answer to copy yet")
    session.screen.copy(answers[-1])


def system(session: Session, rest: str) -> None:
    """TEXT: instructions that stand before the conversation; none: remove them"""
    session.chat.system = rest.strip() or None
    session.keep()
    session.screen.say(f"system: {rest.strip() or 'none'}")


def undo(session: Session) -> None:
    """go back before the last question"""
    _last_question(session, "undo")
    session.screen.say(f"taken back: {session.undo().text}")


def retry(session: Session) -> None:
    """answer the last question again, beside the answer that is there; at temperature 0 it is
    sampled"""
    _last_question(session, "answer again")
    session.retry()


def go_on(session: Session) -> None:
    """go on with the last answer, if it was stopped or cut off; where it went in circles, sampled
    at a temperature that leads out of them"""
    _last_question(session, "continue")
    session.go_on()


def edit(session: Session, rest: str) -> None:
    """TEXT: ask this beside the last question; none: change its text"""
    question = _last_question(session, "change")
    text = rest.strip() or session.screen.line("edit> ", question.text)
    if text:
        read = _read(session, text)
        session.edit(read.text or text, read.sources)


def _last_question(session: Session, what: str) -> Message:
    """The last question.

    Raises:
        PromptError: nothing is asked yet.
    """
    asked = [message for message in session.chat.messages if message.role == "user"]
    if not asked:
        raise PromptError(
            f"there is nothing to {what} yet; ask a question first, or /history lists earlier ones"
        )
    return asked[-1]


def branches(session: Session, rest: str) -> None:
    """NUMBER: go on where the conversation went another way; none: list the ways it went, by the
    words with which each leaves the others"""
    found, number = session.branches(), rest.strip()
    if not number:
        rows = ((f"{n:>3}  {date(each.created)}  ", each) for n, each in enumerate(found, 1))
        lines = [_row(row, each.words, each.end in session.path[-1:]) for row, each in rows]
        return session.screen.say("\n".join(lines) or "no branches yet")
    if not (number.isdecimal() and 1 <= int(number) <= len(found)):
        raise PromptError(f"no branch {quote(number)}; /branches lists {len(found)}")
    session.go(found[int(number) - 1])
    session.screen.conversation(session.chat.messages[-2:])


def history(session: Session, rest: str) -> None:
    """WORDS: the latest conversations, or those that contain the words"""
    if session.history is None:
        raise PromptError("no history is kept (--no-history)")
    lines = []
    for kept in session.history.list(20, rest.strip()):
        turns = counted(kept.turns, "turn")
        row = f"{kept.id}  {date(kept.updated)}  {turns:>8}  "
        lines.append(_row(row, kept.title, kept.id == session.id))
    none = "no conversation contains that" if rest.strip() else "no conversations are kept yet"
    session.screen.say("\n".join(lines) or none)


def tiles(session: Session) -> None:
    """what the model sees of the last pictures: their tiles, tokens, and which were reused"""
    all_seen = session.tiles()
    if not all_seen:
        raise PromptError("there is no picture yet; /image attaches one")
    for seen in all_seen:
        session.screen.tiles(seen)


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
    session.screen.conversation(session.chat.messages)


def new(session: Session) -> None:
    """begin a new conversation; the history keeps this one"""
    system = session.chat.system
    session.restart()
    session.chat.system = system


def settings(session: Session, rest: str) -> None:
    """NAME VALUE: change how answers are generated and pictures are cut; none: show it"""
    name, _, value = rest.strip().partition(" ")
    options = [find(name)] if name else [*NAMED.values()]
    if value.strip():
        changed = change(session.chat, options[0], value.strip())
        session.screen.say(f"{options[0].name} {written(changed)}")
        return
    values = [(option.name, value_of(session.chat, option)) for option in options]
    session.screen.say("\n".join(f"{name:20} {written(value)}" for name, value in values))


def stats(session: Session) -> None:
    """what the last answer and the conversation take"""
    if session.last is not None:
        session.screen.say(session.last.describe())
    used, context = session.chat.tokens(), session.chat.context
    count = sum(len(message.media) for message in session.chat.messages)
    pictures = counted(count, "picture")
    session.screen.say(f"conversation: {used} of {context} tokens, {pictures}")


def help(session: Session) -> None:
    """this"""
    width, columns = max(map(len, COMMANDS)) + 2, _columns() - 1
    lines = (
        fill(what, columns, initial_indent=f"{name:{width}}", subsequent_indent=" " * width)
        for name, what in about().items()
    )
    session.screen.say("\n".join((*(fill(each, columns) for each in HELP), "", *lines)))


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
    "/copy": copy,
    "/undo": undo,
    "/retry": retry,
    "/continue": go_on,
    "/new": new,
    "/tiles": tiles,
    "/stats": stats,
    "/help": help,
    "/quit": quit,
}
COMMANDS = {**WITH_TEXT, **ALONE}
SYNONYMS = {"/set": "/settings", "/exit": "/quit", "/bye": "/quit", "/q": "/quit", "/?": "/help"}
LEAVE = ("exit", "quit", "bye", ":q", ":q!", ":quit", ":wq")  # as a line of its own


def _row(row: str, words: str, is_this: bool) -> str:
    """A row that goes on with words, as far as there is room."""
    this = "  (this one)" * is_this
    room = max(min(_columns() - 1 - cell_len(row + this), 60), 12)
    shown = Text(escaped(words))
    shown.truncate(room, overflow="ellipsis")
    return f"{row}{shown}{this}"


def _columns() -> int:
    """How wide a text may be: as the terminal, within reason."""
    return min(max(get_terminal_size().columns, 40), 120)


def about() -> dict[str, str]:
    """What each command does, in words."""
    return {name: " ".join((do.__doc__ or "").split()) for name, do in COMMANDS.items()}
