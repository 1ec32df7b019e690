"""The command line: `smolvlm-mlx generate | convert | info`, and those of `finetune` and
`evaluate`.

Answers go to stdout, everything else to stderr. What a user can fix ends as one line and exit code
1; --debug shows the traceback. Imports that take time are made inside the commands, so that --help
answers at once.
"""

import io
import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from ..errors import SmolVLMError
from . import (
    bench,
    caption,
    convert,
    document,
    evaluate,
    finetune,
    generate,
    history,
    info,
    live,
    serve,
)
from .chat import command as chat
from .options import INTERRUPTED, Debug, Invocation, as_command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the console script."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: it is nothing, and its number no other file's
            nothing = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nothing, mode, errors="backslashreplace"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal may not have every character of an answer.
        sys.stdout.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGINT, _interrupt)
    invocation = Invocation()
    try:
        app(prog_name="smolvlm-mlx", obj=invocation)
    except SmolVLMError as error:
        if invocation.debug:
            raise
        print(f"smolvlm-mlx: {error}", file=sys.stderr)
        sys.exit(1)


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    """Ctrl-C raises KeyboardInterrupt, except during an import: there some C extensions swallow it
    and others abort."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("smolvlm-mlx"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
    debug: Debug = False,
) -> None:
    """SmolVLM and SmolVLM2 on your own machine, in MLX."""


for _function in (
    generate.generate,
    chat.chat,
    live.live,
    convert.convert,
    info.info,
    caption.caption,
    document.document,
    serve.serve,
    finetune.finetune,
    evaluate.evaluate,
    bench.bench,
):
    app.command()(as_command(_function))
app.add_typer(history.app, name="history")
