"""On a GPU: the same promises, and no waiting for the device."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import randbp
from bench import contractions, estimators, lean_cuda, lean_settings
from bench.place import Place
from experiments.models import AllCNNC
from randbp import (
    Batch,
    Estimator,
    Exact,
    NormSpatial,
    Rounding,
    Spatial,
)
from randbp.curvature import EKFAC, KFAC, Approximation
from randbp.functional import conv, conv_transpose, linear
from randbp.kernels import backends
from randbp.kernels.operator import OPERATORS
from tests.catalogue import FIXED_SIZE, named
from tests.kernels.cases import Case, cases
from tests.kernels.same import assert_same, results

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ESTIMATORS = [case.real for case in named("spatial", "spatial raw", "axes", "channels", "batch")]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2),
        nn.ConvTranspose2d(16, 8, 4, stride=2),
        nn.Linear(16, 16),
        nn.Flatten(),
        nn.Linear(8 * 16 * 16, 4),
    ).cuda()


def both(estimator: Estimator) -> dict[str, Estimator]:
    return {"weight_vjp": estimator, "input_vjp": estimator if "input_vjp" in estimator.serves else Exact()}


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_unbiased_on_the_gpu(estimator: Estimator, stride: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.rand(6, 4, 6, 6, device="cuda", dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.rand(3, 4, 3, 3, device="cuda", dtype=torch.float64, generator=generator, requires_grad=True)
    exact = torch.autograd.grad(nn.functional.conv2d(x, weight, None, stride, 1).square().sum(), (weight, x))
    input_vjp = Exact() if isinstance(estimator, Batch) else estimator
    draws: list[list[torch.Tensor]] = [[], []]
    for _ in range(500):
        y = conv(x, weight, None, stride, 1, weight_vjp=estimator, input_vjp=input_vjp, generator=generator)
        for kept, grad in zip(draws, torch.autograd.grad(y.square().sum(), (weight, x)), strict=True):
            kept.append(grad)
    for kept, expected in zip(draws, exact, strict=True):
        stack = torch.stack(kept)
        z = (stack.mean(0) - expected).abs() / (stack.std(0) / 500**0.5).clamp_min(1e-9 * expected.abs().max())
        assert z.max() < 6  # Bonferroni over 972 entries: error probability 2e-6


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
@pytest.mark.parametrize("kind", ["transposed", "sequence", "vectors"])
def test_other_layers_are_unbiased_on_the_gpu(estimator: Estimator, kind: str) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = {"transposed": ((6, 4, 4, 4), (4, 3, 3, 3)), "sequence": ((6, 9, 4), (3, 4)), "vectors": ((40, 4), (3, 4))}
    x, weight = (
        torch.rand(shape, device="cuda", dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in shapes[kind]
    )
    native = nn.functional.linear if x.dim() < 4 else lambda x, w: nn.functional.conv_transpose2d(x, w, None, 2, 1)
    estimated = linear if x.dim() < 4 else lambda x, w, **options: conv_transpose(x, w, None, 2, 1, **options)
    output_grad = torch.rand(native(x, weight).shape, device="cuda", dtype=torch.float64, generator=generator)
    exact = torch.autograd.grad(native(x, weight), (weight, x), output_grad)
    input_vjp = Exact() if isinstance(estimator, Batch) else estimator
    draws: list[list[torch.Tensor]] = [[], []]
    for _ in range(500):
        y = estimated(x, weight, weight_vjp=estimator, input_vjp=input_vjp, generator=generator)
        for kept, grad in zip(draws, torch.autograd.grad(y, (weight, x), output_grad), strict=True):
            kept.append(grad)
    for kept, expected in zip(draws, exact, strict=True):
        stack = torch.stack(kept)
        z = (stack.mean(0) - expected).abs() / (stack.std(0) / 500**0.5).clamp_min(1e-9 * expected.abs().max())
        assert z.max() < 6  # Bonferroni over at most 492 entries: error probability 1e-6


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("estimator", FIXED_SIZE, ids=str)
def test_nothing_waits_for_the_device_and_global_state_stays(estimator: Estimator, wide: bool) -> None:
    """A wide layer has low-rank parts beside its sample."""
    model = nn.Conv2d(64, 64, 3, padding=1).cuda() if wide else network()
    x = torch.randn(128, 64, 16, 16, device="cuda") if wide else torch.randn(16, 8, 16, 16, device="cuda")
    with randbp.randomize(model, **both(estimator), layers="*"):
        model(x).square().sum().backward()  # index tables are built once per layer geometry
        before = torch.cuda.get_rng_state()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(x).square().sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("estimator", [Spatial(0.25), NormSpatial(0.25), Rounding(4)], ids=str)
def test_compiled_steps_draw_afresh_and_equal_eager_ones(estimator: Estimator, mode: str) -> None:
    torch._dynamo.reset()
    model, x = network(), torch.randn(16, 8, 16, 16, device="cuda")
    handle = randbp.randomize(model, **both(estimator), layers="*")
    compiled = torch.compile(model, fullgraph=True, mode=mode)

    def weight_grads(forward: nn.Module, step: int) -> list[torch.Tensor]:
        handle.set_step(step)
        model.zero_grad()
        forward(x).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    drawn = []
    for step in range(5):  # CUDA graphs, if any, are recorded in the second step and replayed from the third
        drawn.append(weight_grads(compiled, step))
        for left, right in zip(drawn[-1], weight_grads(model, step), strict=True):
            assert (left - right).norm() < 1e-2 * right.norm()
    assert not torch.allclose(drawn[3][0], drawn[4][0], rtol=1e-2)


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
@pytest.mark.parametrize("approximation", ["reduce", "expand"])
def test_second_order_steps_are_those_of_the_processor(approximation: Approximation, kind: type[KFAC]) -> None:
    ends = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = network().double().to(device)
        optimizer = kind(model, lr=0.1, approximation=approximation, largest=10_000)
        x = torch.randn(16, 8, 16, 16, dtype=torch.float64).to(device)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), (torch.arange(16) % 4).to(device)).backward()
            optimizer.step()
        ends.append(torch.cat([parameter.detach().cpu().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-9)


def test_benchmarks_time_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    summary = contractions.run("kfac-reduce", "all-cnn-c.7", 0.01, Place("cuda"))
    assert summary["unfold"]["device_geometric_mean"] > 0
    found = estimators.run("all-cnn-c.7", 0.01, Place("cuda", torch.bfloat16), ["batch"])
    assert found["batch 0.5 device"]["geometric_mean"] > 0


def test_lean_mode_stands_beside_compiled_and_offloaded_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = lean_settings.Network(lambda: AllCNNC(width=0.5, dropout=False), 32, 32, 4)
    monkeypatch.setattr(lean_cuda, "NETWORKS", {"small": small})
    monkeypatch.setattr(lean_cuda, "MEMORY", 2 * 2**30)
    lean_cuda.run("", 0.1, False, ["preset", "compiled", "host", "checkpoint"], Place("cuda"))
    (file,) = (tmp_path / "runs/bench").glob("lean-cuda*.json")
    rows = {row["setting"]: row for row in json.loads(file.read_text())["rows"]}
    assert set(rows) == set(lean_cuda.chosen(lean_cuda.settings_here(), ["preset", "compiled", "host", "checkpoint"]))
    assert rows["preset memory"]["held_ratio"] < 0.3 and rows["held by the host"]["held_ratio"] < 0.1
    assert rows["preset memory"]["largest"] > rows["exact"]["largest"] > 32
    assert all(row["images_per_second"] > 0 and row["time_ratio"] > 0 for row in rows.values())


def test_capturing_a_cuda_graph_says_why_it_cannot_be() -> None:
    model, x = network(), torch.randn(16, 8, 16, 16, device="cuda")
    randbp.randomize(model, Spatial(0.25))
    model(x).sum().backward()
    refusal = pytest.raises(RuntimeError, match="a captured CUDA graph would repeat one sample")
    with refusal, torch.cuda.graph(torch.cuda.CUDAGraph()):
        model(x)


@pytest.mark.parametrize("case", cases(most=16), ids=str)
def test_fused_kernels_give_the_bits_of_the_processors_reference(case: Case) -> None:
    """But the sign of zero that ReLU makes is the device's own; and nothing waits for the device."""
    expected = results(case, "reference", "cuda" if case.operator == "relu" else "cpu")
    arguments = [x.cuda() if isinstance(x, torch.Tensor) else x for x in case.arguments()]
    OPERATORS[case.operator](*arguments)  # kernels are compiled
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = OPERATORS[case.operator](*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = found if isinstance(found, tuple | list) else (found,)
    assert_same(case, tuple(x.cpu() for x in found), tuple(x.cpu() for x in expected))


def test_triton_serves_the_gpu() -> None:
    served = backends()
    assert {served[operator]["cuda"] for operator in ("encode", "decode", "narrow", "masked")} == {"triton"}
