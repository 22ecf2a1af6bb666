"""How outputs depend on parameters, against Jacobians of ``torch.func``."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from randbp import randomize
from randbp.curvature.parameter_uses import record

from .generated_networks import generated, jacobians


def summed(model, x):
    """``∂f(x)/∂θ`` ``[N, C, *θ]`` by parameter name, from the uses of each parameter, and the kinds of these."""
    found = record(model, x)
    edges = [use.output.edge for use in found.uses]
    names = {parameter: name for name, parameter in model.named_parameters()}
    columns = [
        torch.autograd.grad(found.output[:, c].sum(), edges, retain_graph=True) for c in range(found.output.shape[1])
    ]
    total = {}
    for number, use in enumerate(found.uses):
        assert use.examples == len(x)
        made = use.vjp(torch.stack([column[number] for column in columns])).transpose(0, 1)
        name = names[use.parameter]
        total[name] = total[name] + made if name in total else made
    return total, {type(use).__name__ for use in found.uses}


def check(model, x, *missing):
    expected = jacobians(model, x)
    made, kinds = summed(model, x)
    assert set(expected) - set(made) == set(missing)
    for name, value in made.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-10)
    return kinds


@pytest.mark.parametrize("seed", range(12))
def test_uses_of_generated_networks_give_all_jacobians(seed):
    model, x = generated(seed)
    check(model, x)


class Tokens(nn.Module):
    """A table that is also the last layer's weight, a layer that runs twice, functions instead of modules."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4, padding_idx=5)
        self.twice = nn.Linear(4, 4)
        self.norm = nn.RMSNorm(4)
        self.product = nn.Parameter(torch.empty(4, 4))
        self.instance = nn.InstanceNorm1d(4, affine=True)

    def forward(self, tokens):
        x = self.table(tokens)
        x = self.norm(self.twice(self.twice(x).relu_()))
        x = self.instance(x.mT).exp().mean(2) @ self.product
        return F.linear(x, self.table.weight)


def tokens():
    torch.manual_seed(0)
    model = Tokens().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randint(7, (3, 5))
    x[0, 0], x[1, :2] = 5, 5  # the row that takes no gradient
    return model, x


def test_tables_shared_weights_and_functional_calls():
    model, x = tokens()
    assert check(model, x) == {"WeightUse", "AffineUse", "EmbeddingUse"}


def test_frozen_parameters_and_randomised_layers_in_evaluation():
    model, x = generated(1)
    model[0].weight.requires_grad_(False)
    with randomize(model, layers="*"):
        check(model, x)


def test_what_is_computed_from_parameters_or_has_rules_of_its_own_is_not_noted():
    model = nn.Sequential(nn.Linear(3, 3), nn.PReLU(3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    missing = ("1.weight", "2.parametrizations.weight.original0", "2.parametrizations.weight.original1")
    check(model, x, *missing)
    table = nn.Embedding(5, 2, scale_grad_by_freq=True)
    assert record(table, torch.tensor([[1, 2]])).uses == ()


def test_statistics_of_a_batch_are_refused():
    for norm in (nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False).eval()):
        with pytest.raises(
            ValueError, match=r"model: a batch norm takes its statistics from the batch: call model.eval"
        ):
            record(nn.Sequential(nn.Linear(2, 3), norm), torch.ones(4, 2))


def test_running_statistics_of_an_instance_norm_move_once():
    norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
    other = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
    x = torch.randn(3, 2, 5)
    record(norm, x)
    other(x)
    torch.testing.assert_close(norm.running_mean, other.running_mean, rtol=0, atol=0)
