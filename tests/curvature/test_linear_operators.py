"""Linear operators are the dense matrices of ``torch.func``, for all layers, losses, formats and batches."""

import warnings

import numpy as np
import pytest
import torch
from scipy.sparse import linalg
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import randbp
from randbp.curvature import GGN, EmpiricalFisher, Hessian, MCFisher
from tests.curvature.small_nets import KINDS, LOSSES, dense, net

OPERATORS = (Hessian, GGN, EmpiricalFisher)


def close(found, expected, tolerance=1e-8):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max() + 1e-300))


def columns(operator, count=4):
    """Random vectors: who multiplies them as a matrix does is that matrix, almost surely."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(operator.shape[0], count, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_dense_matrices(kind, loss):
    model, x, y, function = net(kind, loss, seed=0)
    for make, expected in zip(OPERATORS, dense(model, x, y, function), strict=True):
        operator = make(model, (x, y), function)
        v = columns(operator)
        close(operator @ v, expected @ v)
        assert operator.shape == tuple(expected.shape) and operator.T is operator
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dense_matrices_are_symmetric_and_some_are_semidefinite():
    model, x, y, function = net("2dt", "positions", seed=0)
    for make, expected in zip((*OPERATORS, MCFisher), [*dense(model, x, y, function), None], strict=True):
        found = make(model, (x, y), function).to_dense()
        close(found, found.T if expected is None else expected, 1e-12)
        if make is not Hessian:
            assert torch.linalg.eigvalsh(found)[0] > -1e-12 * float(found.diagonal().sum())


@pytest.mark.parametrize("loss", LOSSES)
def test_uneven_batches_are_one_batch(loss):
    """A mean over all terms is no mean of batches' means, and a batch whose labels are all ignored adds nothing."""
    model, x, y, function = net("2d", loss, seed=1)
    function.reduction = "mean"
    for make in (*OPERATORS, MCFisher)[: 3 + (loss == "squares")]:
        whole = make(model, (x, y), function)
        v = columns(whole, 2)
        expected = whole @ v
        parts = [(x[:1], y[:1]), (x[1:2], y[1:2]), (x[2:], y[2:])]
        loader = DataLoader(TensorDataset(x, y), batch_size=2)
        for data in (parts, tuple(parts), iter(parts), (each for each in parts), loader):
            operator = make(model, data, function)
            for _ in range(2):
                close(operator @ v, expected)


def test_vectors_may_be_tensors_lists_or_dicts():
    model, x, y, function = net("2dt", "classes", seed=2)
    matrix = dense(model, x, y, function)[1]
    operator = GGN(model, (x, y), function)
    vectors = torch.randn(len(matrix), 3, dtype=torch.float64)
    shapes = [parameter.shape for parameter in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    close(operator @ vectors, matrix @ vectors)
    close(operator @ vectors[:, 0], matrix @ vectors[:, 0])
    assert (operator @ vectors[:, :0]).shape == (len(matrix), 0)
    for columns in (vectors[:, 0], vectors):
        parts = columns.split([shape.numel() for shape in shapes])
        pieces = [part.reshape(*shape, *columns.shape[1:]) for part, shape in zip(parts, shapes, strict=True)]
        products = operator @ pieces
        assert [each.shape for each in products] == [each.shape for each in pieces]
        close(
            torch.cat(
                [each.reshape(len(part), *columns.shape[1:]) for each, part in zip(products, parts, strict=True)]
            ),
            matrix @ columns,
        )
        by_name = operator @ dict(zip(names, pieces, strict=True))
        assert list(by_name) == names and all(map(torch.equal, by_name.values(), products))
        turned = operator @ dict(zip(reversed(names), reversed(pieces), strict=True))
        assert all(torch.equal(turned[name], by_name[name]) for name in names)


def test_frozen_parameters_are_left_out():
    model, x, y, function = net("1d", "squares", seed=3)
    matrix = dense(model, x, y, function)[0]
    first = list(model[0].parameters())
    model[0].requires_grad_(False)
    close(Hessian(model, (x, y), function).to_dense(), matrix[(n := sum(each.numel() for each in first)) :, n:])
    model[0].requires_grad_()
    model[3].requires_grad_(False)
    close(Hessian(model, (x, y), function).to_dense(), matrix[:n, :n])


def test_sampled_fisher_has_the_mean_of_the_ggn():
    """Of each loss 20 means of 40 labels per term: 80 entries within 9 standard errors, a chance of 3e-6 for t(19)."""
    for loss in ("classes", "positions", "squares", "binary"):
        model, x, y, function = net("linear", loss, seed=4)
        fishers = [MCFisher(model, (x, y), function, samples=40, seed=seed) for seed in range(20)]
        v = columns(fishers[0], 1)
        draws = torch.stack([fisher @ v for fisher in fishers])
        error = draws.std(0) / 20**0.5
        assert ((draws.mean(0) - GGN(model, (x, y), function) @ v).abs() <= 9 * error + 1e-12).all()
        assert not torch.equal(draws[0], draws[1])


def test_functions_that_are_linear_or_constant_have_curvature_zero():
    model, x, y = nn.Linear(2, 1), torch.ones(3, 2), torch.zeros(3, 1)
    for make in (Hessian, GGN):
        assert not (make(model, (x, y), lambda f, _: f.mean()) @ torch.ones(3)).any()
    unused = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1)})
    unused.forward = lambda x: unused["used"](x)
    product = GGN(unused, (x, y), nn.MSELoss()) @ torch.ones(6)
    assert product[:3].all() and not product[3:].any()


