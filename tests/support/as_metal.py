"""MLX as it looks on a Mac, while it computes on the CPU: for tests of what the package does only
on a GPU.

    make test BACKEND=as-metal              an M1; AS_METAL=m3 and AS_METAL=m5 are larger machines

With `AS_METAL` in the environment and `site/` in `PYTHONPATH`, every Python that is started, the
suite's own and the children of its tests alike, looks at `mlx.core` through this file from the
moment that it is imported. So bfloat16 by default, joined projections, compiled kernels, the GPU's
chunk sizes and its memory limits run on any machine.

What it cannot show: Metal's kernels, their rounding and their speed; its allocator, which refuses a
buffer larger than `max_buffer_length`; work given to a stream of the GPU by name (`stream=mx.gpu`,
which raises here). `mx.compile` calls g++ and keeps the kernels in $TMPDIR/mlx; MLX leaves
functions as they are where there is no g++, so that nothing has to be installed.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

SITE = Path(__file__).parent / "site"


class Chip(NamedTuple):
    """What MLX says of a Mac's GPU, about as such machines report it; sizes in bytes."""

    name: str
    architecture: str
    memory: int
    working_set: int  # how much of the memory the GPU may use

    def info(self) -> dict[str, str | int]:
        return {
            "device_name": self.name,
            "architecture": self.architecture,
            "memory_size": self.memory,
            "max_recommended_working_set_size": self.working_set,
            "max_buffer_length": self.working_set * 3 // 4,
            "resource_limit": 499_000,
        }


CHIPS = {
    "m1": Chip("Apple M1", "applegpu_g13g", 8 * 2**30, 5_726_633_984),
    "m3": Chip("Apple M3", "applegpu_g15g", 16 * 2**30, 12_713_115_648),
    "m5": Chip("Apple M5 Max", "applegpu_g17s", 64 * 2**30, 55_662_780_416),
}


def environment(*folders: Path, chip: str | None = None) -> dict[str, str]:
    """What a child's environment has to hold, if it is made anew, for the child to see the same MLX
    as this process.

    Args:
        folders: its `PYTHONPATH`.
        chip: another one.
    """
    chip = chip or os.environ.get("AS_METAL")
    paths = os.pathsep.join(map(str, folders if chip is None else (SITE, *folders)))
    library = (
        {"LD_LIBRARY_PATH": os.environ["LD_LIBRARY_PATH"]}
        if "LD_LIBRARY_PATH" in os.environ
        else {}
    )
    return {"PYTHONPATH": paths, **library, **({} if chip is None else {"AS_METAL": chip})}


def install() -> None:
    """Look at `mlx.core` as `AS_METAL` says, from its import on."""
    name = os.environ.get("AS_METAL")
    if name is None:
        return
    if sys.platform == "darwin" or name not in CHIPS:
        # Python prints what else sitecustomize raises, and forgets it.
        raise SystemExit(
            f"AS_METAL={name}: one of {', '.join(CHIPS)}, and on Linux, where MLX computes on the "
            "CPU"
        )
    sys.meta_path.insert(0, _Finder(CHIPS[name]))


class _Finder(MetaPathFinder):
    """Finds `mlx.core` where it is, with a loader that patches it."""

    def __init__(self, chip: Chip):
        self._chip = chip

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == "mlx.core" else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Patching(spec.loader, self._chip)
        return spec


class _Patching(Loader):
    def __init__(self, loader: Loader, chip: Chip):
        self._loader, self._chip = loader, chip

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        patch(module, self._chip)


def patch(mx: Any, chip: Chip) -> None:
    """Replace what `mlx.core` says of devices and streams."""
    metal = _Metal(mx, chip)
    for name in (
        "default_device",
        "set_default_device",
        "is_available",
        "device_count",
        "device_info",
    ):
        setattr(mx, name, getattr(metal, name))
    for name in ("new_stream", "new_thread_local_stream", "new_thread_unsafe_stream"):
        setattr(mx, name, metal.making(getattr(mx, name)))
    for name in ("default_stream", "synchronize"):
        setattr(mx, name, metal.on_the_cpu(getattr(mx, name)))
    mx.fast.scaled_dot_product_attention = metal.attention(mx.fast.scaled_dot_product_attention)
    mx.stream = mx.StreamContext = metal.stream
    mx.set_wired_limit = mx.metal.set_wired_limit = metal.set_wired_limit
    mx.metal.is_available = lambda: True
    mx.metal.device_info = chip.info


