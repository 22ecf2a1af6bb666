"""Hessian, generalised Gauss-Newton and Fisher matrices of a model's loss over data, as linear operators."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._torch.hooks import without_autocast
from ..draws.seeds import checked_seed
from .arguments import described, positive
from .batched_data import BatchedData, check_repeatable, without_random_numbers
from .linear_operator import DampedInverse, LinearOperator
from .loss_hessian import LossDerivatives, LossFunction, LossReduction, loss_derivatives
from .parameter_space import ParameterSpace

Column = list[Tensor]
"""A vector as one tensor per parameter."""


class DataOperator(LinearOperator):
    """A curvature matrix of the loss over data, with respect to all parameters that require gradients.

    If the loss is a mean, it is the mean over all data: terms (examples, labels that are not ignored, entries of the
    output) weigh the same in batches of any size. Products are exact, at the parameters' present values, and the same
    in each call. They are derivatives by PyTorch's autograd, so layers may be of any kind that it can differentiate.
    All columns of a matrix are multiplied in one pass over the data.

    Args:
        model: The network; one whose forward pass is random, or in training mode uses statistics of the batch, is
            refused, and so are layers whose VJPs are estimated (all of these are exact after ``model.eval()``).
        data: A batch ``(inputs, targets)``, or an iterable of batches such as a ``DataLoader``, which must give the
            same ones in each pass. Inputs in a tuple or a mapping are the model's arguments. They are moved to the
            parameters' device.
        loss: ``nn.CrossEntropyLoss``, ``nn.MSELoss``, ``nn.BCEWithLogitsLoss`` or a function of output and target,
            which may be PyTorch's function of one of them.
        reduction: That of a loss given as a function: ``"mean"`` over examples (the default), ``"sum"``, or
            ``"tokens"`` for a mean over all positions that are not ignored.

    Raises:
        ValueError: If an argument is none of these; from products if the model or the data change from one pass to the
            next, or the loss does not fit.
    """

    def __init__(self, model: nn.Module, data: Any, loss: LossFunction, reduction: LossReduction | None = None) -> None:
        super().__init__(ParameterSpace(model))
        if not callable(loss):
            raise ValueError(f"loss={described(loss)}: expected a loss of torch.nn or a function of output and target")
        self.model, self.loss, self.reduction = self.space.model, loss, reduction
        self._batches = BatchedData(data)

    def product(self, matrix: Tensor) -> Tensor:
        """Multiply with a matrix ``[P, K]``, in one pass over the data."""
        check_repeatable(self.model)
        columns = [self.space.pieces(column) for column in matrix.unbind(1)]
        if not columns:
            return matrix
        total, terms, mean = torch.zeros_like(matrix), torch.zeros((), device=self.device), False
        self._start()
        for inputs, targets in self._batches.on(self.device):
            with without_autocast(matrix), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                derivatives, products = self._products(inputs, targets, columns)
                for column, product in zip(total.unbind(1), products, strict=True):
                    column += self.space.flat(product)
            terms, mean = terms + derivatives.terms, derivatives.reduction == "mean"
        return total / terms if mean else total

    def inverse(self, damping: float, *, tolerance: float = 1e-5, max_iterations: int = 1000) -> LinearOperator:
        """The operator ``(A + λ I)⁻¹``, whose products are solved by conjugate gradients.

        Args:
            damping: ``λ >= 0``; ``A + λ I`` must be positive definite.
            tolerance: Norm of the residual over that of the vector at which a product is done.
            max_iterations: Products with ``A`` at most; a warning tells if they do not suffice.

        Raises:
            ValueError: If an argument is out of range, or, from products, if ``A + λ I`` is not positive definite.

        Example:
            >>> model, batch = nn.Linear(2, 1), (torch.eye(2), torch.zeros(2, 1))
            >>> (GGN(model, batch, nn.MSELoss()).inverse(damping=1.0) @ torch.tensor([3.0, 3.0, 5.0])).round(decimals=3)
            tensor([1., 1., 1.])
        """
        return DampedInverse(self, damping, tolerance, max_iterations)

    def _start(self) -> None:
        """Prepare a pass over the data."""

    @abstractmethod
    def _products(
        self, inputs: Any, targets: Tensor, columns: list[Column]
    ) -> tuple[LossDerivatives, Iterator[Column]]:
        """Differentiate a batch's loss, and multiply with its matrix, summed over terms, a column at a time."""

    def _leaves(self) -> dict[str, Tensor]:
        """The parameters apart from any graph and from their ``grad``."""
        return {name: each.detach().requires_grad_() for name, each in self.space.parameters.items()}

    def _output(self, parameters: dict[str, Tensor], inputs: Any) -> Tensor:
        with without_random_numbers(self.device):
            if isinstance(inputs, Mapping):
                output: Tensor = functional_call(self.model, parameters, kwargs=dict(inputs))
            else:
                output = functional_call(self.model, parameters, inputs if isinstance(inputs, tuple) else (inputs,))
        return output

    def _derivatives(self, output: Tensor, targets: Tensor) -> LossDerivatives:
        return loss_derivatives(self.loss, output, targets, self.reduction)


