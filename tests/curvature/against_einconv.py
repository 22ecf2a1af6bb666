"""Input factors against einconv's dense networks, for convolutions of 1 to 3 dimensions: equal, scales included.

Run by ``make peers``.
"""

import random

import pytest
import torch
from einconv.expressions import convNd_kfac_reduce, convNd_kfc

from randbp import tn
from randbp.curvature import input_factor


@pytest.mark.parametrize("seed", [*range(8), *range(9, 30)])  # in the one left out its letters run out
def test_input_factors(seed):
    draw = random.Random(seed)
    dims, groups = 1 + seed % 3, draw.choice((1, 2))

    def each(*values):
        return tuple(draw.choice(values) for _ in range(dims))

    options = {"stride": each(1, 2), "padding": each(0, 1), "dilation": each(1, 2), "groups": groups}
    kernel = each(1, 2, 3)
    x = torch.randn(2, 2 * groups, *each(5, 6), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    spec = tn.ConvSpec(x.shape, 2 * groups, kernel, **options)
    kinds = {"reduce": convNd_kfac_reduce} | ({"expand": convNd_kfc} if dims < 3 else {})  # letters
    for approximation, module in kinds.items():
        equation, operands, shape = module.einsum_expression(x, kernel, **options)
        expected = torch.einsum(equation, *operands).reshape(shape)
        torch.testing.assert_close(input_factor(spec, x, approximation), expected)
