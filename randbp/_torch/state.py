"""Query vmap state."""

from torch import Tensor


def has_storage(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own, unlike one that a vectorised Jacobian batches."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True
