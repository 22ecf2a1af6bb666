"""Fused operations on tensors in few bits: reference in plain PyTorch, numba for processors, Triton for GPUs.

Each operation lies in a file of its own, its versions beside it. All give the same bits from the same seed; where sums
are taken in another order, the same up to rounding. :func:`backends` says what serves them here, and :func:`use` lets
one backend serve.
"""

from .decode import decode
from .encode import encode
from .narrow import narrow
from .operator import backends, use

__all__ = ["backends", "decode", "encode", "narrow", "use"]