@pytest.mark.parametrize("make", OPERATORS)
def test_scipy_solves_and_finds_eigenvalues(make):
    model, x, y, function = net("3d", "squares", seed=5)
    operator = make(model, [(x[:2], y[:2]), (x[2:], y[2:])], function)
    matrix = operator.to_dense().numpy()
    scipy = operator.to_scipy()
    assert scipy.shape == matrix.shape and scipy.dtype == np.float64
    v = np.random.default_rng(0).standard_normal((len(matrix), 2))
    for found in (scipy @ v, scipy.T @ v, scipy.H @ v, (v.T @ scipy).T):
        np.testing.assert_allclose(found, matrix @ v, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(scipy @ v[:, 0], matrix @ v[:, 0], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(scipy @ v[:, :1], matrix @ v[:, :1], rtol=1e-8, atol=1e-10)
    values, _ = linalg.eigsh(scipy, k=3, which="LM")
    exact = np.linalg.eigvalsh(matrix)
    exact = np.sort(exact[np.argsort(-np.abs(exact))[:3]])
    np.testing.assert_allclose(np.sort(values), exact, rtol=1e-6)
    np.testing.assert_allclose(
        np.sort(linalg.svds(scipy, k=2, return_singular_vectors=False)), np.sort(np.abs(exact))[1:], rtol=1e-6
    )
    shift = 0.1 + max(0.0, -np.linalg.eigvalsh(matrix)[0])
    damped = scipy + shift * linalg.aslinearoperator(np.eye(len(matrix)))
    solved, failed = linalg.cg(damped, v[:, 0], rtol=1e-10)
    assert not failed
    expected = np.linalg.solve(matrix + shift * np.eye(len(matrix)), v[:, 0])
    np.testing.assert_allclose(solved, expected, rtol=1e-6, atol=1e-8)
    inverse = operator.inverse(shift, tolerance=1e-12)
    close(inverse @ torch.from_numpy(v[:, 0]), torch.from_numpy(expected))
    np.testing.assert_allclose(inverse.to_scipy() @ v[:, 0], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scipy_gets_single_precision_of_narrower_parameters(dtype):
    model, x, y = nn.Linear(2, 1).to(dtype), torch.ones(3, 2, dtype=dtype), torch.zeros(3, 1, dtype=dtype)
    operator = GGN(model, (x, y), nn.MSELoss())
    assert operator.dtype == dtype and (operator @ torch.ones(3)).dtype == dtype
    assert operator.to_scipy().dtype == np.float32 and (operator.to_scipy() @ np.ones(3)).dtype == np.float32
    assert (operator.to_scipy(np.float64) @ np.ones(3)).dtype == np.float64
    np.testing.assert_allclose(operator.to_scipy() @ np.ones(3), [6, 6, 6])


def test_inverse_solves_columns_together_and_tells_what_fails():
    model, x, y, function = net("2d", "classes", seed=6)
    operator = GGN(model, (x, y), function)
    matrix = operator.to_dense() + 0.01 * torch.eye(operator.shape[0], dtype=torch.float64)
    vectors = torch.randn(len(matrix), 3, dtype=torch.float64)
    vectors[:, 1] = 0
    vectors[:, 2] *= 1e-9
    inverse = operator.inverse(0.01, tolerance=1e-11)
    found = inverse @ vectors
    for column in range(3):
        close(found[:, column], torch.linalg.solve(matrix, vectors[:, column]))
    with pytest.warns(UserWarning, match=r"relative residual .* after max_iterations=2, above tolerance=1e-05"):
        operator.inverse(0.01, max_iterations=2) @ vectors
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not (inverse @ torch.zeros(len(matrix), 1)).any()
    with pytest.raises(ValueError, match="damping: the operator is not positive definite with it"):
        Hessian(model, (x, y), function).inverse(0.0) @ vectors
    with pytest.raises(ValueError, match="damping=-1: expected a number from 0"):
        operator.inverse(-1)
    with pytest.raises(ValueError, match="tolerance=0: expected a number above 0 and below 1"):
        operator.inverse(1, tolerance=0)
    with pytest.raises(ValueError, match="max_iterations=0: expected a positive integer"):
        operator.inverse(1, max_iterations=0)


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(2),
        nn.Dropout(0.5),
        nn.InstanceNorm1d(2, track_running_stats=True),
        nn.RReLU(),
        nn.LSTM(2, 2, num_layers=2, dropout=0.5),
        nn.MultiheadAttention(2, 1, dropout=0.1),
    ],
    ids=lambda module: type(module).__name__,
)
def test_training_mode_is_refused_where_it_matters(module):
    model = nn.Sequential(nn.Linear(2, 2), module)
    operator = Hessian(model, (torch.ones(3, 2), torch.ones(3, 2)), nn.MSELoss())
    expected = rf"model: '1' \({type(module).__name__}\) .* in training mode: expected model.eval\(\)"
    with pytest.raises(ValueError, match=expected):
        operator @ torch.ones(operator.shape[0])


def test_random_numbers_of_own_modules_are_noticed():
    class Noisy(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, self.training)

    model = nn.Sequential(nn.Linear(2, 2), Noisy(), nn.Dropout(0.0), nn.BatchNorm1d(2).eval())
    data = (torch.randn(3, 2), torch.randn(3, 2))
    for make in OPERATORS:
        with pytest.raises(ValueError, match="model: its forward pass draws random numbers"):
            make(model, data, nn.MSELoss()) @ torch.ones(10)
    model.eval()
    state = torch.get_rng_state()
    for make in (*OPERATORS, MCFisher):
        operator = make(model, data, nn.MSELoss())
        assert torch.equal(operator @ torch.ones(10), operator @ torch.ones(10))
    assert torch.equal(state, torch.get_rng_state())


def test_data_that_change_are_noticed():
    model = nn.Linear(2, 1)
    x, y = torch.randn(6, 2), torch.randn(6, 1)
    for data in (
        DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0)),
        (batches := [(x, y), (x, y)]),
        (changed := [(x[:3].clone(), y[:3])]),
    ):
        operator = Hessian(model, data, nn.MSELoss())
        operator @ torch.ones(3)
        if data is batches:
            batches.pop()
        if data is changed:
            changed[0][0][0, 0] += 1
        with pytest.raises(ValueError, match=r"data: batches differ from those of the first pass: .*shuffle=False"):
            operator @ torch.ones(3)


