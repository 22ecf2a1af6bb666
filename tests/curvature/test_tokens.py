"""Losses that average over tokens: curvature against the dense Fisher matrix, and against tokens as examples."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from randbp.curvature import KFAC

F64 = torch.float64


def model_of(*sizes):
    torch.manual_seed(0)
    layers = [nn.Linear(a, b, dtype=F64) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*itertools.chain(*((layer, nn.Tanh()) for layer in layers[:-1])), layers[-1])


@pytest.mark.parametrize("approximation", ["reduce", "expand"])
def test_curvature_is_the_dense_fisher_matrix(approximation):
    """Of one layer with equal tokens in an example, where the Kronecker product is exact: ``1/M Σ_j E[g_j g_jᵀ]``.

    Every label is drawn as often as its probability says (all equal here), for all tokens in all combinations, so what
    tokens of one example have in common cancels as it does in expectation.
    """
    classes, tokens = 3, 2
    labels = torch.tensor(list(itertools.product(range(classes), repeat=tokens)))  # [9, 2]: all of an example's labels
    u = torch.randn(4, dtype=F64, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(nn.Linear(4, classes, dtype=F64))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    optimizer = KFAC(model, reduction="tokens", approximation=approximation)
    x = u.expand(len(labels), tokens, 4)
    cross_entropy(model(x).flatten(0, 1), labels.flatten()).backward()
    optimizer.step()
    state = optimizer.state[model[0].weight]
    found = torch.kron(state["output_grad_factor"][0], state["input_factor"][0])
    extended = torch.cat([u, u.new_ones(1)])
    fisher = torch.zeros_like(found)
    for label in range(classes):  # g_j of a token with this label
        residual = torch.full((classes,), 1 / classes, dtype=F64)
        residual[label] -= 1
        grad = torch.outer(residual, extended).flatten()
        fisher += torch.outer(grad, grad) / classes
    torch.testing.assert_close(found, fisher)


@pytest.mark.parametrize("ignored", [0, 7])
@pytest.mark.parametrize("parts", [1, 2])
def test_tokens_are_examples_of_their_own(ignored, parts):
    """Tokens that do not meet each other give the step of a batch of tokens, those that the loss ignores left out."""
    x = torch.randn(8, 5, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(40).view(8, 5) % 3
    labels.view(-1)[torch.randperm(40, generator=torch.Generator().manual_seed(2))[:ignored]] = -100
    kept = labels != -100
    options = {"lr": 0.1, "approximation": "expand", "factor_every": 1, "inverse_every": 1}
    sequences, flat = model_of(4, 6, 3), model_of(4, 6, 3)
    optimizer = KFAC(sequences, reduction="tokens", **options)
    for part in range(parts):
        each = slice(part * 8 // parts, (part + 1) * 8 // parts)
        loss = cross_entropy(sequences(x[each]).flatten(0, 1), labels[each].flatten(), reduction="sum")
        (loss / kept.sum()).backward()
    optimizer.step()
    other = KFAC(flat, **options)
    cross_entropy(flat(x[kept]), labels[kept]).backward()
    other.step()
    if not ignored:
        torch.testing.assert_close(list(sequences.parameters()), list(flat.parameters()), rtol=1e-9, atol=1e-11)
    for mine, theirs in zip(sequences[::2], flat[::2], strict=True):
        a, b = (optimizer.state[mine.weight], other.state[theirs.weight])
        torch.testing.assert_close(a["output_grad_factor"] * 5, b["output_grad_factor"])
        if not ignored:  # inputs of ignored tokens are seen all the same
            torch.testing.assert_close(a["input_factor"] / 5, b["input_factor"])


def test_the_layer_next_to_the_loss_tells_how_many_there_are():
    """Positions of inner layers are not those of the loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.ConvTranspose2d(4, 3, 2, stride=2)).double()
    factors = []
    for reduction, tokens in (("tokens", 64), ("mean", 1)):
        optimizer = KFAC(model, lr=0.0, reduction=reduction)
        optimizer.zero_grad()
        x = torch.randn(2, 2, 6, 6, dtype=F64, generator=torch.Generator().manual_seed(1))
        cross_entropy(model(x), torch.arange(128).view(2, 8, 8) % 3).backward()
        optimizer.step()
        factors.append([optimizer.state[model[i].weight]["output_grad_factor"] / tokens for i in (0, 2)])
        optimizer.remove()
    torch.testing.assert_close(factors[0], factors[1])


def test_tokens_may_be_changed_in_place():
    """``F.linear`` returns a view of its product, which has another node in the graph once it is written over."""
    factors = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace), nn.Linear(5, 3, bias=False)).double()
        optimizer = KFAC(model)
        x = torch.randn(6, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
        cross_entropy(model(x).flatten(0, 1), torch.arange(12) % 3).backward()
        optimizer.step()
        assert not optimizer.left_plain
        factors.append(optimizer.state[model[0].weight]["output_grad_factor"])
    assert factors[0].any()
    torch.testing.assert_close(*factors)
