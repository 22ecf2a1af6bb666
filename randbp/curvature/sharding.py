"""Parameters of which each process holds a shard (``fully_shard``)."""

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
    """All of a tensor of which processes hold shards, on each of them, which must all ask; any other as it is."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return full


def shard(tensor: Tensor, like: Any) -> Tensor:
    """Of a tensor that all processes have, what each of them holds of another one."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
