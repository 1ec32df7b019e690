"""Bits for each layer, by what they cost: the best model of a size, or the smallest that is near
enough to its source."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .. import device
from ..checkpoint.choices import RECIPES, Form, Recipe
from ..checkpoint.convert import check_place, open_source, planned_bytes
from ..checkpoint.reader import Checkpoint, load
from ..errors import ConversionError
from ..events import Reading, at_once
from ..model import SmolVLM
from .examples import answer_in_steps
from .prompts import KINDS, Kind, built_in
from .sensitivity import Replay, groups

FORMS: tuple[Form | None, ...] = (*(Form(bits) for bits in (2, 3, 4, 5, 6, 8)), None)
PROBE = Form(3)  # by which layers are measured: far above rounding's noise, far below nonsense
# By which bits are chosen: 500 positions or more, and five tiles.
COUNTS: dict[Kind, int] = {"text": 6, "picture": 2, "pictures": 1, "video": 1}
_TRIES = 8  # sizes that are tried for a distance, and trades for a size
_MARGIN = 0.9  # of a wanted distance, since other prompts will have another

Choice = Mapping[str, Form | None]  # by path of each layer


@dataclass(frozen=True)
class Mix:
    """Bits that were chosen.

    Attributes:
        size: bytes of model.safetensors, exactly.
        kl: measured with all of them, on the prompts by which they were chosen.
        recipes: the same of each named recipe that was an alternative: KL by name.
    """

    recipe: Recipe
    size: int
    kl: float
    recipes: Mapping[str, float]


class Mixer:
    """A source whose layers were measured, and what to choose for a size or a distance.

    Args:
        costs: KL in nats of each group of layers in PROBE's form, the others as they are.
    """

    def __init__(self, checkpoint: Checkpoint, replay: Replay, costs: Mapping[str, float]):
        self.checkpoint, self.replay, self.costs = checkpoint, replay, costs
        self.groups = groups(replay.model)
        self._numbers: dict[tuple[str, Form | None], tuple[int, float]] = {}
        self._kls: dict[frozenset[tuple[str, Form | None]], float] = {}

    def for_size_in_steps(
        self, target: int, held: Callable[[str], Form | None] | None = None
    ) -> Generator[Reading, None, Mix]:
        """The best mix of at most so many bytes: grown from the least bits, or from the nearest of
        the named recipes that are no larger, and then traded, a share of it at a time, for as long
        as what is measured comes nearer to the source.

        Args:
            held: forms of layers that were not measured; else all were.

        Raises:
            ConversionError: the target is too small.
        """
        least, starts = self._starts(target, held)
        tries, recipes = len(starts) + _TRIES, dict[str, float]()
        for number, (name, start) in enumerate(starts.items()):
            yield Reading(number, tries, "mixes")
            recipes[name] = self._kl(start)
        choices = [self._grown(least, target)]
        if recipes:
            nearest = starts[min(recipes, key=lambda name: recipes[name])]
            choices += [nearest, self._grown(nearest, target)]
        best = min((self._mix(choice, recipes) for choice in choices), key=lambda mix: mix.kl)
        share = 0.25
        for number in range(len(starts), tries):
            yield Reading(number, tries, "mixes")
            choice = self._grown(self._lowered(best.recipe.modules, share), target)
            found = self._mix(choice, recipes)
            if found.kl < best.kl:
                best = found
            else:
                share /= 2
        yield Reading(tries, tries, "mixes")
        return best

    for_size = at_once(for_size_in_steps)

    def for_kl_in_steps(self, target: float) -> Generator[Reading, None, Mix]:
        """The smallest mix that is measured to be no farther from the source, in nats.

        Raises:
            ConversionError: 16 bits are farther.
        """
        least = self._forms(lambda path: FORMS[0])
        low, high = self._size(least), self._size(self._forms(lambda path: None))
        best = self._mix(self._forms(lambda path: None), {})
        if best.kl > target:
            raise ConversionError(
                f"target_kl {target:g}: 16 bits are {best.kl:.2g} nats from the source already; "
                "allow more"
            )
        for number in range(_TRIES):
            yield Reading(number, _TRIES, "mixes")
            middle = (low + high) // 2
            found = self._mix(self._grown(least, middle), {})
            if found.kl <= _MARGIN * target:
                best, high = found, found.size
            else:
                low = middle
        yield Reading(_TRIES, _TRIES, "mixes")
        return best

    for_kl = at_once(for_kl_in_steps)

    def _starts(
        self, target: int, held: Callable[[str], Form | None] | None
    ) -> tuple[dict[str, Form | None], dict[str, dict[str, Form | None]]]:
        """The smallest of all, and named recipes that are no larger than a target."""
        least = smallest(self.replay.model, held, self.costs)
        check_size(self.checkpoint, least, target)
        found = {}
        for name, recipe in RECIPES.items():
            choice = {
                path: least[path] if self._is_held(path) else recipe.form(path) for path in least
            }
            if self._fits(choice) and self._size(choice) <= target:
                found[name] = choice
        return least, found

    def _is_held(self, path: str) -> bool:
        return self._group[path] not in self.costs

    @cached_property
    def _group(self) -> dict[str, str]:
        return {path: name for name, paths in self.groups.items() for path in paths}

    def _fits(self, choice: Choice) -> bool:
        """Whether groups divide the layers' widths; those of the tower are padded."""
        return all(
            form is None or _takes(path, self.replay.modules[path].weight.shape[1], form)
            for path, form in choice.items()
        )

    def _forms(self, form: Callable[[str], Form | None]) -> dict[str, Form | None]:
        return {
            path: wanted
            if (wanted := form(path)) is None
            or _takes(path, self.replay.modules[path].weight.shape[1], wanted)
            else None
            for paths in self.groups.values()
            for path in paths
        }

    def _size(self, choice: Choice) -> int:
        return planned_bytes(self.checkpoint, Recipe(modules=choice))

    def _mix(self, choice: Choice, recipes: Mapping[str, float]) -> Mix:
        return Mix(Recipe(modules=choice), self._size(choice), self._kl(choice), recipes)

    def _kl(self, choice: Choice) -> float:
        """Measured, and known from then on: mixes of several sizes begin with the same."""
        key = frozenset(choice.items())
        if key not in self._kls:
            self._kls[key] = self.replay.kl(choice)
        return self._kls[key]

    def _grown(self, start: Choice, target: int) -> dict[str, Form | None]:
        """More bits, where they help most for their bytes, until no more fit."""
        room = target - self._size(start)
        while True:
            choice = self._upgraded(dict(start), room)
            over = self._size(choice) - target
            if over <= 0:
                return choice
            room -= over  # headers, and a tower that is padded

    def _lowered(self, start: Choice, share: float) -> dict[str, Form | None]:
        """Fewer bits, where they cost least for their bytes, for a share of all bytes."""
        choice, steps, room = dict(start), list[tuple[float, int, str, Form]](), 0.0
        for name, paths in self.groups.items():
            if name not in self.costs:
                continue
            now = choice[paths[0]]
            size, cost = self._bytes(name, now), self._cost(name, now)
            room += share * size
            smaller = [
                form
                for form in FORMS
                if form and self._takes(name, form) and self._bytes(name, form) < size
            ]
            if smaller:
                form = max(smaller, key=lambda form: self._bytes(name, form))
                less = size - self._bytes(name, form)
                steps.append(((self._cost(name, form) - cost) / less, less, name, form))
        for _, less, name, form in sorted(steps, key=lambda step: step[0]):
            if less <= room:
                choice |= dict.fromkeys(self.groups[name], form)
                room -= less
        return choice

    def _upgraded(self, choice: dict[str, Form | None], room: int) -> dict[str, Form | None]:
        current = {name: choice[self.groups[name][0]] for name in self.costs}
        while True:
            steps = [
                (gain / more, name, form)
                for name, now in current.items()
                for form in FORMS
                if self._takes(name, form)
                and 0 < (more := self._bytes(name, form) - self._bytes(name, now)) <= room
                and (gain := self._cost(name, now) - self._cost(name, form)) > 0
            ]
            if not steps:
                return choice
            _, name, form = max(steps, key=lambda step: step[:2])
            room -= self._bytes(name, form) - self._bytes(name, current[name])
            current[name] = form
            choice |= dict.fromkeys(self.groups[name], form)

    def _takes(self, name: str, form: Form | None) -> bool:
        path = self.groups[name][0]
        width = self.replay.modules[path].weight.shape[1]
        return form is None or _takes(path, width, form)

    def _bytes(self, name: str, form: Form | None) -> int:
        """Of a group's weights, without headers."""
        return self._known(name, form)[0]

    def _cost(self, name: str, form: Form | None) -> float:
        """KL of a group in a form: of PROBE's, by the squares of what is rounded off."""
        return (
            self.costs[name] * self._known(name, form)[1] / max(self._known(name, PROBE)[1], 1e-30)
        )

    def _known(self, name: str, form: Form | None) -> tuple[int, float]:
        """Bytes, and squares of what is rounded off."""
        key, paths = (name, form), self.groups[name]
        if key not in self._numbers:
            shapes = [self.replay.modules[path].weight.shape for path in paths]
            size = sum(weight_bytes(shape, form) for shape in shapes)
            self._numbers[key] = size, sum(self.replay.error(path, form) for path in paths)
        return self._numbers[key]


