"""`smolvlm-mlx generate`: one answer, to stdout."""

import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import GenerationError
from ..generation.options import Options
from ..inputs.settings import ImageOptions
from .gate import clean, own
from .options import DEFAULT_MODEL, PICTURES, Images, Loading, Model, Videos, note_unused

if TYPE_CHECKING:
    from ..events import Event
    from ..generation.stream import Stream
    from ..inputs.messages import Message

Question = Annotated[str | None, typer.Argument(help="The question; `-` or none: read from stdin.")]
Fps = Annotated[
    float | None,
    typer.Option(help="Frames of a video to look at, a second.", rich_help_panel=PICTURES),
]
MaxFrames = Annotated[
    int | None, typer.Option(help="Most frames of a video.", rich_help_panel=PICTURES)
]
Start = Annotated[
    float | None,
    typer.Option(help="Look at a video from here, in seconds.", rich_help_panel=PICTURES),
]
End = Annotated[
    float | None,
    typer.Option(help="Look at a video up to here, in seconds.", rich_help_panel=PICTURES),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object with answer and statistics.")
]


def generate(
    context: typer.Context,
    prompt: Question = None,
    model_path: Model = DEFAULT_MODEL,
    image: Images = None,
    video: Videos = None,
    fps: Fps = None,
    max_frames: MaxFrames = None,
    start: Start = None,
    end: End = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    options: Options = Options(),
    image_options: ImageOptions = ImageOptions(),
    loading: Loading = Loading(),
    as_json: AsJson = False,
) -> None:
    """Ask about pictures or videos, or without; the answer is on stdout."""
    from ..generation.engine import Engine
    from ..inputs.messages import notes
    from ..inputs.video import VIDEO_OPTIONS

    # A missing question or a wrong path is told before a model is loaded.
    if not video:
        note_unused(context, "there is no --video", *VIDEO_OPTIONS)
    part_options = {"fps": fps, "max_frames": max_frames, "start": start, "end": end}
    messages = _messages(system, _question(prompt), image or [], video or [], part_options)
    started = time.perf_counter()
    model, processor = loading.load(model_path, lazy=True if image or video else "vision")
    loaded = time.perf_counter()
    stream = Engine(model, processor).stream(
        messages, options, image_options=image_options, keep_vision=False
    )
    text = "".join(echo(stream, silent=as_json))
    for note in [*notes(messages), *_ended_early(stream)]:
        print(f"smolvlm-mlx: {note}", file=sys.stderr)
    if as_json:
        is_utf8 = (sys.stdout.encoding or "utf-8").lower() in ("utf-8", "utf8")
        print(
            json.dumps(_summary(text, stream, loaded - started), ensure_ascii=not is_utf8, indent=2)
        )


def _ended_early(stream: "Stream") -> list[str]:
    """What is to be said of an answer that was ended."""
    from ..events import CUT_OFF

    reason = stream.statistics.finish_reason
    return [f"the answer {CUT_OFF[reason]}"] if reason == "repetition" else []


def _messages(
    system: str | None,
    question: str,
    images: list[str],
    videos: list[str],
    options: Mapping[str, float | None],
) -> "list[Message]":
    from ..inputs.media import Video
    from ..inputs.messages import VideoPart, text_message, user_message
    from ..inputs.video import VideoSampling

    VideoSampling().changed(options)  # tells what is wrong with them
    given = {name: value for name, value in options.items() if value is not None}
    seen = [
        VideoPart(Video({"url" if "://" in source else "path": source}), given) for source in videos
    ]
    return [
        *([text_message("system", system)] if system else []),
        user_message(question, [*images, *seen]),
    ]


def _question(prompt: str | None) -> str:
    if prompt is not None and prompt != "-":
        return prompt
    if sys.stdin.isatty():
        raise GenerationError(
            'no question; give one, as in: smolvlm-mlx generate --image cat.jpg "What is this?"'
        )
    try:
        question = sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise GenerationError(
            f"stdin is not text in {error.encoding}; give the question in that encoding"
        ) from error
    if not question:
        raise GenerationError("no question: stdin is empty")
    return question


def echo(stream: "Iterable[Event]", silent: bool) -> list[str]:
    """Write the text as it comes, and before it, on a terminal, how far the question is read;
    returns its pieces."""
    from ..events import Reading, Text

    pieces, shows_reading = list[str](), sys.stderr.isatty()
    try:
        for event in stream:
            if isinstance(event, Reading) and shows_reading:
                _write_status(f"reading: {event.done} of {event.total} {event.what}")
            if isinstance(event, Text):
                if shows_reading and not pieces:
                    _write_status("")
                pieces.append(event.piece)
                if not silent:
                    sys.stdout.write(event.piece)
                    sys.stdout.flush()
    finally:
        if shows_reading and not pieces:
            _write_status("")
    if not silent:
        print()
    return pieces


def _write_status(text: str) -> None:
    """A line that the next takes the place of."""
    own(sys.stderr).write(f"\r\x1b[K{clean(text)}")
    sys.stderr.flush()


def _summary(text: str, stream: "Stream", load_seconds: float) -> dict[str, object]:
    values = {**asdict(stream.statistics), "load_seconds": load_seconds}
    seconds = ("load", "preprocess", "vision", "prefill", "decode")
    return {
        "text": text,
        "token_ids": stream.token_ids,
        **{
            key: values[key]
            for key in (
                "finish_reason",
                "prompt_tokens",
                "image_tokens",
                "tiles",
                "generated_tokens",
            )
        },
        "seconds": {phase: round(values[f"{phase}_seconds"], 4) for phase in seconds},
        "tokens_per_second": round(stream.statistics.tokens_per_second, 2),
        "peak_memory_bytes": values["peak_memory"],
    }
