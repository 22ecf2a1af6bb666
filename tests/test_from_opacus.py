"""The page for those who come from Opacus: its sampler against torch.func, over all kinds of convolutions."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

PAGE = (Path(__file__).parents[1] / "docs" / "from_opacus.md").read_text(encoding="utf-8")
ORDINARY = [
    {"padding": 1, "groups": 2},
    {"padding": 2, "stride": 2, "dilation": 2},
    {"padding": "valid", "bias": False},
    *({"padding": "same", "padding_mode": mode, "dilation": 2} for mode in ("zeros", "reflect", "circular")),
    {"padding": 1, "padding_mode": "replicate", "stride": 2, "groups": 2},
]
TRANSPOSED = [
    {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2},
    {"dilation": 2, "padding": 1, "bias": False},
]


@pytest.fixture(scope="module")
def sampler() -> Any:
    namespace: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, namespace)
    return namespace["per_example_conv_grads"]


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("kind", "options"), [("Conv", o) for o in ORDINARY] + [("ConvTranspose", o) for o in TRANSPOSED]
)
def test_sampler(sampler: Any, kind: str, options: dict[str, Any], dims: int, kernel: int) -> None:
    torch.manual_seed(0)
    layer = getattr(nn, f"{kind}{dims}d")(4, 6, kernel, dtype=torch.float64, **options)
    x = torch.randn(3, 4, *(7, 6, 5)[:dims], dtype=torch.float64)
    backprops = torch.randn_like(layer(x))

    def one(parameters: dict[str, Any], x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (functional_call(layer, parameters, (x[None],))[0] * v).sum()

    expected = vmap(grad(one), (None, 0, 0))(dict(layer.named_parameters()), x, backprops)
    made = sampler(layer, [x], backprops)
    assert len(made) == len(expected)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(made[parameter], expected[name], rtol=1e-10, atol=1e-10)
