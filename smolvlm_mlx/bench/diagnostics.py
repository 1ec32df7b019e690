"""What can fall back to a slower way without a word: BLAS, the device, M5's matmul units, fused
attention, dtypes and more.

docs/performance.md says which kernels of Metal each of them decides on, and how that is known.
"""

import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution

import mlx.core as mx
import mlx.nn as nn

from .. import device
from ..model import SmolVLM
from ..model.language import MLP, Attention
from ..model.vision import VisionAttention
from .machine import dtype_name, is_fused

# Environment variables by which MLX takes other kernels than it would.
SWITCHES = (
    "MLX_DISABLE_COMPILE MLX_ENABLE_TF32 MLX_SDPA_PAD_HEAD_DIM MLX_SDPA_BLOCKS MLX_METAL_GPU_ARCH "
    "MLX_MAX_OPS_PER_BUFFER"
).split()
UNITS_MACOS, UNITS_WHEEL = (26, 2), (26, 0)  # from which MLX uses the matmul units of the M5
# By bits: quantized products of one row are fastest where the matrix has a multiple of so many
# inputs.
FAST_INPUTS = {4: 512, 8: 256}
FAMILY_HEADS = (64, 72)  # widths of the vision towers' attention heads; the decoders' are 64, too


@dataclass(frozen=True)
class Check:
    """One of them; not `fine` where a faster way is there and not taken."""

    name: str
    value: str
    fine: bool = True


def machine_checks(
    heads: Iterable[int] = FAMILY_HEADS, dtype: mx.Dtype = mx.bfloat16
) -> list[Check]:
    """Of this process. `heads` are widths of the vision tower's attention heads."""
    checks = []
    if device.name() == "cpu":
        if sys.platform == "linux":
            checks.append(
                Check("BLAS", f"NumPy's; {device.training_problem() or 'OpenBLAS for training'}")
            )
        if mx.device_count(mx.gpu):
            checks.append(Check("device", "the CPU, though there is a GPU", fine=False))
        checks.append(Check("fused attention", "none on a CPU, where it is NumPy's"))
    else:
        checks.append(
            _fused("fused attention", {f"head width {n}": is_fused(n, dtype=dtype) for n in heads})
        )
    if device.name() == "metal":
        architecture = str(mx.device_info(mx.default_device()).get("architecture", ""))
        checks.append(matmul_units(architecture, platform.mac_ver()[0], _wheel("mlx-metal")))
    switched = [f"{name}={os.environ[name]}" for name in SWITCHES if name in os.environ]
    if switched:
        checks.append(
            Check("environment", f"{', '.join(switched)}: MLX may take other kernels", fine=False)
        )
    return checks


def matmul_units(architecture: str, macos: str, wheel: str) -> Check:
    """Whether MLX uses an M5's matmul units: its rule in mlx/backend/metal/device.h, and what its
    wheels are built with.

    Args:
        architecture: as MLX names it: applegpu_g17s is an M5 (g13 M1, g14 M2, g15 M3, g16 M4).
        macos: version of the system.
        wheel: tag of MLX's wheel for Metal, such as py3-none-macosx_26_0_arm64.
    """
    found = re.search(r"_g(\d+)([a-z]?)$", architecture)
    if found is None:
        return Check("matmul units", f"unknown architecture {architecture!r}")
    if int(found[1]) < (18 if found[2] == "p" else 17):
        return Check("matmul units", f"none in {architecture}")
    system, built = (
        tuple(map(int, re.findall(r"\d+", text)[:2]))
        for text in (macos, wheel.partition("macosx")[2])
    )
    if system >= UNITS_MACOS and built >= UNITS_WHEEL:
        return Check("matmul units", "used, but for float32")
    needed = "MLX uses them from macOS 26.2 on, with its wheel for macOS 26"
    return Check(
        "matmul units",
        f"NOT USED on macOS {macos} with {wheel or 'no wheel'}; {needed}",
        fine=False,
    )


def _wheel(package: str) -> str:
    """The tag of an installed package's wheel; empty without one."""
    try:
        lines = (distribution(package).read_text("WHEEL") or "").splitlines()
    except PackageNotFoundError:
        return ""
    return next((line.removeprefix("Tag: ") for line in lines if line.startswith("Tag: ")), "")


def model_checks(model: SmolVLM, arrays: Mapping[str, mx.Dtype]) -> list[Check]:
    """Of a loaded model, and the dtypes of what it computed, by name."""
    dtype, text = model.language_model.norm.weight.dtype, model.config.text_config
    dtypes = _one_dtype(model, arrays, dtype)
    if device.name() != "cpu":
        heads = text.num_attention_heads, text.num_key_value_heads
        forms = {
            "prefill": is_fused(text.head_dim, 64, "causal", dtype, heads),
            "decode": is_fused(text.head_dim, 1, None, dtype, heads),
        }
        fused = _fused("fused attention of the decoder", forms)
        return [fused, dtypes, _joined(model), *_fast_products(model)]
    if dtype == mx.float32:
        return [dtypes]
    return [
        Check(
            "dtype", f"{dtype_name(dtype)}; a CPU computes float32 many times as fast", fine=False
        ),
        dtypes,
    ]


def _fused(name: str, forms: Mapping[str, bool]) -> Check:
    shown = ", ".join(f"{form}: {'yes' if fine else 'NO'}" for form, fine in forms.items())
    return Check(name, shown, all(forms.values()))


def _one_dtype(model: SmolVLM, arrays: Mapping[str, mx.Dtype], dtype: mx.Dtype) -> Check:
    # Integers are packed weights, and their scales in 8 bits.
    kinds = {array.dtype for array in model.named_parameters().values()}
    stored = {kind for kind in kinds if mx.issubdtype(kind, mx.floating)}
    values = {"weights": stored, **{name: {kind} for name, kind in arrays.items()}}
    other = {name: kinds for name, kinds in values.items() if kinds != {dtype}}
    mixed = "; ".join(
        f"{name}: {', '.join(sorted(map(dtype_name, kinds)))}" for name, kinds in other.items()
    )
    return Check(
        "dtypes", f"MIXED, {mixed}" if mixed else f"{dtype_name(dtype)} throughout", not mixed
    )


def _joined(model: SmolVLM) -> Check:
    modules = [
        module
        for module in model.modules()
        if isinstance(module, Attention | MLP | VisionAttention)
    ]
    joined = sum("qkv_proj" in module or "gate_up_proj" in module for module in modules)
    shown = (
        "all"
        if joined == len(modules)
        else f"{joined} of {len(modules)}; the rest differ in bits or dtype"
    )
    return Check("joined projections", shown, joined == len(modules))


def _fast_products(model: SmolVLM) -> list[Check]:
    """Of a quantized decoder; none of another."""
    packed = [
        layer for layer in model.language_model.modules() if isinstance(layer, nn.QuantizedLinear)
    ]
    if not packed:
        return []
    inputs = [
        (layer.scales.shape[1] * layer.group_size, FAST_INPUTS.get(layer.bits, 512))
        for layer in packed
    ]
    fast = [
        layer for layer, (count, block) in zip(packed, inputs, strict=True) if count % block == 0
    ]
    share = sum(layer.weight.nbytes for layer in fast) / sum(
        layer.weight.nbytes for layer in packed
    )
    return [
        Check("quantized products of one row", f"{share:.0%} of their bytes by the fastest kernel")
    ]