def test_several_inputs_move_with_the_data():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, a, b):
            return self.layer(a) * b[0]

    x, y = torch.randn(5, 2), torch.randn(5, 1)
    rows, model = torch.cat([x, torch.ones(5, 1)], 1), Two()
    for inputs in ({"a": x, "b": [torch.tensor(2.0)]}, (x, [torch.tensor(2.0)])):
        for make in (Hessian, GGN):
            found = make(model, [(inputs, y)], nn.MSELoss()) @ torch.ones(3)
            close(found, 4 * 2 * rows.T @ rows @ torch.ones(3) / 5, 1e-5)


def test_functions_without_forward_derivatives_are_differentiated_backwards_twice():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            return 3 * ctx.saved_tensors[0] ** 2 * grad

    class Power(nn.Module):
        def __init__(self, own):
            super().__init__()
            self.own = own

        def forward(self, x):
            return Cube.apply(x) if self.own else x**3

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), Power(False), nn.Linear(3, 2)).double()
    x, y = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    expected = dense(model, x, y, nn.CrossEntropyLoss())
    model[1].own = True
    for make, matrix in zip(OPERATORS, expected, strict=True):
        close(make(model, (x, y), nn.CrossEntropyLoss()).to_dense(), matrix)
    model[1].own = False
    model[1].register_full_backward_hook(lambda *_: None)  # which PyTorch calls by such a function
    for make, matrix in zip(OPERATORS, expected, strict=True):
        close(make(model, (x, y), nn.CrossEntropyLoss()).to_dense(), matrix)


