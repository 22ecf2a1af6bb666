"""Tensors in a tree of values, and their storages, each once."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_ROWS, _COLUMNS = ("crow_indices", "col_indices", "values"), ("ccol_indices", "row_indices", "values")
_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    **dict.fromkeys((torch.sparse_csr, torch.sparse_bsr), _ROWS),
    **dict.fromkeys((torch.sparse_csc, torch.sparse_bsc), _COLUMNS),
}


def leaves(tree: Any) -> list[Any]:
    """What tuples, lists and mappings within one another consist of; PyTorch's own function knows fewer mappings."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, tuple | list):
        return [leaf for item in tree for leaf in leaves(item)]
    return leaves(list(tree.values())) if isinstance(tree, Mapping) else [tree]


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors in tuples, lists and mappings."""
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]


def parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors with a storage of their own that a (possibly sparse) tensor consists of."""
    names = _PARTS.get(tensor.layout)
    return (tensor,) if names is None else tuple(getattr(tensor, name)() for name in names)


def storages(tensors: Iterable[Tensor]) -> dict[int, torch.UntypedStorage]:
    """The distinct storages of some tensors, by identity: there is one Python object per storage while it lives."""
    found = (part.untyped_storage() for tensor in tensors for part in parts(tensor))
    return {id(storage): storage for storage in found}
