"""PyTorch functions that call other functions with lean versions, which are used inside them, too.

Attention layers of ``nn.MultiheadAttention`` and ``nn.Transformer`` are one such function, with linear layers,
products, softmax and dropout inside.
"""

from typing import Any

from torch import Tensor

from .._torch.hooks import written_out
from .lean_call import Call, is_unadorned


def lean_inside(call: Call, *args: Any, **kwargs: Any) -> Any:
    """Run the function with the lean versions of the functions that it calls."""
    function = written_out(call.function)
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if function is None or not all(map(is_unadorned, given)):
        return NotImplemented
    with call.context.inside():
        return function(*args, **kwargs)
