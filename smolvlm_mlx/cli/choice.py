"""Which checkpoint a command takes: the one that was named, or the default of this machine."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.names import GENERAL, Known, holds_checkpoint, known_as, resolve
from ..errors import CheckpointError, quote, reason
from ..files import MAX_JSON_BYTES, read_file

AUTO = "auto"
VARIABLE = "SMOLVLM_MLX_MODEL"


@dataclass(frozen=True)
class Machine:
    """What fits: bytes of memory, 0 where nobody says; bytes of a number that is computed; whether
    there is a GPU."""

    memory: int
    width: int
    has_gpu: bool

    @classmethod
    def of_this(cls) -> "Machine":
        """Imports MLX."""
        from .. import device

        width = 4 if device.default_dtype() == "float32" else 2
        return cls(device.total_memory(), width, device.name() != "cpu")

    def needs(self, known: Known) -> int:
        """Bytes that a checkpoint takes to answer within all of its context."""
        from ..checkpoint.presets import config_of
        from ..generation.memory import needed

        return needed(config_of(known), known.parameters * self.width, self.width)

    def fits(self, known: Known) -> str:
        """`yes`, in the half of the memory that a process takes; `tight`, in three quarters; `no`;
        `?`."""
        if not self.memory:
            return "?"
        share = self.needs(known) / self.memory
        return "yes" if share <= 1 / 2 else "tight" if share <= 3 / 4 else "no"

    def default(self) -> Known:
        """Return the largest checkpoint that leaves three quarters of the memory free, of those
        that are downloaded if one is; without a GPU none that would take a minute for a picture."""
        from ..checkpoint.cached import is_here

        first, *others = (known for known in GENERAL if self.has_gpu or known.size != "2.2B")
        fitting = [first, *(each for each in others if 4 * self.needs(each) <= self.memory)]
        here = [known for known in fitting if is_here(known.repo)]
        return (here or fitting)[-1]


def choose(name: str) -> str:
    """Return the folder or hub id of a checkpoint's name. What was chosen unasked, and a folder in
    the place of a name, are said on stderr.

    Raises:
        CheckpointError: the name is empty; the default of one's own is no checkpoint, or cannot be
            read.
    """
    if not name.strip():
        raise CheckpointError(
            "the name of the model is empty; give one that `smolvlm-mlx models` lists, or leave it "
            "out"
        )
    if name == AUTO:
        chosen = configured()
        name = chosen[0] if chosen else _default()
    found, known = resolve(name), known_as(name)
    if known is not None and holds_checkpoint(found):
        _say(f"{quote(found)} is the folder here, and not {known.repo} of the hub")
    return found


def configured() -> tuple[str, str] | None:
    """Return the default of the environment, or else of the config file, and which of them has it;
    None if there is none.

    Raises:
        CheckpointError: the file cannot be read, or has something else; it is no name.
    """
    if name := os.environ.get(VARIABLE):
        return None if name == AUTO else _checked(name, VARIABLE)
    import tomllib

    file = config_file()
    try:
        values = tomllib.loads(read_file(file, MAX_JSON_BYTES).decode())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read as TOML ({reason(error)})") from error
    name = values.pop("model", AUTO)
    if values or not isinstance(name, str) or not name:
        raise CheckpointError(f'{file}: give one line such as model = "500M", and nothing else')
    return None if name == AUTO else _checked(name, str(file))


def _checked(name: str, place: str) -> tuple[str, str]:
    from ..checkpoint.hub import find_folder

    try:
        find_folder(name)
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from error
    return name, place


def config_file() -> Path:
    """Return where a default may stand."""
    from platformdirs import user_config_path

    return user_config_path("smolvlm-mlx", appauthor=False) / "config.toml"


def _default() -> str:
    machine = Machine.of_this()
    known = machine.default()
    why = f", for {machine.memory / 1e9:.0f} GB of memory" if machine.memory else ""
    _say(f"model {known.name} ({known.repo}){why}; -m chooses another")
    return known.repo


def _say(text: str) -> None:
    print(f"smolvlm-mlx: {text}", file=sys.stderr)
