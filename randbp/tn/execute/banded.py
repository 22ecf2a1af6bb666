"""Kernels for patterns with one leg summed on its own: what is left of ``Π`` is a small banded 0/1 matrix."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..pattern import IndexPattern

Kernel = Callable[..., Tensor]


def banded(patterns: tuple[IndexPattern, ...], source: str, target: str) -> Kernel:
    """``[M, *source] → [M, *target]``: contract each pattern with ones on its third leg.

    ``Σ_i Π[i, o, k]`` is 1 where a kernel entry does not lie in the padding, so a product with it adds up a few
    neighbours; nothing as large as the pattern itself is ever built.

    Args:
        patterns: One per dimension.
        source: Role of the legs that the tensor holds: ``"i"``, ``"o"`` or ``"k"``.
        target: Role of the legs of the result.
    """
    made: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}

    def kernel(x: Tensor) -> Tensor:
        key = (x.dtype, x.device)
        if key not in made:
            made[key] = [_matrix(pattern, source, target).to(x.device, x.dtype) for pattern in patterns]
        for matrix in reversed(made[key]):
            x = (x @ matrix).movedim(-1, 1)
        return x

    return kernel


def _matrix(pattern: IndexPattern, source: str, target: str) -> Tensor:
    """How many index triples join each source and target position."""
    outputs = torch.arange(pattern.output_size)
    found = [pattern.inputs_at(outputs, k) for k in range(pattern.kernel_size)]
    inputs, valid = (torch.stack(part, dim=1) for part in zip(*found, strict=True))  # [O, K]
    triples = {
        "i": inputs,
        "o": outputs[:, None].expand_as(inputs),
        "k": torch.arange(inputs.shape[1]).expand_as(inputs),
    }
    sizes = {"i": pattern.input_size, "o": pattern.output_size, "k": pattern.kernel_size}
    rows, columns = triples[source][valid], triples[target][valid]
    matrix = torch.zeros(sizes[source], sizes[target])
    return matrix.index_put_((rows, columns), torch.ones(len(rows)), accumulate=True)
