"""Checkpoints in the hub's cache: which are there, whole or in part, and how they go."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..config import MODEL_TYPES
from ..errors import CheckpointError, quote, reason
from ..files import read_json_if_there
from .hub import PATTERNS
from .names import known_as
from .safetensors import find_shards

KIND = "models--"  # of folders in the cache, before the hub id


@dataclass(frozen=True)
class Cached:
    """A checkpoint of the family in the cache.

    Attributes:
        repo: its hub id.
        folder: of the cache, with all of its revisions.
        bytes: that are free when it is deleted.
        is_whole: whether a revision can be loaded.
        is_damaged: it is more than a download that broke off.
        outside: where links lead out of the folder, if they do; what is there stays.
    """

    repo: str
    folder: Path
    bytes: int
    is_whole: bool
    is_damaged: bool = False
    outside: Path | None = None


def cached() -> list[Cached]:
    """Return the checkpoints of the family in the cache, in the order of their ids.

    Raises:
        CheckpointError: the cache cannot be read.
    """
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    try:
        folders = [path for path in cache.iterdir() if path.name.startswith(KIND)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{cache}: {reason(error)}; see HF_HOME") from error
    found = [each for folder in folders if (each := _described(folder)) is not None]
    return sorted(found, key=lambda each: each.repo)


def is_here(repo: str) -> bool:
    """Whether a checkpoint can be loaded from the cache, without asking the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(repo, allow_patterns=PATTERNS, local_files_only=True)
    except (LocalEntryNotFoundError, OSError):
        return False
    return _is_whole(Path(folder))


def remove(found: Cached) -> None:
    """Delete all revisions of a checkpoint from the cache; no link is followed.

    Raises:
        CheckpointError: it cannot be deleted.
    """
    try:
        if found.folder.is_symlink():
            found.folder.unlink()
        else:
            shutil.rmtree(found.folder)
    except OSError as error:
        raise CheckpointError(
            f"{quote(found.folder, end=True)}: not all of it can be deleted ({reason(error)})"
        ) from error


def _described(folder: Path) -> Cached | None:
    """None if it is not of the family."""
    repo = folder.name.removeprefix(KIND).replace("--", "/")
    snapshots = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    if known_as(repo) is None and not any(map(_is_of_the_family, snapshots)):
        return None
    is_link, inside = folder.is_symlink(), folder.resolve()
    files = [] if is_link else [*_files(folder)]
    links = (path.resolve().parent for path in files if path.is_symlink())
    away = (to for to in links if not to.is_relative_to(inside))
    outside = inside if is_link else next(away, None)
    size = sum(_size(path) for path in files if not path.is_symlink())
    is_begun = any(path.suffix == ".incomplete" for path in files)
    is_broken = not (snapshots or is_begun) or not all(path.exists() for path in files)
    is_whole = any(map(_is_whole, snapshots))
    return Cached(repo, folder, size, is_whole, is_broken and not is_whole, outside)


def _files(folder: Path) -> Iterable[Path]:
    """All files and links below a folder."""
    return (Path(at, name) for at, _, names in os.walk(folder) for name in names)


def _size(path: Path) -> int:
    """None of what is deleted at the same time."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _is_of_the_family(snapshot: Path) -> bool:
    try:
        return read_json_if_there(snapshot / "config.json").get("model_type") in MODEL_TYPES
    except CheckpointError:
        return False


def _is_whole(snapshot: Path) -> bool:
    try:
        find_shards(snapshot)
    except CheckpointError:
        return False
    return all((snapshot / name).is_file() for name in ("config.json", "tokenizer.json"))
