"""Factories of dense kernels, which are functions of tensors: reshapes, strided views, sums, matrix products."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_zeros

from ...layers.pattern import IndexPattern
from ..planning import machine
from .program import TensorFunction


def view(name: str, *arguments: Any) -> TensorFunction:
    """One of a tensor's own methods, such as ``"reshape"``."""
    return lambda x: getattr(x, name)(*arguments)


def arrange(split: tuple[int, ...], order: tuple[int, ...], merged: tuple[int, ...]) -> TensorFunction:
    """Split dimensions, permute them and merge them again."""
    if order == (1, 0):  # PyTorch copies the transpose of a plain matrix block by block
        return lambda x: x.reshape(split or x.shape).t().contiguous().reshape(merged)
    if split == ():
        return lambda x: x.permute(order).reshape(merged)
    return lambda x: x.reshape(split).permute(order).reshape(merged)


def reduce_sum(dims: tuple[int, ...]) -> TensorFunction:
    """Sum over dimensions in the tensor's own data type; over the last ones as a product with ones, if possible."""

    def kernel(x: Tensor) -> Tensor:
        first = x.ndim - len(dims)
        if dims[0] != first or not sums_by_products(x.dtype, x.device) or not x.is_contiguous():
            return x.sum(dims, dtype=x.dtype)
        flat = x.flatten(first)
        return torch.matmul(flat, flat.new_ones(flat.shape[-1]))

    return kernel


