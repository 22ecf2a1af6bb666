"""KFRA: Hessians with respect to the outputs of a chain's layers, averaged over the batch at each step on the way back.

Source: A. Botev, H. Ritter, D. Barber, Practical Gauss-Newton optimisation for deep learning, 2017.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..layers import kind_of, runs_pytorchs_forward
from .layer_factors import Approximation
from .loss_hessian import OutputHessian
from .weight_matrices import Form

Classes = tuple[type[nn.Module], ...]

_LINEAR: Classes = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.Flatten, nn.Unflatten, nn.Identity),
)
_ELEMENTWISE: Classes = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink, nn.Softshrink),
    *(nn.Tanhshrink, nn.LogSigmoid, nn.Threshold),
)
_POOLING: Classes = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_DROPOUT: Classes = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def chain(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of a sequential network in their order, by name.

    Raises:
        ValueError: If the recursion is not defined for the network.

    Example:
        >>> [name for name, _ in chain(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(), nn.Flatten())))]
        ['0', '1.0', '1.1']
    """
    return list(_parts("", model))


def _parts(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if type(module).forward is nn.Sequential.forward and "forward" not in vars(module):
        for child, part in module._modules.items():
            assert part is not None
            yield from _parts(f"{name}.{child}".removeprefix("."), part)
        return
    rests = type(module) in _DROPOUT and not (module.training and module.p)
    served = kind_of(module) is not None and runs_pytorchs_forward(module)
    if not (served or rests or type(module) in _LINEAR + _ELEMENTWISE + _POOLING):
        where = f"model: {name!r} ({type(module).__name__})" if name else f"model: {type(module).__name__}"
        raise ValueError(
            f"{where} cannot be part of kind='recursive': expected nn.Sequential of convolutions, linear layers, "
            "elementwise activations, pooling, nn.Flatten and dropout in eval mode"
        )
    yield name, module


def mean_hessians(
    parts: list[tuple[str, nn.Module]], input: Tensor, hessian: OutputHessian
) -> list[tuple[str, Tensor, Tensor]]:
    """Averages ``H̄`` over the batch of the loss's Hessians with respect to the outputs of layers, ``[E, E]``.

    From one module to the one before it, ``H̄ ← 1/N Σ_n J_nᵀ H̄ J_n`` with the module's Jacobians ``J_n``: for layers
    ``Jᵀ H̄ J``, for activations ``H̄ ∘ 1/N Σ_n s_n s_nᵀ`` with their slopes. The recursion starts with the exact
    Hessian, so it is exact where these Jacobians do not vary over the batch.

    Args:
        parts: The network, from :func:`chain`.
        input: The network's ``[N, …]``.
        hessian: The loss's, with respect to the network's output.

    Returns:
        Name, ``H̄`` and output of each layer, the last one first.

    Raises:
        ValueError: If a module mixes up examples.
    """
    seen = [input.detach()]
    with torch.no_grad():
        for name, module in parts:
            seen.append(module(seen[-1].clone()))  # modules may work in place
            if seen[-1].shape[:1] != input.shape[:1]:
                shapes = " to ".join(str(tuple(each.shape)) for each in seen[-2:])
                raise ValueError(f"model: {name!r} turns {shapes}: expected examples first, for kind='recursive'")
    mean = torch.zeros((), dtype=input.dtype, device=input.device)
    for column in hessian.columns():
        rows = column.flatten(1)
        mean = mean + rows.T @ rows / len(rows)
    layers = [number for number, (_, module) in enumerate(parts) if kind_of(module) is not None]
    found = []
    for number in range(len(parts) - 1, layers[0] - 1 if layers else 0, -1):
        name, module = parts[number]
        if number in layers:
            found.append((name, mean, seen[number + 1]))
        if number != layers[0]:
            mean = _pulled_back(module, seen[number], mean)
    return found


def _pulled_back(module: nn.Module, given: Tensor, mean: Tensor) -> Tensor:
    """``1/N Σ_n J_nᵀ H̄ J_n``."""
    if type(module) in _DROPOUT:
        return mean
    if type(module) in _ELEMENTWISE:
        slopes = _vjp(module, given, torch.ones_like(given)).flatten(1)
        return mean * (slopes.T @ slopes / len(slopes))
    if type(module) in _POOLING:
        return torch.stack([_congruent(module, example, mean) for example in given.split(1)]).mean(0)
    return _congruent(module, given[:1], mean)


def _congruent(module: nn.Module, example: Tensor, mean: Tensor) -> Tensor:
    """``Jᵀ H̄ J`` with the Jacobian of one example: the VJP of all rows, twice."""
    for _ in range(2):
        mean = _vjp(module, example.expand(len(mean), *example.shape[1:]), mean).flatten(1).T
    return mean


def _vjp(module: nn.Module, given: Tensor, output_grads: Tensor) -> Tensor:
    with torch.enable_grad():
        given = given.detach().requires_grad_()
        output = module(given.clone())  # modules may work in place
        (made,) = torch.autograd.grad(output, given, output_grads.to(output.dtype).reshape(output.shape))
    return made


def output_grad_factor_of(module: nn.Module, mean: Tensor, output: Tensor, approximation: Approximation) -> Tensor:
    """The factor ``Γ`` ``[G, D / G, D / G]`` that a mean Hessian stands for.

    ``Γ_g = Σ_op H̄[d o, e p]`` (reduce), or ``1/O Σ_o H̄[d o, e o]`` (expand).

    Args:
        module: The layer.
        mean: ``H̄``, with respect to the layer's output.
        output: ``[N, D, *O]``, or ``[N, *T, D]`` of a linear layer.
        approximation: ``"reduce"`` or ``"expand"``.
    """
    form = Form.of(module)
    linear = form.kind == "linear"
    channels = output.shape[-1 if linear else 1]
    positions = len(mean) // channels
    if linear:
        mean = mean.view(positions, channels, positions, channels).permute(1, 0, 3, 2)
    mean = mean.reshape(channels, positions, channels, positions)
    grouped = mean.unflatten(2, (form.groups, -1)).unflatten(0, (form.groups, -1))
    if approximation == "reduce":
        return torch.einsum("gdogep->gde", grouped)
    return torch.einsum("gdogeo->gde", grouped) / positions
