"""Damaged and hostile checkpoints are refused in one line, or load."""

from tests.chaos.fuzz import outcomes
from tests.support.damage import FINE, REFUSED
from tests.support.tally import tally


def test_checkpoints() -> None:
    with tally("checkpoints, one file damaged") as count:
        found = outcomes("checkpoints", 0, 400, 60)
        for seed, told in found:
            count.case(told in (FINE, REFUSED), note=(seed, told))
        assert len(found) == 400
        assert {FINE, REFUSED} <= {told for _, told in found}
