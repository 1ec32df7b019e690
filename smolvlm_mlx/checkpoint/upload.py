"""A finished folder -> a repository of the Hugging Face hub, in one commit.

Who may write there is asked before the work that makes the folder. Only a new repository or an
empty one is written into, and nobody else can read it unless that is said.
"""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import UploadError, cut, quote
from ..options import option
from .hub import NOT_THE_HUB

_OWN_FILES = {".gitattributes"}  # what the hub puts into a new repository


@dataclass(frozen=True)
class Upload:
    """Where a result goes on the Hugging Face hub."""

    upload: str | None = option(
        None, "Give the result to this new or empty repository of the hub, ORG/NAME; needs a login."
    )
    public: bool = option(False, "Let everybody read it.", flag="--public")
    dry_run: bool = option(
        False, "Make the result, and only show what would be uploaded.", flag="--dry-run"
    )

    def check(self) -> None:
        """Find out whether the result can go there, before it is made. Does nothing without a
        repository.

        Raises:
            UploadError: bad name, no login, no right to write, files that are there, no network.
        """
        from huggingface_hub import is_offline_mode

        if self.upload is None:
            if unused := [name for name in ("public", "dry_run") if getattr(self, name)]:
                raise UploadError(f"--{unused[0].replace('_', '-')} needs --upload ORG/NAME")
            return
        _check_name(self.upload)
        if is_offline_mode():
            raise UploadError(f"{self.upload}: nothing is uploaded while HF_HUB_OFFLINE is set")
        with _told(self.upload):
            _check_rights(self.upload)
            _check_repository(self.upload, self.public)

    def send(self, folder: Path) -> str:
        """Upload the files of a folder, all or none; returns the address of the repository.

        Raises:
            UploadError: it cannot be done; the folder stays, and the line says how to go on.
        """
        from huggingface_hub import CommitOperationAdd, HfApi

        assert self.upload is not None
        files = [CommitOperationAdd(name, str(folder / name)) for name in files_of(folder)]
        again = f"{folder} is complete: `{self.command(folder)}` uploads it"
        with _told(self.upload, again), _without_bars():
            api = HfApi()
            url = api.create_repo(self.upload, private=not self.public, exist_ok=True)
            _check_repository(self.upload, self.public)  # once more: the work took its time
            api.create_commit(self.upload, files, commit_message="Made with smolvlm-mlx")
        return str(url)

    def command(self, folder: Path) -> str:
        """Return the command that uploads a folder."""
        private = "" if self.public else " --private"
        return f"hf upload {self.upload} {shlex.quote(str(folder))} .{private}"


def files_of(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file of a folder, by its path in it; links are not
    followed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


# ---- before the work


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        words = " ".join(str(error).split())
        raise UploadError(f"--upload {quote(repo)}: no name on the hub ({cut(words)})") from error
    if "/" not in repo:
        raise UploadError(f"--upload {quote(repo)}: give ORG/NAME, where ORG may be your own name")


def _check_rights(repo: str) -> None:
    """That whoever is logged in may write to what is of this owner."""
    from huggingface_hub import HfApi

    who = HfApi().whoami()
    owner = repo.partition("/")[0].casefold()
    token = (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise UploadError(
            f"{repo}: the token that is logged in may only read; make one that writes at "
            "hf.co/settings/tokens, then `hf auth login`"
        )
    roles = {who["name"].casefold(): "admin"}
    roles |= {each["name"].casefold(): each.get("roleInOrg", "") for each in who.get("orgs") or ()}
    if owner not in roles or roles[owner] == "read":
        raise UploadError(
            f"{repo}: {quote(who['name'])}, who is logged in, may not write to {quote(owner)}, but "
            f"to {', '.join(map(quote, (name for name in roles if roles[name] != 'read')))}"
        )


def _check_repository(repo: str, public: bool) -> None:
    """That it is not there, or empty and seen by whom it was said to be."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        found = HfApi().model_info(repo)
    except GatedRepoError as error:
        raise UploadError(f"{repo}: is there, and gated; choose another name") from error
    except RepositoryNotFoundError:
        return
    names = sorted({each.rfilename for each in found.siblings or ()} - _OWN_FILES)
    if names:
        raise UploadError(
            f"{repo}: has {len(names)} files already ({', '.join(map(quote, names[:3]))}"
            f"{', ...' if len(names) > 3 else ''}), which are not written over; choose another "
            "name, or leave out --upload and use `hf upload`"
        )
    if found.private == public:
        here, said = ("private", "leave out") if public else ("public", "add")
        raise UploadError(f"{repo}: is {here} already; {said} --public, or choose another name")


# ---- what can go wrong


@contextmanager
def _told(repo: str, again: str | None = None) -> Iterator[None]:
    """Within, what keeps the hub from taking something is one line, which ends with `again`."""
    import httpx2
    from huggingface_hub import errors as hub

    end = f"; {again}" if again else ""
    try:
        yield
    except hub.LocalTokenNotFoundError as error:
        raise UploadError(f"{repo}: nobody is logged in; `hf auth login` does it{end}") from error
    except (hub.HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError) as error:  # hf_xet's
        raise UploadError(f"{repo}: {_trouble(error)}{end}") from error
    except NOT_THE_HUB as error:
        words = quote(" ".join(str(error).split()))
        raise UploadError(
            f"{repo}: what answers in the hub's place is not the hub, or does not take it "
            f"({words}){end}"
        ) from error


def _trouble(error: Exception) -> str:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    said: Mapping[int, str] = {
        401: "the hub does not know the token; `hf auth login` gets another",
        403: "the hub refuses: the token may not write there; see hf.co/settings/tokens",
        404: "the hub has no such repository, or it is not for this token",
        429: "the hub says that there were too many requests; try again later",
    }
    if status is None:
        return f"the hub cannot be reached ({quote(' '.join(str(error).split()))})"
    return said.get(status, f"the hub answers {status}; try again later")


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without the hub's own progress bars, which write past what cleans a terminal's text."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
