"""README.md of a checkpoint that was made here: where it comes from, how it was made, how large and
how good it is, in the form that the hub reads (huggingface.co/docs/hub/model-cards).

It is for everybody to read: of what is on this machine it has the names of folders, and no path.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.nn as nn

from ..errors import CheckpointError, ConversionError, escaped, quote
from ..files import expanded, read_bytes, write_file, written
from .names import known_as
from .reader import Checkpoint, open_checkpoint

README = "README.md"
MAX_CARD_BYTES, MAX_METADATA = 2**20, 2**16  # a card, and its front matter in characters
PAPERS = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")  # go along with weights
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)", re.ASCII)  # a folder of the hub's cache
_APACHE = ("HuggingFaceTB", "ibm-granite")  # whose published checkpoints have Apache 2.0
_TITLES = {"vision_model": "vision tower", "connector": "connector", "language_model": "decoder"}

Figures = Mapping[str, object]


@dataclass(frozen=True)
class Origin:
    """Where a result comes from, for everybody to read.

    Attributes:
        name: hub id, or a folder's name.
        base: hub id of what it was made from, or of what that was made from.
        relation: of a source to its base, where the source says it.
        licence: `license`, `license_name` and `license_link` of the source's card.
        language: of the source's card.
        tuned: what else went into the weights, such as an adapter.
        dequantized: how the source is quantized, and the result is not.
        learned: whether the source taught what its weights are quantized to.
        note: why the source's card was not read.
    """

    name: str
    base: str | None = None
    relation: str | None = None
    licence: Mapping[str, str] = field(default_factory=dict)
    language: tuple[str, ...] = ()
    tuned: str | None = None
    dequantized: str | None = None
    learned: bool = False
    note: str | None = None


# ---- the source


def origin_of(folder: Path) -> Origin:
    """Return what is known of a source by its folder, its card, and the family's names."""
    repo = _cached_repo(folder)
    try:
        data, note = metadata_of(folder), None
    except CheckpointError as error:
        data, note = {}, str(error)
    licence = {
        key: value
        for key in ("license", "license_name", "license_link")
        if isinstance(value := data.get(key), str) and _is_short(value)
    }
    known = None if repo is None else known_as(repo)
    if not licence and known is not None and known.repo.partition("/")[0] in _APACHE:
        licence = {"license": "apache-2.0"}
    base, relation = repo, None
    told = data.get("base_model")
    told = told[0] if isinstance(told, list) and len(told) == 1 else told
    if repo is None and isinstance(told, str) and _HUB_ID.fullmatch(told):
        base, relation = told, data.get("base_model_relation")
    return Origin(
        repo or public_name(folder),
        base,
        relation if relation in ("quantized", "finetune", "merge") else None,
        licence,
        tuple(_languages(data.get("language"))),
        note=note,
    )


