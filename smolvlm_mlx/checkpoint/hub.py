"""The folder of a checkpoint: the bundled one, a path as given, or a hub repository, by its id or
its short name, downloaded when it is not in the cache."""

import errno
import re
import sys
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, quote, reason
from ..files import expanded
from .names import KNOWN, nearest, resolve

TINY = Path(__file__).parents[1] / "assets" / "tiny"
_HUB_ID = r"\w[\w.-]*/\w[\w.-]*"

# What huggingface_hub raises on JSON of another, and on what is no JSON.
NOT_THE_HUB = (ValueError, LookupError, TypeError, AttributeError, RecursionError)

# What a download may bring: no code, no pickles.
PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "merges.txt",
    "vocab.json",
]


def find(path_or_id: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint: "tiny" is the bundled one; else as given, or downloaded from the
    hub (cached, resumed, offline if the cache has it), by a hub id or a name of `names`. What a
    folder holds is its only revision, `main`."""
    path_or_id = resolve(str(path_or_id))
    folder = find_folder(path_or_id)
    if folder is None:
        if revision is not None and not revision.isprintable():
            raise CheckpointError(f"revision {quote(revision)}: is no branch, tag or commit")
        return _download(path_or_id, revision)
    if revision not in (None, "main"):
        raise CheckpointError(
            f"revision {quote(revision)}: {quote(path_or_id, end=True)} is a folder, and has no "
            "others; leave it out, or give a hub id"
        )
    return folder


def find_folder(path_or_id: str | Path) -> Path | None:
    """The folder of a checkpoint that is here, None where it is a name or an id of the hub."""
    path_or_id = resolve(str(path_or_id))
    try:
        folder = TINY if path_or_id == "tiny" else expanded(path_or_id)
        if folder.is_dir():
            return folder
        if folder.exists():
            raise CheckpointError(f"{folder} is a file; give the folder that holds config.json")
    except (OSError, ValueError) as error:  # no access, an endless name, a zero byte
        raise CheckpointError(
            f"{quote(path_or_id, end=True)}: {reason(error)}; give a folder or hub id"
        ) from error
    if not re.fullmatch(_HUB_ID, path_or_id, re.ASCII):
        if meant := nearest(path_or_id):
            raise CheckpointError(
                f"no model {quote(path_or_id, end=True)}; did you mean {meant}? `smolvlm-mlx "
                "models` lists all"
            )
        raise CheckpointError(
            f"no folder {quote(folder, end=True)}, and no hub id like "
            f"{KNOWN[1].repo}; `smolvlm-mlx models` lists short names"
        )
    return None


def _bar() -> type:
    """The bar of a download, of constant words: it goes past what cleans other texts for a
    terminal."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **{"file": getattr(sys.stderr, "own", sys.stderr), **options})

    return Bar


def _download(repo: str, revision: str | None) -> Path:
    import httpx2
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=PATTERNS, tqdm_class=_bar())
        )
    except hub.GatedRepoError as error:
        raise CheckpointError(
            f"{repo}: gated; ask for access at hf.co/{repo}, then `hf auth login`"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo}: no such repository on the hub, or it needs a login (`hf auth login`)"
            + _near(repo)
        ) from error
    except hub.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repo}: no revision {quote(revision)}; see hf.co/{repo}/tree/main"
        ) from error
    except hub.HFValidationError as error:
        raise CheckpointError(
            f"{quote(repo)}: no folder, and no hub id ({reason(error)})"
        ) from error
    except NOT_THE_HUB as error:
        raise CheckpointError(
            f"{repo}: what answers in the hub's place is not the hub; is it the login page of a "
            "network? log in there and try again, or give a folder that holds a checkpoint"
        ) from error
    except (httpx2.HTTPError, hub.XetDownloadError, OSError) as error:
        raise CheckpointError(f"{repo}: {_trouble(repo, error)}") from error


def _near(repo: str) -> str:
    meant = nearest(repo)
    return f"; did you mean {meant}?" if meant else ""


def _trouble(repo: str, error: BaseException) -> str:
    """What keeps a repository from being downloaded, and what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    told: BaseException | None = error  # what is not in the cache has the hub's answer as its cause
    while told is not None and not isinstance(told, HfHubHTTPError):
        told = told.__cause__
    if told is not None and told.response is not None:
        status, wait = told.response.status_code, told.response.headers.get("retry-after", "")
        later = f"in {wait} seconds" if wait.isdecimal() and len(wait) < 6 else "later"
        if status == 429:
            return f"the hub says that there were too many requests (429); try again {later}"
        if status in (401, 403):
            return f"the hub refuses access ({status}); see hf.co/{repo}, then `hf auth login`"
        if status == 503:
            return f"the hub is not available now (503); try again {later}"
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            return f"cannot be saved to the cache ({error.strerror}); see HF_HOME"
        if "onsistency check" in str(error):
            return "a download broke off; try again, what is there already is kept"
    return (
        "not, or not all of it, in the local cache, and the hub is not reachable; connect, give a "
        "folder that holds a checkpoint (--model FOLDER), or try the bundled one (--model tiny)"
    ) + _near(repo)
