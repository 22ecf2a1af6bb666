"""The naive meaning of a network: one einsum over dense operands, with every pattern built in full."""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from .network import Network, check_operands
from .nodes import Axis, Operand, Pattern, Selection, layout_legs
from .sampling import check_indices

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def einsum(net: Network, operands: Mapping[str, Tensor] | None = None, /, **tensors: Tensor) -> Any:
    """The naive meaning: ``(equation, dense operands)`` for `torch.einsum`, with 0/1 patterns built in full.

    Without operands, a callable that takes them and evaluates the expression.

    Example:
        >>> import torch
        >>> from randbp import tn
        >>> net = tn.conv(tn.ConvSpec((1, 1, 4), 1, 2))
        >>> equation, operands = net.einsum(input=torch.ones(1, 1, 4), weight=torch.ones(1, 1, 2))
        >>> torch.einsum(equation, *operands).tolist()
        [[[2.0, 2.0, 2.0]]]
        >>> net.einsum()(input=torch.ones(1, 1, 4), weight=torch.ones(1, 1, 2)).tolist()
        [[[2.0, 2.0, 2.0]]]
    """
    given = {**(operands or {}), **tensors}
    if given or set(net.slots) <= set(net.bound):
        return _arguments(net, given)
    return lambda **tensors: torch.einsum(*_arguments(net, tensors))


def _arguments(net: Network, tensors: Mapping[str, Tensor]) -> tuple[str, tuple[Tensor, ...]]:
    """The independent oracle of a contraction.

    Index patterns and selections are dense 0/1 tensors. Dimensions of the result that group or slice legs are made by
    dense 0/1 tensors as well, so the einsum has the very shape that `TensorNetwork.contract` returns.
    """
    tensors = {**net.bound, **tensors}
    check_operands(net, tensors, "einsum")
    check_indices(net, tensors)
    data = [tensors[slot] for slot in net.slots if slot not in net.index_slots]
    dtype, device = (data[0].dtype, data[0].device) if data else (torch.float32, torch.device("cpu"))
    if net.scale != 1 and not (dtype.is_floating_point or dtype.is_complex):
        dtype = torch.get_default_dtype()  # as integers times a number in `contract`
    letters: dict[str, str] = {}

    def letter(leg: str) -> str:
        if leg not in letters:
            if len(letters) == len(_LETTERS):
                raise ValueError(f"einsum: {net.name} has more than {len(_LETTERS)} legs, torch.einsum's limit")
            letters[leg] = _LETTERS[len(letters)]
        return letters[leg]

    def text(legs: tuple[str, ...]) -> str:
        return "".join(map(letter, legs))

    inputs: list[str] = []
    operands: list[Tensor] = []
    for node in net.nodes:
        inputs.append(text(node.legs))
        if isinstance(node, Operand):
            operands.append(_read(tensors[node.slot], node, net.sizes).to(dtype))
        elif isinstance(node, Pattern):
            operands.append(node.pattern.dense(dtype, device))
        else:
            operands.append(_one_hot(tensors[node.slot], node, net.sizes).to(dtype))
    held = {leg for node in net.nodes for leg in node.legs}
    for leg in layout_legs(net.output):
        if leg not in held:
            inputs.append(text((leg,)))
            operands.append(torch.ones(net.sizes[leg], dtype=dtype, device=device))
    result = ""
    for number, axis in enumerate(net.output):
        if len(axis.terms) == 1 and axis.is_plain(net.sizes):
            result += letter(axis.legs[0])
        else:
            dimension = letter(f"dimension {number}")
            inputs.append(text(axis.legs) + dimension)
            grouping = _positions(axis, net.sizes)[..., None] == torch.arange(axis.size)
            operands.append(grouping.to(device, dtype))
            result += dimension
    if net.scale != 1 or not operands:
        inputs.append("")
        operands.append(torch.tensor(net.scale, dtype=dtype, device=device))
    return f"{','.join(inputs)}->{result}", tuple(operands)


def _read(tensor: Tensor, node: Operand, sizes: Mapping[str, int]) -> Tensor:
    """One dimension per leg, picked element by element."""
    for dim, axis in reversed(list(enumerate(node.axes))):
        positions = _positions(axis, sizes).to(tensor.device)
        tensor = tensor.index_select(dim, positions.flatten()).unflatten(dim, positions.shape or (1,))
        if not axis.terms:
            tensor = tensor.squeeze(dim)
    return tensor


def _positions(axis: Axis, sizes: Mapping[str, int]) -> Tensor:
    positions = torch.tensor(axis.start)
    for leg, step in axis.terms:
        positions = positions[..., None] + step * torch.arange(sizes[leg])
    return positions


def _one_hot(index: Tensor, node: Selection, sizes: Mapping[str, int]) -> Tensor:
    targets = [sizes[leg] for leg in node.targets]
    positions = torch.arange(prod(targets), device=index.device)
    return (index.long()[..., None] == positions).long().unflatten(-1, targets)
