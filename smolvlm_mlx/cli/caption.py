"""`smolvlm-mlx caption`: folders of pictures and videos to a file of captions."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import DataError, quote, reason
from ..generation.options import Options
from ..inputs.settings import ImageOptions
from ..tasks.options import Preset
from .options import DEFAULT_MODEL, INTERRUPTED, Flags, Loading, Model, given

if TYPE_CHECKING:
    from ..tasks.captions import Line, Task

SHOWN = 10  # files that cannot be used
MAX_PATH = 10_000  # characters; those of a path as Python writes it

Schema = Annotated[
    Path | None, typer.Option(help="JSON schema of an object: the answers are fields that fit it.")
]


def caption(
    context: typer.Context,
    paths: Annotated[list[str], typer.Argument(help="Pictures, videos, and folders of them.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="FILE.jsonl or FILE.csv; a stopped run goes on.")
    ],
    preset: Annotated[
        Preset, typer.Option(help="What is asked, and how long an answer may be.")
    ] = "caption",
    prompt: Annotated[str | None, typer.Option(help="Ask this instead.")] = None,
    schema: Schema = None,
    model_path: Model = DEFAULT_MODEL,
    options: Annotated[Options, Flags(defaults={"max_tokens": "as the preset"})] = Options(),
    image_options: ImageOptions = ImageOptions(),
    loading: Loading = Loading(),
) -> None:
    """Ask the same about every picture and video, many at a time, and write the answers to a file.

    Equal files are answered once. Several machines share the work under MLX's launcher: mlx.launch
    --hosts A,B -- smolvlm-mlx caption ...
    """
    import mlx.core as mx

    from ..tasks.captions import Captioner, find_files
    from .show import count_bar, follow

    task, files = _task(preset, prompt, schema), find_files(paths)
    options = replace(options, **{"max_tokens": task.max_tokens, **given(context, options)})
    model, processor = loading.load(model_path)
    name = f"{model_path} {loading.revision or ''} {loading.adapter or ''} {loading.dtype or ''}"
    captioner = Captioner(model, processor, task, name, image_options, options)
    try:
        lines = follow(captioner.write_in_steps(files, out), count_bar("files"))
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on ({out})", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if mx.distributed.init().rank() == 0:
        _report(lines, out)


def _report(lines: "list[Line]", out: Path) -> None:
    bad = [line for line in lines if "error" in line]
    print(f"{out}: {len(lines) - len(bad)} of {len(lines)} files", file=sys.stderr)
    for line in bad[:SHOWN]:
        print(f"left out: {quote(line['path'], most=MAX_PATH)}: {line['error']}", file=sys.stderr)
    if len(bad) > SHOWN:
        print(f"and {len(bad) - SHOWN} more; their lines in {out} say why", file=sys.stderr)


def _task(preset: Preset, prompt: str | None, schema: Path | None) -> "Task":
    from ..tasks.captions import TASKS, Task

    task = TASKS[preset] if prompt is None else Task(prompt)
    return (
        task if schema is None else replace(task, schema=_read_schema(schema), most_characters=None)
    )


def _read_schema(path: Path) -> dict[str, object]:
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON schema that can be read ({reason(error)})") from error
    if (
        not isinstance(schema, dict)
        or schema.get("type") != "object"
        or not isinstance(schema.get("properties"), dict)
    ):
        raise DataError(f"{path}: give the schema of an object with properties")
    taken = {"path", "sha256", "run", "error"} & schema["properties"].keys()
    if taken:
        raise DataError(
            f"{path}: {', '.join(sorted(taken))} are fields of every line; call the property "
            "otherwise"
        )
    return schema
