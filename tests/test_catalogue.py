"""Nothing public is missing from the catalogue, and what it states is so."""

import inspect

import pytest
import torch

import randbp
from randbp import Estimator, Exact, estimators
from randbp.estimators import Draw
from randbp.functional import conv_spec, conv_transpose_spec
from randbp.tn import LayerSpec, linear_spec

from .catalogue import ESTIMATORS, LAYERS, EstimatorCase

SPECS: dict[str, LayerSpec] = {
    "convolution": conv_spec(torch.empty(6, 4, 8, 8), torch.empty(6, 2, 3, 3), 1, 1, 1, 2),
    "transposed convolution": conv_transpose_spec(torch.empty(6, 4, 8, 8), torch.empty(4, 6, 3, 3), 2, 1, 1, 1, 1),
    "linear": linear_spec((6, 64, 4), 6),
}


def test_every_public_estimator_is_in_it() -> None:
    public = {
        value
        for module in (randbp, estimators)
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Estimator) and value is not Estimator
    }
    assert public == {type(case.make(0.5)) for case in ESTIMATORS}
    assert len({case.name for case in ESTIMATORS}) == len(ESTIMATORS)


def test_every_setting_has_more_than_one_value_in_it() -> None:
    """But whether positions lie in runs, which small layers do not show; `test_spatial` does."""
    made = [one for case in ESTIMATORS for one in (case.make(0.5), case.real) if one is not None]
    for kind in {type(one) for one in made}:
        for name in inspect.signature(kind).parameters.keys() - {"runs"}:
            assert len({getattr(one, name) for one in made if type(one) is kind}) > 1, f"{kind.__name__}: {name}"


@pytest.mark.parametrize("case", ESTIMATORS, ids=str)
def test_what_it_states_is_so(case: EstimatorCase) -> None:
    for estimator in (case.make(0.5), case.real or case.make(0.25)):
        assert estimator.serves == case.vjps
        assert estimator.unbiased is not case.biased
        assert estimator.fixed_size == case.fixed_size
        assert estimator.exact == case.exact
    assert case.layers == LAYERS == SPECS.keys()
    for spec in SPECS.values():
        check(case.make(0.5), spec)


def check(estimator: Estimator, spec: LayerSpec) -> None:
    """It serves what it says, in this layer."""
    generator = torch.Generator().manual_seed(0)
    x, output_grad, weight = (
        torch.rand(shape, generator=generator) for shape in (spec.input_shape, spec.output_shape, spec.weight_shape)
    )
    chosen = {vjp: estimator.for_layer(vjp, spec, x.dtype, x.device) for vjp in ("weight_vjp", "input_vjp")}  # type: ignore[arg-type]
    held = chosen["weight_vjp"].sketch(x, spec, Draw(0))
    exact = Exact().weight_vjp((x,), output_grad, spec, Draw(0))
    found = chosen["weight_vjp"].weight_vjp(held, output_grad, spec, Draw(0))
    assert found.shape == exact.shape and (found - exact).norm() < 2 * exact.norm()
    if "input_vjp" in estimator.serves:
        exact = Exact().input_vjp(output_grad, weight, spec, Draw(0))
        found = chosen["input_vjp"].input_vjp(output_grad, weight, spec, Draw(0))
        assert found.shape == exact.shape and (found - exact).norm() < 2 * exact.norm()
