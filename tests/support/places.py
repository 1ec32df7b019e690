"""Where things are: the checkout, and what may lie beside it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
REAL_FILES = SHARED / "checkpoints"  # configs and tokenizers of the family, without weights
