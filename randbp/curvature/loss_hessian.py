"""Second derivatives of a loss with respect to a network's output: gradients, square roots, products."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..text.near_words import nearest
from .arguments import described

LossFunction = Callable[[Any, Any], Tensor]
LossReduction = Literal["mean", "sum", "tokens"]


@dataclass(frozen=True)
class OutputHessian(ABC):
    """The Hessians ``H_n = ∂²ℓ_n/∂f_n²`` of all examples' losses with respect to their outputs.

    Args:
        shape: The output's shape ``[N, …]``. Columns and products have it, and hold a part for each example.
    """

    shape: tuple[int, ...]

    @abstractmethod
    def columns(self) -> Iterator[Tensor]:
        """Columns ``S_k`` of square roots, one alive at a time: ``Σ_k S_k S_kᵀ = H_n`` for each example."""

    @abstractmethod
    def sampled(self, samples: int, generator: torch.Generator | None) -> Iterator[Tensor]:
        """Random columns ``s`` with ``E[Σ s sᵀ] = H_n``: scaled gradients of labels drawn from the model's own law."""

    @abstractmethod
    def times(self, vector: Tensor) -> Tensor:
        """``H_n v_n`` for each example."""


@dataclass(frozen=True)
class SoftmaxHessian(OutputHessian):
    """``H = a (diag(p) - p pᵀ)`` at each position, from cross-entropy.

    Args:
        probabilities: ``p`` ``[N, C, O]``, positions flattened.
        weights: ``a`` ``[N, O]``: the weights of labels; 0 where a label is ignored.
    """

    probabilities: Tensor
    weights: Tensor

    def columns(self) -> Iterator[Tensor]:
        """``C·O`` columns ``√(a p_k) (e_k - p)``, each of them at one position."""
        for position in range(self.probabilities.shape[2]):
            p, a = self.probabilities[:, :, position], self.weights[:, position]
            for label in range(p.shape[1]):
                column = torch.zeros_like(self.probabilities)
                column[:, :, position] = -p
                column[:, label, position] += 1
                column[:, :, position] *= (a * p[:, label]).sqrt().unsqueeze(1)
                yield column.view(self.shape)

    def sampled(self, samples: int, generator: torch.Generator | None) -> Iterator[Tensor]:
        """``√(a / samples) (p - e_y)`` with a label ``y`` drawn from ``p`` at each position."""
        batch, classes, positions = self.probabilities.shape
        rows = self.probabilities.transpose(1, 2).reshape(-1, classes)
        for _ in range(samples):
            labels = torch.multinomial(rows, 1, generator=generator).view(batch, 1, positions)
            column = self.probabilities.scatter_add(1, labels, -torch.ones_like(self.probabilities[:, :1]))
            yield (column * (self.weights / samples).sqrt().unsqueeze(1)).view(self.shape)

    def times(self, vector: Tensor) -> Tensor:
        """``a (p ∘ v - p pᵀ v)``."""
        moved = self.probabilities * vector.reshape(self.probabilities.shape)
        moved = moved - self.probabilities * moved.sum(1, keepdim=True)
        return (moved * self.weights.unsqueeze(1)).view(self.shape)


@dataclass(frozen=True)
class DiagonalHessian(OutputHessian):
    """``H = diag(h)``, from a loss that is a sum over entries of the output.

    Args:
        diagonal: ``h``, of the output's shape.
        probabilities: Of the label 1 for each entry, if labels are 0 or 1; ``None`` for real targets, which are normal.
    """

    diagonal: Tensor
    probabilities: Tensor | None = None

    def columns(self) -> Iterator[Tensor]:
        """``√h_k e_k``, as many as an example's output has entries."""
        roots = self.diagonal.sqrt().view(self.shape[0] if self.shape else 1, -1)
        for entry in range(roots.shape[1]):
            column = torch.zeros_like(roots)
            column[:, entry] = roots[:, entry]
            yield column.view(self.shape)

    def sampled(self, samples: int, generator: torch.Generator | None) -> Iterator[Tensor]:
        """``√(h / samples)`` times independent noise of mean 0 and variance 1 for each entry."""
        roots = (self.diagonal / samples).sqrt()
        for _ in range(samples):
            if self.probabilities is None:
                noise = torch.empty_like(roots).normal_(generator=generator)
            else:
                p = self.probabilities
                deviation = p - torch.bernoulli(p, generator=generator)
                noise = torch.where(roots > 0, deviation / (p * (1 - p)).sqrt(), 0.0)
            yield (roots * noise).view(self.shape)

    def times(self, vector: Tensor) -> Tensor:
        """``h ∘ v``."""
        return self.diagonal * vector


