"""What a run that learns a quantization has done so far, in a folder, to go on from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.choices import Form
from ..checkpoint.safetensors import read_header, save_safetensors
from ..errors import CheckpointError, TrainingError
from ..files import read_json, write_file
from ..model import SmolVLM
from .blocks import Packed

PARTS = ("weight", "scales", "biases")
ANSWERS, ABOUT = "answers.json", "about.json"


class Saved:
    """A folder of answers and quantized blocks; each file appears whole or not at all.

    Raises:
        TrainingError: the folder belongs to another run, or what is in it is damaged.
    """

    def __init__(self, folder: Path, about: Mapping[str, object]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / ABOUT).exists():
            if any(path.suffix in (".json", ".safetensors") for path in folder.iterdir()):
                raise self._damaged(ABOUT)
            write_file(folder / ABOUT, json.dumps(about).encode())
            return
        begun = self._json(ABOUT)
        if changed := [name for name in about if begun.get(name) != about[name]]:
            if "recipe" in changed:  # by which the source is cast and padded: it may be the same
                changed = [name for name in changed if name != "source"]
            raise TrainingError(
                f"{folder}: begun with another {' and '.join(changed)}; give the same to go on, or "
                "delete this folder to begin again"
            )

    def answers(self) -> list[list[int]]:
        """Token ids of the answers so far."""
        if not (self.folder / ANSWERS).exists():
            return []
        found: Any = self._json(ANSWERS).get("answers")
        is_ids = isinstance(found, list) and all(
            isinstance(each, list) and all(type(id) is int and 0 <= id < 2**31 for id in each)
            for each in found
        )
        if not is_ids:
            raise self._damaged(ANSWERS)
        return list(found)

    def keep_answers(self, answers: Sequence[Sequence[int]]) -> None:
        """Write the answers so far."""
        write_file(self.folder / ANSWERS, json.dumps({"answers": answers}).encode())

    def layers(
        self, block: str, forms: Mapping[str, Form], model: SmolVLM, dtype: mx.Dtype
    ) -> dict[str, Packed] | None:
        """A block's quantized layers; None if it is not done."""
        path = self.folder / f"{block}.safetensors"
        if not path.exists():
            return None
        wanted: dict[str, tuple[tuple[int, ...], mx.Dtype]] = {}
        layers = dict(model.named_modules())
        for name, form in forms.items():
            O, I = layers[name].weight.shape
            shapes = (O, I * form.bits // 32), (O, I // form.group_size), (O, I // form.group_size)
            for part, shape in zip(PARTS, shapes, strict=True):
                wanted[f"{name}.{part}"] = shape, mx.uint32 if part == "weight" else dtype
        try:
            found = {tensor.key: tuple(tensor.shape) for tensor in read_header(path)}
        except CheckpointError as error:
            raise self._damaged(path.name) from error
        if found != {name: shape for name, (shape, _) in wanted.items()}:
            raise self._damaged(path.name)
        arrays: Any = mx.load(str(path))
        if any(arrays[name].dtype != kind for name, (_, kind) in wanted.items()):
            raise self._damaged(path.name)
        mx.eval(arrays)
        return {
            name: (arrays[f"{name}.weight"], arrays[f"{name}.scales"], arrays[f"{name}.biases"])
            for name in forms
        }

    def keep_layers(self, block: str, layers: Mapping[str, Packed]) -> None:
        """Write a block's quantized layers."""
        arrays = {
            f"{name}.{part}": array
            for name, packed in layers.items()
            for part, array in zip(PARTS, packed, strict=True)
        }
        save_safetensors(self.folder / f"{block}.safetensors", arrays)

    def _json(self, name: str) -> dict[str, Any]:
        try:
            return read_json(self.folder / name)
        except CheckpointError as error:
            raise self._damaged(name) from error

    def _damaged(self, name: str) -> TrainingError:
        return TrainingError(
            f"{self.folder / name}: damaged, or not of a run that can go on; delete "
            f"{self.folder} to begin again"
        )
