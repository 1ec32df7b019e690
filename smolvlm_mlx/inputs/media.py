"""Pictures and videos that a message owns: their bytes as they came, whatever happens to the file,
decoded once."""

import io
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any, TypeVar

from PIL import Image

from ..errors import VideoError, named, quote
from ..events import Work
from .animation import as_video
from .fetch import DEFAULT_LIMITS, FetchLimits, read_start
from .image import MAX_EDGE, Decoded, decode_image, is_decoded, limits_of, read_image
from .kept import Kept
from .kinds import PICTURE, START, VIDEO, kind_of
from .sandbox import decode_video
from .settings import ImageSettings
from .tiles import TiledImage, make_tiles
from .video import LIMITS as VIDEO_LIMITS
from .video import Clip, VideoSampling, decode_in_steps, is_strangers, read_video
from .video_file import FALLBACK_FPS, VideoFile

VIDEO_SUFFIXES = (  # server/page/pictures.js has the same
    *".mp4 .m4v .mov .qt .mkv .webm .avi .divx .mpg .mpeg .mpe .m2p .vob .ts .mts .m2ts".split(),
    *".m2t .tp .trp .tod .3gp .3g2 .flv .f4v .ogv .ogm .wmv .asf".split(),
    *".h264 .264 .h265 .265 .hevc .m1v .m2v .ivf".split(),
)
PICTURE_SUFFIXES = tuple(
    ".jpg .jpeg .png .webp .gif .bmp .tif .tiff .avif .heic .heif .jp2 .ppm .qoi".split()
)
PREVIEW = 1024
PREVIEW_EDGE = 2048  # of a JPEG that is decoded smaller; what most settings cut into tiles
KEPT_BYTES = 2**28  # of decoded pictures and tiles of all messages: those of 20 large pictures
RECENT_BYTES = 2**27  # of encoded pictures of a server's last requests

Result = TypeVar("Result")
Cut = TypeVar("Cut")
KEPT = Kept(KEPT_BYTES)
AT_ONCE = BoundedSemaphore(4)  # pictures that are decoded or cut at the same time, by all threads
# Each frame as soon as it is cut, and how many there are to be.
Cutting = Generator[tuple[TiledImage, int], None, Result]


class Attachment:
    """A picture of a message: `{"type": "image", "image": Attachment("cat.jpg")}`.

    Attributes:
        name: for people; a file's name where there is one.
        size: width and height in pixels, upright.
        note: what is unusual about it, such as bytes that are missing; "" for most.

    Raises:
        ImageError, FetchError: the source cannot be read or decoded.
    """

    def __init__(
        self, source: object, limits: FetchLimits = DEFAULT_LIMITS, name: str | None = None
    ):
        self._limits, self._file = limits_of(source, limits), name or name_of(source)
        with named(self._file):
            self._source = read_image(source, limits)
        self.name = self._file or "picture"
        with AT_ONCE:
            decoded = self._decode(PREVIEW_EDGE)
            KEPT.put(self, decoded.image, _bytes_of(decoded.image))  # until it is cut into tiles
        self.size, self.note = decoded.size, decoded.note

    def _decode(self, edge: int) -> Decoded:
        if not isinstance(self._source, bytes):
            return Decoded(self._source, self._source.size)
        name = "the picture" if self._file is None else quote(self._file, end=True)
        return decode_image(self._source, self._limits, name, edge)

    @cached_property
    def data(self) -> bytes:
        """The encoded bytes; PNG for what came decoded."""
        if isinstance(self._source, bytes):
            return self._source
        png = io.BytesIO()
        self._source.save(png, "PNG")
        return png.getvalue()

    @cached_property
    def digest(self) -> str:
        """Names the bytes."""
        return sha256(self.data).hexdigest()

    @property
    def preview(self) -> Image.Image:
        """A copy of at most PREVIEW pixels a side, for people."""
        held = KEPT.get(self)
        image = held if isinstance(held, Image.Image) else self._decode(PREVIEW_EDGE).image
        image = image.copy()
        image.thumbnail((PREVIEW, PREVIEW))
        return image

    def tiled(self, settings: ImageSettings) -> TiledImage:
        """Its tiles; those of the last settings are kept as long as KEPT_BYTES allow."""
        held = KEPT.get(self)
        if isinstance(held, tuple) and held[0] == settings:
            kept: TiledImage = held[1]
            return kept
        edge = min(settings.longest_edge, MAX_EDGE)
        with AT_ONCE:
            if not isinstance(held, Image.Image) or max(held.size) < min(edge, max(self.size)):
                held = self._decode(edge).image
            with named(self._file):
                tiled = make_tiles(held, settings)
        KEPT.put(self, (settings, tiled), tiled.tiles.nbytes)
        return tiled


def _bytes_of(image: Image.Image) -> int:
    """Bytes of memory; Pillow has four for an RGB pixel."""
    return 4 * image.width * image.height


