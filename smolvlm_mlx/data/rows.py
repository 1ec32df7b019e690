"""Where rows of data come from: a file of them, a folder of pictures with their texts, or, through
`datasets`, other folders and datasets of the hub."""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import DataError, quote, reason
from ..files import expanded
from ..inputs.media import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from .columns import KNOWN
from .layouts import unpacked

# owner/name, or owner/name:configuration.
_FILE = r"\.(jsonl?|[ct]sv|parquet|txt)$"
_HUB_ID = re.compile(rf"(?!.*{_FILE})\w[\w.-]*/[\w.-]+(:[\w.-]+)?", re.ASCII)
USUAL = ("train", "test", "validation")
METADATA = ("metadata.jsonl", "metadata.json", "metadata.csv")
DELIMITERS = ",;\t"
LONGEST_CELL = 2**31 - 1  # a picture in base64


@dataclass(frozen=True)
class Row:
    """One row as it was found, and where; `folder` is where its paths begin, if it is from a file
    or a folder."""

    where: str
    raw: object
    folder: Path = field(default_factory=Path)


class _Number(float):
    """A number that is written as it was: 12.50 is no 12.5 for who learns it."""

    def __new__(cls, text: str) -> "_Number":
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str

    def __str__(self) -> str:
        return self.text


def read_rows(source: str | Path, subset: str | None = None) -> list[Row]:
    """All rows of a file (JSON lines, a JSON list, CSV, TSV, Parquet), or those of a folder or hub
    dataset (`subset`: which, such as "train").

    A folder has metadata.jsonl, .json or .csv (with `file_name`), or a .txt beside each picture; or
    `datasets` reads it. A hub dataset of several configurations is "owner/name:configuration". A
    line that is no JSON is a row whose `raw` is the error.

    Raises:
        DataError: it is not there, cannot be read, or is empty.
    """
    if not str(source).strip():
        raise DataError("the name of the data is empty; give a file, a folder or a hub dataset id")
    path = expanded(source)
    rows = list(_rows(str(source), path, subset))
    if not rows:
        raise DataError(f"{source}: no rows")
    return rows


def _rows(source: str, path: Path, subset: str | None) -> Iterator[Row]:
    if path.is_dir():
        for folder in (subset,) if subset else ("", *USUAL):
            for name in METADATA:
                if (path / folder / name).is_file():
                    return _file(path / folder / name)
        if not subset and (texts := _texts(path)):
            return iter(texts)
    elif path.is_file() and path.suffix.lower() != ".parquet":
        if subset:
            raise DataError(f"{source} is a file, without a subset {quote(subset)}")
        return _file(path)
    return _dataset(source, path, subset)


def _file(path: Path) -> Iterator[Row]:
    is_csv = path.suffix.lower() in (".csv", ".tsv")
    try:
        for where, raw in _csv(path) if is_csv else _json(path):
            yield Row(f"{path.name}:{where}", raw, path.parent.absolute())
    except (OSError, UnicodeDecodeError) as error:
        what = "CSV" if is_csv else "JSON lines"
        raise DataError(
            f"{path}: cannot be read ({reason(error)}); it must be {what} in UTF-8"
        ) from error


def _json_lines(path: Path) -> Iterator[tuple[int, object]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line, parse_float=_Number)
                except (ValueError, RecursionError) as error:
                    yield number, DataError(f"no JSON ({reason(error)})")


def _json(path: Path) -> Iterator[tuple[int, object]]:
    """Lines; but of a file that ends in .json, or begins as a list, the members of the list, of an
    object of objects (MathVista), or of the list of objects in an object (DocVQA's `data`)."""
    with path.open(encoding="utf-8-sig") as file:
        is_list = file.read(100).lstrip().startswith("[")
    if not is_list and path.suffix.lower() != ".json":
        return _json_lines(path)
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"), parse_float=_Number)
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError):
        return _json_lines(path)
    if isinstance(whole, dict) and KNOWN.isdisjoint(whole):
        if all(isinstance(row, dict) for row in whole.values()):
            return enumerate(whole.values(), 1)
        lists = [rows for rows in whole.values() if isinstance(rows, list)]
        lists = [rows for rows in lists if rows and all(isinstance(row, dict) for row in rows)]
        whole = lists[0] if len(lists) == 1 else whole
    return enumerate(whole if isinstance(whole, list) else [whole], 1)


