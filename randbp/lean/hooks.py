"""The saved-tensor hooks around a piece of code: the one place that asks PyTorch's internals about them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]


def hooks_in_force() -> Hooks | None:
    """Innermost pack and unpack hook of ``torch.autograd.graph.saved_tensors_hooks``; ``None`` if there are none.

    Where PyTorch does not tell (the function has no public name), the answer is ``None``.

    Example:
        >>> pack = lambda tensor: tensor
        >>> with torch.autograd.graph.saved_tensors_hooks(pack, pack):
        ...     hooks_in_force() == (pack, pack)
        True
    """
    autograd: Any = getattr(torch._C, "_autograd", None)
    top = getattr(autograd, "_top_saved_tensors_default_hooks", None)
    if top is None:
        return None
    try:
        found: Hooks | None = top(False)
    except TypeError:  # an older signature
        return None
    return found


def transforms_at_work() -> bool:
    """Whether ``torch.func`` transforms the code, or forward-mode differentiation runs."""
    functorch = getattr(torch._C, "_are_functorch_transforms_active", None)
    level: int = getattr(torch.autograd.forward_ad, "_current_level", -1)
    return (functorch is not None and functorch()) or level >= 0
