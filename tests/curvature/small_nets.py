"""Small networks of all kinds of layers in double precision, with batches and dense matrices by ``torch.func``."""

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

LOSSES = ("classes", "positions", "squares", "binary", "function")


def layer(kind: str, draw: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    """One layer with random hyper-parameters, and the shape of an input without the batch."""
    groups = draw.choice([1, 2])
    inner, outer = 2, 2 * draw.choice([1, 2])
    if kind == "linear":
        return nn.Linear(3, outer, bias=draw.random() < 0.7), (3,)
    if kind == "tokens":
        return nn.Linear(3, outer), (draw.choice([2, 3]), 3)
    dims, transposed = int(kind[0]), kind.endswith("t")
    size = {1: 6, 2: 4, 3: 3}[dims] - (transposed and dims > 1)
    more = {
        "stride": draw.choice([1, 2]),
        "padding": draw.choice([0, 1]),
        "groups": groups,
        "bias": draw.random() < 0.7,
    }
    if not transposed and dims == 1:
        more["dilation"] = draw.choice([1, 2])
    module = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")(inner, outer, 2, **more)
    return module, (inner, *[size] * dims)


KINDS = ("linear", "tokens", "1d", "2d", "3d", "1dt", "2dt", "3dt")


def net(kind: str, loss: str, seed: int, batch: int = 5) -> tuple[nn.Module, Tensor, Tensor, Any]:
    """A network that begins with a layer of this kind, inputs, targets and the loss."""
    draw = random.Random(f"{kind} {loss} {seed}")
    torch.manual_seed(draw.randrange(10**6))
    first, shape = layer(kind, draw)
    x = torch.randn(batch, *shape, dtype=torch.float64)
    parts: list[nn.Module] = [first.double(), nn.Tanh()]
    with torch.no_grad():
        seen = parts[0](x)
    if loss == "positions":
        if kind in ("linear", "tokens"):
            parts.append(nn.Linear(seen.shape[-1], 3).double())
            if kind == "tokens":
                parts.append(Swap())
        else:
            parts.append(getattr(nn, f"Conv{seen.dim() - 2}d")(seen.shape[1], 3, 1).double())
    else:
        parts += [nn.Flatten(), nn.Linear(seen[0].numel(), 3).double()]
    model = nn.Sequential(*parts)
    with torch.no_grad():
        out = model(x)
    reduction = draw.choice(["mean", "sum"])
    if loss in ("classes", "positions"):
        y = torch.randint(3, (batch, *out.shape[2:]))
        if loss == "positions":
            y[0] = -100
        return model, x, y, nn.CrossEntropyLoss(reduction=reduction)
    if loss == "squares":
        return model, x, torch.randn_like(out), nn.MSELoss(reduction=reduction)
    if loss == "binary":
        return model, x, torch.randint(2, out.shape).double(), nn.BCEWithLogitsLoss(reduction=reduction)
    return model, x, torch.randn_like(out), quartic


class Swap(nn.Module):
    """Tokens' channels second, as cross-entropy takes them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def quartic(output: Tensor, target: Tensor) -> Tensor:
    """A mean over examples that is no loss of PyTorch, and convex."""
    return (output - target).pow(4).sum(1).mean()


def terms(loss: Any, output: Tensor, target: Tensor) -> float:
    """The number of which a mean loss is the mean."""
    if getattr(loss, "reduction", "mean") == "sum":
        return 1
    if isinstance(loss, nn.CrossEntropyLoss):
        return int((target != -100).sum())
    return len(output) if loss is quartic else output.numel()


def dense(model: nn.Module, x: Tensor, y: Tensor, loss: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Hessian, GGN and empirical Fisher matrix, from functions of all parameters as one vector."""
    shapes = {name: each.shape for name, each in model.named_parameters()}
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()

    def outputs(vector: Tensor, inputs: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return functional_call(model, named, (inputs,))

    whole = hessian(lambda vector: loss(outputs(vector, x), y))(flat)
    out = outputs(flat, x).detach()
    jacobian = jacrev(outputs)(flat, x).reshape(out.numel(), -1)
    bent = hessian(lambda f: loss(f, y))(out).reshape(out.numel(), out.numel())
    count = terms(loss, out, y)
    total = torch.zeros_like(whole)
    for n in range(len(x)):
        f = out[n : n + 1].requires_grad_()
        others = [out[:n].detach(), f, out[n + 1 :].detach()]
        (own,) = torch.autograd.grad(loss(torch.cat(others), y), f)
        grad = jacobian.view(len(x), -1, len(flat))[n].T @ own.flatten()
        total += count * torch.outer(grad, grad)
    return whole, jacobian.T @ bent @ jacobian, total