def metadata_of(folder: Path) -> dict[str, Any]:
    """Return the front matter of a folder's card, all of it as text, lists and mappings; empty
    where there is none.

    Raises:
        CheckpointError: it is damaged, or larger than any card.
    """
    import yaml

    path = folder / README
    if not path.is_file():
        return {}
    text = read_bytes(path, MAX_CARD_BYTES).decode("utf-8-sig", "replace")
    found = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*$", text, re.DOTALL | re.MULTILINE)
    if found is None:
        return {}
    if len(found[1]) > MAX_METADATA:
        raise CheckpointError(f"{path}: its metadata is larger than any; it is left out")
    try:
        # Only text, lists and mappings: no tags, no merging of what is named again and again, and
        # Norwegian stays "no".
        data = yaml.load(found[1], Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        words = quote(" ".join(str(error).split()))
        raise CheckpointError(f"{path}: its metadata is damaged ({words}), and left out") from error
    return data if isinstance(data, dict) else {}


def fetch_papers(repo: str, folder: Path) -> None:
    """Bring the card and the licence of a hub repository beside its weights in the cache, as far as
    the hub can be reached: conversions are made without, too."""
    import httpx2
    from huggingface_hub import errors, snapshot_download

    from .hub import NOT_THE_HUB

    wanted = [README, *PAPERS]
    try:
        snapshot_download(repo, revision=folder.name, allow_patterns=wanted)
    except (httpx2.HTTPError, errors.XetDownloadError, OSError, *NOT_THE_HUB):
        return


def public_name(path_or_id: str | Path) -> str:
    """Return what others may read of a folder, its name; a hub id as it is."""
    path = expanded(path_or_id)
    if not path.exists() and _HUB_ID.fullmatch(str(path_or_id)):
        return str(path_or_id)
    return path.resolve().name


def papers_of(folder: Path) -> list[str]:
    """Return the names of licences and notices in a folder, which go where the weights go."""
    files = {path for pattern in PAPERS for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.name for path in files if path.stat().st_size <= MAX_CARD_BYTES)


def _cached_repo(folder: Path) -> str | None:
    """The hub id of a snapshot in the hub's cache."""
    if folder.parent.name != "snapshots":
        return None
    found = _CACHED.fullmatch(folder.parent.parent.name)
    return None if found is None else f"{found[1]}/{found[2]}"


def _is_short(text: str) -> bool:
    return 0 < len(text) <= 200 and text.isprintable()


def _languages(value: object) -> Iterator[str]:
    for each in value[:100] if isinstance(value, list) else [value]:
        if isinstance(each, str) and re.fullmatch(r"[A-Za-z][\w-]{1,19}", each, re.ASCII):
            yield each


# ---- the result


def write_card(
    folder: Path,
    origin: Origin,
    figures: Figures | None = None,
    *,
    name: str | None = None,
    command: str | None = None,
) -> None:
    """Write README.md of a finished checkpoint, in place of one that is there.

    Args:
        figures: what was measured of it, as text or numbers by their names, in their order.
        name: its own, or the one that it has on the hub; else the folder's.
        command: that made it.

    Raises:
        CheckpointError: `folder` holds no checkpoint.
        ConversionError: it cannot be written.
    """
    text = card_of(open_checkpoint(folder), origin, figures, name=name, command=command)
    with written(folder / README, ConversionError):
        write_file(folder / README, text.encode())


def card_of(
    result: Checkpoint,
    origin: Origin,
    figures: Figures | None = None,
    *,
    name: str | None = None,
    command: str | None = None,
) -> str:
    """Return the card, see `write_card`."""
    import yaml

    name = name or result.folder.name
    metadata = yaml.safe_dump(
        _metadata(result, origin), sort_keys=False, allow_unicode=True, width=1000
    )
    sections = [
        f"---\n{metadata}---\n\n# {_code(name)}",
        _about(result, origin),
        "\n".join(_sizes(result)),
        *(["\n".join(_measured(figures))] if figures else []),
        *([f"Made by\n\n```bash\n{escaped(command)}\n```"] if command else []),
        _use(result, name),
        _licence(origin),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(result: Checkpoint, origin: Origin) -> dict[str, Any]:
    relation = "finetune" if origin.tuned else origin.relation
    if result.quantization is not None:
        relation = "quantized"
    library = "transformers" if result.is_hf_layout else "mlx"
    data = {
        **origin.licence,
        "base_model": origin.base,
        "base_model_relation": relation if origin.base else None,
        "library_name": library,
        "pipeline_tag": "image-text-to-text",
        "tags": [library, "smolvlm"],
        "language": list(origin.language),
    }
    return {key: value for key, value in data.items() if value}


def _about(result: Checkpoint, origin: Origin) -> str:
    layout = "Hugging Face's layout" if result.is_hf_layout else "MLX's layout"
    of = f"[{origin.name}](https://huggingface.co/{origin.name})"
    about = f"{of if origin.name == origin.base else _code(origin.name)} in {layout}"
    if origin.tuned:
        about += f", with {_cell(origin.tuned)}"
    if origin.learned:
        about += ", quantized so that its predictions stay the source's (learned, not rounded)"
    if origin.dequantized:
        about += f", dequantized from {origin.dequantized}"
    if origin.base not in (None, origin.name):
        about += f", which comes from [{origin.base}](https://huggingface.co/{origin.base})"
    return f"{about}. Made with smolvlm-mlx."


def _sizes(result: Checkpoint) -> Iterator[str]:
    yield "| part | parameters | MB | bits a weight | kept as |"
    yield "|---|---|---|---|---|"
    for part, (count, size) in result.parts().items():
        kept = "; ".join(_forms(result, part))
        yield (
            f"| {_TITLES[part]} | {count:,} | {size / 1e6:,.1f} | {8 * size / count:.2f} | {kept} |"
        )


def _forms(result: Checkpoint, part: str) -> list[str]:
    """How the weights of a part are kept, the most of them first."""
    sizes: dict[str, int] = {}
    layers = {
        path
        for path, module in result.build(tied=not result.has_head).named_modules()
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)
    }
    for name, tensor in result.tensors.items():
        module = name.rpartition(".")[0]
        if name.startswith(part):
            form = result.quantization and module in layers and result.quantization.of(module)
            kept = str(form) if form else _DTYPES[tensor.dtype]
            sizes[kept] = sizes.get(kept, 0) + tensor.nbytes
    return sorted(sizes, key=lambda kept: -sizes[kept])


_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def _measured(figures: Figures) -> Iterator[str]:
    yield "| measured against the source | |"
    yield "|---|---|"
    for title, value in figures.items():
        said = f"{value:.3g}" if isinstance(value, float) else str(value)
        yield f"| {_cell(title)} | {_cell(said)} |"


def _use(result: Checkpoint, name: str) -> str:
    if result.is_hf_layout:
        return (
            "```python\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
            f"model = AutoModelForImageTextToText.from_pretrained({escaped(name)!r})\n"
            f"processor = AutoProcessor.from_pretrained({escaped(name)!r})\n```"
        )
    # mlx-vlm looks for a head, also where logits come from the table of embeddings.
    others = "\n\nmlx-vlm loads it too." if result.has_head else ""
    return (
        f"```bash\nsmolvlm-mlx generate --model {shlex.quote(escaped(name))} --image cat.jpg "
        f'"What is in the picture?"\n```{others}'
    )


def _licence(origin: Origin) -> str:
    if not origin.licence:
        return (
            "What licence it has is not known here: that of its source applies, and should be "
            "written into this card before others are given it."
        )
    named = origin.licence.get("license_name") or origin.licence.get("license") or "its source's"
    return f"Licence: {_cell(named)}, that of its source."


def _cell(text: str) -> str:
    """Text for a table, or a line."""
    return re.sub(r"([|`*_<>\[\]\\])", r"\\\1", escaped(text))


def _code(text: str) -> str:
    """A name as code, whatever is in it."""
    return "`" + escaped(text).replace("`", "'") + "`"
