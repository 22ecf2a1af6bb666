"""Per-example gradients and what is made of them, against torch.func in double precision."""

from copy import deepcopy
from weakref import ref

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn import functional as F

from experiments.models.convnext import ConvNeXt
from experiments.models.small_vit import SmallViT
from randbp import tn
from randbp.curvature import (
    ggn_diagonal,
    per_example_grads,
    per_example_norms,
    per_example_square_sum,
    per_example_variance,
)
from randbp.curvature.example_gradients import gradients_of
from randbp.curvature.parameter_uses import record

from .generated_networks import generated

LOSSES = [
    (nn.CrossEntropyLoss(), "labels"),
    (nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1), "labels"),
    (nn.MSELoss(), "numbers"),
    (nn.MSELoss(reduction="sum"), "numbers"),
    (nn.BCEWithLogitsLoss(), "numbers"),
]


def targets(kind, output):
    if kind == "labels":
        return torch.arange(len(output)) % output.shape[1]
    return torch.rand_like(output).detach()


def expected_grads(model, data, loss):
    """Each example by itself."""
    parameters = {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}
    one = grad(lambda given, x, y: loss(functional_call(model, given, (x[None],)), y[None]))
    made = [one(parameters, x, y) for x, y in zip(*data, strict=True)]
    return {name: torch.stack([each[name] for each in made]) for name in parameters}


def check(model, data, loss, given=None):
    """All four quantities, and none of the parameters' gradients or of the sum's changed."""
    expected = expected_grads(model, data, loss)
    given = data if given is None else given
    quantities = {
        per_example_grads: expected,
        per_example_norms: {name: each.reshape(len(each), -1).norm(dim=1) for name, each in expected.items()},
        per_example_square_sum: {name: each.square().sum(0) for name, each in expected.items()},
        per_example_variance: {name: each.var(0, correction=0) for name, each in expected.items()},
    }
    for function, wanted in quantities.items():
        made = function(model, given, loss)
        assert list(made) == list(wanted)
        for name, each in made.items():
            torch.testing.assert_close(each, wanted[name], rtol=1e-8, atol=1e-9, msg=f"{function.__name__} {name}")
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize("seed", range(9))
def test_generated_networks(seed):
    model, x = generated(seed)
    loss, kind = LOSSES[seed % len(LOSSES)]
    check(model, (x, targets(kind, model(x))), loss)


def test_batches_follow_each_other():
    model, x = generated(2, examples=5)
    y = torch.arange(5) % 3
    check(model, (x, y), nn.CrossEntropyLoss(), given=[(x[:3], y[:3]), (x[3:], y[3:])])


