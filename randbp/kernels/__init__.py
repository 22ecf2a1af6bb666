"""Fused operations on tensors in few bits: reference in plain PyTorch, numba for processors, Triton for GPUs.

All versions of an operation give the same bits from the same seed; where sums are taken in another order, the same up
to rounding. :func:`backends` says what serves them here, and :func:`use` lets one backend serve.
"""

from .channel_norm import channel_norm_backward
from .decode import decode
from .depthwise import depthwise_weight_vjp
from .encode import encode, encode_normalised
from .gather import gather_planes
from .grid_bits import times_grid, to_grid
from .mask_bits import inside, masked, relu, unmask
from .max_pool import max_pool, max_pool_grad
from .operator import Backend, backends, use
from .pair_sums import pair_sums
from .patches import gather_patches, scatter_patches
from .position_rows import position_rows
from .row_norm import row_norm_backward
from .scaled import scaled
from .stochastic_cast import narrow
from .systematic import systematic_rows

__all__ = [
    "Backend",
    "backends",
    "channel_norm_backward",
    "decode",
    "depthwise_weight_vjp",
    "encode",
    "encode_normalised",
    "gather_patches",
    "gather_planes",
    "inside",
    "masked",
    "max_pool",
    "max_pool_grad",
    "narrow",
    "pair_sums",
    "position_rows",
    "relu",
    "row_norm_backward",
    "scaled",
    "scatter_patches",
    "systematic_rows",
    "times_grid",
    "to_grid",
    "unmask",
    "use",
]