class Hessian(DataOperator):
    """The Hessian ``∂²L/∂θ²`` of a model's loss.

    A product is the derivative of ``⟨∂L/∂θ, v⟩``, so its cost is that of about two training steps (B. Pearlmutter, Fast
    exact multiplication by the Hessian, 1994). See :class:`DataOperator` for arguments, ``operator @ v`` for formats.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model, x, y = nn.Linear(3, 2), torch.randn(5, 3), torch.randn(5, 2)
        >>> hessian = Hessian(model, (x, y), nn.MSELoss())
        >>> hessian.shape, (hessian @ torch.ones(8)).shape
        ((8, 8), torch.Size([8]))
        >>> product = hessian @ {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
        >>> torch.allclose(product["weight"][0], x.T @ x @ torch.ones(3) / 5)
        True
    """

    def _products(
        self, inputs: Any, targets: Tensor, columns: list[Column]
    ) -> tuple[LossDerivatives, Iterator[Column]]:
        leaves = self._leaves()
        output, parameters = self._output(leaves, inputs), list(leaves.values())
        derivatives = self._derivatives(output, targets)
        scale = derivatives.terms if derivatives.reduction == "mean" else 1
        grads = _grad([self.loss(output, targets) * scale], parameters, None, create_graph=True)
        bent = [number for number, grad in enumerate(grads) if grad.requires_grad]  # the others are constant
        return derivatives, (
            _grad([grads[number] for number in bent], parameters, [column[number] for number in bent])
            for column in columns
        )


