"""Derivatives of losses with respect to the output, against PyTorch's autograd and by statistics."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from randbp.curvature.loss_hessian import loss_derivatives

F64 = torch.float64


@st.composite
def problems(draw):
    """A loss, an output and a target."""
    torch.manual_seed(draw(st.integers(0, 2**30)))
    batch, classes = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    sizes = draw(st.sampled_from([(), (3,), (2, 2)]))
    reduction = draw(st.sampled_from(["mean", "sum"]))
    kind = draw(st.sampled_from(["classes", "one example", "squares", "binary", "numbers"]))
    if kind == "numbers":
        output = torch.randn(batch, dtype=F64)
        return nn.MSELoss(reduction=reduction), output, torch.randn_like(output)
    output = 2 * torch.randn(batch, classes, *sizes, dtype=F64)
    if kind == "squares":
        return nn.MSELoss(reduction=reduction), output, torch.randn_like(output)
    if kind == "binary":
        weights = [torch.rand(output.shape[1:], dtype=F64) if draw(st.booleans()) else None for _ in range(2)]
        loss = nn.BCEWithLogitsLoss(weights[0], pos_weight=weights[1], reduction=reduction)
        return (
            loss,
            output,
            torch.rand_like(output) if draw(st.booleans()) else (torch.rand_like(output) < 0.5).double(),
        )
    loss = nn.CrossEntropyLoss(
        weight=0.5 + torch.rand(classes, dtype=F64) if draw(st.booleans()) else None,
        ignore_index=draw(st.sampled_from([-100, 0])),
        label_smoothing=draw(st.sampled_from([0.0, 0.3])),
        reduction=reduction,
    )
    if kind == "one example":
        return loss, output.flatten(1)[0][:classes], torch.tensor(classes - 1)
    target = torch.randint(classes, (batch, *sizes))
    target.view(-1)[0] = draw(st.sampled_from([classes - 1, loss.ignore_index]))
    return loss, output, target


@settings(max_examples=150, deadline=None)
@given(problems())
def test_derivatives_are_those_of_autograd(problem):
    """The whole Hessian of the reduced loss is block-diagonal over examples, and equal to the columns' products."""
    loss, output, target = problem
    made = loss_derivatives(loss, output, target)
    if not made.terms:  # all labels are ignored, and PyTorch's mean is not a number
        assert loss.reduction == "sum" or loss(output, target).isnan()
        return
    count = output.numel()
    gradient = torch.autograd.functional.jacobian(lambda f: loss(f, target), output)
    torch.testing.assert_close(made.gradients * made.scale, gradient, rtol=1e-10, atol=1e-12)
    hessian = torch.autograd.functional.hessian(lambda f: loss(f, target), output).view(count, count)
    batch = 1 if isinstance(loss, nn.CrossEntropyLoss) and output.dim() == 1 else len(output)
    found = hessian.new_zeros(batch, count // batch, count // batch)
    for column in made.hessian.columns():
        assert column.shape == output.shape
        flat = column.reshape(batch, -1)
        found += flat.unsqueeze(2) * flat.unsqueeze(1)
    torch.testing.assert_close(torch.block_diag(*found) * made.scale, hessian, rtol=1e-10, atol=1e-12)
    vector = torch.randn_like(output)
    product = (hessian @ vector.flatten()).view_as(output)
    torch.testing.assert_close(made.hessian.times(vector) * made.scale, product, rtol=1e-10, atol=1e-12)


LAWS = [
    (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.5, 2.0], dtype=F64)), (3, 2), torch.tensor([0, 2])),
    (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), (2, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])),
    (nn.MSELoss(), (3,), torch.zeros(3)),
]


