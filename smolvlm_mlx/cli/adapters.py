"""`smolvlm-mlx adapters`: what fine-tuning learned, in the form that other programs read."""

from pathlib import Path
from typing import Annotated

import typer

from ..checkpoint.choices import AdapterForm
from .help import CONTEXT, Command, Group
from .options import as_command

app = typer.Typer(cls=Group, context_settings=CONTEXT, rich_markup_mode=None)


@app.callback()
def adapters() -> None:
    """Adapters for other programs."""


@app.command(cls=Command)
@as_command
def export(
    adapter: Annotated[Path, typer.Argument(help="Adapter's folder, of any maker.")],
    out: Annotated[Path, typer.Argument(help="New folder for the result.")],
    form: Annotated[
        AdapterForm, typer.Option("--as", help="Who reads it: PEFT, or programs on MLX.")
    ] = "peft",
) -> None:
    """Write an adapter as PEFT reads it, or as MLX's programs do."""
    from ..checkpoint.adapters import export_adapter

    export_adapter(adapter, out, form)
    print(out)
