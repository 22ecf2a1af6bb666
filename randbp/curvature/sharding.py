"""Parameters that are sharded over processes (``fully_shard``)."""

from typing import Any

from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a ``DTensor``.

    Example:
        >>> import torch
        >>> is_sharded(torch.ones(2))
        False
    """
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """Gather a sharded tensor on all processes, which must call this together; return any other tensor unchanged."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return full


def shard(tensor: Tensor, like: Any) -> Tensor:
    """Shard a tensor that all processes hold in the way that another tensor is sharded."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
