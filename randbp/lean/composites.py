"""PyTorch functions that call other functions with lean versions, which are used inside them, too.

Attention layers of ``nn.MultiheadAttention`` and ``nn.Transformer`` are one such function, with linear layers,
products, softmax and dropout inside.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._torch.hooks import written_out
from .rules import Call, is_unadorned, lean_version_of

_COMPOSITES = [
    F.multi_head_attention_forward,
    F.local_response_norm,
    F.gumbel_softmax,
    F.softmin,
    F.triplet_margin_with_distance_loss,
    torch.norm,
    Tensor.norm,
]


@lean_version_of(_COMPOSITES, exact=True)
def lean_inside(call: Call, *args: Any, **kwargs: Any) -> Any:
    """Run the function with the lean versions of the functions that it calls."""
    function = written_out(call.function)
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if function is None or not all(map(is_unadorned, given)):
        return NotImplemented
    with call.session.inside():
        return function(*args, **kwargs)