@pytest.mark.parametrize(("loss", "shape", "target"), LAWS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("samples", [1, 3])
def test_sampled_columns_have_the_hessian_as_their_second_moment(loss, shape, target, samples):
    """Many examples with one output: each entry's mean lies within 6 of its standard errors, and repeats by seed."""
    torch.manual_seed(0)
    draws = 20_000
    output = torch.randn(1, *shape, dtype=F64)
    same = (
        output.expand(draws, *shape),
        target.to(F64 if target.is_floating_point() else torch.long).expand(draws, *target.shape),
    )
    made = loss_derivatives(loss, *same)
    before = torch.get_rng_state()
    columns = [
        torch.stack([*made.hessian.sampled(samples, torch.Generator().manual_seed(seed))]).flatten(2)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert len(columns[0]) == samples and torch.equal(columns[0], columns[1]) and not columns[0].equal(columns[2])
    products = torch.einsum("knd,kne->nde", columns[0], columns[0])
    exact = sum(torch.outer(each[0].flatten(), each[0].flatten()) for each in made.hessian.columns())
    deviation = (products.mean(0) - exact).abs()
    assert (deviation <= 6 * products.std(0) / draws**0.5 + 1e-12).all()
    assert columns[0].mean((0, 1)).abs().max() < 6 * columns[0].std() / (samples * draws) ** 0.5


@pytest.mark.parametrize(("reduction", "divide"), [("mean", 4), ("sum", 1), ("tokens", 17)])
@pytest.mark.parametrize("last", [False, True])
def test_functions_have_the_reduction_that_is_named(reduction, divide, last):
    output = torch.randn(4, 3, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    target = torch.arange(20).view(4, 5) % 3
    target[1, 2:] = -100
    summed = nn.CrossEntropyLoss(reduction="sum")
    whole = loss_derivatives(summed, output, target)

    def loss(output, target):
        return summed(output.transpose(1, 2) if last else output, target) / divide

    made = loss_derivatives(loss, output.transpose(1, 2) if last else output, target, reduction)
    gradients = made.gradients.transpose(1, 2) if last else made.gradients
    torch.testing.assert_close(gradients, whole.gradients)
    assert made.hessian is None and float(made.scale) == 1 / divide
    numbers = loss_derivatives(lambda f, y: (f - y).square().mean(), output[0, 0], target[0].double(), "tokens")
    assert numbers.terms == 5


@pytest.mark.parametrize(
    ("function", "module", "target"),
    [
        (F.cross_entropy, nn.CrossEntropyLoss(), torch.tensor([0, 2])),
        (F.mse_loss, nn.MSELoss(), torch.ones(2, 3)),
        (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss(), torch.ones(2, 3)),
    ],
)
def test_pytorchs_functions_are_known(function, module, target):
    output = torch.randn(2, 3)
    made, expected = loss_derivatives(function, output, target), loss_derivatives(module, output, target)
    assert made.hessian is not None and torch.equal(made.gradients, expected.gradients)
    assert all(map(torch.equal, made.hessian.columns(), expected.hessian.columns()))
    with pytest.raises(ValueError, match="with reduction='mean', expected 'sum', which was asked for"):
        loss_derivatives(function, output, target, "sum")


def test_a_subclass_with_another_forward_pass_is_a_function():
    class Doubled(nn.CrossEntropyLoss):
        def forward(self, input, target):
            return 2 * super().forward(input, target)

    output, target = torch.randn(4, 3), torch.arange(4) % 3
    doubled, plain = (loss_derivatives(kind(), output, target) for kind in (Doubled, nn.CrossEntropyLoss))
    assert doubled.hessian is None
    torch.testing.assert_close(doubled.gradients, 2 * plain.gradients)


def test_half_precision_outputs_are_differentiated_in_single_precision():
    output, target = torch.randn(4, 3).bfloat16().requires_grad_(), torch.arange(4) % 3
    with torch.autocast("cpu", torch.bfloat16):
        made = loss_derivatives(nn.CrossEntropyLoss(), output, target)
    exact = loss_derivatives(nn.CrossEntropyLoss(), output.detach().float(), target)
    assert torch.equal(made.gradients, exact.gradients) and not made.gradients.requires_grad
    assert all(map(torch.equal, made.hessian.columns(), exact.hessian.columns()))


X, Y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nn.CrossEntropyLoss(), "logits", Y), "output='logits': expected a tensor of real floating-point numbers"),
        ((nn.CrossEntropyLoss(), X[:0], Y[:0]), "output=.*: expected a tensor .* that is not empty"),
        ((3, X, Y), "loss=3: expected a loss of torch.nn or a function"),
        ((nn.CrossEntropyLoss(), X, X), r"target=torch.float32 \[2, 3\]: expected class labels \(2,\) for an output"),
        ((nn.CrossEntropyLoss(), torch.zeros(2, 5, 3), torch.zeros(2, 5).long()), r"expected class labels \(2, 3\)"),
        (
            (nn.MSELoss(), X, X[:, :1]),
            r"target=torch.float32 \[2, 1\]: expected a tensor of the output's shape \(2, 3\) for MSELoss",
        ),
        ((nn.BCEWithLogitsLoss(), X, None), "target=None: expected a tensor of the output's shape"),
        ((nn.MSELoss(reduction="none"), X, X), "loss: MSELoss with reduction='none', expected 'mean' or 'sum'"),
        ((nn.MSELoss(), X, X, "sum"), "loss: MSELoss with reduction='mean', expected 'sum', which was asked for"),
        ((nn.MSELoss(), X, X, "max"), "reduction='max': expected 'mean' or 'sum' or 'tokens'"),
        ((lambda f, y: f, X, X), "loss: returned .*, expected one number that depends on the output"),
        ((lambda f, y: y.sum(), X, X), "loss: returned .*, expected one number that depends on the output"),
    ],
)
def test_errors_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        loss_derivatives(*arguments)
    assert "\n" not in str(raised.value)
