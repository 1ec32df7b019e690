"""Checkpoints in the hub's cache: which are there, whole or in part, and how they go."""

import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import MODEL_TYPES
from ..errors import CheckpointError, quote, reason
from ..files import read_json_if_there
from .hub import PATTERNS
from .names import known_as
from .safetensors import find_shards


@dataclass(frozen=True)
class Cached:
    """A checkpoint of the family in the cache.

    Attributes:
        repo: its hub id.
        folder: of the cache, with all of its revisions.
        bytes: that it takes on the disk.
        is_whole: whether a revision can be loaded.
    """

    repo: str
    folder: Path
    bytes: int
    is_whole: bool


def cached() -> list[Cached]:
    """Return the checkpoints of the family in the cache, in the order of their ids.

    Raises:
        CheckpointError: the cache cannot be read.
    """
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        info = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return []
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{constants.HF_HUB_CACHE}: {reason(error)}; see HF_HOME") from error
    parts = Counter[Path]()
    for file in info.incomplete_files:
        parts[file.file_path.parents[1]] += file.size_on_disk
    found = {
        repo.repo_path: _described(
            repo.repo_id,
            repo.repo_path,
            repo.size_on_disk + parts[repo.repo_path],
            [revision.snapshot_path for revision in repo.revisions],
        )
        for repo in info.repos
        if repo.repo_type == "model"
    }
    for folder, size in parts.items():  # what broke off early is no repository to the hub's scan
        kind, _, id = folder.name.partition("--")
        if kind == "models" and folder not in found:
            found[folder] = _described(id.replace("--", "/"), folder, size, [])
    return sorted((each for each in found.values() if each), key=lambda each: each.repo)


def is_here(repo: str) -> bool:
    """Whether a checkpoint can be loaded from the cache, without asking the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(repo, allow_patterns=PATTERNS, local_files_only=True)
    except (LocalEntryNotFoundError, OSError):
        return False
    return _is_whole(Path(folder))


def remove(repo: str) -> int:
    """Delete all revisions of a checkpoint from the cache; returns the bytes that were freed.

    Raises:
        CheckpointError: it is not there, or cannot be deleted.
    """
    from huggingface_hub import constants, scan_cache_dir

    found = {each.repo: each for each in cached()}.get(repo)
    if found is None:
        raise CheckpointError(f"{repo}: is not downloaded; `smolvlm-mlx models` lists what is")
    info = scan_cache_dir(constants.HF_HUB_CACHE)
    own = frozenset(each for each in info.repos if each.repo_path == found.folder)
    hashes = [revision.commit_hash for each in own for revision in each.revisions]
    replace(info, repos=own).delete_revisions(*hashes).execute()
    shutil.rmtree(found.folder, ignore_errors=True)  # what has no revision yet
    if found.folder.exists():
        raise CheckpointError(f"{quote(found.folder, end=True)}: not all of it can be deleted")
    return found.bytes


def _described(repo: str, folder: Path, size: int, snapshots: Iterable[Path]) -> Cached | None:
    """None if it is not of the family."""
    snapshots = list(snapshots)
    if known_as(repo) is None and not any(map(_is_of_the_family, snapshots)):
        return None
    return Cached(repo, folder, size, any(map(_is_whole, snapshots)))


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