class _GaussNewton(DataOperator):
    """``Σ_n J_nᵀ B_n J_n`` with Jacobians ``J_n`` of the output and a matrix ``B_n`` for each example.

    A product needs one forward pass in which tangents travel along, and a backward pass. Where a function has no
    forward derivative, a forward and two backward passes take the place of the first one.
    """

    @abstractmethod
    def _middle(self, derivatives: LossDerivatives, output: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """The function that multiplies with ``B``."""

    def _products(
        self, inputs: Any, targets: Tensor, columns: list[Column]
    ) -> tuple[LossDerivatives, Iterator[Column]]:
        first = self._pushed(inputs, columns[0])
        derivatives = self._derivatives(first[0], targets)
        middle = self._middle(derivatives, first[0].detach(), targets)

        def products() -> Iterator[Column]:
            for number, column in enumerate(columns):
                output, tangent, parameters = self._pushed(inputs, column) if number else first
                moved = torch.zeros_like(output) if tangent is None else middle(tangent.detach())
                yield _grad([output], parameters, [moved.to(output.dtype)])

        return derivatives, products()

    def _pushed(self, inputs: Any, column: Column) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """The output, its tangent ``J v``, and the parameters of its graph."""
        leaves = self._leaves()
        parameters = list(leaves.values())
        column = [part.to(like.dtype) for part, like in zip(column, parameters, strict=True)]
        try:
            with forward_ad.dual_level():
                duals = map(forward_ad.make_dual, parameters, column)
                output, tangent = forward_ad.unpack_dual(self._output(dict(zip(leaves, duals, strict=True)), inputs))
        except NotImplementedError:  # a function has no forward derivative: that of Jᵀu with respect to u is J
            output = self._output(leaves, inputs)
            pulled = torch.zeros_like(output, requires_grad=True)
            grads = _grad([output], parameters, [pulled], create_graph=True)
            linear = [number for number, grad in enumerate(grads) if grad.requires_grad]
            (tangent,) = _grad([grads[number] for number in linear], [pulled], [column[number] for number in linear])
        return output, tangent, parameters


class GGN(_GaussNewton):
    """The generalised Gauss-Newton matrix ``Σ_n J_nᵀ (∂²L/∂f_n²) J_n`` of a model's loss, positive semidefinite.

    ``J_n`` is the Jacobian of the network's output ``f_n`` for one example. For ``nn.CrossEntropyLoss``,
    ``nn.MSELoss`` and ``nn.BCEWithLogitsLoss`` it is the Fisher matrix (N. Schraudolph, Fast curvature matrix-vector
    products for second-order gradient descent, 2002). See :class:`DataOperator` for arguments.

    Example:
        >>> model, x, y = nn.Linear(3, 2), torch.ones(5, 3), torch.zeros(5, 2)
        >>> GGN(model, (x, y), nn.MSELoss()) @ torch.ones(8)
        tensor([4., 4., 4., 4., 4., 4., 4., 4.])
    """

    def _middle(self, derivatives: LossDerivatives, output: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        if derivatives.hessian is not None:
            return derivatives.hessian.times
        scale = derivatives.terms if derivatives.reduction == "mean" else 1
        output = output.requires_grad_()
        (grad,) = _grad([self.loss(output, targets) * scale], [output], None, create_graph=True)
        if not grad.requires_grad:
            return torch.zeros_like
        return lambda tangent: _grad([grad], [output], [tangent])[0]


class EmpiricalFisher(_GaussNewton):
    """The empirical Fisher matrix ``M Σ_n g_n g_nᵀ`` of a model's loss, positive semidefinite.

    ``g_n`` is the part of example ``n`` in the gradient of the loss, and ``M`` the number of terms of which the loss
    is a mean, or 1 if it is a sum. See :class:`DataOperator` for arguments.

    Example:
        >>> model, x, y = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
        >>> _ = nn.init.ones_(model.weight)
        >>> EmpiricalFisher(model, (x, y), nn.MSELoss()).to_dense()  # of gradients 1·2/2 and 2·4/2
        tensor([[34.]])
    """

    def _middle(self, derivatives: LossDerivatives, output: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda tangent: _along(derivatives.gradients, tangent)


class MCFisher(_GaussNewton):
    """The Fisher matrix estimated from sampled labels, positive semidefinite; its mean over seeds is :class:`GGN`.

    Labels are drawn from the model's own predictive distribution, the same ones in each product.

    Args:
        model, data, loss: See :class:`DataOperator`; the loss must be one of the three of ``torch.nn``.
        samples: Labels per term of the loss.
        seed: Of the generator that draws labels.

    Example:
        >>> model, x, y = nn.Linear(3, 2), torch.ones(5, 3), torch.zeros(5, dtype=torch.long)
        >>> fisher = MCFisher(model, (x, y), nn.CrossEntropyLoss(), samples=2)
        >>> torch.equal(fisher @ torch.ones(8), fisher @ torch.ones(8))
        True
    """

    def __init__(self, model: nn.Module, data: Any, loss: LossFunction, *, samples: int = 1, seed: int = 0) -> None:
        super().__init__(model, data, loss)
        self.samples, self.seed = positive("samples", samples), checked_seed(seed)
        self._generator = torch.Generator(self.device)

    def _start(self) -> None:
        self._generator.manual_seed(self.seed)

    def _middle(self, derivatives: LossDerivatives, output: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        if derivatives.hessian is None:
            raise ValueError(
                f"loss={described(self.loss)}: no labels can be sampled, expected CrossEntropyLoss, MSELoss or "
                "BCEWithLogitsLoss of torch.nn"
            )
        columns = list(derivatives.hessian.sampled(self.samples, self._generator))
        return lambda tangent: torch.stack([_along(column, tangent) for column in columns]).sum(0)


def _along(columns: Tensor, tangent: Tensor) -> Tensor:
    """``s_n ⟨s_n, t_n⟩`` for each example."""
    columns, tangent = torch.atleast_1d(columns), tangent.reshape(torch.atleast_1d(columns).shape)
    inner = (columns * tangent).flatten(1).sum(1) if columns.dim() > 1 else columns * tangent
    return columns * inner.reshape(-1, *[1] * (columns.dim() - 1))


def _grad(
    outputs: list[Tensor], inputs: list[Tensor], grad_outputs: list[Tensor] | None, create_graph: bool = False
) -> Column:
    """Derivatives, zero where an input has no influence; the graph stays."""
    if not outputs or not any(each.requires_grad for each in outputs):
        return [torch.zeros_like(each) for each in inputs]
    return list(
        torch.autograd.grad(
            outputs, inputs, grad_outputs, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )
    )