@dataclass(frozen=True)
class LossDerivatives:
    """A batch's loss ``L = 1/M Σ_n ℓ_n`` (mean) or ``Σ_n ℓ_n`` (sum) as a function of the network's output.

    ``ℓ_n`` is the sum of the terms of example ``n``. Terms are negative log-likelihoods: of labels (cross-entropy), or
    of each entry of the output for squares (normal, of variance 1/2) and binary labels. With ``J_n`` the Jacobian of
    ``f_n``, the generalised Gauss-Newton matrix of ``L`` is ``scale · Σ_n J_nᵀ H_n J_n``, and so is its Fisher matrix;
    its empirical Fisher matrix is ``scale · Σ_n J_nᵀ g_n g_nᵀ J_n``.

    Attributes:
        reduction: ``"mean"`` or ``"sum"``.
        example_terms: Each example's share ``[N]`` of ``M``, the number of terms that a mean divides by. Labels that
            count (each by its class weight) for cross-entropy, entries of the output for the others; for a function
            what ``reduction`` says.
        gradients: ``g_n = ∂ℓ_n/∂f_n``, of the output's shape ``[N, …]``.
        hessian: The Hessians ``H_n = ∂²ℓ_n/∂f_n²``; ``None`` for a function.
    """

    reduction: Literal["mean", "sum"]
    example_terms: Tensor
    gradients: Tensor
    hessian: OutputHessian | None

    @property
    def terms(self) -> Tensor:
        """``M``."""
        return self.example_terms.sum()

    @property
    def scale(self) -> Tensor:
        """``1/M`` for a mean, else 1."""
        return 1 / self.terms if self.reduction == "mean" else torch.ones_like(self.terms)


def loss_derivatives(
    loss: LossFunction, output: Tensor, target: Any, reduction: LossReduction | None = None
) -> LossDerivatives:
    """Differentiate a loss twice with respect to the network's output.

    Everything is made in single precision at least, and without gradients.

    Args:
        loss: ``nn.CrossEntropyLoss`` for class labels (also over positions, with ``ignore_index``, class weights and
            label smoothing), ``nn.MSELoss`` or ``nn.BCEWithLogitsLoss`` (also with weights), or PyTorch's function of
            one of them. Or any other function ``loss(output, target)``, of which there are gradients only.
        output: The network's output, as the loss takes it: ``[N, C, *O]`` for cross-entropy, ``[N, …]`` for the others.
        target: What it is compared with.
        reduction: The reduction of a loss given as a function: ``"mean"`` over examples (the default), ``"sum"``, or
            ``"tokens"`` for a mean over all tokens that the loss does not ignore (positions of ``[N, C, *O]``, or of
            ``[N, *T, C]`` where the target is ``[N, *T]``, at which the gradient is not zero).

    Raises:
        ValueError: If the loss is not reduced to one number, or output and target do not fit it.

    Example:
        >>> f, y = torch.zeros(2, 4), torch.tensor([0, 3])
        >>> made = loss_derivatives(nn.CrossEntropyLoss(), f, y)
        >>> made.terms, made.gradients[0]
        (tensor(2.), tensor([-0.7500,  0.2500,  0.2500,  0.2500]))
        >>> sum(torch.outer(column[0], column[0]) for column in made.hessian.columns()).diagonal()
        tensor([0.1875, 0.1875, 0.1875, 0.1875])
    """
    if not isinstance(output, Tensor) or not output.is_floating_point() or not output.numel():
        raise ValueError(
            f"output={described(output)}: expected a tensor of real floating-point numbers that is not empty"
        )
    if not callable(loss):
        raise ValueError(f"loss={described(loss)}: expected a loss of torch.nn or a function of output and target")
    if reduction is not None and (not isinstance(reduction, str) or reduction not in ("mean", "sum", "tokens")):
        meant = nearest(reduction, ("mean", "sum", "tokens"))
        raise ValueError(f"reduction={described(reduction)}: expected 'mean' or 'sum' or 'tokens'{meant}")
    loss = next((module for function, module in _MODULES if loss is function), loss)
    precise = output.detach().as_subclass(Tensor)
    precise = precise.to(torch.promote_types(precise.dtype, torch.float32))
    with torch.no_grad(), torch.autocast(precise.device.type, enabled=False):
        kind = next((kind for kind in _SERVED if isinstance(loss, kind) and type(loss).forward is kind.forward), None)
        if kind is None:
            return _of_function(loss, precise, target, reduction or "mean")
        summed: Any = copy.copy(loss)
        own, summed.reduction = summed.reduction, "sum"
        if own not in ("mean", "sum") or reduction not in (None, own, "tokens" if own == "mean" else own):
            wanted = "'mean' or 'sum'" if own not in ("mean", "sum") else f"{reduction!r}, which was asked for"
            raise ValueError(f"loss: {kind.__name__} with reduction={own!r}, expected {wanted}")
        terms, hessian = _SERVED[kind](summed, precise, target)
        return LossDerivatives(own, terms, _gradient(summed, precise, target), hessian)


