"""``torch.func``, forward mode and vectorised Jacobians: one line that names the ways out, and they lead out."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp, vmap

import randbp
from randbp import Exact, Rounding, Spatial
from tests.catalogue import FIXED_SIZE

MESSAGE = "^randbp: torch.func, forward mode and vectorised Jacobians do not pass estimated VJPs .*remove.* for them$"


def network(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), *between, nn.Conv2d(4, 2, 3))


def loss(model: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    return lambda parameters, x: functional_call(model, parameters, (x,)).square().sum()


def forward_mode(model: nn.Module, x: Tensor) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


def batched(model: nn.Module, x: Tensor) -> Any:
    y = model(x).flatten()[:5]
    return torch.autograd.grad(y, list(model.parameters()), torch.eye(5), is_grads_batched=True)


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "grad": lambda model, x: grad(loss(model))(dict(model.named_parameters()), x),
    "vmap of grad": lambda model, x: vmap(grad(loss(model)), (None, 0))(dict(model.named_parameters()), x),
    "vmap": lambda model, x: vmap(model)(x),
    "jacrev": lambda model, x: jacrev(model)(x[0]),
    "jacfwd": lambda model, x: jacfwd(model)(x[0]),
    "vjp": lambda model, x: vjp(model, x)[1](torch.ones(4, 2, 2, 2)),
    "jvp": lambda model, x: jvp(model, (x,), (x,)),
    "forward mode": forward_mode,
    "jacobian": lambda model, x: jacobian(model, x[0], vectorize=True),
    "forward jacobian": lambda model, x: jacobian(model, x[0], vectorize=True, strategy="forward-mode"),
    "batched gradients": batched,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_error_and_the_ways_out(name: str) -> None:
    model, x = network(nn.Tanh()), torch.randn(4, 3, 6, 6)
    run = lambda: TRANSFORMS[name](model, x)  # noqa: E731
    expected = run()
    handle = randbp.randomize(model, Spatial(0.25))
    with pytest.raises(RuntimeError, match=MESSAGE):
        run()
    model.eval()
    torch.testing.assert_close(run(), expected)
    model.train()
    handle.remove()
    torch.testing.assert_close(run(), expected)
    with randbp.randomize(model, Spatial(keep=1)):
        torch.testing.assert_close(run(), expected)
    torch.testing.assert_close(run(), expected)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("estimator", FIXED_SIZE, ids=str)
def test_vectorised_backward_is_right_or_refused(estimator: randbp.Estimator, linear: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)) if linear else network(nn.Tanh())
    randbp.randomize(model, estimator, layers="*")
    check_vectorised(model, torch.randn(4, 3, 6, 6), may_refuse=True)


def check_vectorised(model: nn.Module, x: Tensor, may_refuse: bool) -> None:
    """A vectorised Jacobian is row by row what backward passes give, or refused in one line."""
    y, parameters = model(x).flatten()[:3], list(model.parameters())
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in y]
    try:
        found = torch.autograd.grad(y, parameters, torch.eye(3), is_grads_batched=True)
    except RuntimeError as error:
        assert may_refuse and re.match(MESSAGE, str(error)), error
    else:
        for together, alone in zip(found, zip(*rows, strict=True), strict=True):
            torch.testing.assert_close(together, torch.stack(alone))


def test_other_errors_of_a_backward_pass_stay_what_they_are() -> None:
    class Broken(Rounding):
        def weight_vjp(self, *arguments: Any) -> Tensor:
            raise RuntimeError("out of luck")

    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    randbp.randomize(model, Broken(4))
    with pytest.raises(RuntimeError, match=r"^out of luck$"):
        model(torch.ones(1, 1, 2, 2)).sum().backward()


@pytest.mark.parametrize("level", [True, "exact"])
@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(), nn.LeakyReLU(), nn.MaxPool2d(2, 1), nn.AvgPool2d(3, 1), nn.Dropout(0.5),
        nn.GELU(), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(16), nn.Softmax(1),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_lean_mode(module: nn.Module, level: Any) -> None:
    """Its exact level passes all that PyTorch passes; rounding may be refused."""
    model = network(copy.deepcopy(module))
    randbp.randomize(model, Exact(), lean=level)
    piecewise = isinstance(module, nn.ReLU | nn.LeakyReLU | nn.MaxPool2d | nn.AvgPool2d | nn.Dropout)
    check_vectorised(model, torch.randn(16, 3, 18, 18), may_refuse=level is True and not piecewise)


def test_functions() -> None:
    x, weight = torch.randn(4, 3, 6, 6), torch.randn(2, 3, 3, 3)
    with pytest.raises(RuntimeError, match=MESSAGE):
        grad(lambda w: randbp.functional.conv(x, w).sum())(weight)
    assert vmap(lambda w: randbp.functional.conv(x, w))(weight.expand(5, -1, -1, -1, -1)).shape == (5, 4, 2, 4, 4)
    exact = grad(lambda w: randbp.functional.conv(x, w, weight_vjp=Exact()).sum())(weight)
    torch.testing.assert_close(exact, grad(lambda w: nn.functional.conv2d(x, w).sum())(weight))
