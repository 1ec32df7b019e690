"""What importing the package prepares, and what is said where OpenBLAS is not there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import PIL
import pytest

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="OpenBLAS is for Linux")
SHOW = (
    "import sys, smolvlm_mlx; print('mlx.core' in sys.modules); "
    "import ctypes; print(hasattr(ctypes.CDLL(None), 'PyInit__imagingmath')); "
    "from smolvlm_mlx import device; print(device.training_problem())"
)


def python(source: str, **environment: str) -> list[str]:
    run = [sys.executable, "-c", source]
    return subprocess.run(
        run, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def on_the_cpu() -> bool:
    return python("from smolvlm_mlx import device; print(device.name())") == ["cpu"]


@ON_LINUX
def test_openblas_is_loaded_before_mlx() -> None:
    libraries = python("import smolvlm_mlx; print(open('/proc/self/maps').read())")
    is_loaded = any("openblas" in line for line in libraries)
    imported, _, problem = python(SHOW)
    assert imported == "False"
    assert (problem == "None") == (is_loaded or not on_the_cpu())


@ON_LINUX
def test_training_without_openblas_is_said(tmp_path: Path) -> None:
    (tmp_path / "libopenblas.so.0").touch()  # which is what the loader finds first, and cannot load
    imported, loaded, problem = python(SHOW, LD_LIBRARY_PATH=str(tmp_path))
    assert (imported, loaded) == ("False", "False")
    assert ("apt-get install libopenblas0-pthread" in problem) == on_the_cpu()


@ON_LINUX
@pytest.mark.parametrize(
    ("before", "loaded", "problem"),
    [
        ("", "True", ""),
        ("import mlx.core; ", "False", "import smolvlm_mlx before mlx"),
        ("import sys; sys.platform = 'darwin'; ", "False", ""),
    ],
)
def test_openblas_is_loaded_where_it_helps(
    before: str, loaded: str, problem: str, tmp_path: Path
) -> None:
    """In its place a library with one name, which others find only if it was loaded for all."""
    (library,) = Path(PIL.__file__).parent.glob("_imagingmath.*.so")
    shutil.copy(library, tmp_path / "libopenblas.so.0")
    _, found, said = python(before + SHOW, LD_LIBRARY_PATH=str(tmp_path))
    assert found == loaded
    assert problem in said if problem and on_the_cpu() else said == "None"