def _gradient(loss: LossFunction, output: Tensor, target: Any) -> Tensor:
    with torch.enable_grad():
        output = output.detach().requires_grad_()
        value = loss(output, target)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise ValueError(f"loss: returned {described(value)}, expected one number that depends on the output")
        (gradient,) = torch.autograd.grad(value, output)
    return gradient


def _of_function(loss: LossFunction, output: Tensor, target: Any, reduction: LossReduction) -> LossDerivatives:
    gradient = _gradient(loss, output, target)
    terms = output.new_ones(len(output) if output.dim() else 1)
    if reduction == "tokens":
        classes_last = isinstance(target, Tensor) and target.dim() > 1 and target.shape == output.shape[:-1]
        counts = gradient != 0
        counts = counts.any(-1 if classes_last else 1) if output.dim() > 1 else counts
        terms = counts.reshape(len(terms), -1).sum(1).to(output)
    if reduction == "sum":
        return LossDerivatives("sum", terms, gradient, None)
    return LossDerivatives("mean", terms, gradient * terms.sum(), None)


def _cross_entropy(loss: Any, output: Tensor, target: Any) -> tuple[Tensor, OutputHessian]:
    classes = output.shape[0 if output.dim() == 1 else 1] if output.dim() else 0
    labels = output.shape[:1] + output.shape[2:] if output.dim() > 1 else output.shape[1:]
    if not isinstance(target, Tensor) or target.is_floating_point() or target.shape != labels:
        raise ValueError(
            f"target={described(target)}: expected class labels {tuple(labels)} for an output {tuple(output.shape)} "
            "of CrossEntropyLoss, whose second dimension is that of classes"
        )
    batch = len(output) if output.dim() > 1 else 1
    counts = target.reshape(batch, -1) != loss.ignore_index
    known = target.reshape(batch, -1).where(counts, 0)
    per_class = output.new_ones(classes) if loss.weight is None else loss.weight.to(output)
    own = torch.where(counts, per_class[known], 0.0)  # the class weight of each label: a mean divides by their sum
    smoothed = torch.where(counts, per_class.mean(), 0.0)
    weights = own + loss.label_smoothing * (smoothed - own)
    probabilities = output.reshape(batch, classes, -1).softmax(1)
    return own.sum(1), SoftmaxHessian(tuple(output.shape), probabilities, weights)


def _squares(loss: Any, output: Tensor, target: Any) -> tuple[Tensor, OutputHessian]:
    _check_same_shape("MSELoss", output, target)
    return _entries(output), DiagonalHessian(tuple(output.shape), torch.full_like(output, 2.0))


def _binary(loss: Any, output: Tensor, target: Any) -> tuple[Tensor, OutputHessian]:
    _check_same_shape("BCEWithLogitsLoss", output, target)
    p, y = output.sigmoid(), target.to(output)
    weight = 1.0 if loss.weight is None else loss.weight.to(output)
    positive = 1.0 if loss.pos_weight is None else loss.pos_weight.to(output)
    diagonal = (p * (1 - p) * weight * (positive * y + 1 - y)).clamp_min(0)
    return _entries(output), DiagonalHessian(tuple(output.shape), diagonal, p)


def _entries(output: Tensor) -> Tensor:
    """The number of entries of each example's output ``[N]``."""
    examples = len(output) if output.dim() else 1
    return output.new_full((examples,), output.numel() / examples)


def _check_same_shape(loss: str, output: Tensor, target: Any) -> None:
    if not isinstance(target, Tensor) or target.shape != output.shape:
        shape = tuple(output.shape)
        raise ValueError(f"target={described(target)}: expected a tensor of the output's shape {shape} for {loss}")


_SERVED: dict[Any, Callable[[Any, Tensor, Any], tuple[Tensor, OutputHessian]]] = {
    nn.CrossEntropyLoss: _cross_entropy,
    nn.MSELoss: _squares,
    nn.BCEWithLogitsLoss: _binary,
}

_MODULES: tuple[tuple[LossFunction, LossFunction], ...] = (
    (F.cross_entropy, nn.CrossEntropyLoss()),
    (F.mse_loss, nn.MSELoss()),
    (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss()),
)
"""The losses that PyTorch's functions compute by default."""