class _Metal:
    """The devices of a Mac: which one is the default, and which streams are the GPU's."""

    def __init__(self, mx: Any, chip: Chip):
        self._mx, self._chip = mx, chip
        self._cpu, self._gpu = mx.Device(mx.cpu, 0), mx.Device(mx.gpu, 0)
        self._default = self._gpu
        # Of the GPU; the default streams of both devices are one and the same.
        self._streams: list[Any] = []
        self._wired_limit = 0
        self._real_context = mx.StreamContext
        self._real_info = mx.device_info
        self._real_count = mx.device_count

    def default_device(self) -> Any:
        return self._default

    def set_default_device(self, device: Any) -> None:
        self._default = self._gpu if device == self._gpu else self._cpu

    def is_available(self, device: Any) -> bool:
        return device in (self._cpu, self._gpu)

    def device_count(self, device_type: Any) -> int:
        return 1 if device_type == self._mx.gpu else int(self._real_count(device_type))

    def device_info(self, d: Any = None) -> dict[str, str | int]:
        device = self._default if d is None else d
        info: dict[str, str | int] = (
            self._chip.info() if device == self._gpu else self._real_info(device)
        )
        return info

    def set_wired_limit(self, limit: int) -> int:
        """As in mlx/backend/metal/allocator.cpp."""
        if limit > self._chip.working_set:
            raise ValueError(
                "[metal::set_wired_limit] Setting a wired limit larger than the maximum working "
                "set size."
            )
        self._wired_limit, before = limit, self._wired_limit
        return before

    def on_the_cpu(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with the CPU in place of the GPU."""
        return lambda *devices: function(
            *(self._cpu if device == self._gpu else device for device in devices)
        )

    def making(self, function: Callable[..., Any]) -> Callable[[Any], Any]:
        """The function, which makes a stream, with the CPU in place of the GPU; it is known as the
        GPU's from then on."""

        def made(device: Any) -> Any:
            stream = self.on_the_cpu(function)(device)
            if device == self._gpu:
                self._streams.append(stream)
            return stream

        return made

    @contextmanager
    def stream(self, s: Any) -> Iterator[None]:
        """As `mx.stream`: the device, or the stream's device, is the default."""
        before = self._default
        if s in (self._cpu, self._gpu):
            self._default = s if isinstance(s, self._mx.Device) else self._mx.Device(s, 0)
        elif s in self._streams:
            self._default = self._gpu
        try:
            with self._real_context(self._cpu if s == self._gpu else s):
                yield
        finally:
            self._default = before

    def attention(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with an error for `force_fused` where Metal has no fused kernel."""

        def attention(q: Any, k: Any, v: Any, *, force_fused: bool = False, **options: Any) -> Any:
            on_gpu = self._default == self._gpu
            if (
                force_fused
                and on_gpu
                and not is_fused(q.shape, k.shape, v.shape, options.get("mask"))
            ):
                raise ValueError(
                    "[scaled_dot_product_attention] force_fused=True but no fused kernel is "
                    "available."
                )
            return function(q, k, v, force_fused=force_fused and not on_gpu, **options)

        return attention


def is_fused(q: Sequence[int], k: Sequence[int], v: Sequence[int], mask: object) -> bool:
    """Whether Metal has one kernel for attention on these shapes (`has_fused_kernel` in
    mlx/backend/metal/scaled_dot_product_attention.cpp of MLX 0.32)."""
    (queries, keys), (width, value_width) = (q[2], k[2]), (q[3], v[3])
    if queries > 8:
        in_order = mask != "causal" if isinstance(mask, str | None) else True
        return (
            width == value_width
            and width in (64, 72, 80, 96, 128, 192, 256)
            and (in_order or queries <= keys)
        )
    same = width == value_width and width in (64, 96, 128, 192, 256)
    return (
        (same or (width, value_width) == (192, 128))
        and queries <= keys
        and queries * q[1] // k[1] <= 32
    )
