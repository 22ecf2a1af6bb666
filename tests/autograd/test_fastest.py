"""Whether a layer is PyTorch's own or estimated: by what its VJPs' times foretell, and else by the whole layer's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from randbp import Estimator, Exact, IfFaster, Precision, Rounding
from randbp.autograd import fastest
from randbp.diagnostics import StepPeak
from randbp.estimators import Draw, if_faster
from randbp.estimators.base import Vjp
from randbp.estimators.if_faster import Race
from randbp.estimators.planned import Planned
from randbp.functional import conv, linear
from randbp.tn import ConvSpec, LayerSpec


@dataclass(frozen=True)
class Ones(Estimator):
    """Wrong on purpose: who uses it shows in the gradient."""

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        return (input.new_zeros(1),)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        return output_grad.new_ones(spec.weight_shape)

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        return output_grad.new_ones(spec.input_shape)


@pytest.mark.parametrize(
    ("races", "layer", "used"),
    [  # of weight and input VJP, exact and estimated; the layer's ratio, if it is to be timed; who serves
        (((2.0, 1.0), (2.0, 1.0)), None, (True, True)),
        (((2.0, 0.5), (2.0, 2.1)), None, (True, False)),
        (((1.0, 0.9), (4.0, 4.0)), None, (False, False)),  # a tenth of a fifth is no gain of the layer
        (((2.0, 1.7), (2.0, 1.8)), 0.9, (True, True)),
        (((2.0, 1.7), (2.0, 1.8)), 0.96, (False, False)),
        (((2.0, 2.0), (2.0, 2.0)), None, (False, False)),
        (((2.0, 1.0), None), None, (True, False)),  # no gradient of the input is wanted
        (((2.0, 1.84), None), 0.94, (True, False)),
    ],
    ids=str,
)
def test_a_layer_is_timed_where_its_vjps_leave_it_open(
    races: tuple[tuple[float, float], tuple[float, float] | None],
    layer: float | None,
    used: tuple[bool, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times, timed = dict(zip(("weight_vjp", "input_vjp"), races, strict=True)), []

    def of_vjp(estimator: Estimator, vjp: Any, *layer: Any) -> Race:
        exact, estimated = times[vjp] or pytest.fail("not wanted")
        return Race(exact, float("inf"), estimated)

    def of_layer(contenders: Sequence[Callable[[], object]], device: torch.device) -> tuple[float, list[float]]:
        for contender in contenders:
            contender()
        timed.append(len(contenders))
        return 1.0, [1.0, layer or 0.0]

    monkeypatch.setattr(if_faster, "_race", of_vjp)
    monkeypatch.setattr(fastest, "race", of_layer)
    monkeypatch.setattr(if_faster, "_RACES", type(if_faster._RACES)())
    monkeypatch.setattr(fastest, "_CHOICES", type(fastest._CHOICES)())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 6, 6, generator=generator, requires_grad=races[1] is not None)
    weight = torch.randn(5, 3, 3, 3, generator=generator, requires_grad=True)
    ones = IfFaster(Ones(0.5))
    y = conv(x, weight, padding=1, weight_vjp=ones, input_vjp=ones)
    y.square().sum().backward()
    found = [bool((tensor.grad == 1).all()) for tensor in (weight, x) if tensor.grad is not None]
    assert found == list(used[: len(found)])
    assert timed == ([] if layer is None else [2])


VJPS: tuple[Vjp, ...] = ("weight_vjp", "input_vjp")
SPECS = [
    ConvSpec((4, 6, 9, 9), 8, 3, padding=1),
    ConvSpec((4, 6, 9, 9), 8, 1),
    ConvSpec((4, 6, 9, 9), 6, 3, stride=2, groups=6),
    ConvSpec((64, 16, 9, 9), 16, 3, padding=1, groups=16),
    ConvSpec((4, 6, 8, 8), 8, 2, stride=2),
]


def test_a_plan_that_is_pytorchs_kernel_is_no_other_way() -> None:
    served = set()
    for spec in SPECS:
        generator = torch.Generator().manual_seed(0)
        x, weight, grad = (
            torch.randn(shape, generator=generator)
            for shape in (spec.input_shape, spec.weight_shape, spec.output_shape)
        )
        ways = [
            (
                Planned().for_layer(vjp, spec, torch.float32, torch.device("cpu")),
                [each.weight_vjp((x,), grad, spec, Draw(0)) for each in (Planned(), Exact())]
                if vjp == "weight_vjp"
                else [each.input_vjp(grad, weight, spec, Draw(0)) for each in (Planned(), Exact())],
            )
            for vjp in VJPS
        ]
        for server, (planned, exact) in ways:
            served.add(type(server))
            assert not server.exact or torch.equal(planned, exact)
    assert served == {Exact, Planned}


@pytest.mark.usefixtures("quick_races")
def test_the_races_of_a_layer_run_on_its_own_input_and_weight() -> None:
    """A weight can be larger than all that a step holds; the first step must not make one of its size."""
    x, weight = torch.randn(3, 257, requires_grad=True), torch.randn(1031, 257, requires_grad=True)
    narrow = IfFaster(Precision(estimator=Rounding(4))), IfFaster(Precision())
    with StepPeak("cpu") as peak:
        y = linear(x, weight, weight_vjp=narrow[0], input_vjp=narrow[1])
    assert y.nbytes <= peak.bytes < 4 * y.nbytes < weight.nbytes / 10
