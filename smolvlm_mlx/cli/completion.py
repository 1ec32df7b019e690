"""What a shell is told can follow: names of checkpoints, ids of conversations; and how it learns to
ask. What takes time to import is imported when it is asked for."""

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..checkpoint.names import KNOWN
from ..errors import PromptError, SmolVLMError, cut, quote

LATEST = 50  # conversations
LONGEST = 60  # characters of a title
FLAGS = ("--install-completion", "--show-completion")

Found = list[tuple[str, str]]  # what can stand there, and what it is


def plain(text: str) -> str:
    """A text without what means something to shells: some read descriptions as code."""
    return " ".join(re.sub(r"[^\w,.?+/’-]+", " ", text.replace("'", "’")).split())


def names(incomplete: str) -> Found:
    """Short names of checkpoints, and what they are for; the shell has folders."""
    found = [("tiny", "bundled, to try things with"), *((each.name, each.about) for each in KNOWN)]
    return _begun(incomplete, found)


def downloaded(incomplete: str) -> Found:
    """Names of what `models rm` can delete."""
    from ..checkpoint.cached import cached
    from ..checkpoint.names import known_as

    found = []
    with suppress(SmolVLMError):
        for each in cached():
            known = known_as(each.repo)
            if plain(each.repo) == each.repo:
                found.append((known.name, known.about) if known else (each.repo, ""))
    return _begun(incomplete, found)


def conversations(incomplete: str) -> Found:
    """Ids of the latest conversations, with their titles."""
    from ..tasks.history import History

    with suppress(SmolVLMError):
        kept = History().list(LATEST)
        return _begun(incomplete, ((each.id, cut(plain(each.title), LONGEST)) for each in kept))
    return []


def resumable(incomplete: str) -> Found:
    """What `--resume` takes."""
    return [*_begun(incomplete, [("last", "the latest")]), *conversations(incomplete)]


def _begun(incomplete: str, found: Iterable[tuple[str, str]]) -> Found:
    """Those that begin so, in any case; as they were begun, which all shells take."""
    return [
        (incomplete + name[len(incomplete) :], about)
        for name, about in found
        if name.casefold().startswith(incomplete.casefold())
    ]


def install(arguments: list[str]) -> bool:
    """Make a shell complete, or show what would, if that is asked with the shell's name, which
    Typer does not take; returns whether it was.

    Raises:
        PromptError: it is no such shell.
    """
    if len(arguments) != 2 or arguments[0] not in FLAGS or arguments[1].startswith("-"):
        return False
    flag, shell = arguments
    from typer import completion

    typers: Any = completion  # which exports none of these by name
    known = [each.value for each in typers.Shells]
    if shell not in known:
        raise PromptError(f"{flag}: no completion for {quote(shell)}, but for {', '.join(known)}")
    program = {"prog_name": "smolvlm-mlx", "complete_var": "_SMOLVLM_MLX_COMPLETE"}
    if flag == "--show-completion":
        print(typers.get_completion_script(**program, shell=shell))
    else:
        _, path = typers.install(shell, **program)
        print(f"{shell} completes from its next start on: {path}")
    return True
