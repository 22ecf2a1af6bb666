"""EKFAC against explicit per-example gradients in dense eigenbases."""

import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.functional import cross_entropy

from randbp import tn
from randbp.curvature import EKFAC, KFAC, EigenvalueCorrected
from randbp.curvature import projected_gradients as projected
from randbp.curvature.eigenvectors import eigh
from randbp.curvature.projected_gradients import CallPair, RowPair
from randbp.curvature.weight_matrices import Form, as_matrices

from .small_nets import KINDS, net

SPLIT = 2  # examples of the first of two micro-batches


def unfolded(layer, x):
    """``U_n`` ``[N, G, a, O]`` of a layer that has been given ``x``, as derivatives of its output."""
    named = {name: each.detach() for name, each in layer.named_parameters()}
    tokens = isinstance(layer, nn.Linear)

    def outputs(given, x):
        y = functional_call(layer, given, (x.unsqueeze(0),))[0]
        return y.reshape(-1, y.shape[-1]).T if tokens else y.flatten(1)  # [D, O]

    made = vmap(jacrev(outputs), (None, 0))(named, x)  # {name: [N, D, O, *parameter]}
    form = Form.of(layer)
    outer = made["weight"].shape[1] // form.groups
    found = []
    for n, group in itertools.product(range(len(x)), range(form.groups)):
        columns = [
            as_matrices(
                form,
                made["weight"][n, group * outer, o],
                made["bias"][n, group * outer, o] if "bias" in made else None,
            )[group, 0]
            for o in range(made["weight"].shape[2])
        ]
        found.append(torch.stack(columns, 1))
    return torch.stack(found).unflatten(0, (len(x), form.groups))


class Oracle:
    """EKFAC of one layer, with everything dense."""

    def __init__(self, model, reduced, damping):
        self.model, self.reduced, self.damping = model, reduced, damping
        self.factors, self.values, self.basis, self.counts = None, None, None, [0, 0]

    def seen(self, x, y):
        """Per-example gradients as the approximation has them ``[N, G, d, a]``, and both factors."""
        layer, form = self.model[0], Form.of(self.model[0])
        output = self.model[0](x)
        loss = cross_entropy(self.model[1:](output), y, reduction="sum")
        (v,) = torch.autograd.grad(loss, output)
        v = v.reshape(len(v), -1, v.shape[-1]).mT if isinstance(layer, nn.Linear) else v.flatten(2)
        v, u = v.unflatten(1, (form.groups, -1)), unfolded(layer, x)  # [N, G, d, O], [N, G, a, O]
        if self.reduced:
            v, u = v.sum(3, keepdim=True), u.mean(3, keepdim=True)
            made = v @ u.mT
        else:
            named = dict(self.model.named_parameters())

            def own(given, x, y):
                return cross_entropy(functional_call(self.model, given, (x.unsqueeze(0),)), y.unsqueeze(0))

            grads = vmap(grad(own), (None, 0, 0))({k: p.detach() for k, p in named.items()}, x, y)
            made = torch.stack(
                [
                    as_matrices(form, grads["0.weight"][n], grads["0.bias"][n] if "0.bias" in grads else None)
                    for n in range(len(x))
                ]
            )
        return made, [(u @ u.mT).mean(0), (v @ v.mT).mean(0)], self.whole(x, y)

    def step(self, grads, factors, whole, bases, decay=0.95):
        """The direction, given eigenbases if they are renewed: which ones is open where eigenvalues repeat."""
        self.counts[0] += 1
        weight = max(1 - decay, 1 / self.counts[0])
        self.factors = (
            factors
            if self.factors is None
            else [(1 - weight) * old + weight * new for old, new in zip(self.factors, factors, strict=True)]
        )
        if bases is not None:
            old, self.basis = self.basis, bases
            for factor, basis in zip(self.factors, bases, strict=True):
                torch.testing.assert_close(basis @ basis.mT, torch.eye(basis.shape[1]).expand_as(basis).to(basis))
                rotated = basis.mT @ factor @ basis
                rest = rotated - torch.diag_embed(rotated.diagonal(dim1=1, dim2=2))
                assert rest.abs().max() < 1e-10 * rotated.abs().max()
            if old is not None:  # the diagonal of the old matrix in the new basis
                dense = self.dense(old, self.values)
                now = self.rotation(self.basis)
                self.values = (now.mT @ dense @ now).diagonal(dim1=1, dim2=2).view(self.values.shape)
        self.counts[1] += 1
        weight = max(1 - decay, 1 / self.counts[1])
        right, left = self.basis
        squares = (left.mT @ grads @ right).square().mean(0)
        self.values = squares if self.values is None else (1 - weight) * self.values + weight * squares
        dense = self.dense(self.basis, self.values)
        dense = dense + self.damping * torch.eye(dense.shape[1], dtype=dense.dtype)
        return torch.linalg.solve(dense, whole.flatten(1)).view(whole.shape)

    def whole(self, x, y):
        loss = cross_entropy(self.model(x), y)
        made = torch.autograd.grad(loss, list(self.model[0].parameters()))
        return as_matrices(Form.of(self.model[0]), made[0], made[1] if len(made) > 1 else None)

    def rotation(self, basis):
        right, left = basis
        return torch.stack([torch.kron(a, b) for a, b in zip(left, right, strict=True)])

    def dense(self, basis, values):
        rotation = self.rotation(basis)
        return rotation @ torch.diag_embed(values.flatten(1)) @ rotation.mT


