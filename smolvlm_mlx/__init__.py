"""SmolVLM and SmolVLM2 in MLX: pictures and text in, text out.

    from smolvlm_mlx import generate, load
    model, processor = load("HuggingFaceTB/SmolVLM2-500M-Video-Instruct")
    print(generate(model, processor, "What is this?", images="cat.jpg"))

Importing this package loads the system's OpenBLAS on Linux (see `device`) and nothing else; the
names below are imported when used.
"""
# ruff: noqa: E402  what comes first is for the time in which the rest is imported

import sys

_program = sys.argv[0] if hasattr(sys, "argv") and sys.argv else ""  # empty within other programs
if _program.endswith("/smolvlm-mlx") or (_program == "-m" and "smolvlm_mlx" in sys.orig_argv):
    # Until the command line is there, Ctrl-C ends it without a word. `signal` would take a moment.
    import _signal  # type: ignore[import-not-found]

    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .device import load_openblas
from .errors import SmolVLMError

if TYPE_CHECKING:
    from .checkpoint.convert import convert
    from .checkpoint.reader import load
    from .events import Statistics
    from .generation.engine import Engine, generate, stream_generate
    from .generation.options import Options
    from .tasks.chat import Chat

__version__ = "0.1.0"
__all__ = [
    "Chat",
    "Engine",
    "Options",
    "SmolVLMError",
    "Statistics",
    "__version__",
    "convert",
    "generate",
    "load",
    "stream_generate",
]

load_openblas()

_HOMES = {
    "Chat": ".tasks.chat",
    "load": ".checkpoint.reader",
    "convert": ".checkpoint.convert",
    "Options": ".generation.options",
    "Statistics": ".events",
    "Engine": ".generation.engine",
    "generate": ".generation.engine",
    "stream_generate": ".generation.engine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'smolvlm_mlx' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
