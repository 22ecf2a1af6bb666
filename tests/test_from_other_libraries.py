"""The page for those who come from other libraries: its code runs from top to bottom, and the names exist."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from randbp import curvature, tn

PAGE = (Path(__file__).parents[1] / "docs" / "from_other_libraries.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks[:-1]:
        exec(block, namespace)
    weights = [parameter.detach().clone() for parameter in namespace["model"].parameters()]
    for block in blocks[-1:]:
        exec(block, namespace)
    return namespace | {"weights": weights}


def test_operators(made: dict[str, Any]) -> None:
    before = [parameter.detach().clone() for parameter in made["model"].parameters()]
    with torch.no_grad():
        for parameter, weight in zip(made["model"].parameters(), made["weights"], strict=True):
            parameter.copy_(weight)
    dense = curvature.GGN(made["model"], made["batch"], made["loss"]).to_dense().double()
    damped = dense + 0.1 * torch.eye(len(dense), dtype=torch.float64)
    v = made["v"].double()
    torch.testing.assert_close(made["product"].double(), dense @ v, rtol=1e-3, atol=1e-5)
    expected = torch.linalg.solve(damped, v)
    torch.testing.assert_close(made["solved"].double(), expected, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(made["by_scipy"], expected, rtol=1e-2, atol=1e-3)
    assert made["info"] == 0
    np.testing.assert_allclose(np.sort(made["largest"]), torch.linalg.eigvalsh(dense)[-2:], rtol=1e-2)
    kfac = made["kfac"].to_dense().double()
    exact = torch.linalg.solve(kfac + 0.1 * torch.eye(len(kfac), dtype=torch.float64), v)
    torch.testing.assert_close(made["exact"].double(), exact, rtol=1e-2, atol=1e-3)
    assert not any(map(torch.equal, before, made["weights"]))  # SINGD has taken a step


def test_quantities_by_parameter(made: dict[str, Any]) -> None:
    for name, grads in made["grads"].items():
        torch.testing.assert_close(made["norms"][name], grads.flatten(1).norm(dim=1), rtol=1e-3, atol=1e-6)
    assert made["diagonal"].keys() == made["grads"].keys()


def test_names_exist() -> None:
    ours = [line.split("|")[2] for line in PAGE.splitlines() if line.startswith("| `") and line.count("|") >= 4]
    assert len(ours) > 30
    names = {name for cell in ours for name in re.findall(r"`(?:tn\.)?(\w+)(?:\(|`)", cell)}
    known = {*dir(curvature), *dir(tn), *dir(curvature.LinearOperator), *dir(curvature.KFACOperator), "requires_grad_"}
    more = {"lsmr", "minres", "GradScaler"}  # SciPy's and PyTorch's
    arguments = {"approximation", "factor_momentum", "factor_lr", "factor_every", "normalize"}
    assert names - known - more <= arguments | {"inverse"}, names - known - more - arguments