@pytest.mark.parametrize("approximation", ["reduce", "expand"])
@pytest.mark.parametrize("kind", KINDS)
def test_directions_are_those_of_dense_matrices(kind, approximation, monkeypatch):
    """Over steps that renew the bases and one that does not, each in two micro-batches."""
    monkeypatch.setattr(projected, "ENTRIES", 40)  # so that examples are taken in parts
    for seed in range(2):
        model, x, y, _ = net(kind, "classes", seed, batch=20)  # fewer would leave a basis of the null space open
        lr, damping = 0.05, 0.01
        optimizer = EKFAC(
            model,
            lr,
            momentum=0,
            damping=damping,
            kl_clip=None,
            factor_every=1,
            approximation=approximation,
            layers="0",
        )
        oracle = Oracle(model, approximation == "reduce", damping)
        for step in range(4):  # bases are renewed in steps 0, 1 and 2
            seen = oracle.seen(x, y)
            before = [parameter.detach().clone() for parameter in model[0].parameters()]
            optimizer.zero_grad()
            for part in (slice(0, SPLIT), slice(SPLIT, None)):
                (cross_entropy(model(x[part]), y[part], reduction="sum") / len(x)).backward()
            optimizer.step()
            moved = [(old - new.detach()) / lr for old, new in zip(before, model[0].parameters(), strict=True)]
            found = as_matrices(Form.of(model[0]), moved[0], moved[1] if len(moved) > 1 else None)
            state = optimizer.state[model[0].weight]
            bases = [state[f"{name}_basis"] for name in ("input", "output_grad")] if step < 3 else None
            expected = oracle.step(*seen, bases)
            if approximation == "expand":
                torch.testing.assert_close(seen[2], seen[0].mean(0))
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
            x = x + 0.3 * torch.randn_like(x)


def test_without_correlations_it_is_kfac_in_its_eigenbases():
    """Of a layer whose inputs and output gradients are independent, second moments are products of eigenvalues."""
    u, v = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    pairs = [torch.cat(rows) for rows in zip(*itertools.product(u.split(1), v.split(1)), strict=True)]
    layer = nn.Linear(3, 2, bias=False).double()
    states = []
    for kind in (KFAC, EKFAC):
        optimizer = kind(layer, reduction="sum", lr=0)
        optimizer.zero_grad()
        (layer(pairs[0]) * pairs[1]).sum().backward()
        optimizer.step()
        states.append(optimizer.state[layer.weight])
        optimizer.remove()
    left, right, values = (states[1][key][0] for key in ("output_grad_basis", "input_basis", "eigenvalues"))
    factors = [states[0][f"{key}_factor"][0] for key in ("output_grad", "input")]
    diagonals = [(q.T @ f @ q).diagonal() for q, f in zip((left, right), factors, strict=True)]
    torch.testing.assert_close(values, torch.outer(*diagonals))


