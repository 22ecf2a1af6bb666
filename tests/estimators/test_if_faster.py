"""The faster of an estimator and the exact VJP: decided by measurement, once, and apart from what the caller does."""

import time
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import randbp
from randbp import Channels, Estimator, Exact, IfFaster, Rounding, Spatial
from randbp.estimators import Draw, configure, plain_estimator
from randbp.estimators.if_faster import Race
from randbp.estimators.planned import Planned
from randbp.functional import conv, conv_spec
from randbp.tn import LayerSpec, linear_spec

CALLS: list[str] = []


@dataclass(frozen=True)
class Slow(Estimator):
    """Zeros, long after the exact VJP would be there."""

    seconds: float = 0.02

    def sketch(self, input: Tensor, spec: randbp.tn.ConvSpec, draw: Draw) -> tuple[Tensor, ...]:
        CALLS.append("sketch")
        self.wait()
        return (input.new_zeros(1),)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: randbp.tn.ConvSpec, draw: Draw) -> Tensor:
        return output_grad.new_zeros(spec.weight_shape)

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: randbp.tn.ConvSpec, draw: Draw) -> Tensor:
        self.wait()
        return output_grad.new_zeros(spec.input_shape)

    def wait(self) -> None:
        time.sleep(self.seconds)


@dataclass(frozen=True)
class Quick(Slow):
    """Zeros, at once; the exact VJP of the layer below takes a thousand times as long."""

    serves: ClassVar[frozenset[str]] = frozenset({"weight_vjp"})

    def wait(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _counted() -> None:
    CALLS.clear()


def tensors(batch: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 16, 40, 40, generator=generator, requires_grad=True)
    return x, torch.randn(16, 16, 3, 3, generator=generator, requires_grad=True)


def gradients(x: Tensor, weight: Tensor, **vjps: Estimator) -> tuple[Tensor, ...]:
    return torch.autograd.grad(conv(x, weight, padding=1, **vjps).square().sum(), (x, weight))


def test_a_slower_estimator_gives_way_to_the_exact_vjp() -> None:
    x, weight = tensors()
    expected = gradients(x, weight, weight_vjp=Exact(), input_vjp=Exact())
    found = gradients(x, weight, weight_vjp=IfFaster(Slow(0.5)), input_vjp=IfFaster(Slow(0.5)))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_a_faster_estimator_is_used_and_each_vjp_decides_for_itself() -> None:
    x, weight = tensors()
    exact = gradients(x, weight, weight_vjp=Exact(), input_vjp=Exact())
    found = gradients(x, weight, weight_vjp=IfFaster(Quick(0.5)), input_vjp=IfFaster(Slow(0.5)))
    assert torch.equal(found[0], exact[0])
    assert not found[1].any()


def test_a_layer_is_measured_once() -> None:
    x, weight = tensors(batch=7)
    estimator = IfFaster(Slow(0.25))
    for _ in range(3):
        gradients(x, weight, weight_vjp=estimator)
    measured = len(CALLS)
    assert measured > 0
    gradients(x, weight, weight_vjp=IfFaster(Slow(0.25)))
    assert len(CALLS) == measured  # equal estimators share what is known
    gradients(*tensors(batch=2), weight_vjp=estimator)
    assert len(CALLS) == measured  # the last batch of an epoch is no other layer
    for batch in (8, 1):  # larger ones are, and much smaller ones
        measured = len(CALLS)
        gradients(*tensors(batch), weight_vjp=estimator)
        assert len(CALLS) > measured


def test_measuring_leaves_the_caller_alone() -> None:
    x, weight = tensors(batch=5)
    packed: list[int] = []
    state = torch.get_rng_state()

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu"):
        y = conv(x, weight, padding=1, weight_vjp=IfFaster(Spatial(0.5)))
    assert len(packed) <= 5  # seed, weight, and one layer's sketch
    y.float().sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert weight.grad is not None and weight.grad.isfinite().all()
    estimator, spec = IfFaster(Spatial(0.5)), conv_spec(x, weight, 1, 1, 1, 1)
    with torch.inference_mode():
        race = estimator.race("weight_vjp", spec, torch.bfloat16, torch.device("cpu"))
    assert min(race) > 0
    chosen = estimator.for_layer("weight_vjp", spec, torch.bfloat16, torch.device("cpu"))
    assert chosen == {"exact": Exact(), "planned": Planned(), "estimated": Spatial(0.5)}[race.first]
    assert race.first == "exact" or getattr(race, race.first) == min(race)


def test_rows_of_a_linear_layer_are_its_size() -> None:
    cpu, slow = torch.device("cpu"), IfFaster(Slow(0.125))
    for shape, measures in (((4, 6, 5), True), ((2, 9, 5), False), ((20, 5), False), ((4, 7, 5), True)):
        CALLS.clear()
        slow.race("weight_vjp", linear_spec(shape, 3), torch.float32, cpu)
        assert bool(CALLS) == measures


@pytest.mark.parametrize(
    ("seconds", "first"),
    [
        ((1.0, 0.99, 0.96), "exact"),
        ((1.0, 0.9, 0.9), "planned"),
        ((1.0, 0.9, 0.8), "estimated"),
        ((1.0, 2.0, 0.94), "estimated"),
        ((1.0, 1.0, 1.0), "exact"),
    ],
)
def test_a_small_gain_is_no_reason_to_change(seconds: tuple[float, float, float], first: str) -> None:
    assert Race(*seconds).first == first


@pytest.mark.parametrize("estimator", [IfFaster(Quick(0.5)), IfFaster(Slow(0.5)), IfFaster(Spatial(0.25))], ids=str)
@pytest.mark.parametrize("layer", [nn.Conv2d(8, 8, 3, padding=1), nn.Linear(24, 8)], ids=["convolution", "linear"])
def test_compiled_graphs_use_what_each_vjp_chooses(estimator: IfFaster, layer: nn.Module) -> None:
    torch.compiler.reset()
    model = nn.Sequential(layer)
    x = torch.randn(4, 8, 24, 24, generator=torch.Generator().manual_seed(0))
    if isinstance(layer, nn.Linear):
        spec: LayerSpec = linear_spec(x.shape, 8)
    else:
        spec = conv_spec(x, layer.weight, 1, 1, 1, 1)
    chosen = estimator.for_layer("weight_vjp", spec, x.dtype, x.device)
    found = []
    for compiles, weight_vjp in ((True, estimator), (False, chosen)):
        with randbp.randomize(model, weight_vjp=weight_vjp, layers="*", seed=1) as handle:
            handle.set_step(3)
            model.zero_grad()
            (torch.compile(model, fullgraph=True, backend="aot_eager") if compiles else model)(
                x
            ).square().sum().backward()
            found.append(layer.weight.grad.clone())
    assert torch.allclose(*found, rtol=1e-4, atol=1e-4)


def test_an_error_of_the_estimator_arrives() -> None:
    @dataclass(frozen=True)
    class Refusing(Slow):
        def sketch(self, input: Tensor, spec: randbp.tn.ConvSpec, draw: Draw) -> tuple[Tensor, ...]:
            raise ValueError("Refusing: not this layer")

    with pytest.raises(ValueError, match="not this layer"):
        conv(*tensors(), weight_vjp=IfFaster(Refusing(0.5)))


def test_it_takes_part_like_any_other() -> None:
    estimator = IfFaster(Spatial(0.25))
    assert not estimator.exact and IfFaster(Spatial(1.0)).exact
    assert estimator.unbiased and estimator.fixed_size
    assert not IfFaster(Channels(0.5, bernoulli=True)).fixed_size
    assert plain_estimator(estimator)["estimator"]["keep"] == 0.25
    assert configure(estimator)["class_path"] == "randbp.IfFaster"
    spec = conv_spec(*tensors(), 1, 1, 1, 1)
    assert estimator.describe(spec) == Spatial(0.25).describe(spec)
    with pytest.raises(ValueError, match="serves only weight_vjp"):
        randbp.randomize(nn.Conv2d(2, 2, 3), input_vjp=IfFaster(Rounding(4)))
    for wrong in (0.5, Spatial, estimator):
        with pytest.raises(ValueError, match="IfFaster: estimator="):
            IfFaster(wrong)  # type: ignore[arg-type]
