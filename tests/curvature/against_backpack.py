"""Per-example quantities and diagonals beside BackPACK's, which scale by the batch size; run by ``make peers``."""

import warnings
from copy import deepcopy

import pytest
import torch
from backpack import backpack, extend, extensions
from torch import nn

from randbp.curvature import (
    ggn_diagonal,
    hessian_diagonal,
    per_example_grads,
    per_example_norms,
    per_example_square_sum,
    per_example_variance,
)

EXAMPLES, CLASSES = 4, 3
BODIES = {
    "linear": ([nn.Flatten(), nn.Linear(12, 5), nn.Sigmoid()], (2, 6)),
    "1-d": ([nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2), nn.ReLU()], (2, 9)),
    "2-d": ([nn.Conv2d(2, 4, (3, 2), padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 2)], (2, 5, 4)),
    "3-d": ([nn.Conv3d(2, 2, 2, bias=False), nn.ELU(), nn.MaxPool3d(2)], (2, 4, 3, 4)),
    "grouped": ([nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 4, 1)], (4, 4, 5)),
    "transposed 1-d": ([nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1), nn.ReLU()], (2, 4)),
    "transposed 2-d": ([nn.ConvTranspose2d(4, 2, 2, stride=2, groups=2), nn.Sigmoid()], (4, 2, 3)),
    "transposed 3-d": ([nn.ConvTranspose3d(2, 2, 2), nn.LeakyReLU()], (2, 2, 2, 2)),
}
LOSSES = [
    (nn.CrossEntropyLoss(), "labels"),
    (nn.CrossEntropyLoss(reduction="sum"), "labels"),
    (nn.MSELoss(), "numbers"),
    (nn.MSELoss(reduction="sum"), "numbers"),
    (nn.BCEWithLogitsLoss(), "numbers"),
]


def network(name):
    torch.manual_seed(0)
    modules, shape = BODIES[name]
    body = nn.Sequential(*modules).double()
    x = torch.randn(EXAMPLES, *shape, dtype=torch.float64)
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(body(x).flatten(1).shape[1], CLASSES)).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model, x


def theirs(model, data, loss, *quantities):
    """What BackPACK leaves in fields of the parameters, by name of the field."""
    copy, loss = extend(deepcopy(model)), extend(deepcopy(loss))
    x, y = data
    with warnings.catch_warnings(), backpack(*quantities):
        warnings.simplefilter("ignore")
        loss(copy(x), y).backward()
    return {each.savefield: {n: getattr(p, each.savefield) for n, p in copy.named_parameters()} for each in quantities}


def batch(model, x, kind):
    if kind == "labels":
        return x, torch.arange(EXAMPLES) % CLASSES
    return x, torch.bernoulli(torch.full((EXAMPLES, CLASSES), 0.4)).double()


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("name", BODIES)
def test_per_example_quantities(name, loss):
    loss, kind = loss
    model, x = network(name)
    data = batch(model, x, kind)
    n = EXAMPLES if loss.reduction == "mean" else 1  # their gradients of a mean are parts of the batch's: ours over N
    quantities = [extensions.BatchGrad(), extensions.SumGradSquared(), extensions.Variance()]
    if all(
        getattr(module, "groups", 1) == 1 for module in model
    ):  # with groups theirs are not those of their BatchGrad
        quantities.append(extensions.BatchL2Grad())
    expected = theirs(model, data, loss, *quantities)
    ours = {
        "grad_batch": {k: v / n for k, v in per_example_grads(model, data, loss).items()},
        "sum_grad_squared": {k: v / n**2 for k, v in per_example_square_sum(model, data, loss).items()},
        "variance": {k: v / n**2 for k, v in per_example_variance(model, data, loss).items()},
        "batch_l2": {k: (v / n).square() for k, v in per_example_norms(model, data, loss).items()},
    }
    for field, each in expected.items():
        torch.testing.assert_close(ours[field], each, rtol=1e-8, atol=1e-10, msg=lambda text, f=field: f"{f}: {text}")


@pytest.mark.parametrize("loss", LOSSES[:4], ids=str)
@pytest.mark.parametrize("name", BODIES)
def test_exact_ggn_diagonal(name, loss):
    loss, kind = loss
    model, x = network(name)
    data = batch(model, x, kind)
    expected = theirs(model, data, loss, extensions.DiagGGNExact())["diag_ggn_exact"]
    torch.testing.assert_close(ggn_diagonal(model, data, loss), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES[:4], ids=str)
def test_sampled_ggn_diagonals_have_the_same_expectation(loss):
    """Both means of many samples lie near the exact diagonal: within 6 standard errors in two directions."""
    loss, kind = loss
    model, x = network("2-d")
    data = batch(model, x, kind)
    exact = flat(ggn_diagonal(model, data, loss))
    draws = [flat(ggn_diagonal(model, data, loss, samples=1, seed=seed)) for seed in range(100)]
    other = []
    for seed in range(100):
        torch.manual_seed(seed)
        other.append(flat(theirs(model, data, loss, extensions.DiagGGNMC(mc_samples=1))["diag_ggn_mc"]))
    for direction in (torch.ones_like(exact), exact):
        for made in (draws, other):
            along = torch.stack(made) @ direction
            assert abs(along.mean() - exact @ direction) < 6 * along.std() / 10 + 1e-12


def flat(found):
    return torch.cat([each.detach().flatten() for each in found.values()])


@pytest.mark.parametrize("name", BODIES)
def test_diagonal_hessian_where_the_recursion_is_exact(name):
    """The last layer's, and those of networks with a single layer."""
    model, x = network(name)
    for loss, kind in LOSSES[:4]:
        data = batch(model, x, kind)
        expected = theirs(model, data, loss, extensions.DiagHessian())["diag_h"]
        made = hessian_diagonal(model, data, loss)
        last = [key for key in made if key.startswith(f"{len(model) - 1}.")]
        for key in last:
            torch.testing.assert_close(made[key], expected[key], rtol=1e-8, atol=1e-10)