class Tokens(nn.Module):
    """A table that is also the last layer's weight, layers that run twice or not at all, an operation in place."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4, padding_idx=2)
        self.twice = nn.Linear(4, 4)
        self.norm = nn.RMSNorm(4)
        self.product = nn.Parameter(torch.empty(4, 4))
        self.never = nn.Linear(2, 2)

    def forward(self, tokens):
        x = self.norm(self.twice(self.twice(self.table(tokens)).relu_()))
        self.never(x[..., :2])
        return F.linear((x.flatten(0, 1) @ self.product).view(x.shape), self.table.weight).mT


def test_tokens_shared_weights_and_ignored_labels():
    torch.manual_seed(0)
    model = Tokens().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model.product.requires_grad_(False)
    x = torch.randint(7, (4, 5))
    y = torch.randint(7, (4, 5))
    y[1, 2:] = y[2, 3] = -100
    check(model, (x, y), nn.CrossEntropyLoss())
    y[0] = -100  # an example without terms has no gradient
    made = per_example_grads(model, (x, y), nn.CrossEntropyLoss())
    assert not made["twice.weight"][0].any()
    assert made["twice.weight"].isfinite().all()


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, left, right):
        return self.left(left).tanh() * self.right(right)


def test_inputs_in_a_tuple_or_mapping_are_arguments():
    torch.manual_seed(0)
    model, left, right = Pair().double(), torch.randn(4, 2).double(), torch.randn(4, 3).double()
    y, loss = torch.arange(4) % 3, nn.CrossEntropyLoss()
    made = per_example_grads(model, ((left, right), y), loss)
    torch.testing.assert_close(made, per_example_grads(model, ({"right": right, "left": left}, y), loss))
    loss(model(left, right), y).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(made[name].mean(0), parameter.grad)


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


def test_a_weight_that_is_read_in_another_order():
    torch.manual_seed(0)
    model = Product().double()
    check(model, (torch.randn(4, 2).double(), torch.arange(4) % 3), nn.CrossEntropyLoss())


def test_factors_and_summands_that_are_broadcast():
    torch.manual_seed(0)
    model, x = Scaled().double(), torch.randn(4, 1, 3, 4).double()
    check(model, (x, torch.arange(4) % 3), nn.CrossEntropyLoss())


@pytest.mark.parametrize(
    "model", [ConvNeXt(3, 1, (4, 8), (1, 1)), SmallViT(3, width=8, depth=1, size=8)], ids=["ConvNeXt", "ViT"]
)
def test_networks_of_the_experiments(model):
    torch.manual_seed(0)
    data = torch.randn(3, 1, 8, 8).double(), torch.arange(3)
    check(model.double(), data, nn.CrossEntropyLoss())


def test_a_table_by_itself():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=1), nn.Flatten(), nn.Linear(18, 2)).double()
    check(model, (torch.randint(5, (4, 6)), torch.arange(4) % 2), nn.CrossEntropyLoss())


@pytest.mark.parametrize(
    ("layer", "shape", "made"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 9, 9), True),
        (nn.Conv2d(12, 16, 3), (2, 12, 4, 4), False),
        (nn.ConvTranspose1d(64, 96, 3, stride=2, groups=2), (2, 64, 3), False),
        (nn.Linear(30, 20), (2, 30), False),
    ],
)
def test_norms_make_gradients_only_if_that_is_cheaper(layer, shape, made):
    layer.bias = None
    (use,) = record(layer.double(), x := torch.randn(shape, dtype=torch.float64)).uses
    v = torch.randn_like(layer(x))
    plan = tn.squared_gradient_norms(use.spec).plan(torch.float64)
    entries = layer.weight.numel() * shape[0]
    assert (plan.largest_intermediate >= entries * 8) == made
    gradients = gradients_of(use, v)
    torch.testing.assert_close(
        gradients.squared_norms(), gradients.all().flatten(1).square().sum(1), rtol=1e-10, atol=0
    )


def test_what_is_made_of_several_examples_at_once_is_bounded(monkeypatch):
    model, x = generated(4, examples=7)
    monkeypatch.setattr("randbp.curvature.example_gradients.ENTRIES", 150)
    shapes = []
    contract = tn.TensorNetwork.contract

    def noted(net, *args, **kwargs):
        out = contract(net, *args, **kwargs)
        if net.name == "ggn_diagonal":
            shapes.append((net.slots["input"][0], out.numel()))
        return out

    monkeypatch.setattr(tn.TensorNetwork, "contract", noted)
    check(model, (x, torch.arange(7) % 3), nn.CrossEntropyLoss())
    assert all(examples == 1 or examples * entries <= 150 for examples, entries in shapes)
    assert {examples for examples, _ in shapes} > {1}


def test_autocast_and_half_precision():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    data = torch.randn(5, 2, 6), torch.arange(5) % 4
    exact = per_example_norms(model, data, nn.CrossEntropyLoss())
    with torch.autocast("cpu", torch.bfloat16):
        made = per_example_norms(model, data, nn.CrossEntropyLoss())
    for name, each in made.items():
        assert each.dtype == torch.float32
        torch.testing.assert_close(each, exact[name], rtol=0.05, atol=0.01)


def test_functions_as_losses_with_their_reduction():
    model, x = generated(0)
    y = torch.arange(len(x)) % 3
    for function, reduction in ((F.cross_entropy, None), (F.cross_entropy, "mean"), (summed, "sum")):
        made = per_example_grads(model, (x, y), function, reduction=reduction)
        wanted = expected_grads(model, (x, y), nn.CrossEntropyLoss())
        torch.testing.assert_close(made, wanted, rtol=1e-8, atol=1e-9)


def summed(output, target):
    return F.cross_entropy(output, target, reduction="sum")


class Raised(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.power = nn.Linear(2, 2), nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.layer(x).exp() ** self.power


class Scaled(nn.Module):
    """Factors and summands of all layouts."""

    def __init__(self):
        super().__init__()
        self.layer, self.channels = nn.Conv2d(1, 2, 2), nn.Parameter(torch.randn(2))
        self.scale, self.row, self.image = (nn.Parameter(torch.randn(s)) for s in ((), (1, 1, 3), (1, 2, 2, 3)))

    def forward(self, x):
        y = self.scale * self.layer(x) + self.channels[:, None, None]
        y = (self.row * y.tanh()).mul(self.image)
        return torch.add(self.image, y).flatten(1)


class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x.view(-1, 2)).view(len(x), -1)


class Tupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x), x


class Positions(nn.Module):
    """A table of positions, of which there are as many as examples."""

    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(3, 2), nn.Linear(2, 2)

    def forward(self, x):
        y = self.layer(x.view(len(x), 3, 2)) + self.table(torch.arange(3))
        return y.flatten(1)


class Read(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x) + self.layer.weight.sum()


def checkpointed(model, reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            x = x.clone().requires_grad_() if reentrant else x
            return torch.utils.checkpoint.checkpoint(self.model, x, use_reentrant=reentrant)

    return Checkpointed()


@pytest.mark.parametrize(
    ("model", "width", "message"),
    [
        (Raised(), 2, r"model: no per-example gradients of 'power': expected parameters of convolutions"),
        (
            Positions(),
            6,
            r"model: 'table\.weight' serves 3 examples of a batch of 2, expected layers whose first dimension",
        ),
        (Read(), 2, r"model: no per-example gradients of 'layer\.weight': expected"),
        (Windows(), 4, r"model: 'layer\.weight' serves 6 examples, expected 3 as in the output"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), 2, r"model: '1' \(BatchNorm1d\) takes its statistics"),
        (checkpointed(nn.Linear(2, 2), True), 2, r"use_reentrant=True, expected use_reentrant=False"),
        (nn.Linear(2, 2).requires_grad_(False), 2, r"model: Linear: expected real parameters that require gradients"),
        (Tupled(), 2, r"model: Tupled returned tuple, expected a tensor \[N, …\] that depends on parameters"),
    ],
)
def test_parameters_that_are_not_served_are_named(model, width, message):
    data = torch.randn(3, width), torch.randn(3, width)
    for function in (per_example_grads, per_example_norms, per_example_square_sum, per_example_variance):
        with pytest.raises(ValueError, match=message):
            function(model, data, nn.MSELoss())


def test_checkpointing_and_parameters_that_are_left_out():
    model = checkpointed(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), False).double()
    data = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    made = per_example_grads(model, data, nn.MSELoss())
    expected = {f"model.{name}": each for name, each in expected_grads(model.model, data, nn.MSELoss()).items()}
    torch.testing.assert_close(made, expected, rtol=1e-8, atol=1e-10)
    raised = Raised().double()
    raised.power.requires_grad_(False)
    check(raised, data, nn.MSELoss())


class Watched(nn.Linear):
    """Notes how many of its earlier outputs are still there when it runs."""

    def forward(self, x):
        self.alive = [ref() is not None for ref in vars(self).setdefault("outputs", [])]
        output = super().forward(x)
        self.outputs.append(ref(output))
        return output


def test_one_graph_is_held_at_a_time():
    batches = [(torch.randn(2, 3), torch.tensor([0, 1]))] * 3
    for function in (per_example_norms, per_example_variance, ggn_diagonal):
        model = Watched(3, 2)
        function(model, batches, nn.CrossEntropyLoss())
        assert model.alive == [False, False]


def test_models_in_training_mode_run_once():
    """Running statistics move once, and random numbers are those that the model would draw."""
    model = nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True), nn.Dropout(), nn.Flatten(), nn.Linear(10, 2))
    other, data = deepcopy(model), (torch.randn(4, 2, 5), torch.arange(4) % 2)
    torch.manual_seed(0)
    made = per_example_grads(model, data, nn.CrossEntropyLoss())
    torch.manual_seed(0)
    nn.functional.cross_entropy(other(data[0]), data[1]).backward()
    torch.testing.assert_close(made["3.weight"].mean(0), other[3].weight.grad)
    torch.testing.assert_close(model[0].running_mean, other[0].running_mean)


@pytest.mark.parametrize("data", [3, [], [(torch.ones(1, 2),)], [torch.ones(1, 2)]])
def test_wrong_data(data):
    with pytest.raises(ValueError, match="data"):
        per_example_norms(nn.Linear(2, 2), data, nn.MSELoss())
