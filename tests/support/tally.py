"""What a chaos test counts: cases, and what went wrong in them. `make chaos` prints all of them as
one table at its end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields


@dataclass
class Tally:
    """Counts of one surface.

    Attributes:
        cases: that were tried.
        lost: what had been said to be there is not.
        wrong: another result or exit code than the contract has, a raw exception, an unclear line.
        hung: what did not end, or did not answer, in its time.
        notes: what a failure says of the first of them.
    """

    surface: str
    cases: int = 0
    lost: int = 0
    wrong: int = 0
    hung: int = 0
    notes: list[str] = field(default_factory=list)

    def case(self, fine: bool = True, kind: str = "wrong", note: object = "") -> None:
        """Count a case; one that is not fine is `lost`, `wrong` or `hung`."""
        self.cases += 1
        if not fine:
            setattr(self, kind, getattr(self, kind) + 1)
            self.notes.append(f"{kind}: {note}")

    @property
    def failures(self) -> int:
        return self.lost + self.wrong + self.hung


TALLIES: list[Tally] = []


@contextmanager
def tally(surface: str) -> Iterator[Tally]:
    """Count what is done within; it fails at the end if anything did, or nothing was tried."""
    counted = Tally(surface)
    TALLIES.append(counted)
    yield counted
    assert counted.cases, f"{surface}: nothing was tried"
    assert not counted.failures, "\n".join(
        [f"{surface}: {counted.failures} of {counted.cases}", *counted.notes[:10]]
    )


def table() -> list[str]:
    """Return all tallies as lines."""
    columns = [each.name for each in fields(Tally) if each.name != "notes"]
    rows = [columns, *([str(getattr(each, name)) for name in columns] for each in TALLIES)]
    first = max(len(row[0]) for row in rows)
    return [f"{row[0]:<{first}}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows]
