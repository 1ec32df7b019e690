"""`convert --learn`: what a quantization learns from, and how far it is."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.choices import Layout, Recipe
from ..errors import ConversionError
from ..options import option

if TYPE_CHECKING:
    from ..checkpoint.convert import Report


@dataclass(frozen=True)
class Learning:
    """Whether, and from what, a quantization is learned."""

    learn: bool = option(
        False,
        "Learn the quantization from the source's own answers, in minutes, in place of rounding. "
        "Run again after a stop, it goes on.",
        flag="--learn",
    )
    learn_data: str | None = option(
        None,
        "Learn from your own pictures, a folder of them or rows as `finetune` takes them, beside "
        "built-in questions; means --learn.",
    )

    @property
    def is_given(self) -> bool:
        return self.learn or self.learn_data is not None

    def check(self, layout: Layout) -> None:
        """Find out what cannot be learned, or not from this, before what takes long.

        Raises:
            ConversionError: the layout is not quantized.
            DataError, ImageError: the data cannot be used.
        """
        from ..training.lessons import lessons

        if self.is_given and layout != "mlx":
            raise ConversionError("--learn is for quantized results, which have layout mlx")
        if self.learn_data is not None:
            lessons(self.learn_data)

    def convert(
        self, source: str, out: Path, recipe: Recipe, layout: Layout, options: Mapping[str, Any]
    ) -> "Report":
        """Convert with options of `convert_in_steps`, learning or not, with a bar."""
        from ..checkpoint.convert import convert_in_steps
        from ..training.distillation import learn_in_steps
        from .show import byte_bar, count_bar, follow

        if not self.is_given:
            steps = convert_in_steps(source, out, recipe, layout=layout, **options)
            return follow(steps, byte_bar(f"Converting {source}"))
        learning = learn_in_steps(source, out, recipe, data=self.learn_data, **options)
        try:
            return follow(learning, count_bar(f"Learning {source}"))
        except KeyboardInterrupt:
            print("\nsmolvlm-mlx: the same command goes on", end="", file=sys.stderr)
            raise
