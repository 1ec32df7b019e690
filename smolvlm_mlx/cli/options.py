"""Options that several commands have, and their exit code after Ctrl-C."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_MODEL = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
INTERRUPTED = 130  # exit code after Ctrl-C

# What a model writes must not command a terminal: there, control characters other than tab and newline are left out.
CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\t"), ord("\n")})

Model = Annotated[
    str, typer.Option("--model", "-m", help="Folder or hub id of a SmolVLM checkpoint; `tiny` is bundled.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub repository.")]
Images = Annotated[list[str] | None, typer.Option("--image", "-i", help="Picture: path, URL or data: URL. Repeatable.")]
LongestEdge = Annotated[int | None, typer.Option(min=1, help="Pixels of a picture's longer side before it is split.")]
Split = Annotated[
    bool | None, typer.Option("--split/--no-split", help="Split pictures into tiles, or make one of each.")
]
MaxTiles = Annotated[int | None, typer.Option(min=1, help="Most tiles for one picture.")]
Adapter = Annotated[Path | None, typer.Option("--adapter", "-a", help="Folder of a LoRA or DoRA adapter for it.")]
Dtype = Annotated[str | None, typer.Option(help="bfloat16, float16 or float32.")]
