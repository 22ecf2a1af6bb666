"""A recursive approximation of a Hessian's diagonal, which costs about as much as another backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import tn
from .._torch.hooks import without_autocast
from ..layers import kind_of, runs_pytorchs_forward
from .arguments import described
from .batched_data import BatchedData
from .example_passes import accumulate, in_order
from .loss_hessian import DiagonalHessian, LossDerivatives, LossFunction, SoftmaxHessian, loss_derivatives
from .module_chain import Link, run_chain
from .parameter_space import ParameterSpace
from .weight_matrices import call_input, layer_call

Pair = tuple[Tensor, Tensor]
"""Gradient and diagonal of the Hessian with respect to one tensor."""

See = Callable[[Any, Tensor], None]
"""Gets a parameter and its diagonal."""


def hessian_diagonal(model: nn.Module, data: Any, loss: LossFunction) -> dict[str, Tensor]:
    """An approximation of the diagonal of a loss's Hessian, by parameter name, from one backward pass.

    The pass carries gradients ``g`` and diagonals ``h`` with respect to outputs, starting from the exact ones of the
    loss, and drops all other entries of the Hessian:

    - through a linear map ``y = W x``: ``h_x = (W²)ᵀ h_y``, for a convolution its input VJP with squared weights;
    - through an activation ``y = σ(x)``: ``h_x = σ'(x)² h_y + σ''(x) g_y``;
    - for a weight: ``h_W = Σ h_y (x²)ᵀ`` over examples and positions, for a convolution its weight VJP with squared
      inputs.

    Entries may be negative. They are exact for the last layer if it has no positions or if the loss's Hessian is
    diagonal (``nn.MSELoss``, ``nn.BCEWithLogitsLoss``); with such a loss also for a layer before it without positions.

    Args:
        model: A chain: an ``nn.Sequential``, or another model whose modules each take the output of the one before.
            Modules may be convolutions (1- to 3-d, grouped, transposed), linear layers, elementwise activations,
            pooling by averages or maxima, padding, flattening, batch norm and dropout in evaluation mode.
        data: A batch ``(inputs, targets)``, or an iterable of batches. A mean loss is the mean over all data.
        loss: ``nn.CrossEntropyLoss``, ``nn.MSELoss``, ``nn.BCEWithLogitsLoss``, or PyTorch's function of one of them.

    Returns:
        ``{name: parameter.shape}``.

    Raises:
        ValueError: If the model is not a chain or has another module, which the line names; or if the loss is another
            function.

    Source: S. Becker and Y. LeCun, Improving the convergence of back-propagation learning with second order methods,
    1989; M. Elsayed et al., Revisiting scalable Hessian diagonal approximations for applications in reinforcement
    learning, 2024 (HesScale: the exact diagonal of the loss at the output).

    Example:
        >>> model, data = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), (torch.randn(8, 3, 1), torch.randn(8, 2))
        >>> diagonal = hessian_diagonal(model, data, nn.MSELoss())
        >>> torch.allclose(diagonal["1.weight"][0], data[0].flatten(1).square().mean(0))
        True
    """
    names = {parameter: name for name, parameter in ParameterSpace(model).parameters.items()}
    sums = {name: torch.zeros_like(parameter, requires_grad=False) for parameter, name in names.items()}
    terms: Tensor | float = 0.0
    for inputs, targets in BatchedData(data).on(next(iter(names)).device):
        with without_autocast(targets):
            links = run_chain(model, inputs)
            derivatives = loss_derivatives(loss, links[-1].output, targets)
            _backward(links, derivatives, loss, lambda key, value: accumulate(sums, names[key], value))
        terms = terms + derivatives.terms if derivatives.reduction == "mean" else 1.0
    return in_order(model, {name: each / terms for name, each in sums.items()})


def _backward(links: list[Link], derivatives: LossDerivatives, loss: LossFunction, see: See) -> None:
    rules = [_rule(link) for link in links]
    pair = derivatives.gradients, _diagonal(derivatives, loss)
    trained = [any(each.requires_grad for each in link.module.parameters()) for link in links]
    for number in range(len(links) - 1, trained.index(True) - 1, -1):
        pair = rules[number](links[number], pair, see)


def _diagonal(derivatives: LossDerivatives, loss: LossFunction) -> Tensor:
    """The diagonals of the loss's Hessians with respect to the output."""
    hessian = derivatives.hessian
    if isinstance(hessian, SoftmaxHessian):
        p = hessian.probabilities
        return ((p - p.square()) * hessian.weights.unsqueeze(1)).view(hessian.shape)
    if isinstance(hessian, DiagonalHessian):
        return hessian.diagonal
    raise ValueError(f"loss={described(loss)}: expected CrossEntropyLoss, MSELoss or BCEWithLogitsLoss of torch.nn")


def _rule(link: Link) -> Callable[[Link, Pair, See], Pair]:
    module, kind = link.module, type(link.module)
    if kind_of(module) is not None and runs_pytorchs_forward(module):
        return _layer
    rule = _RULES.get(kind)
    if rule is None:
        raise ValueError(
            f"model: {link.name!r} ({kind.__name__}) has no rule: expected convolutions, linear layers, elementwise "
            "activations, pooling, padding, flattening, batch norm and dropout"
        )
    if (module.training and kind in _BY_MODE) or (kind in _BATCH_NORMS and module.running_mean is None):
        raise ValueError(f"model: {link.name!r} ({kind.__name__}) is in training mode, expected model.eval()")
    return rule


