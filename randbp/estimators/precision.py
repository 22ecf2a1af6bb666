"""VJPs multiplied in a narrow type, of operands that are rounded to it stochastically."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from typing import Literal

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..kernels import narrow
from ..layers.layer_specs import replace_batch
from ..tn import LayerSpec, LinearSpec
from ..tn.execute.convolution_kernels import memory_format_of
from ..tn.execute.layer_vjps import native_input_vjp, native_weight_vjp
from .base import Estimator, Vjp, Wrapping, one_of
from .description import Description
from .exact import Exact
from .rounding import Rounding

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
TOGETHER = 2**20  # narrowed and multiplied at a time, so that copies stay in the caches [entries]
_GRAD, _HELD, _WEIGHT = -3, -4, -5  # keys of the draws that round; the wrapped estimator uses others


@dataclass(frozen=True)
class Precision(Wrapping, Estimator):
    """Multiply in bfloat16 or float16 and sum in single precision; the forward pass keeps the precision of its tensors.

    Both operands of a VJP are rounded stochastically: an entry ``x`` between neighbours ``a < x < a + u`` of the narrow
    type becomes ``a + u`` with probability ``(x - a)/u``, else ``a``. Its expectation is ``x``, the draws of different
    entries and of both operands are independent, and a VJP is linear in each operand, so the sum of products has the
    exact VJP as its expectation. The variance of an entry is ``u² f (1 - f) ≤ u²/4``
    with ``f = (x - a)/u`` and ``u ≤ 2^-7 |x|`` (bfloat16) or ``2^-10 |x|`` (float16): a product's relative variance is
    at most about ``2^-15`` or ``2^-21``, and errors of different products are uncorrelated.

    Sums run in single precision, but PyTorch's kernels return them in the narrow type, rounded to the nearest, a part
    of the batch at a time. The average of an entry can thus deviate by at most ``2^-8`` (bfloat16) or ``2^-11``
    (float16) of the parts' sizes. The noise of the operands dithers most of that away: on random numbers the mean of
    many bfloat16 draws was off by 0.0003 of the exact VJP's norm, one draw by 0.0036.

    It holds what the wrapped estimator holds: by default the input, which the previous layer often holds anyway, or
    codes of few bits, which are decoded straight into the narrow type.

    Only single precision is narrowed. Tensors of 16 bits already have PyTorch's own VJPs, and users of double precision
    want its digits. Layers with kernel entries that meet nothing but padding stay in single precision, too. Entries
    above the largest number of the narrow type (float16: 65504) become infinite; NaN and infinities stay what they are.

    Source: Gupta et al., Deep learning with limited numerical precision, ICML 2015 (arXiv:1502.02551).

    Args:
        dtype: ``"bfloat16"``, or ``"float16"``, which has three more bits but a narrow range.
        estimator: Decides what is held of the input: ``Exact()``, or a :class:`randbp.Rounding` of all entries, which
            serves the weight VJP only.

    Raises:
        ValueError: If ``dtype`` is another one, or ``estimator`` keeps less than all entries.

    Example:
        >>> from randbp import Rounding
        >>> Precision(), Precision(estimator=Rounding(bits=4)).keep  # share of the bytes in single precision
        (Precision(dtype='bfloat16', estimator=Exact()), 0.125)
    """

    allowed = {  # noqa: RUF012 -- never changed
        "dtype": one_of("bfloat16", "float16"),
        "estimator": (
            lambda inner: (
                isinstance(all_of := inner.estimator if isinstance(inner, Rounding) else inner, Estimator)
                and all_of.exact
            ),
            "Exact() or Rounding(bits)",
        ),
    }
    keep: float = field(default=1.0, init=False, repr=False, compare=False)
    dtype: Literal["bfloat16", "float16"] = "bfloat16"
    estimator: Estimator = Exact()  # noqa: RUF009 -- a frozen value
    exact = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "keep", self.estimator.keep)
        object.__setattr__(self, "serves", self.estimator.serves)

    @property
    def fallback(self) -> Estimator | None:
        """The wrapped estimator, which holds the same; ``None`` if it is exact."""
        return None if self.estimator.exact else self.estimator

    @property
    def holds_input(self) -> bool:
        """Whether the wrapped estimator is exact."""
        return self.estimator.exact

    def for_layer(self, vjp: Vjp, spec: LayerSpec, dtype: torch.dtype, device: torch.device) -> Estimator:
        """The wrapped estimator where nothing is narrowed."""
        return self if _narrows(spec, dtype) else self.estimator.for_layer(vjp, spec, dtype, device)

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """The sketch of the wrapped estimator."""
        return (input,) if self.estimator.exact else self.estimator.sketch(input, spec, draw)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """``V_W = Σ_{n i o} X Π V_Y`` of what is held, narrowed a part of the batch at a time."""
        rounding = self.estimator if isinstance(self.estimator, Rounding) else None
        if not _narrows(spec, output_grad.dtype):
            return (rounding or Exact()).weight_vjp(held, output_grad, spec, draw)
        examples: Callable[[slice], Tensor] = rounding.examples(held, spec, draw) if rounding else held[0].__getitem__
        result, linear = None, isinstance(spec, LinearSpec)
        for part in _parts(spec):
            input = self._narrow(examples(part), draw, _HELD, part.start, linear)
            grad = self._narrow(output_grad[part], draw, _GRAD, part.start, linear)
            each = native_weight_vjp(input, grad, spec)
            result = each.to(output_grad.dtype) if result is None else result.add_(each)
        assert result is not None
        return result

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """``V_X = Σ_{d o k} W Π V_Y``, narrowed a part of the batch at a time."""
        if not _narrows(spec, output_grad.dtype):
            return native_input_vjp(output_grad, weight, spec)
        kernel = self._narrow(weight, draw, _WEIGHT, 0)
        parts, result, linear = _parts(spec), None, isinstance(spec, LinearSpec)
        for part in parts:
            grad = self._narrow(output_grad[part], draw, _GRAD, part.start, linear)
            made = native_input_vjp(grad, kernel, replace_batch(spec, len(grad)))
            if len(parts) == 1:
                return made.to(output_grad.dtype)
            if result is None:
                shape, memory_format = (spec.batch_size, *made.shape[1:]), memory_format_of(made)
                result = torch.empty(shape, dtype=output_grad.dtype, device=made.device, memory_format=memory_format)
            result[part] = made
        assert result is not None
        return result

    def _narrow(self, tensor: Tensor, draw: Draw, key: int, number: int, channels_last: bool = False) -> Tensor:
        return narrowed(tensor, TYPES[self.dtype], draw.child(key, number), channels_last)

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        inner = self.estimator.describe(spec, dtype)
        if not _narrows(spec, dtype):
            return inner
        bound = {"bfloat16": "2^-15", "float16": "2^-21"}[self.dtype]
        variance = f"≤ about {bound} Σ (entry of one operand × entry of the other)², over the products of an entry"
        if not self.estimator.exact:
            variance = f"{inner.variance}; plus {variance}"
        return replace(inner, relative_variance=None, variance=variance)


@lru_cache(maxsize=1024)
def _narrows(spec: LayerSpec, dtype: torch.dtype) -> bool:
    """Whether a layer of tensors of that dtype is narrowed.

    PyTorch's 16-bit kernels (2.13, on some processors) leave the weight's gradient unwritten where it meets nothing but
    padding.
    """
    return dtype == torch.float32 and all(
        p.inputs_at(torch.arange(p.output_size), k)[1].any() for p in spec.patterns for k in range(p.kernel_size)
    )


def _parts(spec: LayerSpec) -> list[slice]:
    """Slices of the batch, a few examples each."""
    entries = max(prod(spec.input_shape[1:]), prod(spec.output_shape[1:]))
    size = max(1, TOGETHER // entries)
    return [slice(start, min(start + size, spec.batch_size)) for start in range(0, spec.batch_size, size)]


def narrowed(tensor: Tensor, dtype: torch.dtype, draw: Draw, channels_last: bool = False) -> Tensor:
    """A tensor ``[N, C, …]`` in single precision, rounded stochastically to a type of 16 bits.

    The result has its channels innermost in memory if the tensor has, or with ``channels_last``.
    """
    inner = tensor.movedim(1, -1)
    if not channels_last and (tensor.is_contiguous() or not inner.is_contiguous()):
        return narrow(tensor.contiguous(), draw.seed, 0, dtype)
    return narrow(inner.contiguous(), draw.seed, 0, dtype).movedim(-1, 1)
