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
from .runs import Runs, find_runs, segments

Kernel = Callable[..., Tensor]

JOINT = 2_000  # entries of the joint band up to which one product with it beats one dimension after the other
SMALL = 2_000_000  # multiplications of that product that cost less than starting several kernels
SHORTER = 3  # a dimension is worth adding up in segments if that makes it so much shorter
PARTIAL = 2**18, 0.01  # elements, and share of the input, that partial sums may take


def banded(
    patterns: tuple[IndexPattern, ...], ends: str, volume: int, dtype: torch.dtype, device: torch.device
) -> Kernel:
    """``x [N, R, *source] → [N, target1·target2·…, R]``: contract each pattern with ones on its third leg.

    A band that is a single row of ones takes a plain sum. Small grids, and small tensors, take one matrix product with
    the Kronecker product of the bands. In large ones all dimensions but the last are first made short (see `runs`), a
    few examples at a time; then each takes a product with its band.

    Args:
        patterns: One per dimension.
        ends: Roles of the legs that the tensor holds and of the legs of the result: ``"ik"`` sums over outputs.
        volume: Elements of ``x``.
        dtype: Of ``x``.
        device: Of ``x``.
    """
    bands = [band(pattern, *ends) for pattern in patterns]
    if all(len(matrix) == 1 and bool((matrix == 1).all()) for matrix in bands):
        return lambda x: x.flatten(2).sum(2, dtype=x.dtype).unsqueeze(1)
    if prod(matrix.numel() for matrix in bands) <= JOINT or volume * prod(map(len, bands)) <= SMALL:
        joint = reduce(torch.kron, bands).to(device, dtype)
        return lambda x: joint @ x.flatten(2).transpose(1, 2)
    lead = len(patterns) - (len(patterns) > 1)
    runs = [_worthwhile(find_runs(matrix), matrix) for matrix in bands[:lead]]
    kept = [matrix if found is None else found.combine(matrix) for matrix, found in zip(bands, runs, strict=False)]
    matrices = [m.to(device, dtype) for m in (*bands[lead:], reduce(torch.kron, kept))]
    share = prod(matrix.shape[1] for matrix in kept) / prod(matrix.shape[1] for matrix in bands[:lead])

    def kernel(x: Tensor) -> Tensor:
        size = max(1, int(max(PARTIAL[0], PARTIAL[1] * x.numel()) / max(1.0, share * x[0].numel())))
        result = x.new_empty(len(x), prod(len(matrix) for matrix in matrices), x.shape[1])
        for part, out in zip(x.split(size), result.split(size), strict=True):
            _separate(part, runs, matrices, out)
        return result

    return kernel


def _worthwhile(runs: Runs | None, matrix: Tensor) -> Runs | None:
    return runs if runs is not None and SHORTER * runs.count <= matrix.shape[1] else None


def _separate(x: Tensor, runs: list[Runs | None], matrices: list[Tensor], out: Tensor) -> None:
    """A few examples ``[n, R, *source]``, written into ``out [n, target1·target2·…, R]``."""
    n, rest, *sizes = x.shape
    count = n * rest
    for found, size in zip(runs, sizes, strict=False):
        x = x.reshape(count, size, -1)
        if found is not None:
            x = segments(x, found, x.new_empty(count, found.count, x.shape[2]))
        count *= x.shape[1]
    for index, matrix in enumerate(matrices):  # [n, target_last, R·S1·…], then [n, target1·…, target_last·R]
        x = x.reshape(n, -1, matrix.shape[1]).transpose(1, 2)
        last = index == len(matrices) - 1
        target = out.view(n, len(matrix), -1) if last else x.new_empty(n, len(matrix), x.shape[2])
        x = torch.bmm(matrix.expand(n, -1, -1), x, out=target)


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
