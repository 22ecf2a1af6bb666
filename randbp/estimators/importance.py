"""Rows of the output gradient, drawn in the backward pass in proportion to their norms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..kernels.systematic import UNIT, systematic_rows
from ..layers.layer_specs import LayerSpec
from ..tn.execute.layer_vjps import native_input_vjp
from ..tn.execute.segments import flat_spatial
from . import drawn_rows
from .base import Allowed, Estimator, at_least, kept
from .description import Description
from .drawn_examples import DrawnExamples
from .drawn_rows import DrawnRows, narrowed_type, patch_sums
from .exact import Exact
from .rounding import Rounding

Drawn = DrawnRows | DrawnExamples
"""What was drawn of an output gradient: both VJPs can be taken of it."""

_START, _PRODUCTS, _ORDER = 1, 2, 3  # keys of the draws


@dataclass(frozen=True)
class Importance(Estimator):
    """Draw ``⌊p·R⌋`` of ``R`` rows of the output gradient by their norms, without replacement, in the backward pass.

    A row ``g_r`` is what the output gradient has in its channels at one position of one example (``unit="positions"``),
    or one whole example. It meets the input in a patch ``x_r``, and both VJPs are sums over rows,
    ``V_W = Σ_r g_r ⊗ x_r`` and ``V_X = Σ_r patch_r(W g_r)``. The estimates are

    ``V_W ≈ Σ_{r∈S} g_r ⊗ x_r / π_r``,    ``V_X ≈ Σ_{r∈S} patch_r(W g_r) / π_r``,

    with ``π_r = min(1, λ s_r)`` the probability that row ``r`` is drawn, ``λ`` such that ``Σ π_r = ⌊p·R⌋``, and ``s_r``
    the norm ``‖g_r‖``. Where the input is at hand it is ``‖g_r‖ (‖x_r‖ + mean of ‖x‖)``: the first term is best for
    ``V_W``, the second for ``V_X``. A tenth of the mean is added to ``s``; rows of zeros are never drawn, rows that are
    not finite always. Rows are drawn systematically, so that neighbours are seldom drawn together
    (:func:`randbp.kernels.systematic_rows`). Where both VJPs of a layer are estimated at one rate, one sample serves
    both.

    The sample is small where few rows matter: late in training most examples are learnt, and their gradients are small.
    What is held is the input itself, or its codes; the sample is not held, since it is drawn in the backward pass.

    Positions are multiplied as rows of a matrix: a patch is gathered for each drawn row, a few examples at a time.
    Single precision is multiplied in bfloat16 where that is faster, of operands that are rounded stochastically as by
    :class:`randbp.Precision`, with sums in single precision. Layers of several groups multiply an output gradient with
    zeros in the place of what was not drawn, which saves no time.

    Source: Alain et al., Variance reduction in SGD by distributed importance sampling, 2015 (arXiv:1511.06481);
    Katharopoulos and Fleuret, Not all samples are created equal, ICML 2018 (arXiv:1803.00942); Wang, Chen and Zhu,
    Efficient backpropagation with variance-controlled adaptive sampling, ICLR 2024 (arXiv:2402.17227), for rows of
    linear layers.

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``.
        unit: What a row is: ``"positions"`` or ``"examples"``.
        bits: Hold the input in that many bits per entry, 1 to 8, as :class:`randbp.Rounding` does; ``None`` holds the
            input itself, which the layer before often holds anyway.

    Raises:
        ValueError: If an argument is none of these.

    Example:
        >>> from randbp import tn
        >>> layer = tn.ConvSpec((8, 16, 32, 32), out_channels=16, kernel_size=3, padding=1)
        >>> Importance(keep=0.5, bits=4).describe(layer).held_bytes  # of 524,288
        69632
    """

    unit: Literal["positions", "examples"] = "positions"
    bits: int | None = None
    allowed: ClassVar[Mapping[str, Allowed]] = {
        "unit": (
            lambda value: isinstance(value, str) and value in ("positions", "examples"),
            "'positions' or 'examples'",
        ),
        "bits": (
            lambda value: value is None or (at_least(1)[0](value) and value <= 8),
            "an integer from 1 to 8, or None",
        ),
    }

    @property
    def exact(self) -> bool:
        """Whether all rows are kept, and the input itself."""
        return self.keep == 1 and self.bits is None

    @property
    def fallback(self) -> Estimator | None:
        """What holds the same and keeps all rows, where :class:`randbp.IfFaster` finds that drawing saves no time."""
        return None if self.bits is None else Rounding(self.bits)

    @property
    def draws_examples(self) -> bool:
        """Whether whole examples are dropped."""
        return self.unit == "examples" and self.keep < 1

    @property
    def holds_input(self) -> bool:
        """Whether there are no codes."""
        return self.bits is None

    @property
    def sample_key(self) -> object:
        """Rate and unit: where both VJPs have these in common, one sample serves both."""
        return None if self.keep == 1 else (Importance, self.keep, self.unit)

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """The input itself, or its codes."""
        return (input,) if self.bits is None else Rounding(self.bits).sketch(input, spec, draw)

    def sample(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Drawn:
        """Draw rows by their norms, and by those of the patches that they meet where the input itself is held."""
        examples = self.unit == "examples"
        sizes = row_squares(output_grad, examples).sqrt_()
        if held and self.bits is None:
            met = row_squares(held[0], examples)
            met = (met if examples else patch_sums(met, spec)).sqrt_()
            sizes *= met + met.mean()
        start = int(torch.randint(UNIT, (), generator=draw.child(_START).generator()))
        count = kept(sizes.numel(), self.keep)
        if examples:  # in a random order: few terms in a fixed one would have few samples
            order = draw.child(_ORDER).permutation(len(sizes), sizes.device)
            numbers, weights = systematic_rows(sizes[order], count, start)
            return DrawnExamples(output_grad, order[numbers], weights)
        numbers, weights = systematic_rows(sizes.flatten(), count, start)
        return DrawnRows(output_grad, numbers, weights, draw.child(_PRODUCTS), narrowed_type(output_grad))

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor | Drawn, spec: LayerSpec, draw: Draw) -> Tensor:
        """``Σ_{r∈S} g_r ⊗ x_r / π_r``."""
        examples: Callable[[slice], Tensor] = held[0].__getitem__
        if self.bits is not None:
            if self.keep == 1 and isinstance(output_grad, Tensor):
                return Rounding(self.bits).weight_vjp(held, output_grad, spec, draw)
            examples = Rounding(self.bits).examples(held, spec, draw)
        drawn = self.sample(held, output_grad, spec, draw) if isinstance(output_grad, Tensor) else output_grad
        return drawn.weight_vjp(examples, spec)

    def input_vjp(self, output_grad: Tensor | Drawn, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """``Σ_{r∈S} patch_r(W g_r) / π_r``."""
        if isinstance(output_grad, Tensor):
            if self.keep == 1:
                return native_input_vjp(output_grad, weight, spec)
            output_grad = self.sample((), output_grad, spec, draw)
        return output_grad.input_vjp(weight, spec)

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        rows = Exact() if self.bits is None else Rounding(self.bits)
        held = rows.describe(spec, dtype).held_bytes
        if self.unit == "examples":
            work = kept(spec.batch_size, self.keep) * spec.multiply_adds // max(1, spec.batch_size)
        elif spec.groups > 1:
            work = spec.multiply_adds
        else:
            count = kept(spec.batch_size * prod(spec.output_size), self.keep)
            work = count * spec.in_channels * spec.out_channels * prod(spec.kernel_size)
        variance = "≤ Σ_r (1/π_r - 1) ‖g_r‖² ‖x_r‖², π_r = min(1, λ ‖g_r‖ (‖x_r‖ + mean)) but for a tenth of the mean"
        if self.bits is not None:
            variance = f"{variance}; plus that of {rows}, times squared weights"
        return Description(held, work, work, None, variance)


def row_squares(tensor: Tensor, examples: bool) -> Tensor:
    """Give squared norms of positions ``[N, P]`` or of whole examples ``[N]``, in single precision."""
    flat = flat_spatial(tensor)
    flat = flat.float() if flat.itemsize == 2 else flat
    together = max(1, drawn_rows.TOGETHER // 4 // max(1, prod(flat.shape[1:])))
    found = [part.square().sum((1, 2) if examples else 1) for part in flat.split(together)]
    return torch.cat(found).float()
