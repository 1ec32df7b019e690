"""What importing the package prepares."""

import os
import subprocess
import sys

from smolvlm_mlx import backend

import pytest

SHOW = "import os, sys, smolvlm_mlx; print(os.environ.get('OPENBLAS_THREAD_TIMEOUT'), 'mlx.core' in sys.modules)"


@pytest.mark.skipif(sys.platform != "linux", reason="OpenBLAS is for Linux")
@pytest.mark.parametrize(("given", "want"), [(None, backend.THREAD_TIMEOUT), ("26", "26")])
def test_openblas_is_told_to_rest_before_mlx_is_there(given: str | None, want: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    if given is not None:
        environment["OPENBLAS_THREAD_TIMEOUT"] = given
    done = subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [want, "False"]
