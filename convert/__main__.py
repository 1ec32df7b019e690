"""`python -m convert` from a checkout is `smolvlm-mlx convert`; alone, and with --help, it lists
the named recipes with what they cost a 256M (`quality.py`)."""

import json
import sys
from pathlib import Path
from typing import Any

from smolvlm_mlx.checkpoint.choices import RECIPES
from smolvlm_mlx.cli.main import main

QUALITY = Path(__file__).parents[1] / "docs" / "quality.json"


def list_recipes() -> None:
    measured = {row["name"]: row for row in json.loads(QUALITY.read_text())["results"]}
    print("python -m convert SOURCE OUT --recipe NAME\n")
    print(f"{'':21} bits of                   {'a 256M with SmolLM2-135M':>38}")
    print(f"{'recipe':21} layers  embeddings  tower {'MB':>8} {'mean KL':>10} {'changed':>15}")
    for name, recipe in RECIPES.items():
        parts = (recipe.bits, recipe.embedding_bits, recipe.vision_bits)
        layers, embeddings, tower = (str(bits or 16) for bits in parts)
        line = f"{name:21} {layers:6}  {embeddings:10}  {tower:5}"
        print(line, _cost(measured[name]) if name in measured else "not measured")
        if (learned := measured.get(f"{name} learned")) is not None:
            print(f"{'  with --learn':46} {_cost(learned)}")
    print(
        "\nKL (nats) and top tokens against the source, in words; the tower counts in the size.\n"
        "--target-kl and --target-size choose bits by layer: docs/checkpoints.md.\n"
        "--check measures any result.\n"
    )


def _cost(row: dict[str, Any]) -> str:
    return f"{row['mb']:>8.1f} {row['kl_mean']:>10.2g} {row['changed']:>15.1%}"


if __name__ == "__main__":
    if {"--help", "-h"} & {*sys.argv[1:]} or len(sys.argv) == 1:
        list_recipes()
    if len(sys.argv) > 1:
        sys.argv.insert(1, "convert")
        main()
