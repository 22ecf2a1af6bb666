"""Max-pooling that stores the position of each maximum within its window in a few bits."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from .operator import fused
from .packing import pack, packed_size, unpack

aten = torch.ops.aten


def position_bits(kernel: Sequence[int]) -> int:
    """Bits per position: 1, 2, 4 or 8, for windows of at most 256 entries.

    Example:
        >>> position_bits((3, 3)), position_bits((2, 2, 2))
        (4, 4)
    """
    return next(bits for bits in (1, 2, 4, 8) if prod(kernel) <= 2**bits)


def three_of_each(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], *sizes: Sequence[int]
) -> list[list[int]]:
    """A geometry in three dimensions, for kernels that know no others."""
    given = ((kernel, 1), (stride, 1), (padding, 0), (dilation, 1), *((size, 1) for size in sizes))
    return [[filler] * (3 - len(values)) + list(values) for values, filler in given]


def maxima(x: Tensor, kernel: Sequence[int], *geometry: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Empty tensors for maxima and positions."""
    planes, output_size = len(x), geometry[-1]
    nbytes = packed_size(prod(output_size), position_bits(kernel))
    return x.new_empty(planes, *output_size), x.new_empty(planes, nbytes, dtype=torch.uint8)


@fused(maxima)
def max_pool(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    output_size: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Take the maxima of windows, with PyTorch's bits, and pack their positions within the windows.

    A position counts the entries of the window, padding included, the last dimension fastest. As in PyTorch, of equal
    entries the first is taken, and the last one of those that are NaN.

    Args:
        x: ``[P, H, W]`` or ``[P, D, H, W]``.
        kernel: Sizes of a window, two or three, with at most 256 entries.
        stride: As in PyTorch, one for each dimension.
        padding: The same.
        dilation: The same.
        output_size: Of a plane of maxima.

    Returns:
        ``[P, *output_size]`` and ``uint8 [P, bytes]``, plane by plane as :func:`.packing.pack` lays out.

    Example:
        >>> y, positions = max_pool(torch.tensor([[[1.0, 2.0], [4.0, 3.0]]]), [2, 2], [2, 2], [0, 0], [1, 1], [1, 1])
        >>> y.item(), positions
        (4.0, tensor([[2, 0]], dtype=torch.uint8))
    """
    if not len(x):  # no planes, which PyTorch refuses
        return maxima(x, kernel, output_size)
    function = aten.max_pool2d_with_indices if len(kernel) == 2 else aten.max_pool3d_with_indices
    ceil = _rounds_up(x.shape[1:], output_size, kernel, stride, padding, dilation)
    y, indices = function(x.unsqueeze(0), kernel, stride, padding, dilation, ceil)
    offsets = offsets_of(indices[0], x.shape[1:], kernel, stride, padding, dilation)
    return y[0], pack(offsets.to(torch.uint8).flatten(1), position_bits(kernel))


@fused(lambda grad, *args: grad.new_empty(len(grad), *args[-1]))
def max_pool_grad(
    grad: Tensor, codes: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], input_size: Sequence[int],
) -> Tensor:  # fmt: skip
    """Compute the input gradient of :func:`max_pool`: each output gradient is added where the maximum was.

    Args:
        grad: ``[P, *output_size]``.
        codes: The packed positions.
        kernel: As in the forward pass.
        stride: The same.
        padding: The same.
        dilation: The same.
        input_size: Of a plane.

    Returns:
        ``[P, *input_size]``; gradients that meet are added in the order of the outputs, which is PyTorch's.

    Example:
        >>> positions = torch.tensor([[2, 0]], dtype=torch.uint8)
        >>> max_pool_grad(torch.ones(1, 1, 1), positions, [2, 2], [2, 2], [0, 0], [1, 1], [2, 2])
        tensor([[[0., 0.],
                 [1., 0.]]])
    """
    if not len(grad):
        return grad.new_empty(0, *input_size)
    output_size, dims = grad.shape[1:], len(kernel)
    offsets = unpack(codes, position_bits(kernel), prod(output_size)).view(-1, *output_size)
    indices = indices_of(offsets, input_size, kernel, stride, padding, dilation)
    ceil = _rounds_up(input_size, output_size, kernel, stride, padding, dilation)
    function = aten.max_pool2d_with_indices_backward if dims == 2 else aten.max_pool3d_with_indices_backward
    like = grad.new_empty(1).expand(1, grad.shape[0], *input_size)
    result: Tensor = function(
        grad.unsqueeze(0), like, kernel, stride, padding, dilation, ceil, indices.unsqueeze(0)
    )[0]  # fmt: skip
    return result.contiguous()


def offsets_of(indices: Tensor, input_size: Sequence[int], *geometry: Sequence[int]) -> Tensor:
    """Positions within their windows, ``int32 [P, *O]``, of PyTorch's flat positions in a plane, ``[P, *O]``.

    The geometry is kernel, stride, padding and dilation, as in the forward pass.
    """
    (kernel, stride, padding, dilation), rest, weight = geometry, indices.int(), 1
    offsets = torch.zeros_like(rest)
    for dim in reversed(range(len(kernel))):
        coordinate = rest.remainder(input_size[dim]) if dim else rest
        rest = rest.div(input_size[dim], rounding_mode="floor") if dim else rest
        start = _starts(dim, indices.shape[1:], stride, padding, indices.device)
        offsets.add_((coordinate - start).div_(dilation[dim], rounding_mode="floor"), alpha=weight)
        weight *= kernel[dim]
    return offsets


def indices_of(offsets: Tensor, input_size: Sequence[int], *geometry: Sequence[int]) -> Tensor:
    """The inverse of :func:`offsets_of`, ``int64 [P, *O]``."""
    starts, steps = places(input_size, offsets.shape[1:], *geometry)
    indices = steps.to(offsets.device, torch.int64)[offsets.long()]
    return indices.add_(starts.to(offsets.device).view(offsets.shape[1:]))


def places(input_size: Sequence[int], output_size: Sequence[int], *geometry: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Where windows begin in a flat plane, ``[∏O]``, and how far from there their entries lie, ``[∏K]``; ``int32``.

    Example:
        >>> places([3, 5], [1, 2], [2, 2], [1, 3], [0, 1], [1, 1])
        (tensor([-1,  2], dtype=torch.int32), tensor([0, 1, 5, 6], dtype=torch.int32))
    """
    starts = steps = torch.zeros(1, dtype=torch.int32)
    weight, each = 1, zip(input_size, output_size, *geometry, strict=True)
    for size, count, k, s, p, d in reversed(list(each)):
        first, further = torch.arange(count).mul(s).sub(p).mul(weight), torch.arange(k).mul(d * weight)
        starts, steps = ((new.int().unsqueeze(1) + old).view(-1) for new, old in ((first, starts), (further, steps)))
        weight *= size
    return starts, steps


def _rounds_up(sizes: Sequence[int], output_size: Sequence[int], *geometry: Sequence[int]) -> bool:
    """Whether the output is longer than whole windows make it, along any dimension."""
    each = zip(sizes, output_size, *geometry, strict=True)
    return any(count != (size + 2 * p - d * (k - 1) - 1) // s + 1 for size, count, k, s, p, d in each)


def _starts(
    dim: int, output_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], device: torch.device
) -> Tensor:
    """Input coordinate at which windows begin, along one dimension of ``[P, *O]``."""
    start = torch.arange(output_size[dim], dtype=torch.int32, device=device) * stride[dim] - padding[dim]
    return start.view(-1, *[1] * (len(output_size) - 1 - dim))
