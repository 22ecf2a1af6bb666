"""The recursive diagonal of the Hessian, against a recursion with dense Jacobians, and the true diagonal."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev

from randbp.curvature import Hessian, hessian_diagonal

LOSSES = [(nn.CrossEntropyLoss(), True), (nn.MSELoss(reduction="sum"), False), (nn.BCEWithLogitsLoss(), False)]

CHAINS = [
    ([nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2), nn.Tanh(), nn.AvgPool1d(2, 1, 1)], (2, 7)),
    ([nn.Conv2d(2, 2, (3, 2), padding=1, padding_mode="circular"), nn.GELU(), nn.MaxPool2d(2, 1)], (2, 4, 3)),
    ([nn.Conv2d(2, 2, 2, padding="same"), nn.ELU(inplace=True), nn.AvgPool2d((2, 3), 2, 1, True, False)], (2, 3, 4)),
    ([nn.Conv2d(2, 2, 2), nn.Mish(), nn.AvgPool2d(2, 1, divisor_override=3), nn.ZeroPad2d(1)], (2, 4, 3)),
    ([nn.Conv3d(1, 2, 2, bias=False), nn.Sigmoid(), nn.AdaptiveAvgPool3d((1, 2, 2))], (1, 3, 4, 3)),
    ([nn.ConvTranspose1d(4, 2, 3, 2, 1, 1, groups=2), nn.Softplus(), nn.MaxPool1d(3, 2)], (4, 3)),
    ([nn.ConvTranspose2d(2, 2, 2, 2, dilation=2), nn.ReLU(inplace=True), nn.AdaptiveMaxPool2d(2)], (2, 2, 3)),
    ([nn.ConvTranspose3d(1, 2, 2), nn.LeakyReLU(), nn.AdaptiveAvgPool3d(1)], (1, 2, 2, 2)),
    ([nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.SiLU(), nn.Dropout(), nn.AvgPool2d(2, ceil_mode=True)], (2, 4, 4)),
    ([nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Softsign()], (3, 3)),
    ([nn.Flatten(), nn.Linear(6, 4), nn.Sequential(nn.Sigmoid(), nn.Identity())], (2, 3)),
]


def chain(modules, shape, classes=3, seed=0):
    """A network in double precision with random parameters and statistics, and its input."""
    torch.manual_seed(seed)
    body = nn.Sequential(*modules).double().eval()
    x = torch.randn(4, *shape, dtype=torch.float64)
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(body(x.clone()).flatten(1).shape[1], classes)).double().eval()
    with torch.no_grad():
        for each in model.parameters():
            each.normal_()
        for each in model.buffers():
            if each.is_floating_point():
                each.uniform_(0.5, 1.5)
    return model, x


def targets(output, labels):
    return torch.arange(len(output)) % output.shape[1] if labels else torch.rand_like(output).detach()


def leaves(module):
    return [module] if not list(module.children()) else [leaf for each in module.children() for leaf in leaves(each)]


def recursion(model, x, y, loss):
    """For each example ``h_x[i] = Σ_o h_y[o] (∂y_o/∂x_i)² + g_y[o] ∂²y_o/∂x_i²``, and so for parameters."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    modules, inputs = leaves(model), [x]
    for module in modules:
        inputs.append(module(inputs[-1].clone()).detach())
    output = inputs.pop()
    total = {name: torch.zeros_like(each) for name, each in model.named_parameters()}
    bend = hessian(lambda f: loss(f, y))(output).reshape(output.numel(), -1)
    g_all, h_all = jacrev(lambda f: loss(f, y))(output), bend.diagonal().view_as(output)
    for n in range(len(x)):
        g, h = g_all[n].flatten(), h_all[n].flatten()
        for module, seen in zip(reversed(modules), reversed(inputs), strict=True):
            own = {name: each.detach() for name, each in module.named_parameters()}

            def run(given, one, module=module):
                return functional_call(module, given, (one[None].clone(),)).flatten()

            for name, each in jacrev(run)(own, seen[n]).items() if own else ():
                squares = each.flatten(1).square().T @ h
                total[names[dict(module.named_parameters())[name]]] += squares.view_as(own[name])
            slope = jacrev(run, argnums=1)(own, seen[n]).flatten(1)
            curved = hessian(lambda one, own=own, run=run, g=g: run(own, one) @ g)(seen[n])
            twice = curved.reshape(seen[n].numel(), -1).diagonal()
            g, h = slope.T @ g, slope.square().T @ h + twice
    return total


