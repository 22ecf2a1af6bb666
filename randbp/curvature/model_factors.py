"""Kronecker factors of all layers of a model: one function for all kinds of curvature."""

from collections.abc import Iterable
from typing import Any, get_args

import torch
from torch import nn

from .._torch.restored import preserved
from ..layers.integers import as_integer
from ..text.near_words import nearest
from .arguments import described, positive
from .batched_data import BatchedData
from .factor_passes import CurvatureKind, FactorPasses, ModelFactors
from .layer_factors import Approximation, check_approximation
from .loss_hessian import LossFunction, LossReduction, loss_derivatives


def factors(
    model: nn.Module,
    data: Any,
    loss: LossFunction,
    kind: CurvatureKind = "empirical",
    approximation: Approximation = "reduce",
    *,
    samples: int = 1,
    seed: int = 0,
    reduction: LossReduction | None = None,
    layers: str | Iterable[str] | None = None,
) -> ModelFactors:
    """Kronecker-factored curvature ``Γ ⊗ A`` of a loss over data for each layer of a model, without unfolding anything.

    ``A`` is :func:`~randbp.curvature.input_factor` over all examples. ``Γ = c Σ_n Σ_s v vᵀ`` is made of the gradients
    ``v`` of the layer's output (sums over its positions for ``"reduce"``, ``1/O`` of the sum of their products for
    ``"expand"``) that follow from gradients ``s`` of the model's output, with ``c = 1/M`` for a loss that is a mean of
    ``M`` terms and 1 for a sum:

    - ``"empirical"``: the gradients of the loss itself, for the empirical Fisher matrix. One backward pass.
    - ``"mc"``: gradients for labels drawn from the model's own law, whose mean is ``"type-2"``. ``samples`` passes.
    - ``"type-2"`` (KFLR): all columns of a square root of the loss's Hessian, for the generalised Gauss-Newton matrix,
      which is the Fisher matrix. As many passes as the output of an example has entries, positions included.
    - ``"recursive"`` (KFRA): Hessians with respect to the outputs of layers, averaged over each batch and handed on
      from layer to layer. For ``nn.Sequential`` of layers, elementwise activations, pooling, ``nn.Flatten`` and dropout
      in eval mode. Takes matrices with as many rows as an example's output of a layer has entries.
    - ``"forward-only"`` (FOOF): ``Γ = I``. No backward pass; targets are not looked at.

    A factor of ``"reduce"`` is held as its rows ``ū_n`` or ``v`` as long as these have at most half of the matrix's
    entries: products, inverses and eigendecompositions are then made of them, and no matrix is.

    For one example, a layer without weight sharing and one column this is exact. If a layer is called several times,
    each call counts as further examples. The model runs in the mode that it is in; it, its gradients and all random
    states are afterwards as before. (Layers whose VJPs are estimated in training mode take further samples.)

    Args:
        model: The network.
        data: A batch ``(inputs, targets)`` or an iterable of batches; inputs in a tuple or dictionary are the model's
            arguments.
        loss: ``nn.CrossEntropyLoss``, ``nn.MSELoss``, ``nn.BCEWithLogitsLoss``, or, for ``"empirical"`` and
            ``"forward-only"``, any function of output and target; see
            :func:`~randbp.curvature.loss_hessian.loss_derivatives`.
        kind: The kind of curvature.
        approximation: Approximation of weight sharing: ``"reduce"`` or ``"expand"``.
        samples: Labels drawn for each term of the loss, for ``"mc"``.
        seed: Seed of these labels.
        reduction: The reduction of a loss given as a function: ``"mean"`` over examples (the default), ``"sum"`` or
            ``"tokens"``.
        layers: Names or globs of the layers; ``None`` for all.

    Returns:
        By layer name, like a dictionary; :attr:`ModelFactors.left` says why others are missing (frozen, shared,
        computed weights, layers that were not called).

    Raises:
        ValueError: If an argument is none of these; if no layer can be served; if ``kind`` needs a Hessian that the
            loss does not have, or a chain that the model is not.

    Source: J. Martens and R. Grosse, 2015 (mc, empirical); A. Botev, H. Ritter, D. Barber, Practical Gauss-Newton
    optimisation for deep learning, 2017 (type-2, recursive); F. Benzing, Gradient descent on neurons and its link to
    approximate second-order optimization, 2022 (forward-only); R. Eschenhagen et al., 2023 (reduce, expand).

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
        >>> batch = torch.randn(8, 1, 8, 8), torch.arange(8) % 2
        >>> found = factors(model, batch, nn.CrossEntropyLoss(), kind="type-2")
        >>> {name: product.shape for name, product in found.items()}
        {'0': (1, 4, 10), '3': (1, 2, 145)}
        >>> inverse = found["3"].inverse(damping=1e-2)
        >>> weight, bias = inverse @ (torch.ones(2, 144), torch.ones(2))
        >>> weight.shape, bias.shape
        (torch.Size([2, 144]), torch.Size([2]))
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model={described(model)}: expected an nn.Module")
    if not isinstance(kind, str) or kind not in get_args(CurvatureKind):
        known = get_args(CurvatureKind)
        raise ValueError(f"kind={described(kind)}: expected {' or '.join(map(repr, known))}{nearest(kind, known)}")
    check_approximation(approximation)
    if not callable(loss):
        raise ValueError(f"loss={described(loss)}: expected a loss of torch.nn or a function of output and target")
    if (number := as_integer(seed)) is None or not 0 <= number < 2**64:
        raise ValueError(f"seed={described(seed)}: expected an integer from 0 and below 2**64")
    batches = BatchedData(data)
    model = getattr(model, "_orig_mod", model)  # graphs of torch.compile may not see hooks
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    passes = FactorPasses(model, layers, kind, approximation, positive("samples", samples), number)
    try:
        with preserved(model, train=False):
            for inputs, targets in batches.on(device):
                output = passes.forward(inputs)
                if kind != "forward-only":
                    passes.backward(inputs, output, loss_derivatives(loss, output, targets, reduction))
    finally:
        passes.remove()
    return passes.result()
