"""A loaded model made fast for inference: its modules become other classes, with the same numbers.

The modules of `vision`, `connector` and `language` are the textbook's: they have gradients, and
parameters by the names of the checkpoint. On a GPU, projections that share an input become one, and
activations one kernel (`gpu`); on a CPU, NumPy multiplies and takes exponentials (`cpu`). A model
that was made fast for one device may be used on the other: slower, but as right.
"""

import mlx.core as mx

from ..smolvlm import SmolVLM
from . import cpu, gpu


def optimize(model: SmolVLM, lazy: bool = False) -> None:
    """Make a model fast on the default device, in place; with `lazy`, nothing is read or computed
    before it is used."""
    fast = cpu if mx.default_device().type == mx.DeviceType.cpu else gpu
    # Only these are held: a list of all modules would keep the separate projections alive.
    for module in [module for _, module in model.named_modules() if type(module) in fast.KINDS]:
        fast.swap(module)
        if not lazy:
            mx.eval(module.parameters())
