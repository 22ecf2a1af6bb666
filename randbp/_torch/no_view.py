"""Results of autograd functions that may be changed in place."""

from torch import Tensor


def no_view(tensor: Tensor) -> Tensor:
    """The same memory as a tensor that is not a view of another one.

    PyTorch refuses to change an autograd function's result in place if it is a view, as that of ``F.linear`` with a
    bias on sequences is.

    Example:
        >>> import torch
        >>> rows = torch.zeros(6, 2)
        >>> result = no_view(rows.view(2, 3, 2))
        >>> result.shape, result._base is None, result.data_ptr() == rows.data_ptr()
        (torch.Size([2, 3, 2]), True, True)
    """
    if tensor._base is None:
        return tensor
    return tensor.new_empty(0).set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
