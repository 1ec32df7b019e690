"""Pictures and videos that a conversation owns: their bytes as they came, whatever happens to the file, decoded once.

Knows nothing of models. A conversation with its pictures becomes JSON that is again in the message schema, and back.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from ..errors import PromptError, named, short
from .fetch import DEFAULT_LIMITS, FetchLimits
from .image import read_image
from .prompt import SOURCES, VIDEO_OPTIONS, VIDEO_SOURCES, Message, name_of, normalize_messages
from .tiles import ImageSettings, Pixels, TileLayout, digest_tiles, load_image, make_tiles
from .video import LIMITS as VIDEO_LIMITS
from .video import Clip, OnFrame, VideoSampling, decode, read_video

VIDEO_SUFFIXES = tuple(".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .3gp .flv .ogv .wmv".split())
PICTURE_SUFFIXES = tuple(".jpg .jpeg .png .webp .gif .bmp .tif .tiff .avif .heic .heif .jp2 .ppm .qoi".split())
PREVIEW = 1024


@dataclass(frozen=True)
class Tiled:
    """A picture as a model sees it: N tiles (N, H, W, 3), and how they were cut."""

    tiles: Pixels
    layout: TileLayout

    @cached_property
    def digests(self) -> list[bytes]:
        """A name for each tile."""
        return digest_tiles(self.tiles)


class Attachment:
    """A picture of a message: `{"type": "image", "image": Attachment("cat.jpg")}`.

    Attributes:
        name: for people; a file's name where there is one.
        size: width and height in pixels, upright.

    Raises:
        ImageError, FetchError: the source cannot be read or decoded.
    """

    kind = "image"
    note = ""

    def __init__(self, source: Any, limits: FetchLimits = DEFAULT_LIMITS, name: str | None = None):
        self._source = read_image(source, limits)
        self.name = name or name_of(source, "picture")
        with named(self.name):
            self._image: Image.Image | None = load_image(self._source, limits)  # until it is cut into tiles
        self.size = self._image.size
        self._tiled: tuple[ImageSettings, Tiled] | None = None

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
        image = (self._image or load_image(self._source)).copy()
        image.thumbnail((PREVIEW, PREVIEW))
        return image

    def tiled(self, settings: ImageSettings) -> Tiled:
        """Its tiles; those of the last settings are kept."""
        if self._tiled is None or self._tiled[0] != settings:
            image = self._image or load_image(self._source)
            self._tiled, self._image = (settings, Tiled(*make_tiles(image, settings))), None
        return self._tiled[1]


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

    kind = "video"

    def __init__(self, source: Any, limits: FetchLimits = VIDEO_LIMITS, name: str | None = None):
        self.data = read_video(source, limits)
        self.name = name or name_of(source, "video")
        with named(self.name):
            first = decode(self.data, VideoSampling(max_frames=1))
        self.duration, self.preview = first.duration, first.frames[0]
        self.size, self.note = self.preview.size, ""
        self.preview.thumbnail((PREVIEW, PREVIEW))
        self._clip: tuple[VideoSampling, ImageSettings, Clip[Tiled]] | None = None

    @cached_property
    def digest(self) -> str:
        """Names the bytes."""
        return sha256(self.data).hexdigest()

    def clip(self, sampling: VideoSampling, settings: ImageSettings, on_frame: OnFrame[Tiled]) -> Clip[Tiled]:
        """Its frames, cut; those of the last sampling and settings are kept, and `on_frame` is not called again."""
        if self._clip is None or self._clip[:2] != (sampling, settings):
            with named(self.name):
                clip = decode(self.data, sampling, lambda frame: Tiled(*make_tiles(frame, settings)), on_frame)
            self._clip, self.note = (sampling, settings, clip), clip.note
        return self._clip[2]


class Recent:
    """The last `most` pictures that were owned, so that one that comes again is not decoded and cut again."""

    def __init__(self, most: int = 16):
        self._most, self._held, self._lock = most, dict[str, Attachment](), Lock()

    def attachment(self, source: Any, limits: FetchLimits, name: str | None) -> Attachment:
        """As `Attachment`."""
        data = read_image(source, limits)
        if not isinstance(data, bytes):
            return Attachment(data, limits, name)
        name = name or name_of(source, "picture")
        key = sha256(data).hexdigest() + name
        with self._lock:
            found = self._held.pop(key, None)
        found = found or Attachment(data, limits, name)
        with self._lock:
            self._held[key] = found
            while len(self._held) > self._most:
                del self._held[next(iter(self._held))]
        return found


def attach(path: str | Path) -> "Attachment | Video":
    """A picture or a video, told apart by the file's ending."""
    return Video(path) if Path(str(path)).suffix.lower() in VIDEO_SUFFIXES else Attachment(path)


