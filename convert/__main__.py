"""`python -m convert` from a checkout is `smolvlm-mlx convert`; without arguments it lists the
named recipes."""

import sys

from smolvlm_mlx.checkpoint.choices import RECIPES
from smolvlm_mlx.cli.main import main


def list_recipes() -> None:
    print("python -m convert SOURCE OUT --recipe NAME\n")
    print(
        f"{'name':21} bits of decoder layers, embeddings and head, vision tower (16: not quantized)"
    )
    for name, recipe in RECIPES.items():
        print(
            f"{name:21} {recipe.bits or 16}, {recipe.embedding_bits or 16}, "
            f"{recipe.vision_bits or 16}"
        )


if __name__ == "__main__":
    if len(sys.argv) == 1:
        list_recipes()
    else:
        sys.argv.insert(1, "convert")
        main()
