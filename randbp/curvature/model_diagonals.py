"""Diagonals of curvature matrices of whole models: of the GGN, exact or sampled, and Hutchinson's estimates."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..draws.seeds import checked_seed
from ..text.near_words import nearest
from .arguments import described, positive
from .example_gradients import ExampleGradients
from .example_passes import accumulate, example_passes, in_order
from .linear_operators import GGN, DataOperator, Hessian
from .loss_hessian import LossFunction
from .parameter_space import ParameterSpace

_OPERATORS: dict[str, type[DataOperator]] = {"hessian": Hessian, "ggn": GGN}


def ggn_diagonal(
    model: nn.Module, data: Any, loss: LossFunction, samples: int | None = None, *, seed: int = 0
) -> dict[str, Tensor]:
    """The diagonal of the generalised Gauss-Newton matrix ``G = Σ_n J_nᵀ H_n J_n`` of a loss, by parameter name.

    ``H_n`` is the loss's Hessian with respect to an example's output ``f_n``, ``J_n`` the Jacobian of ``f_n``. With
    ``H_n = Σ_k s_nk s_nkᵀ`` the diagonal is ``Σ_nk (J_nᵀ s_nk)²``: a backward pass for every ``k``, whose per-example
    gradients are squared and summed, a few examples at a time. For the losses below ``G`` is the Fisher matrix.

    Args:
        model: The model, which runs in its current mode, see :func:`per_example_grads`.
        data: A batch ``(inputs, targets)``, or an iterable of batches. A mean loss is the mean over all data.
        loss: ``nn.CrossEntropyLoss``, ``nn.MSELoss``, ``nn.BCEWithLogitsLoss``, or PyTorch's function of one of them.
        samples: ``None`` for the exact diagonal, by as many backward passes as an example's output has entries. Or the
            number of passes with random ``s_n``, from labels drawn from the model's own law; the mean is the diagonal.
        seed: Of the generator that draws labels.

    Returns:
        ``{name: parameter.shape}``, entries of which are not negative.

    Raises:
        ValueError: As :func:`per_example_grads` does; if the loss is another function, or samples or seed are none.

    Source: F. Dangel et al., BackPACK: packing more into backprop, 2020.

    Example:
        >>> model, data = nn.Linear(3, 2), (torch.randn(8, 3), torch.randn(8, 2))
        >>> diagonal = ggn_diagonal(model, data, nn.MSELoss())
        >>> torch.allclose(diagonal["weight"][0], data[0].square().mean(0))
        True
    """
    count = None if samples is None else positive("samples", samples)
    generator = torch.Generator(ParameterSpace(model).device).manual_seed(checked_seed(seed))
    sums: dict[str, Tensor] = {}

    def see(name: str, gradients: ExampleGradients) -> None:
        accumulate(sums, name, gradients.square_sum())

    terms: Tensor | float = 0.0
    for run, derivatives in example_passes(model, data, loss):
        hessian = derivatives.hessian
        if hessian is None:
            raise ValueError(
                f"loss={described(loss)}: expected CrossEntropyLoss, MSELoss or BCEWithLogitsLoss of torch.nn"
            )
        for column in hessian.columns() if count is None else hessian.sampled(count, generator):
            run.backward(column, see)
        terms = terms + derivatives.terms if derivatives.reduction == "mean" else 1.0
        del run  # its graph, before the next batch has one
    return in_order(model, {name: each / terms for name, each in sums.items()})


def hutchinson_diagonal(
    model: nn.Module,
    data: Any,
    loss: LossFunction,
    samples: int,
    of: Literal["hessian", "ggn"] = "hessian",
    *,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Hutchinson's unbiased estimate of a matrix's diagonal: the mean of ``v ∘ A v`` over random signs ``v``.

    The variance of entry ``i`` is ``Σ_{j≠i} A_ij² / samples``. Each sample takes a product with the matrix, see
    :class:`Hessian` and :class:`GGN`, which serve models of all kinds of layers.

    Args:
        model, data, loss: As in :class:`Hessian`; a mean loss is the mean over all data.
        samples: Number of sign vectors.
        of: ``"hessian"`` or ``"ggn"``.
        seed: Of the generator that draws signs.

    Returns:
        ``{name: parameter.shape}``.

    Raises:
        ValueError: If an argument is none of these; see also :class:`Hessian`.

    Source: C. Bekas et al., An estimator for the diagonal of a matrix, 2007.

    Example:
        >>> model, data = nn.Linear(3, 1), (torch.eye(3), torch.zeros(3, 1))
        >>> hutchinson_diagonal(model, data, nn.MSELoss(reduction="sum"), samples=4)["bias"].shape
        torch.Size([1])
    """
    if not isinstance(of, str) or of not in _OPERATORS:
        raise ValueError(f"of={described(of)}: expected 'hessian' or 'ggn'{nearest(of, ('hessian', 'ggn'))}")
    operator = _OPERATORS[of](model, data, loss)
    space, total = operator.space, torch.zeros(operator.shape[0], dtype=operator.dtype, device=operator.device)
    generator = torch.Generator(operator.device).manual_seed(checked_seed(seed))
    for _ in range(positive("samples", samples)):
        signs = torch.randint(2, total.shape, generator=generator, device=total.device).to(total) * 2 - 1
        total += signs * (operator @ signs)
    return dict(zip(space.parameters, space.pieces(total / samples), strict=True))
