"""What it costs to quantize one layer: the model is asked again with that layer rounded, and all
that comes before it is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..checkpoint.choices import Form
from ..generation.failures import computing
from ..inputs.processor import Processor
from ..model import SmolVLM
from ..model.arrays import dequantized
from .divergence import divergence, log_softmax
from .examples import Example

_JOINED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
}


def groups(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Layers that may be quantized, by the name of what they are multiplied as: those that share an
    input have one form, so that they stay one product."""
    found: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        parent, _, name = path.rpartition(".")
        if isinstance(module, nn.Linear | nn.Embedding) and name != "position_embedding":
            found.setdefault(f"{parent}.{_JOINED.get(name, name)}", []).append(path)
    return {name: tuple(sorted(paths)) for name, paths in sorted(found.items())}


def rounded(weight: mx.array, form: Form | None) -> mx.array:
    """A weight (O, I) as a conversion leaves it, in float32; None: in bfloat16."""
    narrow = weight.astype(mx.bfloat16)
    if form is None:
        return narrow.astype(mx.float32)
    bits, group_size, mode = form
    width = weight.shape[1]
    padded = mx.pad(narrow, [(0, 0), (0, -width % group_size)])
    packed, scales, *biases = mx.quantize(padded, group_size, bits, mode)
    return dequantized(packed, scales, biases[0] if biases else None, form)[:, :width]


@dataclass
class _Kept:
    """What a conversation leaves on its way: inputs of each layer, and what comes out of the last
    one."""

    prompt: mx.array  # (1, T) up to the answer
    rest: mx.array
    rows: mx.array  # whose predictions count
    tower: list[mx.array]  # (N, P, Dv); none without pictures
    image_tokens: mx.array | None
    decoder: list[mx.array]  # (1, T, Dt)


class Replay:
    """A model, and conversations that are predicted again after some of its layers were rounded.

    Args:
        model: in float32, with its projections apart.

    Attributes:
        positions: that count.
    """

    def __init__(self, model: SmolVLM, processor: Processor, examples: Sequence[Example]):
        self.model = model
        self.modules = dict(model.named_modules())
        self.kept = [self._keep(processor, example) for example in examples]
        self.wanted = [log_softmax(self._logits(kept, kept.decoder[-1])) for kept in self.kept]
        mx.eval(self.wanted)
        self.positions = sum(len(kept.rows) for kept in self.kept)

    def kl(self, forms: Mapping[str, Form | None], first: str | None = None) -> float:
        """Mean KL in nats with layers, by path, in these forms; the model is left as it was.

        Args:
            first: that of the layers which the others come after or lie beside.
        """
        weights = {path: self.modules[path].weight for path in forms}
        try:
            with computing():
                for path, form in forms.items():
                    self.modules[path].weight = rounded(weights[path], form)
                    mx.eval(self.modules[path].weight)
                total = 0.0
                for kept, want in zip(self.kept, self.wanted, strict=True):
                    logits = self._logits(kept, self._hidden(kept, first))
                    total += float(mx.maximum(divergence(want, logits), 0).sum())
        finally:
            for path, weight in weights.items():
                self.modules[path].weight = weight
        return total / self.positions

    def error(self, path: str, form: Form | None) -> float:
        """The sum of squares by which a weight is rounded."""
        weight = self.modules[path].weight
        return float((weight.astype(mx.float32) - rounded(weight, form)).square().sum())

    def _keep(self, processor: Processor, example: Example) -> _Kept:
        inputs, model = example.prompt(processor), self.model
        prompt, rest = np.split(example.input_ids, [len(inputs.input_ids)])
        rows = mx.array(example.positions(model.config.image_token_id))
        kept = _Kept(mx.array(prompt)[None], mx.array(rest)[None], rows, [], None, [])
        with computing():
            if len(inputs.tiles):
                x = model.vision_model.embeddings(mx.array(inputs.pixel_values))
                self._run_tower(kept, x, 0, kept.tower)
            self._run_decoder(self._embedded(kept), 0, kept.decoder)
        return kept

    def _hidden(self, kept: _Kept, first: str | None) -> mx.array:
        """What comes out of the decoder after a change of the layer `first` and later ones."""
        part, layer = _place(first)
        if part in ("vision", "connector") and not kept.tower:
            return kept.decoder[-1]
        if part == "head":
            return kept.decoder[-1]
        if part == "decoder":
            return self._run_decoder(kept.decoder[layer], layer)
        tokens = kept.image_tokens
        if part in ("vision", "connector") or (part == "all" and kept.tower):
            start = len(kept.tower) - 1 if part == "connector" else layer
            self._run_tower(kept, kept.tower[start], start)
        hidden = self._run_decoder(self._embedded(kept), 0)
        kept.image_tokens = tokens
        return hidden

    def _run_tower(
        self, kept: _Kept, x: mx.array, start: int, inputs: list[mx.array] | None = None
    ) -> None:
        """Make image tokens, from a layer of the tower on."""
        tower = self.model.vision_model
        for layer in tower.encoder.layers[start:]:
            if inputs is not None:
                inputs.append(x)
            x = layer(x)
            mx.eval(x)
        if inputs is not None:
            inputs.append(x)
        kept.image_tokens = self.model.connector(tower.post_layernorm(x))
        mx.eval(kept.image_tokens)

    def _embedded(self, kept: _Kept) -> mx.array:
        merged = self.model.merge(kept.prompt, kept.image_tokens)
        return mx.concatenate([merged, self.model.language_model.embed(kept.rest)], axis=1)

    def _run_decoder(
        self, x: mx.array, start: int, inputs: list[mx.array] | None = None
    ) -> mx.array:
        for layer in self.model.language_model.layers[start:]:
            if inputs is not None:
                inputs.append(x)
            x = layer(x, "causal", None)
            mx.eval(x)
        if inputs is not None:
            inputs.append(x)
        return x

    def _logits(self, kept: _Kept, hidden: mx.array) -> mx.array:
        return self.model.language_model.logits(hidden[0][kept.rows])


def _place(path: str | None) -> tuple[str, int]:
    """In which part a layer is, and in which of its layers."""
    if path is None:
        return "all", 0
    names = path.split(".")
    if names[0] == "vision_model":
        return "vision", int(names[names.index("layers") + 1])
    if names[0] == "connector":
        return "connector", 0
    if "layers" in names:
        return "decoder", int(names[names.index("layers") + 1])
    return ("head", 0) if names[-1] == "lm_head" else ("embeddings", 0)
