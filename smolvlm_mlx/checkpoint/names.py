"""Short names of the family's checkpoints. Imports nothing heavy, so that --help and completion
answer at once.

A name stands wherever a checkpoint is named, in any case. A folder that is called so and holds a
checkpoint comes first, as it does before a hub id; the command line says so.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from .choices import Size

VIDEO, PICTURES, PAGES, BASE = "pictures, videos", "pictures", "document pages", "fine-tuning"


@dataclass(frozen=True)
class Known:
    """A published checkpoint, counted from its files.

    Attributes:
        name: the short one.
        repo: its id on the hub.
        about: what it is for.
        size: the one of `presets.SIZES` that has its shape, but for the next.
        parameters: as in its file.
        width: bytes of one of them there.
        vocab, context: of its config.
    """

    name: str
    repo: str
    about: str
    size: Size
    parameters: int
    width: int
    vocab: int = 49280
    context: int = 8192

    @property
    def download(self) -> int:
        """Bytes of its weights; the files beside them are a hundredth at most."""
        return self.parameters * self.width


_TB = "HuggingFaceTB/"
_256M, _500M, _V1 = 256_484_928, 507_482_304, 2_246_272_880
_FIRST = (49155, 16384)  # vocabulary and context of the first 2.2B
KNOWN = (
    Known("256M", f"{_TB}SmolVLM2-256M-Video-Instruct", VIDEO, "256M", _256M, 4),
    Known("500M", f"{_TB}SmolVLM2-500M-Video-Instruct", VIDEO, "500M", _500M, 4),
    Known("2.2B", f"{_TB}SmolVLM2-2.2B-Instruct", VIDEO, "2.2B", 2_246_784_880, 4),
    Known("docling", "ibm-granite/granite-docling-258M", PAGES, "256M", 257_517_120, 2, 100352),
    Known("smoldocling", "ds4sd/SmolDocling-256M-preview", PAGES, "256M", _256M, 2),
    Known("256M-v1", f"{_TB}SmolVLM-256M-Instruct", PICTURES, "256M", _256M, 2),
    Known("500M-v1", f"{_TB}SmolVLM-500M-Instruct", PICTURES, "500M", _500M, 2),
    Known("2.2B-v1", f"{_TB}SmolVLM-Instruct", PICTURES, "2.2B", _V1, 2, *_FIRST),
    Known("256M-base", f"{_TB}SmolVLM-256M-Base", BASE, "256M", _256M, 2),
    Known("500M-base", f"{_TB}SmolVLM-500M-Base", BASE, "500M", _500M, 2),
    Known("2.2B-v1-base", f"{_TB}SmolVLM-Base", BASE, "2.2B", _V1, 2, *_FIRST),
    Known("2.2B-v1-synthetic", f"{_TB}SmolVLM-Synthetic", BASE, "2.2B", _V1, 2, *_FIRST),
)
GENERAL = KNOWN[:3]  # one of which is the default, the smallest first


def known_as(name: str) -> Known | None:
    """Return the checkpoint of a short name, or of a hub id with or without its owner; None for
    another."""
    wanted = name.casefold()
    for known in KNOWN:
        repo = known.repo.casefold()
        if wanted in (known.name.casefold(), repo, repo.partition("/")[2]):
            return known
    return None


def resolve(name: str) -> str:
    """Return the hub id of a checkpoint's name; as it is `tiny`, what is no name, and a folder that
    holds a checkpoint."""
    if name.casefold() == "tiny":
        return "tiny"
    known = known_as(name)
    return name if known is None or holds_checkpoint(name) else known.repo


def holds_checkpoint(folder: str) -> bool:
    """Whether a folder that is called as a checkpoint holds one."""
    return Path(folder, "config.json").is_file()


def nearest(name: str) -> str | None:
    """Return the name or hub id that was probably meant, and is another; None if none is near."""
    names = [known.repo for known in KNOWN]
    if "/" not in name:
        names = ["tiny", *(k.name for k in KNOWN), *(repo.partition("/")[2] for repo in names)]
    spelled = {each.casefold(): each for each in names}
    close = 0.9 if "/" in name else 0.7  # owners are alike
    wanted = name[:100].casefold()
    begun = [each for each in spelled if name and each.startswith(wanted)]
    found = begun or get_close_matches(wanted, spelled, 1, close)
    return spelled[found[0]] if found and spelled[found[0]] != name else None
