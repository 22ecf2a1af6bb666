"""The gradients of one parameter for every example, and what can be known of them without making them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from math import prod

import torch
from torch import Tensor

from .. import tn
from .._torch.hooks import without_autocast
from ..layers.layer_specs import replace_batch
from ..tn import LayerSpec
from .parameter_uses import EmbeddingUse, Use, WeightUse

ENTRIES = 2**22
"""Most entries of what is made of several examples at once; a single example may need more."""


class ExampleGradients(ABC):
    """Gradients ``g_n`` of one parameter for ``N`` examples."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """``(N, *parameter.shape)``."""

    @abstractmethod
    def grads(self, part: slice) -> Tensor:
        """``g_n`` ``[n, *parameter.shape]`` of some examples."""

    def all(self) -> Tensor:
        """``g_n`` ``[N, *parameter.shape]``."""
        return self.grads(slice(0, self.shape[0]))

    def squared_norms(self) -> Tensor:
        """``‖g_n‖²`` ``[N]``."""
        return torch.cat(
            [self.grads(part).reshape(part.stop - part.start, -1).square().sum(1) for part in self._parts()]
        )

    def square_sum(self) -> Tensor:
        """``Σ_n g_n²``."""
        return _sum(self.grads(part).square().sum(0) for part in self._parts())

    def total(self) -> Tensor:
        """``Σ_n g_n``."""
        return _sum(self.grads(part).sum(0) for part in self._parts())

    def _parts(self, entries: int | None = None) -> list[slice]:
        """Slices of the examples, if each needs so many entries; by default its gradient's."""
        examples = self.shape[0]
        size = max(1, ENTRIES // max(1, prod(self.shape[1:]) if entries is None else entries))
        return [slice(start, min(start + size, examples)) for start in range(0, examples, size)]


@dataclass(frozen=True, eq=False)
class Made(ExampleGradients):
    """Gradients that are there, such as those of biases.

    Args:
        gradients: ``[N, *parameter.shape]``.
    """

    gradients: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, *parameter.shape)``."""
        return tuple(self.gradients.shape)

    def grads(self, part: slice) -> Tensor:
        """A slice of them."""
        return self.gradients[part]


@dataclass(frozen=True, eq=False)
class OfWeight(ExampleGradients):
    """Gradients of a layer's weight ``g_n = V_n U_nᵀ``, as networks of the layer's input and output gradient.

    Args:
        use: The weight's use, which holds the input.
        output_grad: ``[N, D, *O]``.
    """

    use: WeightUse
    output_grad: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, *parameter.shape)``."""
        return (self.use.examples, *self.use.parameter.shape)

    def grads(self, part: slice) -> Tensor:
        """The weight VJP with the batch leg kept."""
        made = self._contract(tn.per_example_weight_vjp, part)
        if self.use.view is None:
            return made.view(-1, *self.shape[1:])
        return torch.stack([self._in_order(each) for each in made])

    def squared_norms(self) -> Tensor:
        """``Σ_{o o'} (V_nᵀ V_n) (U_nᵀ U_n)``, or from the gradients of a few examples if this is cheaper."""
        parts = self._parts(_intermediate(self.use.spec, self.output_grad.dtype, self.output_grad.device))
        return torch.cat([self._contract(tn.squared_gradient_norms, part) for part in parts])

    def square_sum(self) -> Tensor:
        """``Σ_n (V_n U_nᵀ)²``, for a few examples at a time unless layers without positions allow ``(V²)(U²)ᵀ``."""
        parts = self._parts(None if prod(self.use.spec.output_size) > 1 else 1)
        return self._in_order(_sum(self._contract(tn.ggn_diagonal, part) for part in parts))

    def total(self) -> Tensor:
        """The weight VJP."""
        return self._in_order(self._contract(tn.weight_vjp, slice(0, self.shape[0])))

    def _contract(self, operation: Callable[[LayerSpec], tn.TensorNetwork], part: slice) -> Tensor:
        spec = replace_batch(self.use.spec, part.stop - part.start)
        return operation(spec).contract(input=self.use.input[part], output_grad=self.output_grad[part])

    def _in_order(self, seen: Tensor) -> Tensor:
        """What the layer sees as its weight, in the parameter's order."""
        parameter, view = self.use.parameter, self.use.view
        return seen.view(parameter.shape) if view is None else view.back(seen.view(view.size), parameter)


