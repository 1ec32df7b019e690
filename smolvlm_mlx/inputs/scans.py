"""How often a JPEG's decoder goes over a picture: each scan of a progressive one costs as much as
all its pixels, and takes a few bytes of the file."""

import re

from ..errors import ImageError

MAX_SCANS = 100  # encoders write up to 11; libjpeg-turbo's advice against bombs is a limit
MAX_SCAN_PIXELS = 10**9  # of all scans together, where there are more than USUAL_SCANS
USUAL_SCANS = 20

MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # that has a length, or ends the picture
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9


def check_scans(data: bytes, size: tuple[int, int], name: str) -> None:
    """Refuse a JPEG of too many scans, before it is decoded.

    Raises:
        ImageError: it has more than MAX_SCANS, or more than USUAL_SCANS that go over more than
            MAX_SCAN_PIXELS together.
    """
    count, pixels = count_scans(data), size[0] * size[1]
    most = min(MAX_SCANS, max(USUAL_SCANS, MAX_SCAN_PIXELS // pixels))
    if count > most:
        raise ImageError(
            f"{name} is a JPEG of {count if count <= MAX_SCANS else f'over {MAX_SCANS}'} scans; "
            f"the limit of its size is {most}: save it again"
        )


def count_scans(data: bytes, most: int = MAX_SCANS + 1) -> int:
    """How many scans the first picture of a JPEG file has, counted up to `most`."""
    count, at = 0, 0
    while count < most and (found := MARKER.search(data, at)):
        kind, at = found[1][0], found.end()
        if kind == END_OF_IMAGE:
            break
        count += kind == START_OF_SCAN
        at += int.from_bytes(data[at : at + 2], "big")
    return count
