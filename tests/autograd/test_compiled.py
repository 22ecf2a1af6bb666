"""torch.compile: whole graphs, a fresh sample in every step, and the very gradients of eager mode."""

import copy
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import randbp
from randbp import (
    Axes,
    Channels,
    Estimator,
    Exact,
    NormSpatial,
    RandomizedHandle,
    Rounding,
    Spatial,
    randomize,
)
from randbp._torch.dataclass_text import to_text
from randbp.autograd import Call
from randbp.callbacks import TensorDropout
from randbp.draws.seeds import Integers
from randbp.estimators import Draw
from randbp.estimators.low_rank import affordable_rank
from randbp.functional import conv, conv_spec
from randbp.layers.functions import Convolution, LayerFunction, Linear, TransposedConvolution
from randbp.tn import LayerSpec
from tests import catalogue
from tests.catalogue import FIXED_SIZE
from tests.functional.observe import held_by

ESTIMATORS = [*FIXED_SIZE, *(case.real for case in catalogue.ESTIMATORS if case.biased and case.real)]
HAS_COMPILER = bool(shutil.which("g++")) and Path(sysconfig.get_paths()["include"], "Python.h").exists()
BACKENDS = ["aot_eager", "inductor"] if HAS_COMPILER else ["aot_eager"]


class Counting:
    """Compiles for eager execution of the traced graphs, and counts."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module: Any, inputs: Any, **options: Any) -> Any:
        self.graphs += 1
        return lookup_backend("aot_eager")(module, inputs, **options)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    randbp.manual_seed(0)
    yield
    torch._dynamo.reset()


def both(estimator: Estimator) -> dict[str, Estimator]:
    return {"weight_vjp": estimator, "input_vjp": estimator if "input_vjp" in estimator.serves else Exact()}


def network() -> nn.Sequential:
    """A convolution, a transposed one, and linear layers on sequences and on vectors."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.Flatten(2),
        nn.Linear(81, 5),
        nn.Flatten(),
        nn.Linear(30, 4),
    )


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Conv2d(4, 2, 3))


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()


def gradients(
    forward: Callable[[Tensor], Tensor],
    model: nn.Module,
    x: Tensor,
    handle: RandomizedHandle | None = None,
    step: int = 0,
) -> tuple[Tensor, ...]:
    if handle is not None:
        handle.set_step(step)
    return torch.autograd.grad(forward(x).float().square().sum(), (x, *model.parameters()))


def assert_same(first: tuple[Tensor, ...], second: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    for left, right in zip(first, second, strict=True):
        assert left.dtype == right.dtype
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance * float(right.abs().max()))