@pytest.mark.parametrize("number", range(len(CHAINS)))
def test_equals_a_recursion_with_dense_jacobians(number):
    model, x = chain(*CHAINS[number])
    loss, labels = LOSSES[number % len(LOSSES)]
    y = targets(model(x), labels)
    made = hessian_diagonal(model, (x, y), loss)
    assert list(made) == [name for name, _ in model.named_parameters()]
    torch.testing.assert_close(made, recursion(model, x, y, loss), rtol=1e-8, atol=1e-10)
    assert all(each.grad is None for each in model.parameters())


def true_diagonal(model, data, loss):
    matrix = Hessian(model, data, loss)
    return dict(zip(matrix.space.parameters, matrix.space.pieces(matrix.to_dense().diagonal()), strict=True))


@pytest.mark.parametrize(("loss", "labels"), LOSSES)
def test_is_exact_for_one_layer_and_for_the_last_layers_of_relu_chains(loss, labels):
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3).double(), torch.randn(6, 5, dtype=torch.float64)
    data = x, targets(layer(x), labels)
    torch.testing.assert_close(hessian_diagonal(layer, data, loss), true_diagonal(layer, data, loss))
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    made, exact = hessian_diagonal(model, data, loss), true_diagonal(model, data, loss)
    last = ("4.weight", "4.bias") if labels else ("2.weight", "2.bias", "4.weight", "4.bias")
    for name in last:
        torch.testing.assert_close(made[name], exact[name], rtol=1e-8, atol=1e-12)
    assert not torch.allclose(made["0.weight"], exact["0.weight"], rtol=1e-3)


def test_is_exact_for_a_last_convolution_if_the_loss_has_a_diagonal_hessian():
    model, x = chain([nn.Conv2d(2, 3, 2), nn.ReLU()], (2, 3, 3), seed=2)
    model = nn.Sequential(model[0], nn.ConvTranspose2d(3, 2, 2), nn.Flatten()).double()
    data = x, torch.randn(4, 18, dtype=torch.float64)
    made, exact = hessian_diagonal(model, data, nn.MSELoss()), true_diagonal(model, data, nn.MSELoss())
    for name in ("1.weight", "1.bias"):
        torch.testing.assert_close(made[name], exact[name], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_uneven_batches_are_as_one(reduction):
    model, x = chain(*CHAINS[1])
    y, loss = torch.tensor([0, -100, 1, 2]), nn.CrossEntropyLoss(reduction=reduction)
    made = hessian_diagonal(model, [(x[:3], y[:3]), (x[3:], y[3:])], loss)
    torch.testing.assert_close(made, hessian_diagonal(model, (x, y), loss), rtol=1e-10, atol=1e-12)


def test_frozen_parameters_are_left_out_and_stop_the_recursion():
    model, x = chain(*CHAINS[0])
    data = x, torch.arange(4) % 3
    whole = hessian_diagonal(model, data, nn.CrossEntropyLoss())
    model[0][0].requires_grad_(False)
    made = hessian_diagonal(model, data, nn.CrossEntropyLoss())
    assert list(made) == ["2.weight", "2.bias"]
    torch.testing.assert_close(made["2.weight"], whole["2.weight"])


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        y = self.first(x)
        return self.second(y + x)


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return 2 * self.layer(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Residual(), r"model: 'second' \(Linear\) does not take the output of 'first' alone, expected a chain"),
        (Doubled(), r"model: Doubled does not return its last module's output, expected a chain"),
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), r"model: '1' \(LayerNorm\) has no rule: expected conv"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), r"model: '1' \(BatchNorm1d\) is in training mode"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout()), r"model: '1' \(Dropout\) is in training mode"),
    ],
)
def test_other_models_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        hessian_diagonal(model, (torch.ones(3, 2), torch.ones(3, 2)), nn.MSELoss())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


def test_other_losses_are_refused():
    with pytest.raises(ValueError, match=r"loss=.*l1_loss.*: expected CrossEntropyLoss, MSELoss or"):
        hessian_diagonal(nn.Linear(2, 2), (torch.ones(3, 2), torch.ones(3, 2)), nn.functional.l1_loss)