@lru_cache(maxsize=1024)
def _intermediate(spec: LayerSpec, dtype: torch.dtype, device: torch.device) -> int:
    """Entries of the largest intermediate of one example's norm."""
    plan = tn.squared_gradient_norms(replace_batch(spec, 1)).plan(dtype, device)
    return plan.largest_intermediate // dtype.itemsize


@dataclass(frozen=True, eq=False)
class OfTable(ExampleGradients):
    """Gradients of a table of which rows are looked up: few rows of each are not zero.

    Args:
        use: The table's use.
        output_grad: ``[N, T, E]``.
    """

    use: EmbeddingUse
    output_grad: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, *parameter.shape)``."""
        return (self.use.examples, *self.use.parameter.shape)

    def grads(self, part: slice) -> Tensor:
        """Sums of the output gradients of all lookups of a row."""
        rows, index = self._used(part), self.use.index[part].unsqueeze(2).expand_as(self.output_grad[part])
        return rows.new_zeros(len(rows), *self.shape[1:]).scatter_add_(1, index, rows)

    def squared_norms(self) -> Tensor:
        """From the rows that an example looks up."""
        example, _, rows = self._rows()
        return rows.new_zeros(self.shape[0]).index_add_(0, example, rows.square().sum(1))

    def square_sum(self) -> Tensor:
        """From the rows that an example looks up."""
        _, number, rows = self._rows()
        return rows.new_zeros(self.shape[1:]).index_add_(0, number, rows.square())

    def total(self) -> Tensor:
        """From the rows that an example looks up."""
        _, number, rows = self._rows()
        return rows.new_zeros(self.shape[1:]).index_add_(0, number, rows)

    def _used(self, part: slice) -> Tensor:
        rows = self.output_grad[part]
        return rows if self.use.unused is None else rows * (self.use.index[part] != self.use.unused).unsqueeze(2)

    def _rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of gradients that are not zero ``[R, E]``, each with its example and its number in the table ``[R]``."""
        examples, table, width = self.shape
        keys = self.use.index + table * torch.arange(examples, device=self.use.index.device).unsqueeze(1)
        keys, place = keys.unique(return_inverse=True)
        used = self._used(slice(0, examples)).flatten(0, 1)
        rows = used.new_zeros(len(keys), width).index_add_(0, place.flatten(), used)
        return keys // table, keys % table, rows


@dataclass(frozen=True, eq=False)
class Summed(ExampleGradients):
    """Gradients of a parameter that is used several times.

    Args:
        uses: Gradients from each use.
    """

    uses: tuple[ExampleGradients, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, *parameter.shape)``."""
        return self.uses[0].shape

    def grads(self, part: slice) -> Tensor:
        """Their sum."""
        return _sum(each.grads(part) for each in self.uses)

    def total(self) -> Tensor:
        """The sum of their sums."""
        return _sum(each.total() for each in self.uses)


def gradients_of(use: Use, output_grad: Tensor) -> ExampleGradients:
    """The gradients of a parameter from one use, given the gradient of the operation's output, in its shape.

    Example:
        >>> from torch import nn
        >>> from randbp.curvature.parameter_uses import record
        >>> layer = nn.Conv2d(3, 4, 3, bias=False)
        >>> (use,) = record(layer, torch.ones(5, 3, 8, 8)).uses
        >>> gradients_of(use, torch.ones(5, 4, 6, 6)).squared_norms()
        tensor([139968., 139968., 139968., 139968., 139968.])
    """
    with torch.no_grad(), without_autocast(output_grad):
        grad = output_grad.detach().to(torch.promote_types(output_grad.dtype, torch.float32))
        if isinstance(use, WeightUse):
            return OfWeight(use, use.output_grads(grad.unsqueeze(0))[0])
        if isinstance(use, EmbeddingUse):
            return OfTable(use, grad.reshape(*use.index.shape, -1))
        return Made(use.vjp(grad.unsqueeze(0))[0])


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor, which are made one after the other."""
    return reduce(Tensor.add, parts)


def summed(uses: Sequence[ExampleGradients]) -> ExampleGradients:
    """The gradients of a parameter from all of its uses."""
    return uses[0] if len(uses) == 1 else Summed(tuple(uses))
