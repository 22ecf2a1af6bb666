"""Power-average pooling: both of its powers are held with small relative errors.

With ``s`` the sum of ``x^p`` over a window the output is ``s^(1/p)``, and the gradient is ``v s^(1/p - 1) x^(p - 1)``.
Where a window is nearly zero the first power is huge and the second tiny, so an error in the second must be small
relative to the number itself, not only to those of other windows.
"""

from functools import partial
from math import inf, prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .composites import lean_inside
from .rules import Call, is_activation, lean_version_of
from .slopes import slopes
from .smooth import hold_slope


def _power_pool(
    dims: int,
    call: Call,
    input: Tensor,
    norm_type: Any,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
) -> Any:
    kernel = (kernel_size,) * dims if isinstance(kernel_size, int) else kernel_size
    usual = isinstance(norm_type, int | float) and norm_type not in (inf, -inf) and isinstance(kernel, tuple)
    if not (call.rounds and usual and is_activation(input) and len(kernel) == dims):
        return lean_inside(call, *call.args, **call.kwargs)
    powers = hold_slope(call, input, lambda part: part.pow(norm_type), slopes(call.session.bits, poles=True))
    with call.session.inside():  # PyTorch's steps
        means = getattr(F, f"avg_pool{dims}d")(powers, kernel_size, stride, 0, ceil_mode)
        sums = (torch.sign(means).detach() * F.relu(torch.abs(means))).mul(prod(kernel))
        return sums.pow(1.0 / norm_type)


for _dims in (1, 2, 3):
    lean_version_of([getattr(F, f"lp_pool{_dims}d")], exact=True)(partial(_power_pool, _dims))
