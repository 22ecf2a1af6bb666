"""Factors of whole models against explicit Jacobians, and where Kronecker products are exact against dense matrices."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from randbp.curvature import KFAC, KroneckerProduct, factors
from randbp.curvature.loss_hessian import loss_derivatives

from .explicit_factors import (
    channels,
    cotangents,
    grad_factor,
    gradient_squares,
    input_factor,
    module_jacobian,
    output_hessians,
    watched,
)
from .generated_networks import generated, jacobians
from .test_factors import unfolded

F64 = torch.float64
KINDS = ("empirical", "mc", "type-2", "recursive", "forward-only")


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def segmenter(seed=0):
    """A network whose output has positions, with a loss that ignores some of them."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.ConvTranspose2d(4, 3, 2, stride=2)).double()
    target = torch.arange(2 * 4 * 6).view(2, 4, 6) % 3
    target[0, 1:] = -100
    return model, drawn(2, 2, 4, 5), target


def problem(name, seed):
    """Model, batch, loss, and what a mean divides by."""
    reduction = "mean" if seed % 2 else "sum"
    if name == "positions":
        model, x, y = segmenter(seed)
        return model, (x, y), nn.CrossEntropyLoss(reduction=reduction), int((y != -100).sum())
    model, x = generated(seed)
    if name == "classes":
        return model, (x, torch.tensor([0, 2, 2])), nn.CrossEntropyLoss(reduction=reduction), 3
    if name == "squares":
        return model, (x, drawn(3, 3, seed=seed)), nn.MSELoss(reduction=reduction), 9
    return model, (x, (drawn(3, 3, seed=seed) > 0).double()), nn.BCEWithLogitsLoss(reduction=reduction), 9


CASES = [("classes", 0), ("classes", 1), ("squares", 2), ("binary", 3), ("squares", 4), ("binary", 5), ("classes", 6)]
CASES += [("positions", 0), ("positions", 1)]


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_factors_are_those_of_explicit_jacobians(name, seed):
    model, (x, y), loss, count = problem(name, seed)
    terms = count if loss.reduction == "mean" else 1
    output, layers = cotangents(model, x)
    sampled = [
        each.reshape(len(x), -1)
        for each in loss_derivatives(loss, output, y).hessian.sampled(2, torch.Generator().manual_seed(7))
    ]
    hessians = {
        "type-2": output_hessians(loss, output, y),
        "empirical": gradient_squares(loss, output, y, terms),
        "mc": sum(each.unsqueeze(2) * each.unsqueeze(1) for each in sampled) / terms,
    }
    unfolded_inputs = {layer: unfolded(*layers[layer][:3]) for layer in layers}
    for approximation in ("reduce", "expand"):
        for kind in ("empirical", "mc", "type-2", "forward-only"):
            found = factors(model, (x, y), loss, kind, approximation, samples=2, seed=7)
            assert list(found) == list(layers) and not found.left
            for layer, (module, *_, jacobian) in layers.items():
                close(found[layer].input_factor, input_factor(unfolded_inputs[layer], approximation))
                if kind == "forward-only":
                    expected = torch.eye(found[layer].shape[1], dtype=F64).expand(found[layer].shape[0], -1, -1)
                else:
                    expected = grad_factor(jacobian, hessians[kind], approximation)
                close(found[layer].output_grad_factor, expected)
                bias = f"{layer}.bias" if module.bias is not None else None
                assert found.parameters[layer] == (f"{layer}.weight", bias)


def dense_blocks(model, x, hessians):
    """The generalised Gauss-Newton matrix of each layer, in the order of its parameters, by layer."""
    made = jacobians(model, x)
    found = {}
    for layer in dict.fromkeys(name.rpartition(".")[0] for name in made):
        rows = [made[name].reshape(*hessians.shape[:2], -1) for name in made if name.rpartition(".")[0] == layer]
        joined = torch.cat(rows, 2)
        found[layer] = torch.einsum("nep,nef,nfq->pq", joined, hessians, joined)
    return found


