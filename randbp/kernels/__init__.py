"""Fused operations on tensors in few bits: reference in plain PyTorch, numba for processors, Triton for GPUs.

Each operation lies in a file of its own, its versions beside it. All give the same bits from the same seed; where sums
are taken in another order, the same up to rounding. :func:`backends` says what serves them here, and :func:`use` lets
one backend serve.
"""

from .channel_norm import channel_norm_backward
from .decode import decode
from .depthwise import depthwise_weight_vjp
from .encode import encode
from .encode_normalised import encode_normalised
from .gather import gather_planes
from .inside import inside
from .masked import masked
from .max_pool import max_pool, max_pool_grad
from .narrow import narrow
from .operator import Backend, backends, use
from .pair_sums import pair_sums
from .relu import relu
from .row_norm import row_norm_backward
from .scaled import scaled
from .slope_to_grid import slope_to_grid
from .times_grid import times_grid
from .to_grid import to_grid
from .unmask import unmask

__all__ = [
    "Backend",
    "backends",
    "channel_norm_backward",
    "decode",
    "depthwise_weight_vjp",
    "encode",
    "encode_normalised",
    "gather_planes",
    "inside",
    "masked",
    "max_pool",
    "max_pool_grad",
    "narrow",
    "pair_sums",
    "relu",
    "row_norm_backward",
    "scaled",
    "slope_to_grid",
    "times_grid",
    "to_grid",
    "unmask",
    "use",
]
