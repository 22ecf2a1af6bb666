"""The weights that are preconditioned, found again when a module's parameters are replaced."""

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import own_parameters
from .gathering import Gathering
from .weight_matrices import Form, as_matrices

COMPUTED = "its weight is computed from parameters (by a mask, a norm or the like), not one of them"
FROZEN = "its weight is frozen"
NOT_HELD = "its weight is not among this optimiser's parameters"
SHARED = "its weight is shared with another layer"
NOT_REAL = "its weight has no real floating-point numbers"
TWO_WAYS = "its weight is used in two ways"
SHARDED = "its input is sharded"

# What only reads a tensor in another order or data type, as PyTorch names it in a graph.
_READS = {f"{name}Backward{number}" for number in (0, 1, 2) for name in ("Alias", "Permute", "Squeeze", "T", "ToCopy")}
_READS |= {f"{name}Backward0" for name in ("Transpose", "Unsqueeze", "View")}


@dataclass(frozen=True)
class View:
    """The order in which a layer reads the entries of a parameter, as a size and strides."""

    size: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """Turn a gradient of the parameter into one of the tensor that the layer reads.

        Example:
            >>> parameter = torch.zeros(2, 3)
            >>> View((3, 2), (1, 3)).of(torch.arange(6).view(2, 3), parameter)
            tensor([[0, 3],
                    [1, 4],
                    [2, 5]])
        """
        return _in_order_of(parameter, tensor).as_strided(self.size, self.stride)

    def back(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """Undo :meth:`of`."""
        whole = torch.empty_strided(parameter.size(), parameter.stride(), dtype=tensor.dtype, device=tensor.device)
        whole.as_strided(self.size, self.stride).copy_(tensor)
        return whole


def _in_order_of(parameter: Tensor, tensor: Tensor) -> Tensor:
    if tensor.stride() == parameter.stride():
        return tensor
    ordered = torch.empty_strided(parameter.size(), parameter.stride(), dtype=tensor.dtype, device=tensor.device)
    return ordered.copy_(tensor)


class Place:
    """One weight of a layer, known by its name in the module, since its parameter may be replaced.

    Attributes:
        layer: The layer's name in the model.
        module: The layer.
        weight, bias: Names of the parameters in the module; ``bias`` is ``None`` if the layer adds none of them.
        form: The form of the weight as a matrix; ``None`` before the first call that determines it.
        view: The order in which the layer reads the parameter; ``None`` for the parameter's own.
        parameter: The optimiser's, which holds the gradient between passes; ``None`` if it is not preconditioned.
        adds_bias: Whether a bias that needs a gradient is the optimiser's, too.
        added_bias: The bias that is preconditioned together with the weight.
        left: Why the weight is not preconditioned at present; empty if it is.
        passed_over: Whether nothing was made of its last call for that.
        gathering: The statistics of the weight.
    """

    def __init__(self, layer: str, module: nn.Module, weight: str, bias: str | None = "bias") -> None:
        self.layer, self.module, self.weight, self.bias = layer, module, weight, bias
        self.form: Form | None = None
        self.view: View | None = None
        self.parameter: nn.Parameter | None = None
        self.adds_bias = True
        self.added_bias: nn.Parameter | None = None
        self.left, self.passed_over = "", False
        self.gathering = Gathering()

    def look(self, held: Container[Tensor]) -> list[nn.Parameter]:
        """Look up the module's current parameters, some of which the optimiser holds."""
        found = dict(own_parameters(self.module))
        weight, bias = found.get(self.weight), None if self.bias is None else found.get(self.bias)
        if weight is not self.parameter and self.parameter is not None:
            self.gathering.drop()
        if weight is not None:
            self.gathering.drop_if_gone(weight)
        self.adds_bias = bias is None or bias in held
        self.parameter = weight
        self.added_bias = bias if bias is not None and bias.requires_grad and self.adds_bias else None
        return list(found.values())

    def shape(self, weight: Tensor, bias: bool) -> tuple[int, int, int]:
        """``(G, rows, columns)`` of the weight as matrices."""
        assert self.form is not None
        return self.form.shape(tuple(weight.shape) if self.view is None else self.view.size, bias)

    def matrices(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Weight and bias, or their gradients, as :func:`as_matrices` has them, in the order in which they are read."""
        assert self.form is not None
        return as_matrices(self.form, weight if self.view is None else self.view.of(weight, weight), bias)


def name_of(module: nn.Module, parameter: Tensor | None) -> str | None:
    """The name of one of a module's own parameters."""
    return next((name for name, each in own_parameters(module) if each is parameter), None)


def read_from(weight: Tensor) -> tuple[Tensor | None, View | None]:
    """The parameter whose entries a tensor holds, perhaps in another order or data type, and that order.

    Returns:
        ``None`` for the parameter if the tensor is computed otherwise, and for the view if nothing is in another order.

    Example:
        >>> parameter = nn.Parameter(torch.ones(2, 3))
        >>> found, view = read_from(parameter.to(torch.bfloat16).t())
        >>> found is parameter, view
        (True, View(size=(3, 2), stride=(1, 3)))
        >>> read_from(parameter * 2)
        (None, None)
    """
    node: Any = weight.grad_fn
    if node is None:
        return weight, None
    cast = False
    while not hasattr(node, "variable"):
        if node.name() not in _READS or len(node.next_functions) != 1:
            return None, None
        cast = cast or node.name() == "ToCopyBackward0"
        node = node.next_functions[0][0]
        if node is None:
            return None, None
    parameter: Tensor = node.variable
    size, stride = tuple(weight.shape), weight.stride()
    if parameter.numel() != weight.numel():
        return None, None
    if size == tuple(parameter.shape) and stride == parameter.stride():
        return parameter, None
    # A copy in another type may lie otherwise in memory, which nothing tells but a mere transpose.
    transposed = weight.dim() == 2 and weight.t().shape == parameter.shape and weight.t().stride() == parameter.stride()
    return (parameter, View(size, stride)) if transposed or not cast else (None, None)
