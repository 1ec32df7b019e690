"""What is measured."""

from dataclasses import dataclass

from ..errors import BenchError


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Raises:
        BenchError: there is no run.
    """

    runs: int = 3
    contexts: tuple[int, ...] = (100, 872, 2000)  # tokens of prompts
    decoded: int = 32  # tokens after each
    split: bool = True  # the turns' picture; off, it is one tile

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise BenchError(f"runs {self.runs} is less than 1")


QUICK = Plan(runs=2, contexts=(100,), decoded=8, split=False)
