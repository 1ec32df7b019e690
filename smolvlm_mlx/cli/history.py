"""`smolvlm-mlx history`: list, search, show, rename, export and delete conversations."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import HistoryError, escaped
from . import completion
from .help import CONTEXT, Command, Group
from .options import as_command, confirm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..inputs.messages import Message
    from ..tasks.history import History, Summary


def _history() -> "History":
    from ..tasks.history import History

    return History()


app = typer.Typer(cls=Group, context_settings=CONTEXT, rich_markup_mode=None)
Ids = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ID...",
        help="Of conversations, or their beginnings.",
        autocompletion=completion.conversations,
    ),
]
Id = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="Of a conversation, or its beginning.",
        autocompletion=completion.conversations,
    ),
]


@app.callback(invoke_without_command=True)
@as_command
def root(context: typer.Context) -> None:
    """List, search, show, rename, export and delete conversations.

    Those of `chat` and its page, which are kept on this machine. With nothing after it, it lists
    the latest 20.
    """
    if context.invoked_subcommand is None:
        _print_list(_history().list(limit=20))


@app.command("list", cls=Command)
@as_command
def list_all(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The latest so many.")] = 1000,
) -> None:
    """List conversations, the latest first."""
    _print_list(_history().list(limit))


@app.command(cls=Command)
@as_command
def search(
    words: Annotated[
        str, typer.Argument(help="Text of a question, an answer, or a picture's name.")
    ],
) -> None:
    """List the conversations that contain some words."""
    _print_list(_history().list(words=words))


@app.command(cls=Command)
@as_command
def show(id: Id) -> None:
    """Print a conversation."""
    print(as_text(_history().load(_history().find(id))))


@app.command(cls=Command)
@as_command
def export(
    id: Id,
    out: Annotated[
        Path,
        typer.Argument(
            help="New file: .json with the pictures, as /open and the page read it; .zip, Markdown "
            "with the pictures beside it; .md or .txt, without."
        ),
    ],
) -> None:
    """Write a conversation to a file."""
    from ..files import write_file, written
    from ..inputs.messages import to_json
    from ..tasks.export import as_markdown, as_zip

    history = _history()
    id = history.find(id)
    messages, title = history.load(id), history.title(id)
    kind = out.suffix.lower()
    if kind == ".zip":
        data = as_zip(messages, title)
    elif kind == ".md":
        data = as_markdown(messages, title).encode()
    elif kind == ".json":
        data = json.dumps({"title": title, "messages": to_json(messages)}, indent=1).encode()
    else:
        data = f"{as_text(messages)}\n".encode()
    with written(out, HistoryError):
        if out.exists():
            raise HistoryError(f"{out} exists already; choose another name")
        write_file(out, data)


@app.command(cls=Command)
@as_command
def rename(
    id: Id,
    name: Annotated[str, typer.Argument(help="What it is called; '' is its first words again.")],
) -> None:
    """Give a conversation another name, here, in the chat and in the page."""
    history = _history()
    print(escaped(history.rename(history.find(id), name)), file=sys.stderr)


@app.command(cls=Command)
@as_command
def delete(
    ids: Ids = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before --all.")] = False,
) -> None:
    """Forget conversations, and pictures that are in no other."""
    history = _history()
    if everything == bool(ids):
        raise HistoryError("give the ids of conversations, or --all")
    found = (
        [summary.id for summary in history.list()]
        if everything
        else [*dict.fromkeys(map(history.find, ids or []))]
    )
    if everything and found and not yes:
        what = f"delete {len(found)} conversation{'s' if len(found) > 1 else ''}"
        confirm("--all", what, HistoryError)
    for id in found:
        history.delete(id)
    print(f"deleted: {len(found)}", file=sys.stderr)


def date(seconds: float) -> str:
    """A time since 1970, here, as lists of conversations have it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def as_text(messages: "Sequence[Message]") -> str:
    """A conversation as people read it."""
    return "\n\n".join(_turn(message) for message in messages)


def _turn(message: "Message") -> str:
    parts = [
        *(f"[{escaped(held.name)}]" for held in message.media),
        *([message.text] if message.text else []),
    ]
    end = " (interrupted)" if message.interrupted else ""
    return f"{message.role.capitalize()}: {' '.join(parts)}{end}"


def _print_list(found: "list[Summary]") -> None:
    """A row each; on a terminal as much of a title as there is room for."""
    from rich.text import Text

    from .show import console, table

    if not found:
        console(stderr=True).print("no conversations")
        return
    shown = table("id", "when", "turns", "title")
    for column in shown.columns:
        column.justify, column.no_wrap = "left", column.header != "title"
    for summary in found:
        title = Text(escaped(summary.title), no_wrap=True, overflow="ellipsis")
        shown.add_row(summary.id, date(summary.updated), str(summary.turns), title)
    out = console()
    if not out.is_terminal:
        out.width = 1000
    out.print(shown)
