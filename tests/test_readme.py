"""What README and the pages in docs/ show runs; the estimator is complete, short, and unbiased in all layers."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import randbp
from randbp.callbacks import TensorDropout
from randbp.estimators import Draw
from randbp.functional import conv_spec
from tests.estimators.test_unbiased import assert_unbiased

ROOT = Path(__file__).parents[1]


def code_of(page: str) -> list[str]:
    """The blocks of Python on a page, from top to bottom."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def example() -> Any:
    (code,) = code_of("docs/estimators.md")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20
    namespace: dict[str, Any] = {"__name__": "page"}
    exec(code, namespace)
    return namespace["SignedSums"]


def test_second_order_examples() -> None:
    step, curvature = code_of("docs/curvature.md")
    namespace: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(step, namespace)
    assert namespace["optimizer"].steps == 1 and set(namespace["optimizer"].layers) == {"0", "4"}
    exec(curvature, namespace)
    assert namespace["weight"].shape == (10, 256) and namespace["found"].left == {}


class Module(LightningModule):
    """A network of one convolution in ``features``."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())

    def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
        return self.features(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted() -> dict[str, Any]:
    """What pages call ``module`` and ``datamodule``."""
    images = TensorDataset(torch.randn(8, 3, 16, 16))
    return {"module": Module(), "datamodule": DataLoader(images, batch_size=4)}


def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    namespace = fitted()
    plain, callback, second_order = code_of("README.md")
    exec(plain, namespace)
    model = namespace["model"]
    assert all(p.grad is not None for p in model.parameters()) and not any("randbp" in str(type(m)) for m in model)
    exec(callback, namespace)
    assert namespace["trainer"].global_step == 2
    exec(second_order, namespace)
    assert namespace["optimizer"].steps == 1


def test_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = torch.randn(4, 3, 16, 16)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    namespace = fitted() | {"model": model}
    callback, in_place, functions = code_of("docs/start.md")
    exec(callback, namespace)
    assert namespace["trainer"].global_step == 2
    exec(in_place, namespace)
    assert namespace["handle"].keep_rates == {} and not list(namespace["handle"].layers)
    namespace |= {"x": images, "weight": torch.randn(3, 3, 3, 3, requires_grad=True), "bias": torch.zeros(3)}
    conv, transposed, linear = functions.strip().splitlines()
    for line, shape in ((conv, (4, 3, 16, 16)), (transposed, (4, 3, 33, 33))):
        exec(line, namespace)
        assert namespace["y"].shape == shape
    exec(linear, namespace | {"x": images.flatten(1), "weight": torch.randn(3, 768), "bias": None})


def test_choosing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))
    namespace: dict[str, Any] = {"model": model, "images": torch.randn(16, 3, 12, 12), "labels": torch.arange(16) % 10}
    namespace |= {"randbp": randbp, "Spatial": randbp.Spatial, "TensorDropout": TensorDropout}
    errors, tuned = code_of("docs/choosing.md")
    exec(errors, namespace)
    assert not namespace["result"].biased() and {row.name for row in namespace["result"].rows} >= {"0", "2"}
    exec(tuned, namespace)
    assert set(namespace["tuned"]) >= {"0", "2"}


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert ((ROOT / page).parent / target).exists(), target


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
    (code,) = code_of("docs/lean_mode.md")
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.GELU())
    namespace: dict[str, Any] = {"model": model, "images": torch.randn(4, 3, 32, 32), "Spatial": randbp.Spatial}
    exec(code, namespace | {"randbp": randbp}, namespace)
    assert namespace["lean"].held_bytes < 0.25 * namespace["exact"].held_bytes
    printed = capsys.readouterr().out
    assert "held for backward" in printed and "BatchNorm" not in printed and "batch_norm" in printed


def test_levels_of_lean_mode_on_its_page_are_accepted() -> None:
    text = (ROOT / "docs/lean_mode.md").read_text(encoding="utf-8")
    found = re.findall(r"`lean=(\{.*?\}|\"\w+\"|True)`", text)
    assert len(found) >= 3
    model = nn.ModuleDict({"head": nn.Sequential(nn.ReLU()), "encoder": nn.ModuleDict({"norm": nn.LayerNorm(4)})})
    model["stem"] = nn.Conv2d(3, 3, 1)
    for value in found:
        randbp.randomize(model, lean=eval(value)).remove()


def test_tensor_networks() -> None:
    (code,) = code_of("docs/tensor_networks.md")
    made: dict[str, Any] = {}
    exec(code, made)
    weight = torch.zeros(32, 16, 3, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(nn.functional.conv2d(made["x"], weight, padding=1), weight, made["dy"])
    torch.testing.assert_close(made["weight_grad"], grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(made["per_example"].sum(0), grad, rtol=1e-4, atol=1e-3)
    assert made["half_the_rows"].shape == grad.shape and made["factor"].shape == (1, 144, 144)


def test_tests_that_the_page_of_support_names_are_there() -> None:
    text = (ROOT / "docs/support.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) > 15 and all("`tests/" in row for row in rows[1:])
    for path, name in re.findall(r"`(tests/\S+?)::(\w+)`", text):
        assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), name


def test_all_python_in_the_documentation_is_run() -> None:
    """By a test that reads the page; ``advise.md`` takes a minute, and its example in ``examples/`` runs instead."""
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    for page in (ROOT / "docs").glob("*.md"):
        if code_of(f"docs/{page.name}") and page.name != "advise.md":
            assert f'{page.name}"' in tests, page.name


def test_tangent_kernels() -> None:
    namespace: dict[str, Any] = {}
    for block in code_of("docs/ntk.md"):
        exec(block, namespace)
    assert namespace["kernel"].shape == (6, 4, 10, 10) and namespace["traces"].shape == (6, 6)
