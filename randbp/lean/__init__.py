"""Lean mode: operations that hold the least for backward that still gives their gradient.

One mechanism serves modules and plain function calls alike. ``nn.ReLU`` calls ``F.relu``, and so do people; a
:class:`torch.overrides.TorchFunctionMode`, entered by the model's forward pass, sees both and calls a lean version where
there is one (:mod:`.piecewise`, :mod:`.pooling`, :mod:`.dropout`, :mod:`.smooth`, :mod:`.norms`, :mod:`.products`).
"""

from . import dropout, norms, piecewise, pooling, products, smooth
from .install import Lean, LeanHandle, check_lean, make_lean

__all__ = [
    "Lean",
    "LeanHandle",
    "check_lean",
    "dropout",
    "make_lean",
    "norms",
    "piecewise",
    "pooling",
    "products",
    "smooth",
]