def sums_by_products(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether sums over contiguous lines may be products with ones, which are faster for short lines on a CPU.

    Other types, and other devices if they are set so, round what they multiply.
    """
    return device.type == "cpu" and dtype in (torch.float32, torch.float64)


def constant(shape: tuple[int, ...], value: int, dtype: torch.dtype, device: torch.device) -> TensorFunction:
    """A tensor of equal numbers: 1 as the operand of networks that hold no tensor, zeros of an empty sum."""
    return lambda: torch.full(shape, value, dtype=dtype, device=device)


def sliced(axes: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]) -> TensorFunction:
    """Read affine axes as strided views: per stored dimension its start, and ``(size, step)`` per leg."""

    def kernel(x: Tensor) -> Tensor:
        shape, strides, offset = [], [], x.storage_offset()
        for (start, terms), stride in zip(axes, x.stride(), strict=True):
            offset += start * stride
            for size, step in terms:
                shape.append(size)
                strides.append(step * stride)
        return x.as_strided(shape, strides, offset)

    return kernel


def embedded(shape: tuple[int, ...], axes: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]) -> TensorFunction:
    """Write affine axes: zeros of the stored shape with the tensor put in at its positions."""
    view = sliced(axes)

    def kernel(x: Tensor) -> Tensor:
        buffer = x.new_zeros(shape)
        view(buffer).copy_(x)
        return buffer

    return kernel


def window(dim: int, pattern: IndexPattern) -> TensorFunction:
    """A view of a padded dimension ``i`` as ``o`` (in its place) and ``k`` (last)."""
    reach = pattern.dilation * (pattern.kernel_size - 1) + 1

    def kernel(x: Tensor) -> Tensor:
        x = x.unfold(dim, reach, pattern.stride)
        if x.shape[dim] > pattern.output_size:
            x = x.narrow(dim, 0, pattern.output_size)
        return x[..., :: pattern.dilation] if pattern.dilation > 1 else x

    return kernel


def windows(patterns: tuple[tuple[int, IndexPattern], ...]) -> TensorFunction:
    """A view of some dimensions, padded with zeros, as ``o`` (in their place) and ``k…`` (last, in this order)."""
    margins: dict[int, tuple[int, int]] = {}
    for dim, p in patterns:
        length = p.stride * (p.output_size - 1) + p.dilation * (p.kernel_size - 1) + 1
        margins[dim] = p.padding, max(0, length - p.padding - p.input_size)
    views = [window(dim, p) for dim, p in patterns]
    padded = any(map(any, margins.values()))

    def kernel(x: Tensor) -> Tensor:
        if padded:
            dims = range(x.ndim - 1, min(margins) - 1, -1)
            x = pad_zeros(x, [side for dim in dims for side in margins.get(dim, (0, 0))])
        for view in views:
            x = view(x)
        return x

    return kernel


def place(pattern: IndexPattern, keep_o: bool, keep_k: bool) -> TensorFunction:
    """The transpose of `window`: ``[…, o, k] → […, i, (o), (k)]``, adding up entries of the same position.

    The last two dimensions may have size one, which stands for a constant.
    """
    reach = pattern.dilation * (pattern.kernel_size - 1) + 1
    length = max(pattern.padding + pattern.input_size, pattern.stride * (pattern.output_size - 1) + reach)
    extra = (pattern.output_size,) * keep_o + (pattern.kernel_size,) * keep_k

    def kernel(x: Tensor) -> Tensor:
        rest = x.shape[:-2]
        dim = len(rest)
        buffer = x.new_zeros((*rest, length, *extra))
        view = window(dim, pattern)(buffer)  # rest, o, (o), (k), k
        if keep_k:
            view = view.diagonal(0, dim + 1 + keep_o, view.ndim - 1)  # rest, o, (o), k
        if keep_o:
            view = view.diagonal(0, dim, dim + 1).transpose(-1, -2)  # rest, o, k
        if keep_o or keep_k:
            view.copy_(x.expand(*rest, pattern.output_size, pattern.kernel_size))
        else:
            for entry in range(pattern.kernel_size):
                view[..., entry] += x[..., entry if x.shape[-1] > 1 else 0]
        return buffer.narrow(dim, pattern.padding, pattern.input_size)

    return kernel


def matmul(transpose_left: bool, transpose_right: bool) -> TensorFunction:
    """A (batched) matrix product, reading an operand transposed where that saves a copy."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        left = lying(a)
        right = left if b is a else lying(b)
        return (left.mT if transpose_left else left) @ (right.mT if transpose_right else right)

    return kernel


def lying(x: Tensor) -> Tensor:
    """The matrices ``[…, M, K]``, copied if neither rows nor columns lie in one piece, one behind the other.

    PyTorch's batched product would take the others apart and copy them one by one.

    Example:
        >>> first, last = torch.zeros(5, 3, 4).transpose(0, 1), torch.zeros(4, 5, 3).movedim(2, 0)
        >>> lying(first) is first, lying(last) is last
        (True, False)
    """
    (rows, columns), (row, column) = x.shape[-2:], x.stride()[-2:]
    if (column == 1 and row >= columns) or (row == 1 and column >= rows):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def repeated_matmul(count: int) -> TensorFunction:
    """``a [1, …, M, K]`` times ``b [count, …, K, N]``, with ``a`` repeated in place."""
    return lambda a, b: torch.bmm(a.expand(count, -1, -1), b) if a.ndim == 3 else a @ b


def summed_matmul() -> TensorFunction:
    """``a [N, M, K]`` times ``b [N, L, K]``, summed over ``N`` to ``[M, L]``, with few products held at a time."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        a, b = lying(a), lying(b).transpose(1, 2)
        at_once = max(1, machine.cpu.products // (a.shape[1] * b.shape[2]))
        total: Tensor | None = None
        for left, right in zip(a.split(at_once), b.split(at_once), strict=True):
            part = torch.bmm(left, right).sum(0)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    return kernel


def add_product(place: Tensor, left: Tensor, right: Tensor, first: bool = False) -> None:
    """Add a matrix product to a matrix, or write it there."""
    beta = 0 if first else 1
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in (place, left, right)):
        try:
            torch.addmm(place, left, right, beta=beta, out=place)  # which PyTorch's flop counter sees
            return
        except NotImplementedError:  # in forward mode
            pass
    place.addmm_(left, right, beta=beta)


def multiply() -> TensorFunction:
    """The broadcast elementwise product."""
    return lambda a, b: a * b
