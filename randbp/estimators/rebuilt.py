"""Kept positions put back a few examples at a time, where the exact kernel beats products of gathered rows."""

from collections.abc import Sequence
from math import prod

from torch import Tensor

from ..tn import LayerSpec, PositionClass
from ..tn.execute.rows import pieces
from .chunks import chunked_weight_vjp, chunks
from .positions import class_positions

NARROW = 8  # channels per group below which gathering output rows costs more than the products it saves
SMALL_KERNEL = 9  # entries up to which PyTorch's depthwise kernels are fast


def rebuilding_pays(spec: LayerSpec) -> bool:
    """Whether the exact weight VJP is so cheap that no sum over kept positions is cheaper.

    Each kept position with few channels meets output rows with many, so these layers (the first of a network, and
    depthwise ones with small kernels) are bound by memory. They then take the exact kernel's time and a little more,
    while what is held from forward to backward stays as small.

    Example:
        >>> from randbp import tn
        >>> rebuilding_pays(tn.ConvSpec((8, 3, 32, 32), 64, 3)), rebuilding_pays(tn.ConvSpec((8, 64, 32, 32), 64, 3))
        (True, False)
    """
    entries = prod(spec.kernel_size)
    if entries == 1 or spec.in_channels // spec.groups >= NARROW:
        return False
    return spec.groups == 1 or entries <= SMALL_KERNEL


def rebuilt_weight_vjp(
    kept: Sequence[tuple[PositionClass, Tensor, Tensor, float]],
    mean: Tensor | None,
    output_grad: Tensor,
    spec: LayerSpec,
) -> Tensor:
    """The exact weight VJP of an unbiased estimate of the input: ``m + I/|S| (X - m)`` where kept, ``m`` elsewhere.

    Args:
        kept: Per class its rows ``[N, S, C]``, which positions of the class they are ``[N or 1, S]``, and the weight of
            every kept entry.
        mean: What rows are deviations from, ``[N, C]``; zero if ``None``.
        output_grad: ``[N, D, *O]``.
        spec: The layer.
    """
    where = [class_positions(positions, spec, "input", rows.device)[local] for positions, rows, local, _ in kept]

    def rebuild(number: int, part: slice) -> Tensor:
        examples = part.stop - part.start
        flat = output_grad.new_zeros(examples, spec.in_channels, prod(spec.input_size))
        if mean is not None:
            flat += mean[part].unsqueeze(2)
        for (_, rows, _, weight), every in zip(kept, where, strict=True):
            values = rows[part] * weight
            if mean is not None:
                values += mean[part].unsqueeze(1)
            here = every if len(every) == 1 else every[part]
            flat.scatter_(2, here.unsqueeze(1).expand(examples, spec.in_channels, -1), values.transpose(1, 2))
        return flat.unflatten(2, spec.input_size)

    elements, device = spec.in_channels * prod(spec.input_size), output_grad.device
    parts = pieces(len(output_grad), elements, device) if device.type == "cpu" else chunks(len(output_grad))
    return chunked_weight_vjp(rebuild, parts, output_grad, spec)
