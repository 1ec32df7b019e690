"""Where rows of data come from: a JSONL file, or, through `datasets`, a folder or a dataset of the
hub."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import DataError, quote, reason

# owner/name, or owner/name:configuration.
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+(?<!\.json)(?<!\.jsonl)(:[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class Row:
    """One row as it was found, and where; `folder` is where its paths begin."""

    where: str
    raw: object
    folder: Path = field(default_factory=Path)


def read_rows(source: str | Path, subset: str | None = None) -> list[Row]:
    """All rows of a JSONL file, or those of a folder or hub dataset (`subset`: which, such as
    "train").

    A hub dataset of several configurations is "owner/name:configuration". A line that is no JSON is
    a row whose `raw` is the error.

    Raises:
        DataError: it is not there, cannot be read, or is empty.
    """
    path = Path(source).expanduser()
    rows = list(_json_lines(path)) if path.is_file() else list(_dataset(str(source), path, subset))
    if not rows:
        raise DataError(f"{source}: no rows")
    return rows


def _json_lines(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path.name}:{number}"
                    try:
                        yield Row(where, json.loads(line), path.parent)
                    except (ValueError, RecursionError) as error:
                        yield Row(where, DataError(f"no JSON ({reason(error)})"), path.parent)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({reason(error)}); it must be JSON lines in UTF-8"
        ) from error


def _dataset(source: str, path: Path, name: str | None) -> Iterator[Row]:
    if not path.is_dir() and not _HUB_ID.fullmatch(source):
        raise DataError(
            f"{quote(source, end=True)}: no such file or folder, and no hub dataset id like "
            "owner/name"
        )
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(
            f"{source} is no JSONL file; folders and hub datasets need: pip install "
            "'smolvlm-mlx[datasets]'"
        ) from error
    try:
        repo, _, config = source.partition(":")
        loaded = (
            datasets.load_dataset(str(path))
            if path.is_dir()
            else datasets.load_dataset(repo, config or None)
        )
        if name is None:
            name = next(
                (usual for usual in ("train", "test", "validation") if usual in loaded),
                next(iter(loaded)),
            )
        if name not in loaded:
            raise DataError(
                f"{source}: no subset {quote(name)}; there are {', '.join(map(str, loaded))}"
            )
        subset = loaded[name]
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{source}: {' '.join(str(error).split())[:400]}") from error
    _leave_encoded(subset.info.features)
    for number in range(len(subset)):
        yield Row(
            f"{source}:{number + 1}", _DatasetRow(subset, number), path if path.is_dir() else Path()
        )


class _DatasetRow(Mapping[str, object]):
    """A row that is read from disk each time it is looked at: a whole dataset may not fit in
    memory."""

    def __init__(self, subset: Any, number: int):
        self._subset, self._number = subset, number

    def __getitem__(self, column: str) -> object:
        if column not in self._subset.column_names:
            raise KeyError(column)
        return self._subset[column][self._number]  # of this column only

    def __iter__(self) -> Iterator[str]:
        return iter(self._subset.column_names)

    def __len__(self) -> int:
        return len(self._subset.column_names)

    def __repr__(self) -> str:
        return f"{self._subset._fingerprint} {self._number}"


def _leave_encoded(feature: object) -> None:
    """Pictures stay bytes or paths: all decoded at once may not fit in memory, and a bad one would
    end the reading."""
    import datasets

    if isinstance(feature, datasets.Image):
        feature.decode = False
    for inner in (
        feature.values() if isinstance(feature, Mapping) else [getattr(feature, "feature", None)]
    ):
        if inner is not None:
            _leave_encoded(inner)


def rows_fingerprint(rows: Sequence[Row]) -> str:
    """Of the rows' text; pictures count by their path, those in memory not at all, a dataset's rows
    by its fingerprint."""

    def text(value: object) -> str:
        return repr(value) if isinstance(value, Mapping) else type(value).__name__

    lines = [json.dumps([row.where, row.raw], default=text, skipkeys=True) for row in rows]
    return sha256("\n".join(lines).encode()).hexdigest()[:16]