def as_part(attachment: "Attachment | Video") -> dict[str, Any]:
    """The message part that holds it."""
    return {"type": attachment.kind, attachment.kind: attachment}


def own(
    messages: Sequence[Message], limits: FetchLimits = DEFAULT_LIMITS, recent: Recent | None = None
) -> list[dict[str, Any]]:
    """The messages with every picture read: what they name may change or vanish afterwards."""
    recent = recent or Recent()
    return [{**message, "content": _own_content(message.get("content"), limits, recent)} for message in messages]


def _own_content(content: Any, limits: FetchLimits, recent: Recent) -> Any:
    if isinstance(content, str) or not isinstance(content, Sequence):
        return content
    return [_own_part(part, limits, recent) for part in content]


def _own_part(part: Any, limits: FetchLimits, recent: Recent) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("video", "video_url"):
        return _own_video(part, limits)
    if kind not in ("image", "image_url") or isinstance(part.get("image"), Attachment):
        return part
    url = part.get("image_url")
    source = (url.get("url") if isinstance(url, Mapping) else url) if part["type"] == "image_url" else None
    if part["type"] == "image_url" and not isinstance(source, str):
        raise PromptError(f"an image_url part without a url: {short(url)}")
    found = {"url": source} if source is not None else {key: part[key] for key in SOURCES if key in part}
    name = part.get("name")
    return {"type": "image", "image": recent.attachment(found, limits, name if isinstance(name, str) else None)}


def _own_video(part: Mapping[str, Any], limits: FetchLimits) -> Mapping[str, Any]:
    if part.get("frames") is not None or isinstance(part.get("video"), Video):
        return part
    url = part.get("video_url")
    found = {"url": url.get("url") if isinstance(url, Mapping) else url} if part["type"] == "video_url" else part
    video_limits = replace(VIDEO_LIMITS, allow_paths=limits.allow_paths, allow_urls=limits.allow_urls)
    name = part.get("name")
    video = Video(
        {key: found[key] for key in VIDEO_SOURCES if key in found},
        video_limits,
        name if isinstance(name, str) else None,
    )
    return {**as_part(video), **{key: part[key] for key in VIDEO_OPTIONS if key in part}}


def attachments(messages: Sequence[Message]) -> list[Attachment | Video]:
    """Those of owned messages, in order."""
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    return [part[part["type"]] for part in parts if isinstance(part.get(part["type"]), Attachment | Video)]


def to_json(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Owned messages as JSON values: pictures become base64 text, which the message schema knows."""
    return [
        {
            **message,
            "content": message["content"]
            if isinstance(message["content"], str)
            else [_part_to_json(part) for part in message["content"]],
        }
        for message in messages
    ]


def _part_to_json(part: Mapping[str, Any]) -> dict[str, Any]:
    held = part.get(part["type"])
    if not isinstance(held, Attachment | Video):
        return dict(part)
    options = {key: part[key] for key in VIDEO_OPTIONS if key in part}
    return {"type": held.kind, "base64": base64.b64encode(held.data).decode(), "name": held.name, **options}


def from_json(value: Any) -> list[dict[str, Any]]:
    """What `to_json` made, as owned messages. A path or URL in it is refused: the file may be someone else's.

    Raises:
        PromptError, ImageError, FetchError: it is no conversation.
    """
    limits = replace(DEFAULT_LIMITS, allow_paths=False, allow_urls=False)
    messages, recent = [], Recent()
    for raw, checked in zip(value, normalize_messages(value), strict=True):
        parts = raw["content"] if isinstance(raw["content"], list) else checked["content"]
        message = {"role": checked["role"], "content": [_own_part(part, limits, recent) for part in parts]}
        messages.append({**message, "interrupted": True} if raw.get("interrupted") is True else message)
    return messages
