"""What `convert` does with a result beside its weights: its card, and the hub."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..checkpoint.upload import Upload
from ..errors import escaped
from ..files import expanded

if TYPE_CHECKING:
    from ..checkpoint.card import Figures
    from ..checkpoint.convert import CardWords, Report

LOCAL = (
    "upload",
    "public",
    "dry_run",
    "check",
    "check_data",
    "as_json",
    "debug",
)  # say nothing of how a result was made
NAMED = ("source", "adapter", "learn_data")  # folders, unless they are ids of the hub


def publish(
    context: typer.Context, report: "Report", figures: "Figures | None", upload: Upload
) -> None:
    """Give the card of a result what was measured, and upload its folder, or show what would be.

    Raises:
        ConversionError: the card cannot be written.
        UploadError: the hub does not take the folder, which stays.
    """
    from ..checkpoint.card import write_card

    origin = report.origin
    if origin.note:
        print(f"smolvlm-mlx: {escaped(origin.note)}", file=sys.stderr)
    if origin.dequantized:
        print(
            f"Dequantized from {origin.dequantized}, which brings back no precision; smaller is "
            "the source."
        )
    if figures is not None:
        words = card_words(context, upload)._asdict()
        write_card(report.out, report.origin, figures, **words)
    if upload.upload is None:
        return
    if upload.dry_run:
        _show(report.out, upload)
    else:
        from .show import spinner

        with spinner() as shown:
            shown.add_task(f"Uploading to {upload.upload}")
            address = upload.send(report.out)
        print(f"{escaped(address)}: {'public' if upload.public else 'private'}")


def card_words(context: typer.Context, upload: Upload) -> "CardWords":
    """A result's name on the hub, and the command."""
    from ..checkpoint.convert import CardWords

    return CardWords(upload.upload, command_line(context))


def command_line(context: typer.Context) -> str:
    """Return the command that was typed, as others may read it: of folders their names."""
    from ..checkpoint.card import public_name

    def shown(name: str | None, value: object) -> str:
        """A path by its end, or another value."""
        is_path = name == "out" or (name in NAMED and expanded(str(value)).exists())
        return shlex.quote(public_name(str(value)) if is_path else str(value))

    def words() -> Iterator[str]:
        for parameter in context.command.params:
            source = context.get_parameter_source(parameter.name or "")
            if parameter.name in LOCAL or source is None or source.name != "COMMANDLINE":
                continue
            value: Any = context.params[parameter.name or ""]
            for each in value if isinstance(value, list | tuple) else [value]:
                if parameter.param_type_name == "argument":
                    yield shown(parameter.name, each)
                elif isinstance(each, bool):
                    yield (parameter.opts if each else parameter.secondary_opts)[0]
                else:
                    yield f"{parameter.opts[0]} {shown(parameter.name, each)}"

    return escaped(" ".join(["smolvlm-mlx convert", *words()]))


def _show(folder: Path, upload: Upload) -> None:
    from ..checkpoint.upload import files_of
    from .show import console, table

    files, shown = files_of(folder), table("file", "bytes")
    for name, size in files.items():
        shown.add_row(name, f"{size:,}")
    console().print(shown)
    print(
        f"{len(files)} files, {sum(files.values()) / 1e6:,.1f} MB would be in "
        f"{upload.upload} ({'public' if upload.public else 'private'}), and none is written over. "
        f"Nothing was uploaded; this does it:\n  {upload.command(folder)}"
    )
