"""Lean mode: operations that hold the least for backward that still gives their gradient.

One mechanism serves modules and plain function calls alike. ``nn.ReLU`` calls ``F.relu``, and so do people; a
:class:`torch.overrides.TorchFunctionMode` sees both and calls a lean version where there is one (:mod:`.piecewise`,
:mod:`.prelu`, :mod:`.pooling`, :mod:`.power_pooling`, :mod:`.dropout`, :mod:`.selection`, :mod:`.comparisons`,
:mod:`.indexing`, :mod:`.smooth`, :mod:`.elementwise`, :mod:`.partials`, :mod:`.derived`, :mod:`.rowwise`,
:mod:`.spread`, :mod:`.norms`, :mod:`.products`, :mod:`.attention`, :mod:`.losses`, :mod:`.composites`). The mode is
entered with a module of the model and left with it: so a part of the model called alone is lean as well (a
LightningModule's ``training_step`` calls its network, not itself), and nothing outside the model is touched. Modules
get no hooks for that (:func:`randbp._torch.hooks.watch_calls`), and a module that is called in ``eval()`` mode or
without grad runs without the mode: to PyTorch they are as before, fast paths included.

Everything that is held, seeds included, goes through ``ctx.save_for_backward`` or to the outer saved-tensor hooks. So
activation checkpoints, offloading and measurements see it, and a checkpoint that runs a module again finds the same
tensors. Lines that a checkpoint runs outside any module call (a lambda) run PyTorch's operations both times: lean
versions step in only under the saved-tensor hooks that were in force when the innermost module was entered.

A step's peak also depends on tensors that are in use but not held. :mod:`.parts` runs the widest layers of a container
on a part of the batch at a time, which lowers the peak. Inside ``torch.compile``, ``torch.func`` and forward-mode
differentiation PyTorch's own functions run.
"""

from . import (
    attention,
    comparisons,
    composites,
    derived,
    dropout,
    elementwise,
    indexing,
    losses,
    norms,
    partials,
    piecewise,
    pooling,
    power_pooling,
    prelu,
    products,
    rowwise,
    selection,
    smooth,
    spread,
)
from .install import Lean, LeanHandle, check_lean, make_lean

__all__ = [
    "Lean",
    "LeanHandle",
    "attention",
    "check_lean",
    "comparisons",
    "composites",
    "derived",
    "dropout",
    "elementwise",
    "indexing",
    "losses",
    "make_lean",
    "norms",
    "partials",
    "piecewise",
    "pooling",
    "power_pooling",
    "prelu",
    "products",
    "rowwise",
    "selection",
    "smooth",
    "spread",
]
