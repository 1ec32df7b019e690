"""What was made of pictures and videos and may be wanted again, within a number of bytes."""

import weakref
from collections import OrderedDict
from threading import RLock
from typing import NamedTuple


class _Held(NamedTuple):
    what: object
    size: int


class Kept:
    """Something for each owner, as long as the owner lives and there is room: what was put or asked
    for last stays, if all are larger than `most` bytes, it alone."""

    def __init__(self, most: int):
        self._most, self._size = most, 0
        self._held: OrderedDict[int, _Held] = OrderedDict()
        self._lock = RLock()  # an owner may end while it is held

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._size

    def put(self, owner: object, what: object, size: int) -> None:
        """Keep this, of so many bytes, instead of what was kept for this owner."""
        key = id(owner)
        with self._lock:
            if self._pop(key) is None:
                weakref.finalize(owner, self._pop, key).atexit = False
            self._held[key] = _Held(what, size)
            self._size += size
            while self._size > self._most and len(self._held) > 1:
                self._pop(next(iter(self._held)))

    def get(self, owner: object) -> object | None:
        """Return what is kept for an owner, if it still is."""
        with self._lock:
            held = self._held.get(id(owner))
            if held is None:
                return None
            self._held.move_to_end(id(owner))
            return held.what

    def _pop(self, key: int) -> _Held | None:
        with self._lock:
            held = self._held.pop(key, None)
            self._size -= 0 if held is None else held.size
            return held
