"""Per-example gradients of a model's parameters, their norms, sums of squares and variances."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .example_gradients import ExampleGradients
from .example_passes import See, accumulate, example_passes, in_order
from .loss_hessian import LossFunction, LossReduction


def per_example_grads(
    model: nn.Module, data: Any, loss: LossFunction, *, reduction: LossReduction | None = None
) -> dict[str, Tensor]:
    """Per-example gradients ``g_n = ∇ loss(f(x_n), y_n)`` of all parameters, ``{name: [N, *parameter.shape]}``.

    ``g_n`` is the gradient of the loss of one example by itself, whatever batch it is in: if the loss is a mean, of the
    mean over the example's own terms (its tokens, or the entries of its output). The gradient of a batch's loss is the
    sum of the ``g_n`` if the loss is a sum. If it is a mean, it is their mean, weighted by the examples' numbers of
    terms if these differ. BackPACK's ``BatchGrad`` is ``g_n / N`` for a mean.

    Weights of layers are contracted as networks that keep the batch's leg; nothing is unfolded. A parameter that is
    used several times has the sum over its uses.

    Args:
        model: The model, which runs in its current mode; its parameters' ``.grad`` stay as they are. The first
            dimension of its output, and of the input of each layer, is that of the examples.
        data: A batch ``(inputs, targets)``, or an iterable of batches, whose examples follow each other. Inputs that
            are a tuple or a mapping are the model's arguments.
        loss: ``nn.CrossEntropyLoss``, ``nn.MSELoss``, ``nn.BCEWithLogitsLoss``, or a function of output and targets.
        reduction: Reduction of a function: ``"mean"`` over examples (the default), ``"sum"`` or ``"tokens"``, see
            :func:`~randbp.curvature.loss_hessian.loss_derivatives`.

    Raises:
        ValueError: If a batch norm takes its statistics from the batch, or a parameter that needs a gradient belongs to
            none of: convolutions (1- to 3-d, grouped, transposed), linear layers, embeddings, affine norms, and factors
            and summands that are broadcast over examples. The line names it.

    Source: G. Rochette et al., Efficient per-example gradient computations in convolutional neural networks, 2019.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))
        >>> data, loss = (torch.randn(8, 3, 5, 5), torch.arange(8)), nn.CrossEntropyLoss()
        >>> grads = per_example_grads(model, data, loss)
        >>> grads["0.weight"].shape
        torch.Size([8, 4, 3, 3, 3])
        >>> loss(model(data[0]), data[1]).backward()
        >>> torch.allclose(grads["0.weight"].mean(0), model[0].weight.grad, atol=1e-6)
        True
    """
    return _joined(model, data, loss, reduction, lambda gradients: gradients.all().contiguous())


def per_example_norms(
    model: nn.Module, data: Any, loss: LossFunction, *, reduction: LossReduction | None = None
) -> dict[str, Tensor]:
    """Norms ``‖g_n‖`` of per-example gradients by parameter, ``{name: [N]}``, without the gradients themselves.

    With the unfolded input ``U_n`` and the output gradient ``V_n`` of a layer
    ``‖V_n U_nᵀ‖² = Σ_{o o'} (V_nᵀ V_n)[o, o'] (U_nᵀ U_n)[o, o']``; for each layer either these Gram matrices of
    positions are contracted, from the input without unfolding it, or the gradients of a few examples at a time,
    whichever its plan finds cheaper. Norms over all parameters are ``torch.stack([*norms.values()]).norm(dim=0)``.

    Arguments and errors are those of :func:`per_example_grads`.

    Source: I. Goodfellow, Efficient per-example gradient computations, 2015; G. Rochette et al., 2019.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))
        >>> data, loss = (torch.randn(8, 3, 5, 5), torch.arange(8)), nn.CrossEntropyLoss()
        >>> norms, grads = per_example_norms(model, data, loss), per_example_grads(model, data, loss)
        >>> torch.allclose(norms["0.weight"], grads["0.weight"].flatten(1).norm(dim=1))
        True
    """
    return _joined(model, data, loss, reduction, lambda gradients: gradients.squared_norms().clamp_min(0).sqrt())


def per_example_square_sum(
    model: nn.Module, data: Any, loss: LossFunction, *, reduction: LossReduction | None = None
) -> dict[str, Tensor]:
    """Sums of squares ``Σ_n g_n²`` of per-example gradients, entry by entry, ``{name: parameter.shape}``.

    Over ``N`` it is the second moment, and the diagonal of the empirical Fisher matrix. BackPACK's ``SumGradSquared``
    is ``1/N²`` of it for a mean. No more than a few examples' gradients are there at a time.

    Arguments and errors are those of :func:`per_example_grads`.

    Example:
        >>> model, data = nn.Linear(3, 2), (torch.randn(8, 3), torch.randn(8, 2))
        >>> made = per_example_square_sum(model, data, nn.MSELoss())
        >>> grads = per_example_grads(model, data, nn.MSELoss())
        >>> torch.allclose(made["weight"], grads["weight"].square().sum(0))
        True
    """
    _, squares, _ = _moments(model, data, loss, reduction)
    return squares


def per_example_variance(
    model: nn.Module, data: Any, loss: LossFunction, *, reduction: LossReduction | None = None
) -> dict[str, Tensor]:
    """Variances ``1/N Σ_n (g_n - ḡ)²`` of per-example gradients, entry by entry, ``{name: parameter.shape}``.

    ``ḡ = 1/N Σ_n g_n``. A gradient that is the mean over ``B`` examples drawn at random has ``1/B`` of this variance.
    BackPACK's ``Variance`` is ``1/N²`` of it for a mean.

    Arguments and errors are those of :func:`per_example_grads`.

    Example:
        >>> model, data = nn.Linear(3, 2), (torch.randn(8, 3), torch.randn(8, 2))
        >>> made = per_example_variance(model, data, nn.MSELoss())
        >>> grads = per_example_grads(model, data, nn.MSELoss())
        >>> torch.allclose(made["weight"], grads["weight"].var(0, correction=0), atol=1e-6)
        True
    """
    examples, squares, totals = _moments(model, data, loss, reduction, totals=True)
    return {name: (squares[name] / examples - (totals[name] / examples).square()).clamp_min(0) for name in squares}


def _joined(
    model: nn.Module,
    data: Any,
    loss: LossFunction,
    reduction: LossReduction | None,
    make: Callable[[ExampleGradients], Tensor],
) -> dict[str, Tensor]:
    """What is made of the gradients of each batch, one batch after the other."""
    found: dict[str, list[Tensor]] = {}
    _see_all(model, data, loss, reduction, lambda name, each: found.setdefault(name, []).append(make(each)))
    made = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in found.items()}
    return in_order(model, made)


def _moments(
    model: nn.Module, data: Any, loss: LossFunction, reduction: LossReduction | None, totals: bool = False
) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
    """``N``, ``Σ_n g_n²`` and perhaps ``Σ_n g_n``."""
    squares: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}

    def see(name: str, gradients: ExampleGradients) -> None:
        accumulate(squares, name, gradients.square_sum())
        if totals:
            accumulate(sums, name, gradients.total())

    examples = _see_all(model, data, loss, reduction, see)
    return examples, in_order(model, squares), sums


def _see_all(model: nn.Module, data: Any, loss: LossFunction, reduction: LossReduction | None, see: See) -> int:
    """Show the gradients of all parameters for each batch, and count the examples."""
    examples = 0
    for run, derivatives in example_passes(model, data, loss, reduction):
        output_grad = derivatives.gradients
        if derivatives.reduction == "mean":
            terms = derivatives.example_terms.view(-1, *[1] * (output_grad.dim() - 1))
            output_grad = torch.where(terms > 0, output_grad / terms, 0)
        run.backward(output_grad, see)
        examples += len(output_grad)
        del run  # its graph, before the next batch has one
    return examples