def differ(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return not torch.allclose(first[1], second[1], rtol=1e-3)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_all_estimators_in_all_layers(estimator: Estimator) -> None:
    model, x, backend = network(), images(), Counting()
    handle = randomize(model, **both(estimator), layers="*", seed=3)
    compiled_model = torch.compile(model, fullgraph=True, backend=backend)
    first = gradients(compiled_model, model, x, handle, 5)
    assert_same(first, gradients(model, model, x, handle, 5))
    assert_same(first, gradients(compiled_model, model, x, handle, 5), 0)  # bit for bit
    second, third = gradients(compiled_model, model, x, handle, 6), gradients(compiled_model, model, x)
    assert_same(third, gradients(compiled_model, model, x, handle, 6)) if not estimator.unbiased else None
    if estimator.unbiased:  # what is not unbiased has nothing random
        assert differ(first, second) and differ(second, third)
    assert backend.graphs == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_with_a_backend(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x, target = images(16).detach(), torch.arange(16) % 4
    weights = []
    for compile_it in (False, True):
        model = nn.Sequential(*small()[:2], nn.Flatten(), nn.Linear(144, 4))
        randomize(model, Spatial(0.25), Spatial(0.5), layers="*")
        forward = torch.compile(model, fullgraph=True, backend=backend) if compile_it else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(forward(x), target).backward()
            optimizer.step()
        weights.append(tuple(parameter.detach() for parameter in model.parameters()))
    assert_same(weights[0], weights[1], 1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_explain_finds_no_graph_break() -> None:
    model = network()
    randomize(model, Spatial(0.25), Channels(0.5), layers="*")
    explanation = torch._dynamo.explain(model)(images())
    assert explanation.graph_count == 1 and explanation.graph_break_count == 0


def test_steps_do_not_compile_again_and_equal_eager_ones() -> None:
    model, x, backend = small(), images(), Counting()
    twin = copy.deepcopy(model)
    randomize(model, Spatial(0.25), Spatial(0.5), seed=1)
    randomize(twin, Spatial(0.25), Spatial(0.5), seed=1)
    compiled_model = torch.compile(model, fullgraph=True, backend=backend)
    for step in range(12):  # more than the limit after which the compiler would give up
        assert_same(gradients(compiled_model, model, x), gradients(twin, twin, x))
        if step % 3 == 2:  # eager and compiled passes go on with one and the same sequence
            assert_same(gradients(model, model, x), gradients(twin, twin, x))
    assert backend.graphs == 1


@pytest.mark.parametrize("dynamic", [None, True])
def test_other_batch_sizes_compile_again_and_are_right(dynamic: bool | None) -> None:
    model, backend = small(), Counting()
    handle = randomize(model, Spatial(0.25), Spatial(0.5))
    compiled_model = torch.compile(model, fullgraph=True, backend=backend, dynamic=dynamic)
    for _ in range(2):
        graphs = backend.graphs
        for count in (8, 5):
            x = images(count)
            assert_same(gradients(compiled_model, model, x, handle, 1), gradients(model, model, x, handle, 1))
    assert backend.graphs == graphs


def test_compile_before_or_after_randomize_and_remove() -> None:
    model, x = small(), images()
    compiled_model: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    exact = gradients(compiled_model, model, x)
    handle = randomize(model, Spatial(0.25))
    estimated = gradients(compiled_model, model, x, handle, 1)
    assert differ(exact, estimated)
    assert_same(estimated, gradients(model, model, x, handle, 1))
    handle.remove()
    assert_same(exact, gradients(compiled_model, model, x), 0)
    handle = randomize(compiled_model, Spatial(0.25))  # the same names, hence the same samples
    assert handle.layers == ["0", "2"]
    assert_same(estimated, gradients(compiled_model, model, x, handle, 1), 0)
    handle.remove()
    with randomize(model, Spatial(0.5)) as handle:
        assert_same(gradients(compiled_model, model, x, handle, 1), gradients(model, model, x, handle, 1))
    with randomize(model, Spatial(0.125)) as handle:
        assert_same(gradients(compiled_model, model, x, handle, 1), gradients(model, model, x, handle, 1))


def test_eval_mode_and_frozen_weights() -> None:
    model, x = small(), images()
    expected = model(x)
    handle = randomize(model, Spatial(0.25))
    compiled_model = torch.compile(model, fullgraph=True, backend="aot_eager")
    exact = torch.autograd.grad(model.eval()(x).sum(), x)[0]
    assert torch.equal(compiled_model(x), expected)
    assert torch.equal(torch.autograd.grad(compiled_model(x).sum(), x)[0], exact)
    model.train()
    with torch.no_grad():
        assert torch.equal(compiled_model(x), expected)
    model[0].weight.requires_grad_(False)
    for forward in (compiled_model, model):
        handle.set_step(1)
        forward(x).sum().backward()
    assert model[0].weight.grad is None
    torch.testing.assert_close(x.grad, 2 * exact, rtol=1e-4, atol=1e-4)


def test_compiled_layers_hold_what_eager_ones_do() -> None:
    torch.manual_seed(0)
    model, x = nn.Conv2d(16, 4, 3, padding=1), torch.randn(8, 16, 32, 32)
    randomize(model, Spatial(0.25))
    _, eager = held_by(lambda: model(x), apart_from=(model.weight,))
    compiled_model = torch.compile(model, fullgraph=True, backend="aot_eager")
    _, held = held_by(lambda: compiled_model(x), apart_from=(model.weight, x))
    assert held == eager <= 0.25 * x.nbytes + 8
    randomized_x = x.requires_grad_()
    assert held_by(lambda: compiled_model(randomized_x), apart_from=(model.weight,))[1] == held


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: conv(x, w, padding=1),
        lambda x, w: conv(x, w, None, [1, 2], "valid", weight_vjp=Channels(0.5), input_vjp=Spatial(keep=0.3)),
        lambda x, w: conv(x[0], w, padding=(1, 0), groups=1, weight_vjp=Exact(), input_vjp=Spatial(0.5)),
        lambda x, w: randbp.functional.conv_transpose(x.movedim(1, 3)[:, :3], w, None, 2, 1, 1),
        lambda x, w: randbp.functional.linear(x, w.flatten()[:40].view(5, 8), weight_vjp=NormSpatial(0.5)),
        lambda x, w: randbp.functional.linear(x[0, 0, 0], w.flatten()[:40].view(5, 8), weight_vjp=Rounding(4, ROUNDED)),
    ],
)
def test_functional_calls(call: Any) -> None:
    x, weight = images(), torch.randn(3, 3, 3, 3, requires_grad=True)
    compiled_call = torch.compile(call, fullgraph=True, backend="aot_eager")
    found = []
    for function in (compiled_call, call):
        randbp.manual_seed(1)
        found += [torch.autograd.grad(function(x, weight).square().sum(), (x, weight)) for _ in range(2)]
    assert_same(found[0], found[2])
    assert_same(found[1], found[3])
    assert not torch.equal(found[0][0], found[1][0]) or not torch.equal(found[0][1], found[1][1])


ROUNDED = Exact()


def test_estimators_given_as_arguments_compile_once_each() -> None:
    x, weight, backend = images(), torch.randn(4, 3, 3, 3, requires_grad=True), Counting()

    def call(x: Tensor, estimator: Estimator) -> Tensor:
        return conv(x, weight, weight_vjp=estimator)

    compiled_call = torch.compile(call, fullgraph=True, backend=backend)
    for _ in range(2):
        graphs = backend.graphs
        for keep in (0.5, 0.25, 0.1, 0.5):
            grads = []
            for function in (compiled_call, call):
                randbp.manual_seed(7)
                grads.append(torch.autograd.grad(function(x, Spatial(keep)).square().sum(), weight))
            assert_same(grads[0], grads[1])
    assert backend.graphs == graphs


def test_random_sizes_and_generators_break_the_graph_and_are_right() -> None:
    model, x = small(), images()
    handle = randomize(model, Axes(0.5, bernoulli=True), Axes(0.5, bernoulli=True))
    compiled_model = torch.compile(model, backend="aot_eager")
    assert_same(gradients(compiled_model, model, x, handle, 2), gradients(model, model, x, handle, 2))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="holds a random number of entries"):
        torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    handle.remove()
    handle = randomize(model, Spatial(0.5), Axes(0.5, bernoulli=True))  # nothing of random size is held
    compiled_model = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(gradients(compiled_model, model, x, handle, 2), gradients(model, model, x, handle, 2))

    def call(x: Tensor, generator: torch.Generator) -> Tensor:
        return conv(x, model[0].weight, generator=generator)

    weight, compiled_call = model[0].weight, torch.compile(call, backend="aot_eager")
    grads = [
        torch.autograd.grad(function(x, torch.Generator().manual_seed(seed)).square().sum(), weight)
        for function, seed in ((call, 1), (compiled_call, 1), (compiled_call, 2))
    ]
    assert_same(grads[0], grads[1])
    assert not torch.allclose(grads[1][0], grads[2][0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    model, x = network(), images()
    handle = randomize(model, Spatial(0.25), Spatial(0.5), layers="*")

    def cast(forward: Any) -> Any:
        return torch.autocast("cpu", dtype=dtype)(forward)

    compiled_model = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert cast(compiled_model)(x).dtype is dtype
    eager = gradients(cast(model), model, x, handle, 1)
    assert_same(gradients(cast(compiled_model), model, x, handle, 1), eager, 1e-2)
    assert all(grad.dtype is torch.float32 for grad in eager)


@dataclass(frozen=True)
class WithoutAutocast(Estimator):
    """Fails where autocast would run the functions of a sketch in another precision."""

    keep: float = 0.5
    serves = frozenset({"weight_vjp"})

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        assert not torch.is_autocast_enabled("cpu")
        return (input.clone(),)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        return Exact().weight_vjp(held, output_grad, spec, draw)


@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
def test_a_sketch_is_made_without_autocast(backend: str | None) -> None:
    model, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 6, 6)
    randomize(model, WithoutAutocast())

    def cast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output: Tensor = model(x)
        return output

    call = cast if backend is None else torch.compile(cast, fullgraph=True, backend=backend)
    call(x).sum().backward()
    assert model.weight.grad is not None


def test_channels_last() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, stride=2)
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    x = torch.randn(4, 4, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    native = model(x), *gradients(model, model, x)
    handle = randomize(model, Spatial(0.25), Spatial(0.5))
    compiled_model = torch.compile(model, fullgraph=True, backend="aot_eager")
    grads = gradients(compiled_model, model, x, handle, 1)
    assert_same(grads, gradients(model, model, x, handle, 1))
    for found in ((compiled_model(x), *grads), (model(x), *gradients(model, model, x))):
        assert [tensor.stride() for tensor in found] == [tensor.stride() for tensor in native]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("estimator", [Spatial(0.25), Rounding(4, Spatial(0.25))], ids=str)
def test_layers_with_low_rank_parts(estimator: Estimator, memory_format: torch.memory_format) -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Softplus())
    x = torch.randn(128, 64, 16, 16).to(memory_format=memory_format).requires_grad_()
    assert affordable_rank(conv_spec(x, model[0].weight, 1, 1, 1, 1), 63)
    with randbp.randomize(model, weight_vjp=estimator) as handle:
        eager = gradients(model, model, x, handle)
        assert_same(gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), model, x, handle), eager)
        assert differ(gradients(model, model, x, handle, step=1), eager)


