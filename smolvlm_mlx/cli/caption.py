"""`smolvlm-mlx caption`: folders of pictures and videos to a file of captions."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import DataError, quote, reason
from ..generation.options import Options
from ..inputs.settings import ImageOptions
from ..tasks.options import CAPTIONS, Preset
from .options import DEFAULT_MODEL, INTERRUPTED, Flags, Loading, Model, given

if TYPE_CHECKING:
    from ..tasks.captions import Captioner, Task
    from ..tasks.lines import Line

SHOWN = 10  # files that failed
DEFAULTS = {"max_tokens": "as the preset", "skip_special_tokens": "with a preset"}
MAX_PATH = 10_000  # characters; those of a path as Python writes it

Presets = Annotated[
    Preset | None,
    typer.Option(help="What is asked, and how long an answer may be.", show_default="caption"),
]
Prompt = Annotated[
    str | None, typer.Option(help="Ask this instead; the rest is as --preset says, if it is there.")
]
Schema = Annotated[
    Path | None, typer.Option(help="JSON schema of an object: the answers are fields that fit it.")
]


def caption(
    context: typer.Context,
    paths: Annotated[list[str], typer.Argument(help="Pictures, videos, and folders of them.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="FILE.jsonl or FILE.csv; a stopped run goes on.")
    ],
    preset: Presets = None,
    prompt: Prompt = None,
    schema: Schema = None,
    model_path: Model = DEFAULT_MODEL,
    options: Annotated[Options, Flags(defaults=DEFAULTS)] = CAPTIONS,
    image_options: ImageOptions = ImageOptions(),
    loading: Loading = Loading(),
) -> None:
    """Ask the same about folders of pictures and videos.

    Many are answered at a time, and the answers written to a file. Equal files are answered once.
    The same command again asks about files that are new, were changed or failed; exit code 1 if one
    failed. Several machines share the work under MLX's launcher: mlx.launch --hosts A,B --
    smolvlm-mlx caption ...
    """
    from ..tasks.captions import Captioner
    from ..tasks.folders import find_files

    task = _task(preset, prompt, schema)
    files, passed_over = find_files(paths)
    options = replace(options, **{"max_tokens": task.max_tokens, **given(context, options)})
    model, processor = loading.load(model_path)
    name = f"{model_path} {loading.revision or ''} {loading.adapter or ''} {loading.dtype or ''}"
    lines = _write(Captioner(model, processor, task, name, image_options, options), files, out)
    _report(lines, out, passed_over)
    if any("error" in line for line in lines):
        raise typer.Exit(1)


def _write(captioner: "Captioner", files: list[Path], out: Path) -> "list[Line]":
    from .show import count_bar, follow

    try:
        return follow(captioner.write_in_steps(files, out), count_bar("files"))
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on ({out})", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def _report(lines: "list[Line]", out: Path, passed_over: Counter[str]) -> None:
    """What came of it; of several machines the first tells it."""
    import mlx.core as mx

    from ..tasks.folders import passed_over_note

    if mx.distributed.init().rank() != 0:
        return
    bad = [line for line in lines if "error" in line]
    circles = sum(line.get("ended_by") == "repetition" for line in lines)
    ended = f"; {circles} went in circles and were ended" if circles else ""
    failed = f"; {len(bad)} failed:" if bad else ""
    done = f"{len(lines) - len(bad)} of {len(lines)} files"
    print(f"{out}: {done}{ended}{failed}", file=sys.stderr)
    for line in bad[:SHOWN]:
        print(f"  {quote(line['path'], most=MAX_PATH)}: {line['error']}", file=sys.stderr)
    if len(bad) > SHOWN:
        print(f"  and {len(bad) - SHOWN} more; their lines in {out} say why", file=sys.stderr)
    if passed_over:
        print(passed_over_note(passed_over), file=sys.stderr)


def _task(preset: Preset | None, prompt: str | None, schema: Path | None) -> "Task":
    """A preset, with another question if there is one; or a question alone."""
    from ..tasks.captions import TASKS, Task

    task = TASKS[preset or "caption"]
    if prompt is not None:
        task = replace(task, prompt=prompt) if preset else Task(prompt)
    return (
        task if schema is None else replace(task, schema=_read_schema(schema), most_characters=None)
    )


def _read_schema(path: Path) -> dict[str, object]:
    from ..files import MAX_JSON_BYTES, read_file
    from ..tasks.lines import FIELDS

    try:
        schema = json.loads(read_file(path, MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON schema that can be read ({reason(error)})") from error
    if (
        not isinstance(schema, dict)
        or schema.get("type") != "object"
        or not isinstance(schema.get("properties"), dict)
    ):
        raise DataError(f"{path}: give the schema of an object with properties")
    taken = {*FIELDS} & schema["properties"].keys()
    if taken:
        raise DataError(
            f"{path}: {', '.join(sorted(taken))} are fields of every line; call the property "
            "otherwise"
        )
    return schema
