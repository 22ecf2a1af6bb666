"""Kernels for patterns with one leg summed on its own: what is left of ``Π`` is a small banded matrix.

Summed over ``o`` it says which inputs a kernel entry meets: box sums, from which KFAC-reduce is made. Summed over ``i``
it says which kernel entries do not lie in the padding: the VJP of a constant. Nothing as large as ``Π`` is ever built.
"""

from collections.abc import Callable
from functools import reduce
from math import prod

import torch
from torch import Tensor

from ..pattern import IndexPattern
from .kernels import add_product
from .runs import Runs, find_runs, segments

Kernel = Callable[..., Tensor]

JOINT = 10_000  # entries of the joint band up to which one product with it beats one dimension after the other
SMALL = 2_000_000  # multiplications of that product that cost less than starting several kernels
SHORTER = 3  # a dimension is worth adding up in segments if that makes it so much shorter
PARTIAL = 2**18, 0.01  # elements, and share of the input, that partial sums may take


def banded(
    patterns: tuple[IndexPattern, ...], ends: str, volume: int, dtype: torch.dtype, device: torch.device
) -> Kernel:
    """``x [N, R, *source] → [N, R, target1·target2·…]``: contract each pattern with ones on its third leg.

    A band that is a single row of ones takes a plain sum. Small grids, and small tensors, take one matrix product with
    the Kronecker product of the bands. In large ones all dimensions but the last are first made short (see `runs`), a
    few examples at a time; then the last one takes a product with its band, and the others with theirs.

    Args:
        patterns: One per dimension.
        ends: Roles of the legs that the tensor holds and of the legs of the result: ``"ik"`` sums over outputs.
        volume: Elements of ``x``.
        dtype: Of ``x``.
        device: Of ``x``.
    """
    bands = [band(pattern, *ends) for pattern in patterns]
    if all(len(matrix) == 1 and bool((matrix == 1).all()) for matrix in bands):
        return lambda x: x.flatten(2).sum(2, dtype=x.dtype).unsqueeze(2)
    if prod(matrix.numel() for matrix in bands) <= JOINT or volume * prod(map(len, bands)) <= SMALL:
        joint = reduce(torch.kron, bands).t().to(device, dtype).contiguous()
        return lambda x: x.flatten(2) @ joint
    *outer, last = bands
    runs = [_worthwhile(find_runs(matrix), matrix) for matrix in outer]
    short = [matrix if found is None else found.combine(matrix) for matrix, found in zip(outer, runs, strict=True)]
    share = prod(matrix.shape[1] for matrix in short) / prod(matrix.shape[1] for matrix in outer)
    targets = prod(map(len, bands))
    inner = last.t().to(device, dtype).contiguous()
    others = reduce(torch.kron, short, torch.ones(1, 1))
    small = others.numel() * len(last) ** 2 <= JOINT  # then its zeros cost less than many small products
    if small:
        rest = torch.kron(others, torch.eye(len(last))).t().to(device, dtype).contiguous()
    else:
        rest = others.to(device, dtype)

    def kernel(x: Tensor) -> Tensor:
        size = max(1, int(max(PARTIAL[0], PARTIAL[1] * x.numel()) / max(1.0, share * x[0].numel())))
        result = x.new_empty(*x.shape[:2], targets)
        for start in range(0, len(x), size):
            some = slice(start, start + size)
            sums = _shortened(x[some], runs) @ inner
            if small:
                add_product(result[some].view(-1, targets), sums.view(-1, len(rest)), rest, first=True)
            else:
                result[some] = (rest @ sums.view(-1, rest.shape[1], len(last))).view(-1, x.shape[1], targets)
        return result

    return kernel


def _worthwhile(runs: Runs | None, matrix: Tensor) -> Runs | None:
    return runs if runs is not None and SHORTER * runs.count <= matrix.shape[1] else None


def _shortened(x: Tensor, runs: list[Runs | None]) -> Tensor:
    """A few examples ``[n, R, *source]``, all dimensions but the last as segments: ``[n·R·segments, last source]``."""
    count = x.shape[0] * x.shape[1]
    sizes = x.shape[2:]
    for found, size in zip(runs, sizes, strict=False):
        x = x.reshape(count, size, -1)
        if found is not None:
            x = segments(x, found, x.new_empty(count, found.count, x.shape[2]))
        count *= x.shape[1]
    return x.reshape(count, sizes[-1])


def band(pattern: IndexPattern, source: str, target: str) -> Tensor:
    """How many index triples join each target and source position: ``[target, source]``."""
    outputs = torch.arange(pattern.output_size)
    found = [pattern.inputs_at(outputs, k) for k in range(pattern.kernel_size)]
    inputs, valid = (torch.stack(part, dim=1) for part in zip(*found, strict=True))  # [O, K]
    entries = torch.arange(pattern.kernel_size).expand_as(inputs)
    triples = {"i": inputs, "o": outputs[:, None].expand_as(inputs), "k": entries}
    sizes = {"i": pattern.input_size, "o": pattern.output_size, "k": pattern.kernel_size}
    rows, columns = triples[target][valid], triples[source][valid]
    matrix = torch.zeros(sizes[target], sizes[source])
    return matrix.index_put_((rows, columns), torch.ones(len(rows)), accumulate=True)
