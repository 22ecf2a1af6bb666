"""Selection of entries by a mask, which is held in one bit per entry instead of PyTorch's byte."""

from typing import Any

import torch
from torch import Tensor

from .packed import packed_mask, packing
from .rules import Call, is_plain, lean_version_of


@lean_version_of(
    [
        *(torch.where, Tensor.where, torch.masked_fill, Tensor.masked_fill, Tensor.masked_fill_),
        *(torch.masked_scatter, Tensor.masked_scatter, Tensor.masked_scatter_, Tensor.__setitem__),
    ],
    exact=True,
)
def _selection(call: Call, *args: Any, **kwargs: Any) -> Any:
    given = [*args, *kwargs.values()]
    masked = any(isinstance(value, Tensor) and value.dtype == torch.bool for value in given)
    if kwargs.get("out") is not None or not masked or not any(map(is_plain, given)):
        return NotImplemented
    with packing(packed_mask):
        return call.run()
