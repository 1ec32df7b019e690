"""`smolvlm-mlx models`: the family's checkpoints by name, which of them are here, and how they come
and go."""

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ..checkpoint.names import KNOWN, known_as, resolve
from ..errors import CheckpointError, escaped
from . import choice, completion
from .choice import VARIABLE, Machine, configured
from .help import CONTEXT, Command, Group
from .options import as_command, confirm

if TYPE_CHECKING:
    from ..checkpoint.cached import Cached

WIDE = 126  # columns that hold hub ids too

app = typer.Typer(cls=Group, context_settings=CONTEXT, rich_markup_mode=None)
Names = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME...", help="Short names or hub ids.", autocompletion=completion.names
    ),
]
Downloaded = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME...", help="Short names or hub ids.", autocompletion=completion.downloaded
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass(frozen=True)
class Row:
    """A line of the list; None for what is not known, `disk` bytes in the cache."""

    name: str
    checkpoint: str
    about: str
    parameters: int | None
    download: int | None
    memory: int | None
    fits: str
    downloaded: str  # yes, no, partly, damaged; bundled
    disk: int


@app.callback(invoke_without_command=True)
@as_command
def models(context: typer.Context, as_json: AsJson = False) -> None:
    """List checkpoints; download and delete them.

    Memory is what an answer takes that fills the model's context. It fits if that is half of the
    machine's at most, and tightly up to three quarters; what is too large fits with fewer bits
    (`smolvlm-mlx convert NAME OUT --bits 4`).
    """
    if context.invoked_subcommand is None:
        _list(as_json)


@app.command("list", cls=Command)
@as_command
def list_all(as_json: AsJson = False) -> None:
    """List checkpoints, as `models` alone does."""
    _list(as_json)


def _list(as_json: bool) -> None:
    machine = Machine.of_this()
    wrong = None
    try:
        chosen = configured()
        default = resolve(chosen[0]) if chosen else machine.default().repo
    except CheckpointError as error:
        chosen, default, wrong = None, None, error
    rows = _rows(machine)
    if as_json:
        values = [{**vars(row), "default": row.checkpoint == default} for row in rows]
        print(
            json.dumps({"memory": machine.memory, "default": default, "models": values}, indent=2)
        )
    else:
        _print_rows(rows, default)
        if default is not None:
            _print_default(default, f"by {chosen[1]}" if chosen else "", machine)
    if wrong is not None:
        raise wrong


@app.command(cls=Command)
@as_command
def pull(names: Names) -> None:
    """Download checkpoints, or the rest of them."""
    from ..checkpoint.hub import find, find_folder

    for repo in _repos(names):
        if find_folder(repo) is not None:
            raise CheckpointError(f"{repo}: is a folder here, there is nothing to download")
        known = known_as(repo)
        size = f", {_size(known.download)}" if known else ""
        print(f"{repo}{size}", file=sys.stderr)
        print(find(repo))


@app.command(cls=Command)
@as_command
def rm(names: Downloaded, yes: Yes = False) -> None:
    """Delete downloaded checkpoints."""
    from ..checkpoint.cached import cached, remove
    from ..checkpoint.hub import find_folder

    here, repos = {found.repo: found for found in cached()}, _repos(names)
    if absent := [repo for repo in repos if repo not in here]:
        for repo in absent:
            find_folder(repo)  # says which name is near
        are = ", ".join(map(_short, here)) or "none"
        raise CheckpointError(f"{', '.join(map(_short, absent))}: not downloaded; what is: {are}")
    total = sum(here[repo].bytes for repo in repos)
    if not yes:
        confirm("rm", f"delete {', '.join(repos)} ({_size(total)})", CheckpointError)
    for repo in repos:
        remove(here[repo])
        if (outside := here[repo].outside) is not None:
            print(f"{repo}: linked to {escaped(str(outside))}, which stays", file=sys.stderr)
    print(f"freed: {_size(total)}", file=sys.stderr)


def _short(repo: str) -> str:
    known = known_as(repo)
    return known.name if known else repo


def _repos(names: list[str]) -> list[str]:
    """Hub ids of names, each once.

    Raises:
        CheckpointError: one is the bundled checkpoint's.
    """
    found = [*dict.fromkeys(resolve(name) for name in names)]
    if "tiny" in found:
        raise CheckpointError("tiny: comes with the program, and stays")
    return found


def _rows(machine: Machine) -> list[Row]:
    """The bundled checkpoint, the family's, and others of it in the cache."""
    from ..checkpoint.cached import cached

    here = {found.repo: found for found in cached()}
    rows = [Row("tiny", "tiny", "trying things", 2_800_000, 0, 0, "yes", "bundled", 0)]
    for known in KNOWN:
        found = here.pop(known.repo, None)
        rows.append(
            Row(
                known.name,
                known.repo,
                known.about,
                known.parameters,
                known.download,
                machine.needs(known),
                machine.fits(known),
                _state(found),
                found.bytes if found else 0,
            )
        )
    others = (
        Row(found.repo, found.repo, "", None, None, None, "?", _state(found), found.bytes)
        for found in here.values()
    )
    return [*rows, *others]


def _state(found: "Cached | None") -> str:
    if found is None:
        return "no"
    return "yes" if found.is_whole else "damaged" if found.is_damaged else "partly"


def _print_rows(rows: list[Row], default: str | None) -> None:
    """A table; in a pipe lines with tabs, without a title."""
    from .show import console, table

    out, lines = console(), [_cells(row, row.checkpoint == default) for row in rows]
    if not out.is_terminal:
        print("\n".join("\t".join(cells) for cells in lines))
        return
    titles = ["name", "params", "download", "memory", "fits", "here", "for", "checkpoint"]
    named = [cells for cells in lines if "/" not in cells[0]]
    widths = [max(map(len, each)) + 2 for each in zip(titles, *named, strict=True)]
    # Short names are whole; hub ids in their place go on in the next line.
    ends = [end for end in range(1, 8) if sum(widths[:end]) <= out.width]
    count = 8 if out.width >= WIDE else max(ends, default=1)
    shown = table(*titles[:count])
    for column in shown.columns[4:]:
        column.justify = "left"
    shown.columns[0].overflow = "fold"
    for cells in lines:
        shown.add_row(*cells[:count])
    out.print(shown)


def _cells(row: Row, is_default: bool) -> list[str]:
    sizes = [_size(size) if size else "-" for size in (row.download, row.memory)]
    name, count = row.name + " *" * is_default, _count(row.parameters)
    return [name, count, *sizes, row.fits, row.downloaded, row.about, row.checkpoint]


def _print_default(default: str, why: str, machine: Machine) -> None:
    """Which the default is, and how to have another; on stderr."""
    known = known_as(default)
    memory = f"for this machine's {machine.memory / 1e9:.1f} GB of memory"
    print(f"* default: {known.name if known else default}, {why or memory}", file=sys.stderr)
    print(f'another: {VARIABLE}=NAME, or model = "NAME" in', file=sys.stderr)
    print(choice.config_file(), file=sys.stderr)


def _count(parameters: int | None) -> str:
    if parameters is None:
        return "-"
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
