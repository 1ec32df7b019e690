"""The folder of a checkpoint: a path as given, or a hub repository in the local cache, downloaded when it is not there."""

import re
from pathlib import Path

from .errors import CheckpointError

# What a download may bring: no code, no pickles.
PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "merges.txt", "vocab.json"]


def find(path_or_id: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint: as given, or downloaded from the hub (cached, resumed, offline if the cache has it)."""
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder} is a file; give the folder that holds config.json")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path_or_id)):
        raise CheckpointError(f"no folder {folder}, and no hub id like HuggingFaceTB/SmolVLM2-500M-Video-Instruct")
    return _download(str(path_or_id), revision)


def _download(repo: str, revision: str | None) -> Path:
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=PATTERNS))
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo}: no such repository on the hub, or it needs a login (`hf auth login`)"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise CheckpointError(
            f"{repo}: not in the local cache, and the hub is not reachable; "
            "connect, or give a folder that holds a checkpoint (--model FOLDER)"
        ) from error
