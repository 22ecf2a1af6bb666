"""PyTorch's modules as layer calls: which can be randomised, and what their forward pass computes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..autograd import Linear, Operation
from ..curvature.layers import pad_widths
from ..functional import conv_operation, conv_transpose_operation

Prepare = Callable[..., tuple[Operation, Tensor] | None]

# What a subclass must not have changed for its forward pass to be PyTorch's.
_OWN = ("forward", "_conv_forward", "_output_padding")


def _convolution(module: Any, weight: Tensor, input: Tensor) -> tuple[Operation, Tensor] | None:
    padding = module.padding
    if module.padding_mode != "zeros" and padding != "valid":
        input = F.pad(input, pad_widths(module), mode=module.padding_mode)
        padding = (0,) * len(module.kernel_size)
    return conv_operation(module.stride, padding, module.dilation, module.groups), input


def _transposed(
    module: Any, weight: Tensor, input: Tensor, output_size: list[int] | None = None
) -> tuple[Operation, Tensor] | None:
    extra: tuple[int, ...] = module.output_padding
    if output_size is not None:
        dims = len(module.kernel_size)
        geometry = zip(
            input.shape[-dims:], module.stride, module.padding, module.dilation, module.kernel_size, strict=True
        )
        least = [(i - 1) * s - 2 * p + d * (k - 1) + 1 for i, s, p, d, k in geometry]
        extra = tuple(wanted - size for wanted, size in zip(list(output_size)[-dims:], least, strict=True))
        sizes = len(output_size) in (dims, input.dim())
        if not sizes or not all(0 <= e < s for e, s in zip(extra, module.stride, strict=True)):
            return None
    return conv_transpose_operation(module.stride, module.padding, extra, module.groups, module.dilation), input


def _linear(module: Any, weight: Tensor, input: Tensor) -> tuple[Operation, Tensor] | None:
    if not input.numel() or not weight.numel() or input.shape[-1] != weight.shape[1]:
        return None
    return Linear(), input


@dataclass(frozen=True)
class Kind:
    """A family of PyTorch's modules.

    Args:
        bases: The modules.
        prepare: From a module, its weight and what it is called with to the operation and its input; ``None`` where
            PyTorch's own forward pass should answer, because there is nothing to estimate or to raise its error.
        convolution: Whether ``layers=None`` means these, too.
    """

    bases: tuple[type[nn.Module], ...]
    prepare: Prepare
    convolution: bool


KINDS = (
    Kind((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution, True),
    Kind((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed, True),
    Kind((nn.Linear,), _linear, False),
)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module whose forward pass is PyTorch's own and can be estimated, else ``None``.

    Lazy modules have no weight yet. The output projection of ``nn.MultiheadAttention`` is a linear layer whose forward
    pass never runs: attention reads its weight.
    """
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return None
    for kind in KINDS:
        base = next((c for c in kind.bases if isinstance(module, c)), None)
        if base is None:
            continue
        if isinstance(module, LazyModuleMixin):
            return None
        own = all(getattr(type(module), name, None) is getattr(base, name, None) for name in _OWN)
        return kind if own else None
    return None


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution, maybe transposed."""
    return any(isinstance(module, kind.bases) for kind in KINDS if kind.convolution)
