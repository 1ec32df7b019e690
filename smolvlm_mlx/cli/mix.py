"""`convert --target-kl` and `--target-size`: bits for each layer, by measurement."""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import typer

from ..checkpoint.choices import Recipe
from ..device import size_in_bytes
from ..errors import ConversionError
from ..options import option
from .options import typed

# They say something else of the bits, or are for what has none.
OTHERS = (
    *("recipe", "bits", "embedding_bits", "group_size", "quantize_vision", "dtype"),
    *("layout", "adapter"),
)


@dataclass(frozen=True)
class Target:
    """What a conversion is to come to, in place of bits."""

    target_kl: float | None = option(
        None,
        "Choose the bits of each layer: the smallest result whose predictions are so near to the "
        "source's, in nats, such as 0.02; means --check.",
    )
    target_size: str | None = option(
        None, "Choose the bits of each layer: the best result of at most this size, such as 180MB."
    )

    @property
    def is_given(self) -> bool:
        return self.target_kl is not None or self.target_size is not None

    def choose(
        self, context: typer.Context, source: str, out: Path, revision: str | None
    ) -> Recipe:
        """Measure what layers cost, and return the bits that were chosen; says them on stderr.

        Raises:
            ConversionError: the target makes no sense, or cannot be reached.
        """
        from ..quality.mix import choose_in_steps
        from .show import count_bar, follow

        size = self._checked(typed(context, *OTHERS))
        steps = choose_in_steps(
            source, out, target_size=size, target_kl=self.target_kl, revision=revision
        )
        mix = follow(steps, count_bar(f"Measuring {source}"))
        counts = Counter(16 if form is None else form.bits for form in mix.recipe.modules.values())
        bits = ", ".join(f"{count} of {bits}" for bits, count in sorted(counts.items()))
        print(
            f"layers by bits: {bits}; mean KL {mix.kl:.2g} nats on the prompts that chose them",
            file=sys.stderr,
        )
        return mix.recipe

    def _checked(self, others: str) -> int | None:
        """The size in bytes, if there is one."""
        if others:
            raise ConversionError(
                f"--target-kl and --target-size choose all bits; leave out {others}"
            )
        if self.target_kl is not None and self.target_size is not None:
            raise ConversionError("give --target-kl or --target-size, not both")
        if self.target_kl is not None and not 0 < self.target_kl < float("inf"):
            raise ConversionError(f"--target-kl {self.target_kl:g} is no distance above 0")
        if self.target_size is None:
            return None
        return size_in_bytes(self.target_size, "--target-size")

    def note(self, kl: float) -> None:
        """Say where the result is farther away than was asked for."""
        if self.target_kl is not None and not kl <= self.target_kl:
            print(
                f"smolvlm-mlx: mean KL {kl:.2g} on other prompts is above --target-kl "
                f"{self.target_kl:g}: on those that chose the bits it was not. Convert again with "
                "a lower one.",
                file=sys.stderr,
            )