def weight_bytes(shape: Sequence[int], form: Form | None) -> int:
    """Bytes of a weight (O, I) with its scales and biases."""
    O, I = shape
    if form is None:
        return 2 * O * I
    width = -(-I // form.group_size) * form.group_size
    scale = 4 if form.mode == "affine" else 1  # a scale and a bias in 16 bits; a scale in 8
    return O * (width * form.bits // 8 + width // form.group_size * scale)


def _takes(path: str, width: int, form: Form) -> bool:
    """Whether a layer divides into groups; a conversion pads the tower's fc2."""
    return width % form.group_size == 0 or (
        path.startswith("vision_model.") and path.endswith("fc2")
    )


def smallest(
    model: SmolVLM,
    held: Callable[[str], Form | None] | None = None,
    measured: Mapping[str, float] | None = None,
) -> dict[str, Form | None]:
    """The least bits that layers may have; those that were not measured as `held` says."""
    modules = dict(model.named_modules())
    found: dict[str, Form | None] = {}
    for name, paths in groups(model).items():
        for path in paths:
            if held is not None and measured is not None and name not in measured:
                found[path] = held(path)
            else:
                fits = _takes(path, modules[path].weight.shape[1], PROBE)
                found[path] = FORMS[0] if fits else None
    return found


def check_size(checkpoint: Checkpoint, least: Choice, target: int) -> None:
    """Refuse a size that nothing comes down to.

    Raises:
        ConversionError: the target is too small.
    """
    size = planned_bytes(checkpoint, Recipe(modules=least))
    if size > target:
        raise ConversionError(
            f"target_size {target / 1e6:.3g} MB: the smallest possible is {size / 1e6:.1f} MB, "
            "with 2 bits everywhere"
        )


def measure_in_steps(
    source: str | Path,
    *,
    revision: str | None = None,
    kinds: Sequence[Kind] = KINDS,
    only: Sequence[str] | None = None,
    counts: Mapping[Kind, int] = COUNTS,
) -> Generator[Reading, None, Mixer]:
    """Measure what each layer of a source costs in PROBE's form, alone.

    Args:
        kinds: of prompts, with the source's own answers.
        only: paths of the layers to measure; else all.

    Raises:
        CheckpointError: the source cannot be used.
    """
    checkpoint = open_source(source, None, Recipe(bits=2), revision)
    apart = device.name() != "cpu"
    model, processor = load(source, "float32", revision, fuse=not apart)
    able = {k: n for k, n in counts.items() if k in kinds and _can(model, k)}
    examples = yield from answer_in_steps(model, processor, built_in(able, "choose"))
    replay = Replay(model, processor, examples)
    wanted = {
        name: paths
        for name, paths in groups(model).items()
        if only is None or set(paths) <= set(only)
    }
    costs = {}
    for number, (name, paths) in enumerate(wanted.items()):
        yield Reading(number, len(wanted), "layers")
        fits = _takes(paths[0], replay.modules[paths[0]].weight.shape[1], PROBE)
        costs[name] = replay.kl(dict.fromkeys(paths, PROBE), paths[0]) if fits else 0.0
    yield Reading(len(wanted), len(wanted), "layers")
    return Mixer(checkpoint, replay, costs)


measure = at_once(measure_in_steps)


def _can(model: SmolVLM, kind: Kind) -> bool:
    return kind != "video" or model.config.model_type == "smolvlm"


def choose_in_steps(
    source: str | Path,
    out: Path,
    *,
    target_size: int | None = None,
    target_kl: float | None = None,
    revision: str | None = None,
) -> Generator[Reading, None, Mix]:
    """Choose the bits of a conversion into the new folder `out`: the nearest to the source of at
    most `target_size` bytes, or the smallest that is no farther than `target_kl` nats.

    Raises:
        CheckpointError: the source cannot be used.
        ConversionError: `out` exists or cannot be made, or the target cannot be reached: the size
            before any work.
    """
    checkpoint = open_source(source, out, Recipe(bits=2), revision)
    least = smallest(SmolVLM(checkpoint.config, checkpoint.is_tied))
    if target_size is not None:
        check_size(checkpoint, least, target_size)
    wanted = planned_bytes(checkpoint, Recipe(modules=least))
    if target_size is not None:
        wanted = min(target_size, planned_bytes(checkpoint, Recipe()))
    check_place(out, wanted)
    mixer = yield from measure_in_steps(source, revision=revision)
    if target_size is not None:
        return (yield from mixer.for_size_in_steps(target_size))
    assert target_kl is not None
    return (yield from mixer.for_kl_in_steps(target_kl))


choose = at_once(choose_in_steps)