def test_attention_and_tied_weights():
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            x = self.embed(tokens)
            return self.head(x + self.attention(x, x, x, need_weights=False)[0]).transpose(1, 2)

    model = Block().double()
    x, y = torch.randint(5, (3, 4)), torch.randint(5, (3, 4))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = dense(model, x, y, nn.CrossEntropyLoss())
    for make, matrix in zip(OPERATORS, expected, strict=True):
        close(make(model, (x, y), nn.CrossEntropyLoss()).to_dense(), matrix)


@pytest.mark.parametrize("settings", [{"weight_vjp": randbp.Spatial(keep=0.5), "layers": "*"}, {"lean": True}], ids=str)
def test_randomised_layers_refuse_or_are_exact(settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(16, 3))
    x, y = torch.randn(4, 2, 4, 4), torch.randint(3, (4,))
    v = torch.randn(sum(each.numel() for each in model.parameters()))
    exact = [make(model, (x, y), nn.CrossEntropyLoss()) @ v for make in OPERATORS]
    with randbp.randomize(model, **settings):
        for make in OPERATORS:
            with pytest.raises(RuntimeError, match=r"(remove\(\)|eval\(\)) .*\(keep=1\)|keep=1.*remove\(\)") as raised:
                make(model, (x, y), nn.CrossEntropyLoss()) @ v
            assert "\n" not in str(raised.value)
        model.eval()
        for make, expected in zip(OPERATORS, exact, strict=True):
            close(make(model, (x, y), nn.CrossEntropyLoss()) @ v, expected, 1e-5)


def test_autocast_and_gradient_mode_around_products_do_not_matter():
    model, x, y, function = net("2d", "classes", seed=7)
    for make in OPERATORS:
        operator = make(model.float(), (x.float(), y), function)
        v = torch.ones(operator.shape[0], requires_grad=True)
        expected = operator @ v
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(operator @ v, expected)
        assert not expected.requires_grad


def test_compiled_models_are_served():
    model, x, y, function = net("1d", "classes", seed=8)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    for make in OPERATORS:
        expected = make(model, (x, y), function)
        close(make(compiled, (x, y), function) @ columns(expected), expected @ columns(expected))
    assert list(GGN(compiled, (x, y), function).space.parameters) == [name for name, _ in model.named_parameters()]


def test_wrong_arguments_have_one_line():
    model, data = nn.Linear(2, 1), (torch.ones(3, 2), torch.ones(3, 1))
    cases = {
        r"model=3: expected an nn.Module": lambda: GGN(3, data, nn.MSELoss()),
        r"model: ReLU: expected real parameters that require gradients": lambda: GGN(nn.ReLU(), data, nn.MSELoss()),
        r"data=3: expected a batch \(inputs, targets\) or an iterable of batches": lambda: GGN(model, 3, nn.MSELoss()),
        r"loss=None: expected a loss": lambda: GGN(model, data, None),
        r"data: expected at least one batch": lambda: GGN(model, [], nn.MSELoss()) @ torch.ones(3),
        r"data: a batch is torch.float32 .*, expected \(inputs, targets\)": lambda: (
            GGN(model, [data[0]], nn.MSELoss()) @ torch.ones(3)
        ),
        r"vectors: shape \(4,\), expected \(3,\) or \(3, K\)": lambda: GGN(model, data, nn.MSELoss()) @ torch.ones(4),
        r"vectors: names 'bias' are missing": lambda: GGN(model, data, nn.MSELoss()) @ {"weight": torch.ones(1, 2)},
        r"vectors: shapes \[\(1,\)\], expected \[\(1, 2\), \(1,\)\]": lambda: (
            GGN(model, data, nn.MSELoss()) @ [torch.ones(1)]
        ),
        r"vectors=3: expected a tensor": lambda: GGN(model, data, nn.MSELoss()) @ 3,
        r"samples=0: expected a positive integer": lambda: MCFisher(model, data, nn.MSELoss(), samples=0),
        r"seed='x': expected an integer": lambda: MCFisher(model, data, nn.MSELoss(), seed="x"),
        r"no labels can be sampled": lambda: MCFisher(model, data, lambda f, y: f.mean()) @ torch.ones(3),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value), message
