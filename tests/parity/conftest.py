"""The parity suite needs torch, transformers and, beside the checkout, ../shared; without them it
is not collected."""

import importlib.util
import sys

import smolvlm_mlx  # noqa: F401  loads OpenBLAS, before transformers imports mlx
from tests.support.places import SHARED

TOOLS = SHARED / "tools"

collect_ignore_glob: list[str] = []
if (
    all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    and (TOOLS / "torchvision_cpu.py").is_file()
):
    if importlib.util.find_spec("torchvision"):
        sys.path.insert(0, str(TOOLS))
        # It declares torchvision's operators, so that its CPU-less wheel imports.
        import torchvision_cpu  # noqa: F401
else:
    collect_ignore_glob.append("test_*.py")