def _layer(link: Link, pair: Pair, see: See) -> Pair:
    """A layer's networks with squares of weights and of inputs."""
    module: Any = link.module
    leaf = _leaf(link)
    with torch.enable_grad():
        call = layer_call(module, leaf, link.output)
        _, spec, seen = call_input(call)
    g, h = (call.function.channels_second(each).reshape(spec.output_shape) for each in pair)
    if module.weight.requires_grad:
        squares = tn.weight_vjp(spec).contract(input=seen.detach().square(), output_grad=h)
        see(module.weight, squares.view(module.weight.shape))
    if module.bias is not None and module.bias.requires_grad:
        see(module.bias, h.flatten(2).sum((0, 2)))
    kernel, net = call.function.kernel(module.weight.detach().to(h)), tn.input_vjp(spec)
    through = net.contract(weight=kernel, output_grad=g), net.contract(weight=kernel.square(), output_grad=h)
    return _selected(seen, leaf, through)


def _elementwise(link: Link, pair: Pair, see: See) -> Pair:
    """``h_x = σ'² h_y + σ'' g_y``."""
    leaf = _leaf(link)
    with torch.enable_grad():
        output = link.module(leaf.clone() if getattr(link.module, "inplace", False) else leaf)
        (slope,) = torch.autograd.grad(output, leaf, torch.ones_like(output), create_graph=True)
        bend = torch.zeros_like(leaf)
        if slope.requires_grad:
            (bend,) = torch.autograd.grad(slope, leaf, torch.ones_like(slope), materialize_grads=True)
    g, h, slope = *pair, slope.detach()
    return slope * g, slope.square() * h + bend * g


def _batch_norm(link: Link, pair: Pair, see: See) -> Pair:
    """Elementwise, with a factor and a summand per channel."""
    module: Any = link.module
    if module.affine:
        plain = F.batch_norm(link.input.to(pair[1]), module.running_mean, module.running_var, eps=module.eps)
        for parameter, squares in ((module.weight, plain.square()), (module.bias, 1.0)):
            if parameter.requires_grad:
                see(parameter, (pair[1] * squares).transpose(0, 1).flatten(1).sum(1))
    return _elementwise(link, pair, see)


def _selection(link: Link, pair: Pair, see: See) -> Pair:
    """Outputs are entries of the input, or zero: squares of derivatives are the derivatives."""
    leaf = _leaf(link)
    with torch.enable_grad():
        output = link.module(leaf)
    return _selected(output, leaf, pair)


def _average(link: Link, pair: Pair, see: See) -> Pair:
    """Outputs are means: their derivatives, all the same ones within a window, are squared."""
    leaf, module = _leaf(link), link.module
    with torch.enable_grad():
        output = module(leaf)
    return _selected(output, leaf, (pair[0], pair[1] * _shares(module, leaf, output)))


def _shares(module: Any, input: Tensor, output: Tensor) -> Tensor | float:
    """The share of an entry in each mean ``[*O]``: a product over dimensions."""
    if getattr(module, "divisor_override", None):
        return float(1 / module.divisor_override)
    dims = int(type(module).__name__[-2])
    shares = input.new_ones(())
    for dim in range(-dims, 0):
        basis = torch.eye(input.shape[dim], dtype=input.dtype, device=input.device).unsqueeze(1)
        if hasattr(module, "output_size"):
            made = F.adaptive_avg_pool1d(basis, output.shape[dim])
        else:
            geometry = ((each,) * dims if isinstance(each, int) else each for each in _window(module))
            kernel, stride, padding = (each[dim] for each in geometry)
            made = F.avg_pool1d(basis, kernel, stride, padding, module.ceil_mode, module.count_include_pad)
        shares = shares.unsqueeze(-1) * made.amax((0, 1))
    return shares


def _window(module: Any) -> tuple[Any, Any, Any]:
    return module.kernel_size, module.kernel_size if module.stride is None else module.stride, module.padding


def _selected(output: Tensor, leaf: Tensor, pair: Pair) -> Pair:
    """The VJPs of both."""
    g, h = (torch.autograd.grad(output, leaf, each, retain_graph=True)[0] for each in pair)
    return g, h


def _leaf(link: Link) -> Tensor:
    """The input, in single precision at least, for derivatives."""
    plain = link.input.detach()
    return plain.to(torch.promote_types(plain.dtype, torch.float32)).requires_grad_()


def _dimensions(*names: str) -> list[Any]:
    """The classes of 1 to 3 dimensions."""
    return [getattr(nn, f"{name}{dims}d") for name in names for dims in (1, 2, 3)]


_BATCH_NORMS = _dimensions("BatchNorm")
_BY_MODE = {*_BATCH_NORMS, *_dimensions("Dropout"), nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout}
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Softplus, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish),
    *(nn.Softshrink, nn.Hardshrink, nn.Threshold),
)
_SELECTIONS = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    *_dimensions("MaxPool", "AdaptiveMaxPool", "ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad"),
    *(kind for kind in _BY_MODE if kind not in _BATCH_NORMS),
)
_RULES: dict[Any, Callable[[Link, Pair, See], Pair]] = {
    **dict.fromkeys(_ACTIVATIONS, _elementwise),
    **dict.fromkeys(_SELECTIONS, _selection),
    **dict.fromkeys(_dimensions("AvgPool", "AdaptiveAvgPool"), _average),
    **dict.fromkeys(_BATCH_NORMS, _batch_norm),
}
