"""Sums over a batch from which the factors of a layer, or their diagonals, are made: what hooks gather."""

from typing import NamedTuple

from torch import Tensor

from ..tn import LayerSpec
from .layer_diagonals import input_diagonal, output_grad_diagonal
from .layer_factors import input_factor, input_rows, output_grad_factor, output_grad_rows
from .method import Method
from .moments import Moment


class Sums(NamedTuple):
    """Rows ``[G, N, R]``, or the sum of their outer products ``[G, R, R]``, or its diagonal ``[G, R]``."""

    tensor: Tensor
    are_rows: bool

    def into(self, moment: Moment) -> None:
        """Add the sums to a moment."""
        (moment.add_rows if self.are_rows else moment.add_matrix)(self.tensor)


def input_sums(spec: LayerSpec, input: Tensor, method: Method, bias: bool) -> Sums:
    """What a method needs of a layer's input: ``A`` times the number of examples, or rows or a diagonal of that."""
    approximation = method.approximation
    if method.diagonals[0]:
        return Sums(input_diagonal(spec, input, approximation, bias).mul_(spec.batch_size), False)
    if approximation == "reduce":
        return Sums(input_rows(spec, input, bias), True)
    return Sums(input_factor(spec, input, approximation, bias).mul_(spec.batch_size), False)


def output_grad_sums(spec: LayerSpec, output_grad: Tensor, method: Method) -> Sums:
    """What a method needs of a layer's output gradient: ``Γ`` times the number of examples, or rows or a diagonal."""
    approximation = method.approximation
    if method.diagonals[1]:
        return Sums(output_grad_diagonal(spec, output_grad, approximation).mul_(spec.batch_size), False)
    if approximation == "reduce":
        return Sums(output_grad_rows(spec, output_grad), True)
    return Sums(output_grad_factor(spec, output_grad, approximation).mul_(spec.batch_size), False)
