"""Live cameras that ask: a judge for each, which sees when answers stay the same although the pictures change."""

from ..events import Statistics
from ..inputs.image import Pixels
from ..tasks.live import Judge


class Judges:
    """A judge for each camera, by the id that its requests carry.

    Args:
        most: how many are kept; of more, the one that was asked for longest ago is forgotten.
    """

    def __init__(self, most: int = 32):
        self._most = most
        self._judges: dict[str, Judge] = {}  # the one that was asked for last is the last

    def judge(self, id: str, text: str, tile: Pixels, statistics: Statistics) -> dict[str, object]:
        """Return what a camera is told of its next answer: field `live` beside the usage."""
        judge = self._judges[id] = self._judges.pop(id, Judge())
        if len(self._judges) > self._most:
            del self._judges[next(iter(self._judges))]
        verdict = judge.judge(text, tile)
        return {
            "number": verdict.number,
            "unchanged": verdict.unchanged,
            "stuck": verdict.is_stuck,
            "about": f"frame {verdict.number} · {statistics.describe_phases()}",
        }
