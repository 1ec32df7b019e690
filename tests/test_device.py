"""What importing the package prepares, and what is said where OpenBLAS is not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="OpenBLAS is for Linux")
SHOW = (
    "import sys, smolvlm_mlx; print('mlx.core' in sys.modules); "
    "from smolvlm_mlx import device; print(device.{})"
)


def python(source: str, **environment: str) -> list[str]:
    run = [sys.executable, "-c", source]
    return subprocess.run(
        run, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@ON_LINUX
def test_openblas_is_loaded_before_mlx() -> None:
    libraries = python("import smolvlm_mlx; print(open('/proc/self/maps').read())")
    is_loaded = any("openblas" in line for line in libraries)
    assert python(SHOW.format("load_openblas()")) == ["False", str(is_loaded)]


@ON_LINUX
def test_training_without_openblas_is_said(tmp_path: Path) -> None:
    (tmp_path / "libopenblas.so.0").touch()  # which is what the loader finds first, and cannot load
    said = python(SHOW.format("training_problem()"), LD_LIBRARY_PATH=str(tmp_path))
    assert said[0] == "False"
    on_cpu = python("from smolvlm_mlx import device; print(device.name())") == ["cpu"]
    assert ("apt-get install libopenblas0-pthread" in said[1]) == on_cpu
