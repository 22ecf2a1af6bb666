"""Random projection: the stored sketch, its variance, and its errors."""

import pytest
import torch

from randbp import Projection
from randbp.estimators import Draw
from randbp.functional import conv_spec


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_the_variance_is_the_one_stated(kind: str) -> None:
    """Against the formula of the docstring, by dense arithmetic; 4000 draws give it to within 10 %."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 9, generator=generator, dtype=torch.float64)
    output_grad = torch.randn(2, 2, 9, generator=generator, dtype=torch.float64)
    spec = conv_spec(x, torch.empty(2, 3, 3, dtype=x.dtype), 1, 1, 1, 1)
    estimator = Projection(keep=1 / 3, kind=kind)  # type: ignore[arg-type]
    draws = torch.stack(
        [estimator.weight_vjp(estimator.sketch(x, spec, Draw(s)), output_grad, spec, Draw(s)) for s in range(4000)]
    )
    padded = torch.nn.functional.pad(output_grad, (1, 1))
    expected = 0.0
    for n in range(2):
        for k in range(3):
            a, b = x[n], padded[n, :, 2 - k : 11 - k]  # B[d, i] = V_Y[d, i + 1 - k]
            expected += (a.square().sum() * b.square().sum() + (a @ b.t()).square().sum()) / 3
            if kind == "rademacher":
                expected -= 2 / 3 * (a.square().sum(0) * b.square().sum(0)).sum()
    measured = (draws - draws.mean(0)).square().sum((1, 2, 3)).mean()
    assert measured == pytest.approx(float(expected), rel=0.1)


def test_examples_have_matrices_of_their_own() -> None:
    x = torch.ones(4, 1, 6)
    spec = conv_spec(x, torch.empty(1, 1, 1), 1, 0, 1, 1)
    (held,) = Projection(keep=0.5, kind="gaussian").sketch(x, spec, Draw(0))
    assert len({tuple(row.flatten().tolist()) for row in held}) == 4


def test_positions_that_no_output_uses_are_not_projected() -> None:
    x = torch.randn(2, 3, 8, 8)
    spec = conv_spec(x, torch.empty(4, 3, 1, 1), 2, 0, 1, 1)  # a down-sampling convolution uses every fourth
    (held,) = Projection(keep=0.5).sketch(x, spec, Draw(0))
    assert held.shape == (2, 3, 8)


def test_large_images_are_projected_in_stretches() -> None:
    x = torch.randn(2, 3, 50, 50)
    spec = conv_spec(x, torch.empty(4, 3, 3, 3), 1, 1, 1, 1)
    (held,) = Projection(keep=0.25, block=300).sketch(x, spec, Draw(0))
    assert held.shape == (2, 3, 625)
    work = Projection(keep=0.25, block=300).describe(spec).weight_multiply_adds
    assert work is not None and work < 1.2 * (spec.multiply_adds + 2 * 2 * 3 * 2500 * 625 // 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "uniform"}, "Projection: kind='uniform', expected 'gaussian' or 'rademacher'"),
        ({"block": 0}, "Projection: block=0, expected an integer >= 1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Projection(keep=0.5, **arguments)
