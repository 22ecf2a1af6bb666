"""The tensor network as users meet it: its data, with all moves as methods."""

from . import contraction, moves
from .compose import compose as _compose
from .compose import outer as _outer
from .diagram.drawing import draw as _draw
from .einsum import einsum as _einsum
from .network import Network
from .planning.path_report import path_report as _path_report
from .sampling import subsample as _subsample
from .simplify import simplify as _simplify


class TensorNetwork(Network):
    """A multilinear map written as tensors that share legs; legs that are not in the output are summed.

    Networks are immutable values: every move returns a new one. Two networks of the same structure and sizes
    are equal and share one contraction plan, whatever index values they carry.

    Args:
        nodes: Operands, patterns and selections.
        leg_sizes: ``(leg, size)`` pairs, sorted by leg.
        output: Layout of the result.
        scale: Number that multiplies the result.
        name: Name of the result, for printing.
        bound: Tensors that are already attached to slots (indices and weights of `subsample`).

    Example:
        >>> import torch
        >>> from randbp import tn
        >>> spec = tn.ConvSpec((2, 3, 8, 8), out_channels=4, kernel_size=3, padding=1)
        >>> net = tn.weight_vjp(spec)
        >>> print(net)
        weight_vjp: input[n g·c i1 i2] Π[i1 o1 k1] Π[i2 o2 k2] output_grad[n g·d o1 o2] → [g·d c k1 k2]
        >>> net.contract(input=torch.randn(2, 3, 8, 8), output_grad=torch.randn(2, 4, 8, 8)).shape
        torch.Size([4, 3, 3, 3])
    """

    remove = moves.remove
    vjp = moves.vjp
    jvp = moves.jvp
    sum = moves.sum_legs
    with_leg = moves.with_leg
    rename = moves.rename
    group = moves.group
    scaled = moves.scaled
    named = moves.named
    bind = moves.bind
    compose = _compose
    outer = _outer
    subsample = _subsample
    simplify = _simplify
    contract = contraction.contract
    plan = contraction.plan
    path_report = _path_report
    einsum = _einsum
    draw = _draw