def test_both_kinds_of_pairs_agree_where_nothing_is_shared():
    spec = tn.ConvSpec((6, 4, 3, 2), 6, (3, 2), groups=2)
    x, y = torch.randn(spec.input_shape, dtype=torch.float64), torch.randn(spec.output_shape, dtype=torch.float64)
    bases = [torch.randn(2, n, n, dtype=torch.float64) for n in (3, 13)]
    pairs = projected.pair_of(spec, x, y, bias=True), CallPair(spec, x, y, bias=True)
    assert isinstance(pairs[0], RowPair)
    torch.testing.assert_close(pairs[0].squares(*bases), pairs[1].squares(*bases))


@pytest.mark.parametrize("approximation", ["reduce", "expand"])
def test_pairs_are_held_only_in_steps_that_renew_the_bases(approximation):
    model, x, y, _ = net("2d", "classes", 0)
    optimizer = EKFAC(model, approximation=approximation, factor_every=1)
    for step in range(6):
        optimizer.zero_grad()
        for _ in range(3):
            cross_entropy(model(x), y).backward()
        for seen in optimizer._statistics.seen.values():
            assert (len(seen.pairs), seen.squares is None) == ((3, True) if step in (0, 1, 2, 4) else (0, False))
        optimizer.step()


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
@pytest.mark.parametrize("approximation", ["reduce", "expand"])
def test_hooks_hold_an_input_only_where_gradients_are_made_of_it(kind, approximation):
    layer, x = nn.Conv2d(2, 3, 3), torch.randn(4, 2, 5, 5)
    optimizer = kind(layer, approximation=approximation)
    hooks = layer(x)._backward_hooks.values()
    held = [cell.cell_contents for hook in hooks for cell in hook.__closure__]
    found = any(isinstance(each, torch.Tensor) and each.data_ptr() == x.data_ptr() for each in held)
    assert held and found == (kind is EKFAC and approximation == "expand")
    optimizer.remove()


def test_squares_that_are_not_finite_are_left_out():
    model = nn.Linear(3, 2)
    optimizer = EKFAC(model, lr=1e-2, reduction="sum", factor_every=1)
    for step in range(5):
        optimizer.zero_grad()
        # The factors of the fourth step are finite, and products of their rows are not.
        (model(torch.full((4, 3), 1e18 if step == 3 else 1.0)) * (1e18 if step == 3 else 1)).sum().backward()
        for parameter in model.parameters():
            parameter.grad.clamp_(-1, 1)
        optimizer.step()
        assert optimizer.state[model.weight]["eigenvalues"].isfinite().all()
        assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert optimizer.state[model.weight]["updates"] == 5


def test_a_factor_on_which_single_precision_fails_is_decomposed_in_double(monkeypatch):
    """No matrix is known on which LAPACK fails everywhere, so its failure in single precision is made."""
    decompose, seen = torch.linalg.eigh, []

    def failing(matrix):
        seen.append(matrix.dtype)
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return decompose(matrix)

    factor = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    factor = factor @ factor.mT
    monkeypatch.setattr(torch.linalg, "eigh", failing)
    values, vectors = eigh(factor)
    assert seen == [torch.float32, torch.float64] and values.dtype == vectors.dtype == torch.float32
    torch.testing.assert_close(vectors * values.unsqueeze(1) @ vectors.mT, factor, rtol=1e-5, atol=1e-5)


def test_bases_stay_where_factors_cannot_be_decomposed():
    method = EigenvalueCorrected()
    state = {"input_factor": torch.eye(3)[None], "output_grad_factor": torch.eye(2)[None]}
    method.refresh(state, 0.1)
    before = dict(state)
    state["input_factor"] = torch.full((1, 3, 3), torch.nan)
    with pytest.raises(torch.linalg.LinAlgError):
        eigh(state["input_factor"])
    method.refresh(state, 0.1)
    assert all(state[key] is before[key] for key in ("input_basis", "output_grad_basis", "eigenvalues"))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="decay=2: expected a number from 0 and below 1"):
        EigenvalueCorrected(decay=2)
    with pytest.raises(TypeError, match="EKFAC: copies and pickles"):
        EKFAC(nn.Linear(2, 2)).__getstate__()
