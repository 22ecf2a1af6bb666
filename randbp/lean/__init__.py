"""Lean mode: functions that hold for backward only what their gradient needs.

:mod:`.rules` lists all functions that are served, what their derivatives need and how that is held.

``nn.ReLU`` calls ``F.relu``, and so do users; a :class:`torch.overrides.TorchFunctionMode` sees both and calls a lean
version if there is one. The mode is entered with a module of the model and left with it. So a part of the model that is
called alone is lean as well (a LightningModule's ``training_step`` calls its network, not itself), and nothing outside
the model is touched. Modules get no hooks for that (:func:`randbp._torch.hooks.watch_calls`), and a module that is
called in ``eval()`` mode or without grad runs without the mode, with PyTorch's fast paths.

Everything that is held, seeds included, goes through ``ctx.save_for_backward`` or to the outer saved-tensor hooks. So
activation checkpoints, offloading and measurements see it, and a checkpoint that runs a module again finds the same
tensors. Lines that a checkpoint runs outside any module call (a lambda) run PyTorch's operations both times: lean
versions step in only under the saved-tensor hooks that were in force when the innermost module was entered.

A step's peak also depends on tensors that are in use but not held. :mod:`.split_batch` runs the widest layers of a
container on a part of the batch at a time, which lowers the peak. Inside ``torch.compile``, ``torch.func`` and
forward-mode differentiation PyTorch's own functions run.
"""

from .apply import Lean, LeanHandle, check_lean, make_lean

__all__ = ["Lean", "LeanHandle", "check_lean", "make_lean"]