def _csv(path: Path) -> Iterator[tuple[int, object]]:
    """With a header. Cells are text; one that is a list or object in JSON or Python (as pandas
    writes it) is read as such."""
    csv.field_size_limit(LONGEST_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        reader = csv.DictReader(file, delimiter=max(DELIMITERS, key=header.count))
        names = reader.fieldnames or ()
        if twice := [name for name in names if name and names.count(name) > 1]:
            raise DataError(f"{path}: two columns are named {quote(twice[0])}; rename one")
        try:
            for cells in reader:
                if None in cells or None in cells.values():
                    problem = f"not {len(names)} cells, as the header has"
                    yield reader.line_num, DataError(problem)
                else:
                    yield reader.line_num, {name: _cell(cell) for name, cell in cells.items()}
        except csv.Error as error:
            yield reader.line_num, DataError(f"no CSV ({reason(error)})")


def _cell(text: str) -> object:
    value = unpacked(text)
    return value if isinstance(value, list | dict) else text or None


def _texts(folder: Path) -> list[Row]:
    """Pictures and videos, in the folder and those below, with a .txt of the same name beside each,
    which is what to say of them."""
    files = sorted(file for file in folder.rglob("*") if not file.name.startswith("."))
    texts = {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}
    shown = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES + VIDEO_SUFFIXES]
    names = {file.with_suffix("") for file in shown}
    if texts.keys().isdisjoint(names):
        return []
    raws = {file: _captioned(file, texts.get(file.with_suffix(""))) for file in shown}
    alone = DataError("no picture of this name beside it")
    raws |= {text: alone for name, text in texts.items() if name not in names}
    return [
        Row(str(file.relative_to(folder)), raw, file.parent.absolute())
        for file, raw in raws.items()
    ]


def _captioned(file: Path, text: Path | None) -> object:
    if text is None:
        return DataError(f"no {file.stem}.txt beside it")
    try:
        return {"file_name": file.name, "caption": text.read_text(encoding="utf-8-sig").strip()}
    except (OSError, UnicodeDecodeError) as error:
        return DataError(f"{text.name} cannot be read ({reason(error)})")


def _dataset(source: str, path: Path, name: str | None) -> Iterator[Row]:
    if not path.is_dir() and not path.is_file() and not _HUB_ID.fullmatch(source):
        raise DataError(
            f"{quote(source, end=True)}: no such file or folder, and no hub dataset id like "
            "owner/name"
        )
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(
            f"{source} is no JSONL file, nor a folder with metadata.jsonl or a .txt beside each "
            "picture; others and hub datasets need: pip install 'smolvlm-mlx[datasets]'"
        ) from error
    datasets.disable_progress_bars()  # they move the cursor of a terminal
    try:
        loaded = _subsets(source, path)
        if name is None:
            name = next((usual for usual in USUAL if usual in loaded), next(iter(loaded)))
        if name not in loaded:
            raise DataError(
                f"{source}: no subset {quote(name)}; there are {', '.join(map(str, loaded))}"
            )
        subset = loaded[name]
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{source}: {' '.join(str(error).split())[:400]}") from error
    _leave_encoded(subset.info.features)
    folder = path if path.is_dir() else path.parent if path.is_file() else None
    for number in range(len(subset)):
        raw = _DatasetRow(subset, number)
        yield Row(f"{source}:{number + 1}", raw, folder.absolute() if folder else Path())


def _subsets(source: str, path: Path) -> Any:
    import datasets

    if (path / "state.json").is_file():  # of Dataset.save_to_disk
        return {"train": datasets.load_from_disk(str(path))}
    if path.is_dir():
        return datasets.load_dataset(str(path))
    if path.is_file():
        return datasets.load_dataset("parquet", data_files=str(path))
    repo, _, config = source.partition(":")
    return datasets.load_dataset(repo, config or None)


class _DatasetRow(Mapping[str, object]):
    """A row that is read from disk each time it is looked at: a whole dataset may not fit in
    memory."""

    def __init__(self, subset: Any, number: int):
        self._subset, self._number = subset, number

    def __getitem__(self, column: str) -> object:
        if column not in self._subset.column_names:
            raise KeyError(column)
        value = self._subset[column][self._number]  # of this column only
        name = getattr(self._subset.features[column], "int2str", None)
        if name is None or value is None:
            return value
        return name(value) if value >= 0 else None  # a class, which is stored by number

    def __iter__(self) -> Iterator[str]:
        return iter(self._subset.column_names)

    def __len__(self) -> int:
        return len(self._subset.column_names)

    def __repr__(self) -> str:
        return f"{self._subset._fingerprint} {self._number}"


def _leave_encoded(feature: object) -> None:
    """Pictures and videos stay bytes or paths: all decoded at once may not fit in memory, and a bad
    one would end the reading."""
    import datasets

    if isinstance(feature, datasets.Image | datasets.Video):
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