def test_activation_checkpointing_uses_one_sample() -> None:
    """Were the recomputed sketch and the backward pass to draw apart, no estimate would be near the gradient."""
    model, x = small().double(), images(64).double().detach().requires_grad_()
    exact = gradients(model, model, x)
    randomize(model, Spatial(0.8))
    compiled_run = torch.compile(
        lambda x: checkpoint(model, x, use_reentrant=False), fullgraph=True, backend="aot_eager"
    )
    first, second = gradients(compiled_run, model, x), gradients(compiled_run, model, x)
    for expected, left, right in zip(exact, first, second, strict=True):
        assert (left - expected).norm() < 0.35 * expected.norm()
        assert left.dim() == 1 or left.shape == x.shape or not torch.equal(left, right)


def test_nothing_of_the_seed_is_written_into_the_graph() -> None:
    model, x = small(), images()
    handle = randomize(model, Spatial(0.25), seed=1)
    compiled_model = torch.compile(model, fullgraph=True, backend="aot_eager")
    seen = [gradients(compiled_model, model, x, handle, 1)]
    handle.set_step(1, rank=1)
    seen.append(gradients(compiled_model, model, x))
    handle.set_step(1, micro_batch=1)
    seen.append(gradients(compiled_model, model, x))
    assert differ(seen[0], seen[1]) and differ(seen[0], seen[2]) and differ(seen[1], seen[2])
    restored = copy.deepcopy(model)  # with its place in the sequence
    assert_same(gradients(compiled_model, model, x), gradients(restored, restored, x))


