"""Input factors against einconv's dense networks, scales included, and all of its expressions by docs/from_einconv.md.

Run by ``make peers``.
"""

import random

import pytest
import torch
from einconv.expressions import (
    convNd_forward,
    convNd_input_vjp,
    convNd_kfac_reduce,
    convNd_kfc,
    convNd_unfold,
    convNd_weight_vjp,
)

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


# Hyper-parameters of the test cases in einconv's repository, over smaller inputs.
KERNEL = (5, 3, 2)
CASES = [
    {},
    {"stride": 2},
    {"stride": 3, "groups": 2},
    {"padding": 2},
    {"padding": (2, 1, 0), "stride": (3, 2, 1), "dilation": (1, 2, 3)},
    {"dilation": 2},
    {"padding": "same", "dilation": (1, 2, 2)},
]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_the_table_of_the_page(case, dims):
    options = {name: value[:dims] if isinstance(value, tuple) else value for name, value in case.items()}
    groups, kernel = options.get("groups", 1), KERNEL[:dims]
    seeded = torch.Generator().manual_seed(0)

    def tensor(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=seeded)

    x, w = tensor(2, 2 * groups, *(14, 9, 8)[:dims]), tensor(3 * groups, 2, *kernel)
    spec = tn.ConvSpec(x.shape, len(w), kernel, **options)
    v = tensor(*spec.output_shape)
    ungrouped = {name: value for name, value in options.items() if name != "groups"}
    tables = [
        (convNd_forward, (x, w), options, tn.conv, {"input": x, "weight": w}),
        (convNd_weight_vjp, (x, v, kernel), options, tn.weight_vjp, {"input": x, "output_grad": v}),
        (convNd_input_vjp, (w, v, x.shape[2:]), options, tn.input_vjp, {"weight": w, "output_grad": v}),
        (convNd_unfold, (x, kernel), ungrouped, tn.unfold, {"input": x}),
        (convNd_kfac_reduce, (x, kernel), options, tn.kfac_reduce, {"input": x}),
        (convNd_kfc, (x, kernel), options, tn.kfac_expand, {"input": x}),
    ]
    for module, arguments, known, operation, tensors in tables[: 6 if dims < 3 else 5]:  # letters, again
        equation, operands, shape = module.einsum_expression(*arguments, **known)
        expected = torch.einsum(equation, *operands).reshape(shape)
        net = operation(spec)
        torch.testing.assert_close(net.contract(**tensors), expected)
        if dims == 1:
            equation, dense = net.einsum(**tensors)
            torch.testing.assert_close(torch.einsum(equation, *dense), expected)
