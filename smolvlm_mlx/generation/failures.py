"""What goes wrong while answers are computed: MLX's own errors become one line that says what
helps; where many are answered, an error ends those that it concerns, and work goes on."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from ..errors import EngineError, SmolVLMError, cut

HELP = (
    "what helps: fewer tiles (--max-tiles), a shorter answer (--max-tokens), a checkpoint of 4 "
    "bits (convert --bits 4)"
)
BUG = "the engine failed; its log says why"
log = logging.getLogger(__name__)


def is_of_mlx(error: BaseException | None) -> bool:
    """Whether MLX raises this when it cannot compute: out of memory, or a GPU that gave up. Kinds
    of RuntimeError that have a name, and those that Python makes of another error, are bugs."""
    of_its_own = type(error) is RuntimeError and error.__cause__ is None
    return of_its_own or isinstance(error, MemoryError)


@contextmanager
def computing() -> Iterator[None]:
    """MLX's errors within are those of a user, who can do something about them.

    Raises:
        EngineError: it could not compute.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_of_mlx(error):
            raise
        raise EngineError(_described(error)) from error


def _described(error: BaseException) -> str:
    why = " ".join(str(error).split()) or "out of memory"
    return f"the answer could not be computed ({cut(why)}); {HELP}"


@dataclass
class Contained:
    """What goes wrong within is told, and work goes on behind it. The traceback of a bug is logged.
    Ctrl-C and the end of the thread are not contained.

    Args:
        tell: is given the error, a bug's as an EngineError.
    """

    tell: Callable[[SmolVLMError], None]

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        if isinstance(error, SmolVLMError):
            self.tell(error)
        elif is_of_mlx(error):
            log.error("%s", _described(error))
            self.tell(EngineError(_described(error)))
        else:
            log.error("a bug while answers were made", exc_info=error)
            self.tell(EngineError(BUG))
        return True
