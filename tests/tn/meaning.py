"""What networks and moves mean, written down without contractions: the oracles of the generated networks."""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from randbp import tn

FEW_TERMS = 60_000  # index tuples that are worth to be visited one by one

Operands = Mapping[str, Tensor]


def terms(net: tn.TensorNetwork, operands: Operands, without: tuple[str, ...] = ()) -> tuple[dict[str, Tensor], Tensor]:
    """One term per index tuple of all legs: the values of the legs, and the product of what the nodes are there.

    Slots may be left out of the product.
    """
    operands = {**net.bound, **operands}
    number, stride = torch.arange(prod(net.sizes.values())), 1
    at = {}
    for leg, size in reversed(net.sizes.items()):
        at[leg] = number // stride % max(1, size)
        stride *= max(1, size)
    product = torch.full((len(number),), net.scale, dtype=torch.float64)
    for node in net.nodes:
        if isinstance(node, tn.Operand):
            if node.slot in without:
                continue
            product = product * operands[node.slot][tuple(position(axis, at) for axis in node.axes)]
        elif isinstance(node, tn.Pattern):
            p = node.pattern
            product = product * (at[node.i] == p.stride * at[node.o] + p.dilation * at[node.k] - p.padding)
        else:
            chosen = torch.zeros_like(number)
            for leg in node.targets:
                chosen = chosen * net.sizes[leg] + at[leg]
            index = operands[node.slot].long()[tuple(at[leg] for leg in (*node.batch, node.sample))]
            product = product * (index == chosen)
    return at, product


def position(axis: tn.Axis, at: Mapping[str, Tensor]) -> Tensor:
    """Where index tuples lie on an axis."""
    start = torch.full_like(next(iter(at.values())), axis.start)
    return sum((step * at[leg] for leg, step in axis.terms), start)


def network_value(net: tn.TensorNetwork, operands: Operands) -> Tensor:
    """The network, summed term by term."""
    if not net.sizes:
        return prod((t for t in {**net.bound, **operands}.values()), start=torch.tensor(net.scale, dtype=torch.float64))
    at, product = terms(net, operands)
    place = torch.zeros_like(next(iter(at.values())))
    for axis in net.output:
        place = place * axis.size + position(axis, at)
    result = torch.zeros(prod(net.output_shape), dtype=torch.float64)
    return result.index_add_(0, place, product).reshape(net.output_shape)


def is_plain(net: tn.TensorNetwork) -> bool:
    """Whether each dimension of the result just groups legs."""
    return all(axis.is_plain(net.sizes) for axis in net.output)


def by_legs(net: tn.TensorNetwork, value: Tensor) -> Tensor:
    """A plain result with one dimension per open leg."""
    return value.reshape([net.sizes[leg] for leg in net.open_legs])


def join(*factors: tuple[Tensor, tuple[str, ...]], to: tuple[str, ...]) -> Tensor:
    """The sum over products of tensors whose dimensions are named by legs."""
    numbers: dict[str, int] = {}
    arguments: list[object] = []
    for tensor, legs in factors:
        arguments += [tensor, [numbers.setdefault(leg, len(numbers)) for leg in legs]]
    return torch.einsum(*arguments, [numbers[leg] for leg in to])


def evaluated(net: tn.TensorNetwork, operands: Operands) -> Tensor:
    """The naive einsum, of what the network takes of some operands."""
    given = {**net.bound, **operands}
    equation, dense = net.einsum({slot: given[slot] for slot in net.slots})
    return torch.einsum(equation, *(tensor.double() for tensor in dense))


def subsampled(
    before: tn.TensorNetwork,
    after: tn.TensorNetwork,
    chosen: Mapping[str, tuple[Tensor, Tensor | None]],
    stored: tuple[str, ...],
    operands: Operands,
) -> Tensor:
    """The network before, its terms gathered by hand along the restricted legs and weighted, then summed.

    What is stored is not gathered: it comes as it is.
    """
    _, product = terms(before, operands, without=stored)
    legs, values = list(before.sizes), product.reshape(list(before.sizes.values()))
    for key in sorted(chosen, key=lambda key: key != "n"):
        index, weights = chosen[key]
        picked = [key] if key in legs else key.split()
        ahead = ["n"] if index.ndim == 2 else []
        rest = [leg for leg in legs if leg not in (*picked, *ahead)]
        values = values.permute([legs.index(leg) for leg in (*ahead, *rest, *picked)]).flatten(len(ahead) + len(rest))
        shape = (*index.shape[:-1], *(1,) * len(rest), index.shape[-1])
        wide = (*values.shape[:-1], index.shape[-1])
        values = values.gather(-1, index.long().reshape(shape).expand(wide))
        if weights is not None:
            values = values * weights.reshape(shape)
        legs = [*ahead, *rest, key]
    kept = [node for node in after.nodes if isinstance(node, tn.Operand) and node.slot in stored]
    factors = ((operands[n.slot].reshape([after.sizes[leg] for leg in n.legs]), n.legs) for n in kept)
    return join((values, tuple(legs)), *factors, to=after.open_legs).reshape(after.output_shape)


def composed(before: tn.TensorNetwork, inner: tn.TensorNetwork, into: str, operands: Operands) -> Tensor:
    """The inner network, then the outer one on its result."""
    outer = {slot: tensor for slot, tensor in operands.items() if slot in before.slots}
    return evaluated(before, {**outer, into: evaluated(inner, operands)})


def multiplied(
    left: tn.TensorNetwork,
    right: tn.TensorNetwork,
    share: tuple[str, ...],
    product: tn.TensorNetwork,
    operands: Operands,
) -> Tensor:
    """Both networks, then the product of their results."""
    names = iter(product.open_legs[len(left.open_legs) :])
    legs = tuple(leg if leg in share else next(names) for leg in right.open_legs)
    values = by_legs(left, evaluated(left, operands)), by_legs(right, evaluated(right, operands))
    return join((values[0], left.open_legs), (values[1], legs), to=product.open_legs).reshape(product.output_shape)


def vjp(before: tn.TensorNetwork, slot: str, cotangent: Tensor, operands: Operands) -> Tensor:
    """PyTorch's autograd through the naive einsum."""
    variable = torch.zeros(before.slots[slot], dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        value = evaluated(before, {**operands, slot: variable})
    (gradient,) = torch.autograd.grad(value, variable, cotangent.double(), materialize_grads=True)
    return gradient


def jacobian_times(
    before: tn.TensorNetwork, node: tn.Operand, after: tn.TensorNetwork, operands: Operands, value: Tensor
) -> tuple[Tensor, Tensor]:
    """A Jacobian times the tensor that was removed, and the network with that tensor."""
    shape = [before.sizes[leg] for leg in node.legs]
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    product = join((by_legs(after, value), after.open_legs), (tensor, node.legs), to=before.open_legs)
    expected = evaluated(before, {**operands, node.slot: tensor.reshape(node.shape)})
    return product.reshape(expected.shape), expected
