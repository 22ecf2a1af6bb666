"""Random projection of the stored input over its positions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod, sqrt
from typing import Literal

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..layers.grouped_weights import by_group, from_groups
from ..layers.layer_specs import replace_channels
from ..tn import LayerSpec, LinearSpec
from ..tn.execute.segments import flat_spatial
from .base import Estimator, at_least, kept, one_of
from .chunks import chunked_weight_vjp, chunks
from .description import Description
from .planned import planned_input_vjp, planned_weight_vjp
from .positions import examples_as_positions, sampled_spec, used_positions

_MOST_RANDOM = 1 << 22  # largest size of projection matrices that exist at once [entries]


@dataclass(frozen=True)
class Projection(Estimator):
    """Hold ``m = ⌊p·I⌋`` random combinations of an example's positions instead of the ``I`` positions.

    Each example has a random matrix ``R_n`` of its own, ``[I, m]`` with independent entries of mean 0 and variance
    ``1/m``, drawn again in backward instead of being stored. Held is ``Z_n = X_n R_n``; the weight VJP is the exact one
    of ``Z_n R_nᵀ``, restored a few examples at a time: borders, strides and groups are PyTorch's own. It is unbiased
    because ``E[R Rᵀ] = 1``. With ``A = X_n`` (``[C, I]``) and ``B_k`` the output gradient shifted to the inputs that it
    meets through kernel entry ``k`` (``[D, I]``), the variance is, for a Gaussian,

    ``Σ_n Σ_k 1/m (‖A‖² ‖B_k‖² + ‖A B_kᵀ‖²)``

    and for Rademacher signs (``±1/√m``) smaller by ``2/m Σ_i ‖A_i‖² ‖B_ki‖²``. Images of more than ``block`` positions
    are projected stretch by stretch, each with a matrix of its own, which keeps the arithmetic linear in their size.

    For the input VJP the output channels of each group are projected, with one matrix for the whole batch; the layer
    that is left has ``⌊p·D/G⌋`` channels in each of ``G`` groups.

    The weight VJP saves memory, not time: it costs the exact one plus ``2·N·C·I·m`` multiply-adds. Only in a linear
    layer the output gradient is projected instead of restoring the input, and ``m`` positions are left. At least one
    combination per example is held.

    Source: Oktay et al., Randomized automatic differentiation, ICLR 2021 (arXiv:2007.10412), who project, and
    Louboutin et al., XConv: low-memory stochastic backpropagation for convolutional layers (arXiv:2106.06998), who
    probe the gradient with Gaussian vectors.

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``.
        kind: ``"gaussian"`` or ``"rademacher"``.
        block: Most positions that one matrix projects.

    Raises:
        ValueError: If an argument is not one of these.

    Example:
        >>> Projection(keep=0.25)
        Projection(keep=0.25, kind='rademacher', block=1024)
    """

    allowed = {"kind": one_of("gaussian", "rademacher"), "block": at_least(1)}  # noqa: RUF012 -- never changed
    kind: Literal["gaussian", "rademacher"] = "rademacher"
    block: int = 1024

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """The combinations ``[N, C, m]``."""
        return (self._combined(*examples_as_positions(input, spec), draw),)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """The exact weight VJP of the input that is restored from the combinations."""
        output_grad, spec = examples_as_positions(output_grad, spec)
        if not held[0].numel():
            return output_grad.new_zeros(spec.weight_shape)
        if isinstance(spec, LinearSpec):  # each position meets one other, so the output gradient can be projected
            return planned_weight_vjp(held[0], self._combined(output_grad, spec, draw), spec)
        sizes, counts = _stretches(self, spec)

        def restore(number: int, part: slice) -> Tensor:
            combinations = held[0][part]
            matrix = self._matrices(draw.child(number), len(combinations), combinations)
            pairs = zip(combinations.split(counts, 2), sizes, strict=True)
            rows = [torch.bmm(z, matrix(size, z.shape[2]).transpose(1, 2)) for z, size in pairs]
            return used_positions(spec, "input").put_back(torch.cat(rows, 2))

        return chunked_weight_vjp(restore, self._parts(spec), output_grad, spec)

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """The exact input VJP of random combinations of the output channels."""
        small, outer = self._narrower(spec), spec.out_channels // spec.groups
        matrix = self._matrices(draw, spec.groups, output_grad)(outer, small.out_channels // spec.groups).mT
        combined = matrix @ flat_spatial(output_grad).unflatten(1, (spec.groups, outer))  # [N, G, m, O]
        kernels = torch.bmm(matrix, by_group(weight, spec).flatten(2)).unflatten(2, (-1, *spec.kernel_size))
        return planned_input_vjp(combined.reshape(small.output_shape), from_groups(kernels, small), small)

    def _narrower(self, spec: LayerSpec) -> LayerSpec:
        """The layer with as many output channels as there are combinations of them."""
        inner, outer = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        return replace_channels(spec, spec.groups, inner, kept(outer, self.keep))

    def _combined(self, tensor: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        flat = flat_spatial(used_positions(spec, "input").take(tensor))
        sizes, counts = _stretches(self, spec)
        if not sizes:
            return tensor.new_empty(*tensor.shape[:2], 0)
        held = tensor.new_empty(*tensor.shape[:2], sum(counts))
        for number, part in enumerate(self._parts(spec)):
            matrix, some = self._matrices(draw.child(number), len(flat[part]), flat), flat[part].split(sizes, 2)
            for rows, place in zip(some, held[part].split(counts, 2), strict=True):
                place.copy_(torch.bmm(rows, matrix(rows.shape[2], place.shape[2])))
        return held

    def _matrices(self, draw: Draw, number: int, like: Tensor) -> Callable[[int, int], Tensor]:
        """Make a function that draws matrices ``[number, size, count]``, whose entries have variance ``1/count``."""
        generator = draw.generator(like.device)

        def matrix(size: int, count: int) -> Tensor:
            shape = (number, size, count)
            if self.kind == "gaussian":
                dtype = like.dtype if like.dtype == torch.float64 else torch.float32
                entries = torch.randn(shape, generator=generator, device=like.device, dtype=dtype)
                return entries.div_(sqrt(count)).to(like.dtype)
            signs = torch.empty(shape, device=like.device, dtype=like.dtype).bernoulli_(0.5, generator=generator)
            return signs.mul_(2 / sqrt(count)).sub_(1 / sqrt(count))

        return matrix

    def _parts(self, spec: LayerSpec) -> list[slice]:
        return chunks(spec.batch_size, max(1, _MOST_RANDOM // max(self._matrix_sizes(spec), default=1)))

    def _matrix_sizes(self, spec: LayerSpec) -> list[int]:
        return [size * count for size, count in zip(*_stretches(self, spec), strict=True)]

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        seen, small, inner, outer = sampled_spec(spec), self._narrower(spec), spec.in_channels, spec.out_channels
        count, matrices = sum(_stretches(self, seen)[1]), sum(self._matrix_sizes(seen))
        work = spec.multiply_adds + 2 * seen.batch_size * inner * matrices
        if isinstance(seen, LinearSpec):
            work = seen.batch_size * ((inner + outer) * matrices + inner * count * outer)
        combined = prod(spec.output_shape) + prod(spec.weight_shape)
        input_work = small.multiply_adds + combined * small.out_channels // spec.groups
        variance = "Σ_n Σ_k 1/m (‖A‖² ‖B_k‖² + ‖A B_kᵀ‖²)"
        if self.kind == "rademacher":
            variance += " - 2/m Σ_i ‖A_i‖² ‖B_ki‖²"
        return Description(seen.batch_size * inner * count * dtype.itemsize, work, input_work, None, variance)


@lru_cache(maxsize=512)
def _stretches(estimator: Projection, spec: LayerSpec) -> tuple[list[int], list[int]]:
    """Sizes of stretches of at most ``block`` positions, and combinations held of each, ``⌊p·I⌋`` in all."""
    positions = used_positions(spec, "input").size
    if not positions:
        return [], []
    total = kept(positions, estimator.keep)
    stretches = max(1, min(-(-positions // estimator.block), total))
    edges, marks = ([n * j // stretches for j in range(stretches + 1)] for n in (positions, total))
    return [b - a for a, b in pairwise(edges)], [b - a for a, b in pairwise(marks)]
