"""How --help is written: options in groups, in one column, then examples; the same text on a
terminal and in a pipe."""

import re
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

from .examples import EXAMPLES

# Without colors: what goes to a terminal is cleaned of what it obeys.
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120, "color": False}
OWN = "Options"  # of a command that are in no group
WIDEST = 28  # column of the flags
LONGEST = 120  # characters of a command's line
# Typer's context and formatter are of its own copy of Click, which has no public name: Any.

Rows = list[tuple[str, str]]


class _Help:
    """What commands and groups of them have in common. Before Typer's class."""

    def get_short_help_str(self, limit: int = LONGEST) -> str:
        return str(super().get_short_help_str(limit))  # type: ignore[misc]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Zsh drops plain apostrophes."""
        found: list[Any] = super().shell_complete(ctx, incomplete)  # type: ignore[misc]
        for each in found:
            each.help = each.help and each.help.replace("'", "’")
        return found


class Command(_Help, TyperCommand):
    """A command with its options in groups (`rich_help_panel`)."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_groups(_options(self, ctx), formatter)


class Group(_Help, TyperGroup):
    """Commands in groups, then options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, Rows] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if not command.hidden:
                title = command.rich_help_panel or "Commands"
                words = command.get_short_help_str(formatter.width)
                groups.setdefault(title, []).append((name, words))
        _write_groups(groups, formatter)
        _write_groups(_options(self, ctx), formatter)


def _options(command: TyperCommand | TyperGroup, ctx: Any) -> dict[str, Rows]:
    """Arguments, the command's own options, and those in groups."""
    groups: dict[str, Rows] = {"Arguments": [], OWN: []}
    for parameter in command.get_params(ctx):
        if (record := parameter.get_help_record(ctx)) is not None:
            usual = "Arguments" if parameter.param_type_name == "argument" else OWN
            # --help is of another class.
            title = getattr(parameter, "rich_help_panel", None) or usual
            flags, words = record
            # Typer puts the words that stand for a default into brackets of their own.
            words = re.sub(r"(default: )\((.*?)\)(?=[;\]])", r"\1\2", words)
            groups.setdefault(title, []).append((flags, words))
    return groups


def _write_groups(groups: dict[str, Rows], formatter: Any) -> None:
    """Write all groups with their second column at the same place."""
    names: Iterable[str] = (name for rows in groups.values() for name, _ in rows)
    width = max((len(name) for name in names if len(name) <= WIDEST), default=0)
    for title, rows in groups.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{width}}", words) for name, words in rows], width)


def _write_examples(ctx: Any, formatter: Any) -> None:
    name = ctx.command_path.partition(" ")[2]
    if lines := EXAMPLES.get(name):
        with formatter.section("Examples"):
            for line in lines:
                formatter.write(f"  {line}\n")
