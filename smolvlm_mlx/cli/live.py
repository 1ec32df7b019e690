"""`smolvlm-mlx live`: what a camera sees, described again and again."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import VideoError, named, quote
from ..generation.options import Options
from ..inputs.settings import ImageOptions
from ..tasks.options import LIVE
from .gate import clean
from .options import DEFAULT_MODEL, Flags, Loading, Model

if TYPE_CHECKING:
    from PIL import Image

    from ..inputs.camera import Camera
    from ..tasks.live import Description
    from .show import Console

PROMPT = "Describe this image in one sentence."
STUCK = (
    "the answer stays the same although the picture changes: ask for less, or for something else"
)
PREVIEW = 1024  # pixels a side

VideoFile = Annotated[
    str | None,
    typer.Argument(
        help="A video in place of a camera: path or URL. It plays once, at its own pace."
    ),
]
CameraName = Annotated[
    str | None,
    typer.Option("--camera", "-c", help="Number or device of the camera; 0 if there is no FILE."),
]
Question = Annotated[str, typer.Option("--prompt", "-p", help="The question about each frame.")]
Every = Annotated[float, typer.Option(min=0.0, help="Least seconds from one frame to the next.")]
Mirror = Annotated[
    bool,
    typer.Option(
        "--mirror/--no-mirror",
        help="Show the picture as a mirror does; the model sees it as it is.",
    ),
]
QuestionFirst = Annotated[
    bool,
    typer.Option(
        "--question-first",
        help="Put the question before the picture, which reads it only once.",
    ),
]
FrameOptions = Annotated[ImageOptions, Flags(without=("longest_edge", "max_tiles"))]


def live(
    file: VideoFile = None,
    camera: CameraName = None,
    prompt: Question = PROMPT,
    model: Model = DEFAULT_MODEL,
    every: Every = 0.0,
    count: Annotated[int | None, typer.Option(min=1, help="End after this many frames.")] = None,
    mirror: Mirror = True,
    question_first: QuestionFirst = False,
    options: Options = LIVE,
    image_options: FrameOptions = ImageOptions(split=False),
    loading: Loading = Loading(),
) -> None:
    """Describe what a camera sees, again and again; Ctrl-C ends it.

    Each answer is to the newest frame; those that came meanwhile are dropped, and counted. In a
    pipe an answer is a line on stdout, and what it took one on stderr.
    """
    from itertools import islice

    from ..tasks.live import Live
    from .show import Console, shows_pictures

    with _open(file, camera) as source:
        loaded, split = loading.load(model), bool(image_options.split)
        seen = Live(*loaded, prompt, options, question_first=question_first, split=split)
        console = Console()
        is_screen = shows_pictures(console) and not console.is_dumb_terminal
        show = _Terminal(console, mirror).show if is_screen else _print_lines
        for description in islice(seen.watch(source, every), count):
            show(description)


def _open(file: str | None, camera: str | None) -> "Camera":
    from ..inputs.animation import as_video
    from ..inputs.camera import Camera
    from ..inputs.video import read_video

    if file is None:
        return Camera(camera or "0")
    if camera is not None:
        raise VideoError("a file and --camera; give one of them")
    part = {"url" if "://" in file else "path": file}
    data = read_video(part, name=quote(file, end=True))
    with named(file):
        data, note = as_video(data)
    if note:
        print(f"smolvlm-mlx: {quote(file, end=True)}: {note}", file=sys.stderr)
    return Camera(data, file)


def _print_lines(description: "Description") -> None:
    """The answer as a line on stdout, and everything else on stderr."""
    for _ in description.stream:
        pass
    print(" ".join(description.text.split()), flush=True)
    print(describe(description), file=sys.stderr)
    if description.stuck:
        print(STUCK, file=sys.stderr)


class _Terminal:
    """The picture at the top of the terminal, and its answer below; each takes the place of the one
    before."""

    def __init__(self, console: "Console", mirror: bool):
        self._console, self._mirror, self._shown = console, mirror, None

    def show(self, description: "Description") -> None:
        self._picture(description.image)
        for piece in description.stream:
            self._console.file.write(clean(piece))
            self._console.file.flush()
        self._console.print()
        self._console.print(describe(description), style="dim")
        if description.stuck:
            self._console.print(STUCK, style="yellow")

    def _picture(self, image: "Image.Image") -> None:
        from rich.control import Control
        from textual_image.renderable import Image as Inline

        if self._shown is None:
            self._console.clear()
        self._console.control(Control.home())  # over the picture before, which does not flicker
        width, height = image.size
        rows = max(min(self._console.height // 2, self._console.height - 6), 1)
        columns = max(min(self._console.width, round(rows * 2 * width / height)), 1)
        inline: Any = Inline(preview(image, self._mirror), width=columns, height="auto")
        self._console.print(inline)
        self._console.file.write("\x1b[J")  # what is left of the answer before
        if self._shown is not None:
            self._shown.cleanup()
        self._shown = inline


def preview(image: "Image.Image", mirror: bool) -> "Image.Image":
    """A frame for people: a copy of at most PREVIEW pixels a side, mirrored if wanted."""
    from PIL import ImageOps

    small = image.copy()
    small.thumbnail((PREVIEW, PREVIEW))
    return ImageOps.mirror(small) if mirror else small


def describe(description: "Description") -> str:
    """What an answer took, in a line."""
    s = description.statistics
    parts = [f"frame {description.number}", f"{description.dropped} dropped", s.describe_phases()]
    parts += [f"{s.reused_tokens} of {s.prompt_tokens} tokens reused"] if s.reused_tokens else []
    return " · ".join(parts)
