"""The one rule that decides which modules are layers, how their calls are found, and which of them stay exact.

Estimators, lean mode, K-FAC, tuning and diagnostics all use it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from dis import get_instructions
from functools import cache
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from .._torch.class_swap import own_class
from .functions import Convolution, LayerFunction, Linear, TransposedConvolution

BASES: dict[type[nn.Module], type[LayerFunction]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), Convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), TransposedConvolution),
    nn.Linear: Linear,
}
"""PyTorch's layers, and the functions that they call."""

_FORWARD = ("forward", "_conv_forward", "_output_padding")
"""The methods that a layer's forward pass consists of."""

_PYTORCHS: dict[type[nn.Module], tuple[Any, ...]] = {
    base: tuple(getattr(base, name, None) for name in _FORWARD) for base in BASES
}
"""Those of PyTorch's layers, as they were when this module was imported."""

_CONVOLUTIONS = {getattr(F, f"conv{transpose}{dims}d") for transpose in ("", "_transpose") for dims in (1, 2, 3)}
_PRODUCTS = {F.linear, torch.addmm}
_DEPTH = 3
"""Depth of calls to which the code of a class is searched for the name of a function."""


@dataclass(frozen=True)
class Layer:
    """A module that is a layer.

    Attributes:
        convolution: Whether it is a convolution, maybe transposed; else it is a linear layer.
        exact: The reason why its calls cannot be recognised, hence not be estimated; empty if they can.
    """

    convolution: bool
    exact: str = ""


def layer(module: nn.Module) -> Layer | None:
    """Describe a module as a layer; ``None`` if it is not one.

    Layers are PyTorch's convolutions and linear layers, their subclasses, and modules of other classes that have a
    parameter of at least two dimensions themselves and whose code names one of the functions ``F.conv*``,
    ``F.conv_transpose*``, ``F.linear`` and ``torch.addmm``. Where a module does not run PyTorch's own forward pass
    (:func:`runs_pytorchs_forward`), its calls of such functions are its calls as a layer, see
    :class:`~randbp.layers.LayerCalls`.

    Example:
        >>> layer(nn.Conv2d(1, 1, 3)), layer(nn.ReLU())
        (Layer(convolution=True, exact=''), None)
        >>> class Product(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.ones(2, 3))
        ...     def forward(self, input):
        ...         return torch.addmm(torch.zeros(3), input, self.weight)
        >>> layer(Product())
        Layer(convolution=False, exact='')
        >>> layer(nn.LazyLinear(3)).exact
        'a lazy layer has no weight before its first call'
    """
    function = kind_of(module)
    if isinstance(module, nn.MultiheadAttention):
        return Layer(False, "its projections are part of F.multi_head_attention_forward")
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return Layer(False, "nn.MultiheadAttention reads its weight and does not call the layer")
    if function is not None:
        convolution = function is not Linear
        if isinstance(module, LazyModuleMixin):
            return Layer(convolution, "a lazy layer has no weight before its first call")
        return Layer(convolution)
    own: Any = own_class(module)
    if _is_from(own, "torch") and not parametrize.is_parametrized(module):
        return None
    if not any(parameter.dim() > 1 for _, parameter in own_parameters(module)):
        return None
    named = _functions(own)
    return Layer(bool(named & _CONVOLUTIONS)) if named else None


def kind_of(module: nn.Module) -> type[LayerFunction] | None:
    """The function of PyTorch's layer that a module is an instance of, whatever its forward pass is."""
    own: Any = type(module)
    base = _base(own)
    return None if base is None else BASES[base]


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution or a transposed convolution."""
    found = layer(module)
    return found is not None and found.convolution


def runs_pytorchs_forward(module: nn.Module) -> bool:
    """Whether a call of one of PyTorch's layers runs PyTorch's forward pass and nothing else.

    Neither a subclass nor the class itself nor the module may have another one: code that replaces ``forward`` or
    ``_conv_forward`` of a module that exists (to pad otherwise, or to move tensors between devices) is common.
    """
    return has_class_forward(module) and class_runs_pytorchs_forward(own_class(module))


def has_class_forward(module: nn.Module) -> bool:
    """Whether a module has the forward pass of its class, that is, no other one was assigned to it."""
    return not any(name in vars(module) for name in _FORWARD)


def class_runs_pytorchs_forward(own: type) -> bool:
    """Whether one of PyTorch's layer classes, or a class derived from it, has PyTorch's forward pass at present."""
    base = _base(own)
    if base is None:
        return False
    forward, convolve, pad = _PYTORCHS[base]
    return (
        getattr(own, "forward", None) is forward
        and getattr(own, "_conv_forward", None) is convolve
        and getattr(own, "_output_padding", None) is pad
    )


def own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A module's own parameters and those behind its parametrisations, by name."""
    yield from module.named_parameters(recurse=False)
    if parametrize.is_parametrized(module):
        made: Any = module.parametrizations
        for name, parameter in made.named_parameters():
            yield f"parametrizations.{name}", parameter


def weights(module: nn.Module) -> list[Tensor]:
    """The tensors that a layer's weight gradients belong to: its weight, or its own parameters of two or more dims.

    A weight that a parametrisation makes is a tensor that is not among the parameters; it is made anew by each call.
    """
    if runs_pytorchs_forward(module):
        return [module.weight]  # type: ignore[list-item]
    return [parameter for _, parameter in own_parameters(module) if parameter.dim() > 1]


@cache
def _base(own: Any) -> type[nn.Module] | None:
    return next((base for base in BASES if issubclass(own, base)), None)


@cache
def _functions(own: Any) -> frozenset[Any]:
    """PyTorch's layer functions that are named in a class, in its bases outside PyTorch, or in functions these call."""
    found: set[Any] = set()
    for kind in own.__mro__:
        if not _is_from(kind, "torch", "builtins"):
            for value in vars(kind).values():
                found |= _named_in(getattr(value, "__func__", value), _DEPTH)
    return frozenset(found)


def _named_in(function: Any, depth: int) -> set[Any]:
    if not isinstance(function, FunctionType) or _is_from(function, "torch"):
        return set()
    found, codes = set[Any](), [function.__code__]
    for cell in function.__closure__ or ():  # a decorator's function calls the one that it decorates
        if depth > 1 and isinstance(decorated := _contents(cell), FunctionType):
            found |= _named_in(decorated, depth - 1)
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        for value in _globals_of(code, function.__globals__):
            if isinstance(value, BuiltinFunctionType) and value in _CONVOLUTIONS | _PRODUCTS:
                found.add(value)
            elif depth > 1:
                found |= _named_in(value, depth - 1)
    return found


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _globals_of(code: CodeType, names: dict[str, Any]) -> Iterator[Any]:
    """What a piece of code reads from its module: ``F.linear`` is an attribute of a module that it reads."""
    value: Any = None
    for instruction in get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            value = names.get(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(value, ModuleType):
            value = getattr(value, instruction.argval, None)
        else:
            continue
        if value is not None and not isinstance(value, ModuleType):
            yield value
            value = None


def _is_from(value: Any, *packages: str) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] in packages
