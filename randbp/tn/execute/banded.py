"""Kernels for patterns with one leg summed on its own: what is left of ``Π`` is a small banded matrix."""

from collections.abc import Callable
from functools import reduce
from math import prod

import torch
from torch import Tensor

from ..pattern import IndexPattern

Kernel = Callable[..., Tensor]
Runs = list[tuple[int, int]]

SMALL_GRID = 256  # source positions up to which one product with the Kronecker product of the bands is fastest


def banded(patterns: tuple[IndexPattern, ...], source: str, target: str) -> Kernel:
    """``[…, *source] → […, *target]``: contract each pattern with ones on its third leg.

    ``Σ_i Π[i, o, k]`` is 1 where a kernel entry does not lie in the padding, so a product with it adds up a few
    neighbours; nothing as large as the pattern itself is ever built. Where each target position adds up one run of
    source positions, what all runs share is added up once, and the few others one by one.

    Args:
        patterns: One per dimension.
        source: Role of the legs that the tensor holds: ``"i"``, ``"o"`` or ``"k"``.
        target: Role of the legs of the result.
    """
    matrices = [_matrix(pattern, source, target) for pattern in patterns]
    joint = prod(matrix.shape[0] for matrix in matrices) <= SMALL_GRID
    runs = [_runs(matrix) for matrix in matrices]
    made: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}

    def kernel(x: Tensor) -> Tensor:
        key = (x.dtype, x.device)
        if key not in made:
            made[key] = [m.to(x.device, x.dtype) for m in ([reduce(torch.kron, matrices)] if joint else matrices)]
        first = x.ndim - len(matrices)
        if joint:
            return _times(x.flatten(first), made[key][0]).unflatten(first, [matrix.shape[1] for matrix in matrices])
        for dim, (matrix, run) in enumerate(zip(made[key], runs, strict=True), first):
            if run is not None and dim < x.ndim - 1:
                x = _add_runs(x, dim, run)
            else:  # the last dimension is the shortest by now
                x = _times(x.transpose(dim, -1), matrix).transpose(dim, -1)
        return x

    return kernel


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    """``x @ matrix`` for a narrow matrix, as the product of the transposes: matrix libraries are faster that way."""
    return (matrix.t() @ x.reshape(-1, x.shape[-1]).t()).unflatten(1, x.shape[:-1]).movedim(0, -1)


def _add_runs(x: Tensor, dim: int, runs: Runs) -> Tensor:
    """Sums over runs ``[low, high)`` of a dimension, one after the other in its place."""
    low, high = max(run[0] for run in runs), min(run[1] for run in runs)
    core = x.narrow(dim, low, high - low).sum(dim, dtype=x.dtype)
    sums = []
    for start, stop in runs:
        total = core
        for begin, end in ((start, low), (high, stop)):
            if begin < end:
                total = total + x.narrow(dim, begin, end - begin).sum(dim, dtype=x.dtype)
        sums.append(total)
    return torch.stack(sums, dim)


def _runs(matrix: Tensor) -> Runs | None:
    """The run of ones in each column, if every column is one run and all of them overlap."""
    found = []
    for column in matrix.t():
        ones = column.nonzero().flatten().tolist()
        if not ones or column.max() > 1 or ones[-1] - ones[0] + 1 != len(ones):
            return None
        found.append((ones[0], ones[-1] + 1))
    return found if max(run[0] for run in found) < min(run[1] for run in found) else None


def _matrix(pattern: IndexPattern, source: str, target: str) -> Tensor:
    """How many index triples join each source and target position."""
    outputs = torch.arange(pattern.output_size)
    found = [pattern.inputs_at(outputs, k) for k in range(pattern.kernel_size)]
    inputs, valid = (torch.stack(part, dim=1) for part in zip(*found, strict=True))  # [O, K]
    entries = torch.arange(pattern.kernel_size).expand_as(inputs)
    triples = {"i": inputs, "o": outputs[:, None].expand_as(inputs), "k": entries}
    sizes = {"i": pattern.input_size, "o": pattern.output_size, "k": pattern.kernel_size}
    rows, columns = triples[source][valid], triples[target][valid]
    matrix = torch.zeros(sizes[source], sizes[target])
    return matrix.index_put_((rows, columns), torch.ones(len(rows)), accumulate=True)
