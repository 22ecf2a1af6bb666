"""Kernels for patterns with one leg summed on its own, which reduces ``Π`` to a small banded matrix.

Summed over ``o``, the matrix says which inputs a kernel entry meets: box sums, as in KFAC-reduce. Summed over ``i``, it
says which kernel entries do not lie in the padding: the VJP of a constant. Nothing as large as ``Π`` is ever built.
"""

from functools import reduce
from math import prod

import torch
from torch import Tensor

from ...layers.pattern import IndexPattern
from ..planning import machine
from .dense import add_product, sums_by_products
from .program import TensorFunction


def banded(
    patterns: tuple[IndexPattern, ...],
    ends: str,
    volume: int,
    dtype: torch.dtype,
    device: torch.device,
) -> TensorFunction:
    """``x [N, R, *source] → [N, R, target1·target2·…]``: contract each pattern with ones on its third leg.

    Sums of everything, and those of small grids and small tensors, take one matrix product with the Kronecker product
    of the bands. In large ones all dimensions but the last are first made short by a product of their band with each
    image, which reads the tensor as it lies, a few examples at a time; then the last one takes a product with its band,
    and what could not be made short with the bands that are left.
    """
    cpu, bands = machine.cpu, [band(pattern, *ends).double() for pattern in patterns]
    sources, targets = prod(matrix.shape[1] for matrix in bands), prod(map(len, bands))
    products = sums_by_products(dtype, device)
    if targets == 1 and not products and all(bool((matrix == 1).all()) for matrix in bands):
        return lambda x: x.flatten(2).sum(2, dtype=x.dtype).unsqueeze(2)
    little = sources * max(cpu.narrow, targets) <= cpu.joint or volume * targets <= cpu.small
    if little or (targets == 1 and products):
        joint = reduce(torch.kron, bands).t().to(device, dtype).contiguous()
        return lambda x: x.flatten(2) @ joint
    *outer, last = bands
    shorter = [cpu.shorter * len(matrix) <= matrix.shape[1] for matrix in outer]
    both = list(zip(outer, shorter, strict=True))
    first = [matrix.to(device, dtype) if pays else None for matrix, pays in both]
    later = [torch.eye(len(matrix), dtype=torch.double) if pays else matrix for matrix, pays in both]
    share = prod(matrix.shape[1] for matrix in later) / prod(matrix.shape[1] for matrix in outer)
    inner, done = last.t().to(device, dtype).contiguous(), all(shorter)
    others = reduce(torch.kron, later, torch.ones(1, 1, dtype=torch.double))
    small = others.numel() * len(last) ** 2 <= cpu.joint  # then its zeros cost less than many small products
    rest = torch.kron(others, torch.eye(len(last), dtype=torch.double)).t() if small else others
    rest = rest.to(device, dtype).contiguous()

    def kernel(x: Tensor) -> Tensor:
        held = max(machine.cpu.partial_sums, machine.cpu.partial_share * x.numel())
        size = max(1, int(held / max(1.0, share * x[0].numel())))
        result = x.new_empty(*x.shape[:2], targets)
        for start in range(0, len(x), size):
            some = slice(start, start + size)
            sums, place = _shortened(x[some], first), result[some]
            if done:
                add_product(place.view(-1, len(last)), sums, inner, first=True)
            elif small:
                add_product(place.view(-1, targets), (sums @ inner).view(-1, len(rest)), rest, first=True)
            else:
                place.copy_((rest @ (sums @ inner).view(-1, rest.shape[1], len(last))).view(place.shape))
        return result

    return kernel


def _shortened(x: Tensor, bands: list[Tensor | None]) -> Tensor:
    """A few examples ``[n, R, *source]`` times bands on all dimensions but the last: ``[n·R·targets, source]``."""
    count = x.shape[0] * x.shape[1]
    sizes = x.shape[2:]
    for matrix, size in zip(bands, sizes, strict=False):
        x = x.reshape(count, size, -1)
        if matrix is not None:
            x = torch.bmm(matrix.expand(count, -1, -1), x)
        count *= x.shape[1]
    return x.reshape(count, sizes[-1])


def band(pattern: IndexPattern, source: str, target: str) -> Tensor:
    """Number of index triples that join each target and source position: ``[target, source]``."""
    outputs = torch.arange(pattern.output_size)
    found = [pattern.inputs_at(outputs, k) for k in range(pattern.kernel_size)]
    inputs, valid = (torch.stack(part, dim=1) for part in zip(*found, strict=True))  # [O, K]
    entries = torch.arange(pattern.kernel_size).expand_as(inputs)
    triples = {"i": inputs, "o": outputs[:, None].expand_as(inputs), "k": entries}
    sizes = {"i": pattern.input_size, "o": pattern.output_size, "k": pattern.kernel_size}
    rows, columns = triples[target][valid], triples[source][valid]
    matrix = torch.zeros(sizes[target], sizes[source])
    return matrix.index_put_((rows, columns), torch.ones(len(rows)), accumulate=True)