LOSSES = [
    (nn.CrossEntropyLoss(), torch.tensor([0, 2, 2, 1])),
    (nn.MSELoss(reduction="sum"), drawn(4, 3)),
    (nn.BCEWithLogitsLoss(), torch.eye(4, dtype=F64)[:, :3]),
]


@pytest.mark.parametrize(("loss", "y"), LOSSES, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("approximation", ["reduce", "expand"])
def test_one_example_without_shared_weights_is_exact(loss, y, approximation):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.Sigmoid(), nn.Linear(4, 3)
    ).double()
    x, y = drawn(1, 4), y[:1]
    output = model(x).detach()
    terms = 1 if loss.reduction == "sum" else 3 if isinstance(loss, nn.BCEWithLogitsLoss) else 1
    for kind, hessians in [
        ("type-2", output_hessians(loss, output, y)),
        ("empirical", gradient_squares(loss, output, y, terms)),
        ("recursive", output_hessians(loss, output, y)),
    ]:
        found = factors(model, (x, y), loss, kind, approximation)
        for layer, expected in dense_blocks(model, x, hessians).items():
            close(found[layer].to_dense(), expected)


@pytest.mark.parametrize("kind", ["type-2", "recursive"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_linear_networks_and_squares_are_exact(kind, reduction):
    """All examples have the same Jacobians behind a layer, so the mean of products is the product of means."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 4, bias=False), nn.Linear(4, 3)).double()
    x, y, loss = drawn(6, 4), drawn(6, 3, seed=1), nn.MSELoss(reduction=reduction)
    found = factors(model, (x, y), loss, kind, "expand")
    for layer, expected in dense_blocks(model, x, output_hessians(loss, model(x).detach(), y)).items():
        close(found[layer].to_dense(), expected)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(2, 3, (3, 2), bias=False),
        nn.Conv3d(2, 2, 2, dilation=(1, 2, 1)),
        nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2),
        nn.ConvTranspose2d(2, 3, 2, padding=1),
    ],
    ids=str,
)
def test_reduce_is_exact_for_one_example_where_positions_are_averaged(module):
    """Group by group: what groups have in common is not part of the approximation."""
    torch.manual_seed(0)
    pool = {3: nn.AdaptiveAvgPool1d, 4: nn.AdaptiveAvgPool2d, 5: nn.AdaptiveAvgPool3d}[module.weight.dim()](1)
    model = nn.Sequential(module, pool, nn.Flatten()).double()
    x = drawn(1, module.in_channels, *[5] * (module.weight.dim() - 2))
    y, loss = torch.tensor([1]), nn.CrossEntropyLoss()
    hessians = output_hessians(loss, model(x).detach(), y)
    expected = dense_blocks(model, x, hessians)["0"]
    for kind in ("type-2", "recursive"):
        found = factors(model, (x, y), loss, kind)["0"]
        ones = KroneckerProduct(
            torch.ones_like(found.input_factor), torch.ones_like(found.output_grad_factor), found.layout
        )
        close(found.to_dense(), expected * ones.to_dense())


CHAINS = [
    (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, groups=1, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Sequential(nn.ConvTranspose2d(4, 2, 2, groups=2, stride=2), nn.Dropout(0.5), nn.Tanh()),
            nn.AdaptiveAvgPool2d((2, 3)),
            nn.Flatten(),
            nn.Linear(12, 3),
        ),
        (3, 1, 4, 6),
    ),
    (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2, bias=False), nn.Flatten(), nn.Linear(4, 3)),
        (3, 2, 3),
    ),
    (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.AvgPool1d(2), nn.Softplus(), nn.Flatten()), (3, 2, 3)),
]


@pytest.mark.parametrize(("make", "shape"), CHAINS)
@pytest.mark.parametrize("approximation", ["reduce", "expand"])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss(reduction="sum")], ids=str)
def test_recursive_factors_follow_the_recursion(make, shape, approximation, loss):
    """``H̄ ← 1/N Σ_n J_nᵀ H̄ J_n`` module by module, with explicit Jacobians of every example."""
    torch.manual_seed(0)
    model, x = make().double().eval(), drawn(*shape)
    y = torch.tensor([0, 2, 1]) if isinstance(loss, nn.CrossEntropyLoss) else drawn(3, 3, seed=1)
    found = factors(model, (x, y), loss, "recursive", approximation)
    output, seen = watched(model, x)
    names = {module: name for name, (module, *_) in seen.items()}
    modules = [each for each in model.modules() if not isinstance(each, nn.Sequential)]
    inputs = [x]
    for module in modules:
        inputs.append(module(inputs[-1].clone()).detach())
    mean = output_hessians(loss, output.detach(), y).mean(0)
    for module, given, out in reversed(list(zip(modules, inputs, inputs[1:], strict=False))):
        if module in names:
            one = torch.eye(len(mean), dtype=F64).view(len(mean), 1, *out.shape[1:])  # of the layer's output by itself
            hessians = mean.unsqueeze(0) * len(x)
            expected = grad_factor(channels(module, one), hessians, approximation)
            product = found[names[module]]
            close(product.output_grad_factor, expected)
            close(product.input_factor, input_factor(unfolded(module, given, out), approximation))
        each = torch.stack([module_jacobian(module, example) for example in given])
        mean = torch.einsum("noi,op,npj->ij", each, mean, each) / len(x)


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3)).double()


def dense(found):
    return {name: product.to_dense() for name, product in found.items()}


def test_sampled_factors_have_those_of_type_2_as_their_mean():
    """Each entry of the mean of many draws lies within 6 of its standard errors."""
    model, loss = small(), nn.CrossEntropyLoss()
    batch = drawn(3, 2, 4), torch.tensor([0, 1, 2])
    draws = [factors(model, batch, loss, "mc", samples=2, seed=seed)["0"].output_grad_factor for seed in range(150)]
    mean, exact = torch.stack(draws).mean(0), factors(model, batch, loss, "type-2")["0"].output_grad_factor
    assert ((mean - exact).abs() <= 6 * torch.stack(draws).std(0) / 150**0.5).all()
    assert torch.equal(draws[0], factors(model, batch, loss, "mc", samples=2)["0"].output_grad_factor)
    assert not torch.equal(draws[0], draws[1])


def test_batches_have_labels_of_their_own():
    """Means over equal batches would be those of one if each drew the same labels."""
    batch = drawn(3, 2, 4), torch.tensor([0, 1, 2])
    once, twice = (dense(factors(small(), data, nn.CrossEntropyLoss(), "mc")) for data in (batch, [batch, batch]))
    assert not torch.allclose(once["0"], twice["0"])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["empirical", "type-2", "forward-only"])
def test_batches_add_up_to_one(kind, reduction):
    """Of any sizes: a mean is one over all terms, not of the batches' means."""
    x, y, loss = drawn(5, 2, 4), torch.tensor([0, 1, 2, -100, 1]), nn.CrossEntropyLoss(reduction=reduction)
    whole = dense(factors(small(), (x, y), loss, kind))
    for data in ([(x[:2], y[:2]), (x[2:], y[2:])], zip(x.split(2), y.split(2), strict=True), [[x, y]]):
        close(dense(factors(small(), data, loss, kind)), whole)


@pytest.mark.parametrize(("reduction", "divide"), [("mean", 4), ("sum", 1), ("tokens", 17)])
def test_functions_have_the_reduction_that_is_named(reduction, divide):
    """Tokens as examples of a linear layer in an output ``[N, T, C]``, some of which the loss ignores."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double(), drawn(4, 5, 2)
    y = torch.arange(20).view(4, 5) % 3
    y[1, 2:] = -100

    def loss(output, target):
        return F.cross_entropy(output.transpose(1, 2), target, reduction="sum") / divide

    found = factors(model, (x, y), loss, reduction=reduction, approximation="expand")
    plain = nn.CrossEntropyLoss(reduction="mean" if reduction == "tokens" else "sum")
    turned = nn.Sequential(model, Transposed())
    expected = factors(turned, (x, y), plain, approximation="expand")
    scale = 1 / 4 if reduction == "mean" else 1
    for name in found:
        close(found[name].to_dense(), expected[f"0.{name}"].to_dense() * scale)


class Transposed(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


@pytest.mark.parametrize("approximation", ["reduce", "expand"])
def test_kfac_gathers_the_same(approximation):
    model, (x, y) = small(), (drawn(3, 2, 4), torch.tensor([0, 1, 2]))
    found = factors(model, (x, y), nn.CrossEntropyLoss(), approximation=approximation)
    optimizer = KFAC(model, approximation=approximation)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    for name, module in (("0", model[0]), ("3", model[3])):
        state = optimizer.state[module.weight]
        close(found[name].input_factor, state["input_factor"])
        close(found[name].output_grad_factor, state["output_grad_factor"])


class Odd(nn.Module):
    """Layers of all sorts, most of which have no factors."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.tied, self.twin = nn.Linear(3, 3), nn.Linear(3, 3)
        self.twin.weight = self.tied.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
        self.uncalled = nn.Linear(3, 3)
        self.aside = nn.Linear(3, 3)
        self.turned = Turned()
        self.attention = nn.MultiheadAttention(3, 1)

    def forward(self, x):
        self.aside(x)
        x = self.turned(self.normed(self.twin(self.tied(self.frozen(self.first(x))))))
        return x + self.attention(x, x, x)[0]


class Turned(nn.Module):
    """A weight that is stored transposed, and a second one."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))
        self.other = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return F.linear(torch.addmm(self.bias, x, self.weight).tanh(), self.other)


@pytest.mark.parametrize("kind", ["empirical", "mc", "type-2"])
def test_layers_without_factors_are_named_with_reasons(kind):
    torch.manual_seed(0)
    model, x, y = Odd().double(), drawn(1, 3), drawn(1, 3, seed=1)
    found = factors(model, (x, y), nn.MSELoss(), kind)
    assert found.parameters == {
        "first": ("first.weight", "first.bias"),
        "turned": ("turned.weight", "turned.bias"),
        "turned.other": ("turned.other", None),
    }
    assert dict(found.left) == {
        "frozen": "its weight is frozen",
        "tied": "its weight is shared with another layer",
        "twin": "its weight is shared with another layer",
        "normed": "its weight is computed from parameters (by a mask, a norm or the like), not one of them",
        "uncalled": "it was not called",
        "aside": "the output does not depend on it",
        "attention": "its projections are part of F.multi_head_attention_forward",
        "attention.out_proj": "nn.MultiheadAttention reads its weight and does not call the layer",
    }
    if kind == "type-2":  # exact for one example, in the order of the parameter, which is stored transposed
        hessians = output_hessians(nn.MSELoss(), model(x).detach(), y)
        made = {name: each.reshape(1, 3, -1) for name, each in jacobians(model, x).items()}
        for key, (weight, bias) in found.parameters.items():
            joined = torch.cat([made[weight]] + ([made[bias]] if bias else []), 2)
            close(found[key].to_dense(), torch.einsum("nep,nef,nfq->pq", joined, hessians, joined))


def test_a_weight_that_is_used_in_two_ways_is_left():
    class Tied(nn.Linear):
        def forward(self, x):
            return F.linear(F.linear(x, self.weight, self.bias), self.weight.t())

    torch.manual_seed(0)
    model = nn.Sequential(Tied(3, 2), nn.Linear(3, 2)).double()
    found = factors(model, (drawn(4, 3), drawn(4, 2)), nn.MSELoss())
    assert list(found) == ["1"] and dict(found.left) == {"0": "its weight is used in two ways"}


def test_only_what_is_asked_for():
    batch = drawn(3, 2, 4), torch.tensor([0, 1, 2])
    found = factors(small(), batch, nn.CrossEntropyLoss(), layers="3")
    assert list(found) == ["3"] and len(found) == 1 and not found.left
    whole = small()
    whole[0].requires_grad_(False)
    whole[3].bias.requires_grad_(False)
    found = factors(whole, batch, nn.CrossEntropyLoss())
    assert found["3"].shape == (1, 3, 9) and found.parameters == {"3": ("3.weight", None)}
    assert factors(nn.Linear(2, 3), (torch.ones(4, 2), torch.ones(4, 3)), nn.MSELoss()).parameters == {
        "": ("weight", "bias")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_as_before(kind):
    torch.manual_seed(0)
    norms = [] if kind == "recursive" else [nn.BatchNorm1d(3), nn.Dropout(0.5)]
    model = nn.Sequential(nn.Conv1d(2, 3, 2), *norms, nn.Tanh(), nn.Flatten(), nn.Linear(9, 3))
    model.train()
    batch = torch.randn(4, 2, 4), torch.arange(4) % 3
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    model[0].bias.grad = None
    before = copy.deepcopy(model)
    grads = [parameter.grad for parameter in model.parameters()]
    values = [None if grad is None else grad.clone() for grad in grads]
    random = torch.get_rng_state()
    with torch.no_grad():  # which does not matter
        found, again = (factors(model, batch, nn.CrossEntropyLoss(), kind) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), random)
    for (name, tensor), (_, other) in zip(model.state_dict().items(), before.state_dict().items(), strict=True):
        assert torch.equal(tensor, other), name
    for parameter, grad, value in zip(model.parameters(), grads, values, strict=True):
        assert parameter.grad is grad and (grad is None or torch.equal(grad, value)) and parameter.requires_grad
        assert not parameter._post_accumulate_grad_hooks
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(map(torch.equal, dense(found).values(), dense(again).values()))
    assert not any(
        each.requires_grad for product in found.values() for each in (product.input_factor, product.output_grad_factor)
    )


def test_an_optimiser_that_gathers_factors_is_not_disturbed():
    steps = []
    for disturbed in (False, True):
        model, batch = small(), (drawn(3, 2, 4), torch.tensor([0, 1, 2]))
        optimizer = KFAC(model, lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            if disturbed:
                factors(model, batch, nn.CrossEntropyLoss(), "type-2")
            optimizer.step()
        steps.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*steps)


class Checkpointed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


@pytest.mark.parametrize("kind", ["empirical", "type-2", "forward-only"])
def test_checkpointed_parts_count_once(kind):
    batch = drawn(3, 2, 4), torch.tensor([0, 1, 2])
    plain = factors(small(), batch, nn.CrossEntropyLoss(), kind)
    model = Checkpointed(small())
    found = factors(model, batch, nn.CrossEntropyLoss(), kind)
    for name in plain:
        close(found[f"inner.{name}"].to_dense(), plain[name].to_dense())


@pytest.mark.parametrize("kind", ["empirical", "type-2"])
def test_activations_in_place_change_nothing(kind):
    """``F.linear`` on tokens returns a view, which gets another node in the graph when it is written over."""
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(inplace), nn.Linear(4, 2), nn.ELU(inplace=inplace), nn.Flatten())
        found.append(
            dense(factors(model.double(), (drawn(3, 4, 2), torch.tensor([0, 1, 2])), nn.CrossEntropyLoss(), kind))
        )
    assert found[0].keys() == {"0", "2"}
    close(found[1], found[0])


def test_several_calls_are_further_examples():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(self.layer(x).tanh())

    torch.manual_seed(0)
    model, x, y = Twice().double(), drawn(4, 3), drawn(4, 3, seed=1)
    apart = nn.Sequential(copy.deepcopy(model.layer), nn.Tanh(), copy.deepcopy(model.layer))
    product = factors(model, (x, y), nn.MSELoss(), "type-2")["layer"]
    both = factors(apart, (x, y), nn.MSELoss(), "type-2")
    close(product.input_factor, (both["0"].input_factor + both["2"].input_factor) / 2)
    close(product.output_grad_factor, both["0"].output_grad_factor + both["2"].output_grad_factor)


def test_arguments_may_be_several_or_named():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x, more):
            return self.layer(x + more)

    torch.manual_seed(0)
    model, x, y = Sum(), torch.randn(4, 3), torch.randn(4, 2)
    plain = dense(factors(model.layer, (x + 1, y), nn.MSELoss()))[""]
    for inputs in ((x, torch.ones(3)), {"x": x, "more": torch.ones(3)}):
        assert torch.equal(dense(factors(model, (inputs, y), nn.MSELoss()))["layer"], plain)


def test_half_precision_layers_have_factors_in_single_precision():
    model, batch = small().float(), (drawn(3, 2, 4).float(), torch.tensor([0, 1, 2]))
    exact = factors(model, batch, nn.CrossEntropyLoss(), "type-2")["0"].to_dense()
    with torch.autocast("cpu", torch.bfloat16):
        found = factors(model, batch, nn.CrossEntropyLoss(), "type-2")["0"].to_dense()
    assert found.dtype == torch.float32 and 0 < (found - exact).norm() < 0.05 * exact.norm()


BATCH = torch.ones(4, 2, 4, dtype=F64), torch.arange(4) % 3
CE = nn.CrossEntropyLoss()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, BATCH, CE), {}, "model=3: expected an nn.Module"),
        ((small(), BATCH, CE, "kflr"), {}, "kind='kflr': expected 'empirical' or 'mc' or 'type-2' or 'recursive' or"),
        ((small(), BATCH, CE), {"approximation": "kfc"}, "approximation='kfc': expected 'reduce' or 'expand'"),
        ((small(), BATCH, 3), {}, "loss=3: expected a loss of torch.nn or a function of output and target"),
        ((small(), BATCH, CE), {"samples": 0}, "samples=0: expected a positive integer"),
        ((small(), BATCH, CE), {"seed": -1}, r"seed=-1: expected an integer from 0 and below 2\*\*64"),
        ((small(), BATCH, CE), {"layers": "x"}, r"layers='x': matches none of the layers '0', '3'"),
        ((small(), BATCH, CE), {"reduction": "sum"}, "loss: CrossEntropyLoss with reduction='mean', expected 'sum'"),
        ((small(), 3, CE), {}, "data=3: expected a batch"),
        ((small(), (BATCH[0], BATCH[1] * 0 - 100), CE), {}, "data: all labels are ignored"),
        (
            (nn.Tanh(), (BATCH[0], BATCH[0]), nn.MSELoss()),
            {},
            "model: Tanh: expected parameters that require gradients",
        ),
        (
            (nn.BatchNorm1d(2).double(), (BATCH[0], BATCH[0]), nn.MSELoss()),
            {},
            "model: BatchNorm1d has no layer with curvature",
        ),
        (
            (small().requires_grad_(False), (BATCH[0], BATCH[1]), CE, "forward-only"),
            {},
            r"model: Sequential has no layer with curvature to be found \(its weight is frozen\)",
        ),
        (
            (small(), (BATCH[0], BATCH[1]), F.nll_loss, "mc"),
            {},
            "loss: a function, whose Hessian is not known for kind='mc': expected nn.CrossEntropyLoss",
        ),
        (
            (nn.Sequential(small(), nn.LayerNorm(3)), BATCH, CE, "recursive"),
            {},
            r"model: '1' \(LayerNorm\) cannot be part of kind='recursive': expected nn.Sequential of convolutions",
        ),
        ((Odd(), BATCH, CE, "recursive"), {}, "model: Odd cannot be part of kind='recursive'"),
        (
            (nn.Sequential(nn.Dropout(0.5), small()), BATCH, CE, "recursive"),
            {},
            r"model: '0' \(Dropout\) cannot be part of kind='recursive'",
        ),
        (
            (
                nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 3)).double(),
                (BATCH[0], torch.arange(8) % 3),
                CE,
                "recursive",
            ),
            {},
            r"model: '0' turns \(4, 2, 4\) to \(8, 4\): expected examples first",
        ),
    ],
)
def test_errors_are_one_line(arguments, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        factors(*arguments, **options)
    assert "\n" not in str(raised.value)
