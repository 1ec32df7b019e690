"""What can fall back to a slower way without a word: BLAS, the device, fused attention, joined projections, mixed dtypes."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import mlx.core as mx

from . import backend
from .calibration import is_fused
from .model import SmolVLM
from .model.language import MLP, Attention
from .model.vision import VisionAttention

FAMILY_HEADS = (64, 72)  # widths of the vision towers' attention heads; the decoders' are 64, too


@dataclass(frozen=True)
class Check:
    """One of them; not `fine` where a faster way is there and not taken."""

    name: str
    value: str
    fine: bool = True


def machine_checks(heads: Iterable[int] = FAMILY_HEADS, dtype: mx.Dtype = mx.bfloat16) -> list[Check]:
    """Of this process. `heads` are widths of the vision tower's attention heads."""
    checks = []
    on_cpu = backend.name() == "cpu"
    if on_cpu and sys.platform == "linux":
        problem = backend.blas_problem()
        checks.append(Check("BLAS", problem or "OpenBLAS", problem is None))
    if on_cpu and mx.device_count(mx.gpu):
        checks.append(Check("device", "the CPU, though there is a GPU", fine=False))
    if on_cpu:
        checks.append(Check("fused attention", "none on a CPU; NumPy takes its exponentials"))
    else:
        fused = {width: is_fused(width, dtype=dtype) for width in heads}
        shown = ", ".join(f"head width {width}: {'yes' if fine else 'NO'}" for width, fine in fused.items())
        checks.append(Check("fused attention", shown, all(fused.values())))
    return checks


def model_checks(model: SmolVLM, arrays: Mapping[str, mx.Dtype]) -> list[Check]:
    """Of a loaded model, and the dtypes of what it computed, by name."""
    checks = []
    text, dtype = model.config.text_config, model.language_model.norm.weight.dtype
    if backend.name() != "cpu":
        forms = {
            "prefill": is_fused(text.head_dim, 64, "causal", dtype),
            "decode": is_fused(text.head_dim, 1, None, dtype),
        }
        shown = ", ".join(f"{name}: {'yes' if fine else 'NO'}" for name, fine in forms.items())
        checks.append(Check("fused attention of the decoder", shown, all(forms.values())))
    elif dtype != mx.float32:
        checks.append(Check("dtype", f"{_name(dtype)}; a CPU computes float32 many times as fast", fine=False))
    stored = {array.dtype for array in model.named_parameters().values()} - {mx.uint32}  # which is packed weights
    values = {"weights": stored, **{name: {kind} for name, kind in arrays.items()}}
    other = {name: kinds for name, kinds in values.items() if kinds != {dtype}}
    mixed = "; ".join(f"{name}: {', '.join(sorted(map(_name, kinds)))}" for name, kinds in other.items())
    checks.append(Check("dtypes", f"MIXED, {mixed}" if mixed else f"{_name(dtype)} throughout", not mixed))
    if backend.name() == "cpu":  # where projections stay apart
        return checks
    kinds = Attention | MLP | VisionAttention
    modules = [module for module in model.modules() if isinstance(module, kinds)]
    joined = sum("qkv_proj" in module or "gate_up_proj" in module for module in modules)
    shown = "all" if joined == len(modules) else f"{joined} of {len(modules)}; the rest differ in bits or dtype"
    checks.append(Check("joined projections", shown, joined == len(modules)))
    return checks


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
