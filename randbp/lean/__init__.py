"""Lean mode: operations that hold the least for backward that still gives their gradient.

One mechanism serves modules and plain function calls alike. ``nn.ReLU`` calls ``F.relu``, and so do people; a
:class:`torch.overrides.TorchFunctionMode` sees both and calls a lean version where there is one (:mod:`.piecewise`,
:mod:`.pooling`, :mod:`.dropout`, :mod:`.smooth`, :mod:`.elementwise`, :mod:`.softmax`, :mod:`.norms`,
:mod:`.products`). The mode is entered with the outermost module of the model that runs and left with it, by forward
hooks: so a part of the model called alone is lean as well (a LightningModule's ``training_step`` calls its network, not
itself), and nothing outside the model is touched.

What is held goes through ``ctx.save_for_backward`` or on to the saved-tensor hooks around it, seeds included. So
activation checkpoints, offloading and measurements see it, and a checkpoint that runs a module again finds the same
tensors. Lines that a checkpoint runs outside any module call (a lambda) run PyTorch's operations both times: lean
versions step in only under the saved-tensor hooks that were in force when the innermost module was entered. Inside
``torch.compile``, ``torch.func`` and forward-mode differentiation everything is PyTorch's, too.
"""

from . import dropout, elementwise, norms, piecewise, pooling, products, smooth, softmax
from .install import Lean, LeanHandle, check_lean, make_lean

__all__ = [
    "Lean",
    "LeanHandle",
    "check_lean",
    "dropout",
    "elementwise",
    "make_lean",
    "norms",
    "piecewise",
    "pooling",
    "products",
    "smooth",
    "softmax",
]
