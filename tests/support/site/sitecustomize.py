"""Python imports this at its start where this folder is in `PYTHONPATH`: see ../as_metal.py."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

NAME = "tests.support.as_metal"  # by which the tests import it

spec = spec_from_file_location(NAME, Path(__file__).parents[1] / "as_metal.py")
assert spec is not None
assert spec.loader is not None
sys.modules[NAME] = as_metal = module_from_spec(spec)
spec.loader.exec_module(as_metal)
as_metal.install()
