"""Ranks of linear CNNs: bounds against Hessians by ``torch.func``, and the command."""

import json

import pytest
import torch
from torch.func import functional_call, hessian, jacrev

from experiments import hessian_rank
from experiments.__main__ import main as experiments
from experiments.hessian_rank import run_hessian_rank
from experiments.hessian_rank.bounds import LinearCNN, bounds, dense_bounds, shared_bounds
from experiments.hessian_rank.run_hessian_rank import generated, measured, network, sizes
from randbp.curvature import ntk


def ranks(model, x, y):
    """Of ``H_o``, ``H_f`` and ``H``, from derivatives of the whole network."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    start = torch.cat([p.detach().flatten() for p in model.parameters()])

    def outputs(vector):
        parts = vector.split([shape.numel() for shape in shapes.values()])
        given = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return functional_call(model, given, (x,))

    whole = hessian(lambda vector: ((outputs(vector) - y) ** 2).sum() / len(x))(start)
    jacobian = jacrev(outputs)(start).flatten(0, 1)
    outer = 2 / len(x) * jacobian.T @ jacobian
    atol = len(whole) * 1e-14 * float(whole.norm())
    return {
        name: int(torch.linalg.matrix_rank(matrix, atol=atol, hermitian=True))
        for name, matrix in {"H_o": outer, "H_f": whole - outer, "H": whole}.items()
    }


@pytest.mark.parametrize("seed", range(1000, 1012))
def test_ranks_of_generated_networks_are_right_and_within_the_bounds(seed):
    run = generated(seed)
    row, (model, x, y) = measured(run), network(run)
    assert row["ranks"] == ranks(model, x, y)
    assert all(rank <= row["bounds"][name] <= row["parameters"] for name, rank in row["ranks"].items())
    kernel = ntk(model, x).transpose(1, 2).flatten(2).flatten(0, 1)
    assert int(torch.linalg.matrix_rank(kernel, hermitian=True)) == row["ranks"]["H_o"]


def test_dense_networks_have_the_published_ranks():
    """25 inputs, layers of 5, 10 and 10: 150, 175 and 250 (Singh et al. 2021, their published example)."""
    net = LinearCNN((1,), (25, 5, 10, 10), ((1,), (1,), (1,)))
    assert dense_bounds(net, 25) == {"H_o": 150, "H_f": 175, "H": 250}
    run = {
        "net": {"size": [1], "channels": [6, 3, 4, 2], "kernels": [[1], [1], [1]]},
        "activation": "linear",
        "seed": 0,
    }
    row = measured(run)
    assert row["ranks"] == dense_bounds(sizes(run), 6)


@pytest.mark.parametrize("width", [2, 6])
def test_bounds_of_two_layers_are_reached(width):
    net = {"size": [4, 5], "channels": [1, width, 1], "kernels": [[2, 2], [3, 4]]}
    row = measured({"net": net, "activation": "linear", "seed": 0})
    assert row["ranks"] == row["bounds"] == shared_bounds(sizes(row_run(net)))
    assert row["ranks"]["H_f"] == 2 * width * 4
    assert bounds(sizes(row_run(net)), 3)["H_o"] <= 3 * 1


def row_run(net):
    return {"net": net}


def test_the_page_has_all_networks_and_a_second_run_measures_nothing(monkeypatch, tmp_path, capsys):
    wanted = [run for run in run_hessian_rank.wanted(quick=True) if run["series"] != "width"][:14]
    wide = [run for run in run_hessian_rank.wanted(quick=True) if run["series"] == "width"]
    monkeypatch.setattr(run_hessian_rank, "wanted", lambda quick: [*wide[:5], *wanted])
    command = ["hessian-rank", "--quick", "--output", str(tmp_path)]
    assert experiments(command) == 0
    page = (tmp_path / "ranks.md").read_text()
    assert "| of 4 generated networks |" in page and "ranks equal their bounds in" in page
    assert (tmp_path / "ranks.png").stat().st_size > 10_000
    rows = [json.loads(line) for line in (tmp_path / "ranks.jsonl").read_text().splitlines()]
    assert [row["run"] for row in rows] == [*wide[:5], *wanted]
    monkeypatch.setattr(run_hessian_rank, "measured", None)
    assert hessian_rank.main(command[1:]) == 0
    assert (tmp_path / "ranks.md").read_text() == page
    assert "of at most" in capsys.readouterr().out
