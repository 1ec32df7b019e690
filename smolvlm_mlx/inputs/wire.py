"""What a process that decodes is asked, and what it answers: the bytes between `children`, which
asks, and `decoder`, which may be in the hands of a damaged file and is not believed.

A request is the length of its JSON, that of its data, and both. An answer is one or several
replies: a head of fixed size, a text of at most MOST_TEXT bytes, and pixels or numbers.
"""

import struct
from typing import NamedTuple

from ..errors import FetchError, ImageError, PromptError, SmolVLMError, VideoError

REQUEST = struct.Struct("<IQ")
REPLY = struct.Struct("<cIIIIIdQ")
PICTURE, FRAME, END, NUMBER, ERROR = b"P", b"F", b"E", b"N", b"X"  # kinds of replies
MOST_TEXT = 4096
ERRORS: tuple[type[SmolVLMError], ...] = (ImageError, VideoError, PromptError, FetchError)
NO_MEMORY = 77  # the exit code of a process that needs more than it may have


class Head(NamedTuple):
    """How a reply begins.

    Attributes:
        width, height: of the RGB pixels that follow.
        own: of a picture its own width and height; else one number: of a frame how many there are
            to be, of an error its place in ERRORS.
        text: bytes of text: a note, or what is wrong.
        seconds: how long a video is.
        size: bytes of pixels, or of the times of a video's frames.
    """

    kind: bytes
    width: int = 0
    height: int = 0
    own: tuple[int, int] = (0, 0)
    text: int = 0
    seconds: float = 0.0
    size: int = 0

    def pack(self) -> bytes:
        kind, width, height, own, text, seconds, size = self
        return REPLY.pack(kind, width, height, *own, text, seconds, size)

    @classmethod
    def unpack(cls, data: bytes) -> "Head":
        kind, width, height, first, second, text, seconds, size = REPLY.unpack(data)
        return cls(kind, width, height, (first, second), text, seconds, size)