class LitNetwork(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(*small(), nn.Flatten(), nn.Linear(32, 4))

    def training_step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def test_lightning_trains_a_compiled_module(tmp_path: Path) -> None:
    data = DataLoader(TensorDataset(images(20).detach(), torch.arange(20) % 4), batch_size=8)
    weights = []
    for compile_it in (False, True):
        backend, module = Counting(), LitNetwork()
        trainer = pl.Trainer(
            max_steps=4,
            accelerator="cpu",
            callbacks=[TensorDropout(Spatial(0.25), Spatial(0.5), layers="*")],
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(torch.compile(module, backend=backend) if compile_it else module, data)
        weights.append(tuple(parameter.detach() for parameter in module.parameters()))
        assert (backend.graphs > 0) == compile_it
    assert_same(weights[0], weights[1], 1e-4)


LAYERS: list[tuple[LayerFunction, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = [
    (Convolution((2, 1, 1, 2)), (4, 6, 9, 9), (4, 3, 3, 3), (4, 4, 5, 5)),
    (TransposedConvolution((2, 1, 1, 1, 1)), (4, 6, 5), (6, 3, 3), (4, 3, 10)),
    (Linear(), (4, 9, 6), (3, 6), (4, 9, 3)),
]


@pytest.mark.parametrize("estimator", [Spatial(0.25), NormSpatial(0.5), Rounding(4), Exact()], ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer[0]).__name__)
def test_operators_keep_their_contract(layer: Any, estimator: Estimator) -> None:
    function, *shapes = layer
    x, weight, output_grad = (torch.randn(shape) for shape in shapes)
    held, grad = [function.channels_second(x)], function.channels_second(output_grad)
    other = estimator if "input_vjp" in estimator.serves else Exact()
    for channels_last in (False, True) if x.dim() == 4 else (False,):
        call = Call(function, shapes[0], shapes[1], estimator, other, channels_last)
        seed, text = torch.tensor(5), to_text(call)
        if not estimator.exact:
            torch.library.opcheck(torch.ops.randbp.sketch.default, (x, seed, text))
            held = torch.ops.randbp.sketch(x, seed, text)
        torch.library.opcheck(torch.ops.randbp.weight_vjp.default, (held, grad, seed, text))
        torch.library.opcheck(torch.ops.randbp.input_vjp.default, (grad, weight, seed, text))


@dataclass(frozen=True)
class FirstExamples(Estimator):
    """A user's own, with nothing but what the protocol asks for."""

    serves = frozenset({"weight_vjp"})

    def _chosen(self, examples: Tensor, draw: Draw) -> Tensor:
        noise = torch.rand(len(examples), generator=draw.generator(examples.device), device=examples.device)
        return noise.argsort()[: max(1, int(self.keep * len(examples)))]

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        return (input[self._chosen(input, draw)],)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        return Exact().weight_vjp(held, output_grad[self._chosen(output_grad, draw)] / self.keep, spec, draw)


def test_an_estimator_of_ones_own() -> None:
    model, x = small(), images()
    handle = randomize(model, FirstExamples(0.5))
    compiled_model = torch.compile(model, fullgraph=True, backend="aot_eager")
    first = gradients(compiled_model, model, x, handle, 1)
    assert_same(first, gradients(model, model, x, handle, 1))
    assert differ(first, gradients(compiled_model, model, x, handle, 2))


def test_the_seed_operator_keeps_its_contract() -> None:
    clock, place = Integers([3, 5, 1]), Integers([7, 0, 0])
    torch.library.opcheck(torch.ops.randbp.next_seed.default, (clock.tensor.clone(), place.tensor.clone()))
    assert torch.ops.randbp.next_seed(clock.tensor, place.tensor) == randbp.draws.seeds.next_seed(
        clock.values, [7, 0, 0]
    )
    assert list(place.values) == [7, 1, 1]


def test_sketches_that_the_compiler_cannot_know_end_in_one_line() -> None:
    with pytest.raises(ValueError, match="estimators whose fields are numbers, strings, tuples or estimators"):
        randbp._torch.dataclass_text.from_text("('randbp.estimators.spatial.Spatial', {'keep': <object>})")