class Video:
    """A video of a message: `{"type": "video", "video": Video("clip.mp4")}`.

    Attributes:
        data: the encoded bytes.
        name: for people; a file's name where there is one.
        preview: its first frame, upright, of at most PREVIEW pixels a side.
        size: width and height of its frames, upright.
        duration: in seconds.
        note: what is unusual about it, such as frames that could not be decoded.

    Raises:
        VideoError, FetchError: the source cannot be read, or holds no frame that can be decoded.
    """

    def __init__(self, source: object, limits: FetchLimits = VIDEO_LIMITS, name: str | None = None):
        self._file = name or name_of(source)
        self.name = self._file or "video"
        shown = "the file" if self._file is None else quote(self._file, end=True)
        self.data, self._lost = read_video(source, limits, shown), ""
        self._frames: VideoFile | None = None  # of a stranger's, which others decode
        with named(self._file):
            if not is_strangers(source, limits):
                self.data, self._lost = as_video(self.data)
                self._frames = VideoFile(self.data)
            looked = self._decoded(VideoSampling(max_frames=1), lambda frame: frame)
            first = Work(looked).finish()
        self.duration, self.preview = first.duration, first.frames[0]
        self.size, self.note = self.preview.size, self._noted(first)
        self.preview.thumbnail((PREVIEW, PREVIEW))

    @cached_property
    def digest(self) -> str:
        """Names the bytes."""
        return sha256(self.data).hexdigest()

    def clip(self, sampling: VideoSampling, settings: ImageSettings) -> Cutting[Clip[TiledImage]]:
        """Its frames, cut. Those of the last sampling and settings are kept as long as KEPT_BYTES
        allow, and not given one by one again."""
        held = KEPT.get(self)
        if isinstance(held, tuple) and held[:2] == (sampling, settings):
            kept: Clip[TiledImage] = held[2]
            return kept
        with named(self._file):
            clip = yield from self._decoded(sampling, lambda frame: make_tiles(frame, settings))
        self.note, size = self._noted(clip), sum(frame.tiles.nbytes for frame in clip.frames)
        KEPT.put(self, (sampling, settings, clip), size)
        return clip

    def _decoded(
        self, sampling: VideoSampling, convert: Callable[[Image.Image], Cut]
    ) -> Generator[tuple[Cut, int], None, Clip[Cut]]:
        if self._frames is None:
            return decode_video(self.data, sampling, convert)
        return decode_in_steps(self._frames, sampling, convert)

    def _noted(self, clip: Clip[Any]) -> str:
        return ", ".join(filter(None, (self._lost, clip.note)))


class Frames:
    """A video as frames that were chosen already, all of which are seen.

    Args:
        fps: of the frames; FALLBACK_FPS if None.

    Raises:
        VideoError: there are none.
    """

    def __init__(self, frames: Sequence[Attachment], fps: float | None = None):
        self.frames, self._fps = tuple(frames), FALLBACK_FPS if fps is None else fps
        if not frames:
            raise VideoError("a video of no frames")

    def clip(self, sampling: VideoSampling, settings: ImageSettings) -> Cutting[Clip[TiledImage]]:
        """As `Video.clip`."""
        tiled = []
        for frame in self.frames:
            tiled.append(frame.tiled(settings))
            yield tiled[-1], len(self.frames)
        times = tuple(number / self._fps for number in range(len(tiled)))
        return Clip(tuple(tiled), times, len(tiled) / self._fps)


class Recent:
    """The last pictures that were owned, so that one that comes again is not decoded and cut again:
    up to `most` of them, and up to `most_bytes` as they came. What was made of them is in
    KEPT_BYTES."""

    def __init__(self, most: int = 16, most_bytes: int = RECENT_BYTES):
        self._most, self._most_bytes = most, most_bytes
        self._owned: OrderedDict[object, Attachment] = OrderedDict()
        self._lock = Lock()

    def attachment(self, source: object, limits: FetchLimits, name: str | None) -> Attachment:
        """As `Attachment`."""
        if is_decoded(source):
            return Attachment(source, limits, name)
        data, name = read_image(source, limits), name or name_of(source)
        key = (data, limits_of(source, limits), name)
        with self._lock:
            owned = self._owned.get(key)
        owned = owned or Attachment(data, key[1], name)  # outside of the lock: others go on
        with self._lock:
            self._owned[key] = owned
            self._owned.move_to_end(key)
            while self._owned and not self._fit():
                self._owned.popitem(last=False)
        return owned

    def _fit(self) -> bool:
        size = sum(len(owned.data) for owned in self._owned.values())
        return len(self._owned) <= self._most and size <= self._most_bytes


def attach(path: str | Path) -> "Attachment | Video":
    """A picture or a video, told apart by how the file begins; by its ending where that does not
    tell, as of a URL. An animated picture is one unless it is named as a video."""
    kind = kind_of(read_start(path, START))
    is_video = kind is VIDEO or (is_named_video(path) and kind is not PICTURE)
    return Video(path) if is_video else Attachment(path)


def is_named_video(path: str | Path) -> bool:
    """Whether a path, or that of a URL, ends as a video's does."""
    name = str(path)
    if name.lower().startswith(("http://", "https://")):
        name = re.split("[?#]", name)[0]
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def name_of(source: object) -> str | None:
    """The name of a picture's or a video's file, where it has one."""
    if isinstance(source, Mapping):
        source = next(
            (
                source[key]
                for key in ("path", "url", "image", "video")
                if source.get(key) is not None
            ),
            None,
        )
    if hasattr(source, "read"):
        source = getattr(source, "name", None)  # a number, of a file without one
    if isinstance(source, os.PathLike):
        source = os.fsdecode(source)
    if isinstance(source, str) and not source.startswith("data:") and len(source) < 1000:
        return Path(source).name
    return None
