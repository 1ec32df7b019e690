"""The command line: `smolvlm-mlx generate | chat | models | ...`, a file a command.

Answers go to stdout, everything else to stderr. What a user can fix ends as one line and exit code
1; --debug shows the traceback. Imports that take time are made inside the commands, so that --help
answers at once.
"""

import os
import signal
import sys
from _thread import interrupt_main
from threading import Timer
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import SmolVLMError, quote
from . import (
    adapters,
    bench,
    caption,
    completion,
    convert,
    document,
    evaluate,
    finetune,
    gate,
    generate,
    history,
    info,
    live,
    models,
    serve,
)
from .chat import command as chat
from .help import CONTEXT, Command, Group
from .options import Debug, Invocation, as_command, is_command

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

COMPLETION = "_SMOLVLM_MLX_COMPLETE"  # in the environment when a shell asks what can follow

app = typer.Typer(
    cls=Group,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)


def main() -> None:
    """Entry point of the console script."""
    gate.install()
    signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _unraisable
    invocation = Invocation()
    if COMPLETION in os.environ:
        # Typer would read descriptions as its markup: they are none, and a shell waits for it.
        sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        if not completion.install(sys.argv[1:]):
            app(prog_name="smolvlm-mlx", obj=invocation)
    except SmolVLMError as error:
        if invocation.debug:
            raise
        print(f"smolvlm-mlx: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        # Of the system, which refuses an endless name, one more open file, ...
        if invocation.debug or error.errno is None:
            raise
        name = "" if error.filename is None else f"{quote(os.fsdecode(error.filename), end=True)}: "
        print(f"smolvlm-mlx: {name}{error.strerror}", file=sys.stderr)
        sys.exit(1)
    finally:
        sys.stdout.flush()  # what cannot be written is told now


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    """Ctrl-C raises KeyboardInterrupt within a command. Before and after nobody waits for it, and
    during an import some C extensions swallow it and others abort: there it ends the program."""
    while frame is not None and not is_command(frame.f_code):
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            serve.leave(signal_number, frame)
        frame = frame.f_back
    if frame is None:
        serve.leave(signal_number, frame)
    raise KeyboardInterrupt


def _unraisable(lost: "UnraisableHookArgs") -> None:
    """A Ctrl-C that came where nothing can be raised comes again."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        Timer(0.01, interrupt_main).start()
    else:
        sys.__unraisablehook__(lost)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("smolvlm-mlx"))
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
    debug: Debug = False,
) -> None:
    """SmolVLM and SmolVLM2 on your own machine, in MLX."""
    if context.invoked_subcommand is None:
        print(context.get_help())


GROUPS = {
    "Ask": (generate.generate, chat.chat, live.live, serve.serve),
    "Work through many": (caption.caption, document.document, evaluate.evaluate),
    "Checkpoints": (info.info, convert.convert, finetune.finetune, bench.bench),
}
for _title, _functions in GROUPS.items():
    for _function in _functions:
        app.command(cls=Command, rich_help_panel=_title)(as_command(_function))
app.add_typer(adapters.app, name="adapters", rich_help_panel="Checkpoints")
app.add_typer(models.app, name="models", rich_help_panel="On this machine")
app.add_typer(history.app, name="history", rich_help_panel="On this machine")
