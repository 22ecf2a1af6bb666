"""The README's own estimator is complete, short, works in a layer and is unbiased; its lean mode saves memory."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import randbp
from randbp.estimators import Draw
from randbp.functional import conv_spec
from tests.estimators.test_unbiased import assert_unbiased


@pytest.fixture(scope="module")
def example() -> Any:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = re.search(r"### Your own.*?```python\n(.*?)```", readme, re.DOTALL)
    assert code is not None
    assert sum(bool(line.strip()) for line in code[1].splitlines()) <= 20
    namespace: dict[str, Any] = {"__name__": "readme"}
    exec(code[1], namespace)
    return namespace["SignedSums"]


def test_second_order_example_takes_a_step() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = re.search(r"## Second-order training.*?```python\n(.*?)```", readme, re.DOTALL)
    assert code is not None
    namespace: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(code[1], namespace)
    assert namespace["optimizer"].steps == 1 and set(namespace["optimizer"].layers) == {"0", "4"}


def test_it_is_unbiased(example: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 2, 5, 4, generator=generator, dtype=torch.float64)
    weight = torch.rand(3, 2, 3, 2, generator=generator, dtype=torch.float64)
    spec = conv_spec(x, weight, 2, 1, 1, 1)
    output_grad = torch.rand(spec.output_shape, generator=generator, dtype=torch.float64)
    exact = randbp.Exact().weight_vjp((x,), output_grad, spec, Draw(0))
    estimator = example(keep=0.5)
    draws = [estimator.weight_vjp(estimator.sketch(x, spec, Draw(s)), output_grad, spec, Draw(s)) for s in range(2000)]
    assert_unbiased(torch.stack(draws), exact)


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(4, 3, 3, stride=2, groups=1), nn.Linear(5, 3)], ids=str)
def test_it_is_unbiased_in_other_layers(example: Any, layer: Any) -> None:
    layer, generator = layer.double(), torch.Generator().manual_seed(0)
    x = torch.rand(6, 4, 5, 5, generator=generator, dtype=torch.float64)
    output_grad = torch.rand(layer(x).shape, generator=generator, dtype=torch.float64)
    exact = torch.autograd.grad(layer(x), layer.weight, output_grad)[0]
    with randbp.randomize(nn.Sequential(layer), weight_vjp=example(keep=0.5), layers="0"):
        draws = [torch.autograd.grad(layer(x), layer.weight, output_grad)[0] for _ in range(600)]
    assert_unbiased(torch.stack(draws), exact)


def test_it_serves_a_model_and_describes_itself(example: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with randbp.randomize(model, weight_vjp=example(keep=0.25)) as handle:
        assert handle.keep_rates == {"0": 0.25, "2": 0.25}
        model(torch.randn(8, 3, 9, 9)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    spec = conv_spec(torch.empty(8, 3, 9, 9), torch.empty(8, 3, 3, 3), 1, 0, 1, 1)
    assert example(keep=0.25).describe(spec).held_bytes == 2 * 3 * 81 * 4
    with pytest.raises(ValueError, match=r"SignedSums serves only weight_vjp"):
        randbp.randomize(model, input_vjp=example(keep=0.25))


def test_lean_mode_and_memory_reports(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = re.search(r"## Less memory for a whole network.*?```python\n(.*?)```", readme, re.DOTALL)
    assert code is not None
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.GELU())
    namespace: dict[str, Any] = {"model": model, "images": torch.randn(4, 3, 32, 32), "Spatial": randbp.Spatial}
    exec(code[1], namespace | {"randbp": randbp}, namespace)
    assert namespace["lean"].held_bytes < 0.25 * namespace["exact"].held_bytes
    printed = capsys.readouterr().out
    assert "held for backward" in printed and "BatchNorm" not in printed and "batch_norm" in printed


def test_levels_of_lean_mode_in_the_readme_are_accepted() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"`lean=(\{.*?\}|\"\w+\"|True)`", readme)
    assert len(found) >= 3
    model = nn.ModuleDict({"head": nn.Sequential(nn.ReLU()), "encoder": nn.ModuleDict({"norm": nn.LayerNorm(4)})})
    model["stem"] = nn.Conv2d(3, 3, 1)
    for value in found:
        randbp.randomize(model, lean=eval(value)).remove()


def test_tensor_networks_in_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = re.search(r"## Tensor networks.*?```python\n(.*?)```", readme, re.DOTALL)
    assert code is not None
    made: dict[str, Any] = {}
    exec(code[1], made)
    weight = torch.zeros(32, 16, 3, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(nn.functional.conv2d(made["x"], weight, padding=1), weight, made["dy"])
    torch.testing.assert_close(made["weight_grad"], grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(made["per_example"].sum(0), grad, rtol=1e-4, atol=1e-3)
    assert made["half_the_rows"].shape == grad.shape and made["factor"].shape == (1, 144, 144)
