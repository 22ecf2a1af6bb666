"""Random projection of the stored input over its positions."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod, sqrt
from typing import Literal

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..layers.grouped_weights import by_group, from_groups
from ..layers.layer_specs import replace_channels
from ..tn import LayerSpec, LinearSpec
from .base import Estimator, kept
from .chunks import chunked_weight_vjp, chunks
from .description import Description
from .planned import planned_input_vjp, planned_weight_vjp
from .positions import examples_as_positions, flat_spatial, sampled_spec, used_positions

_MOST_RANDOM = 1 << 22  # most entries of projection matrices that exist at once [entries]


@dataclass(frozen=True)
class Projection(Estimator):
    """Hold ``m = ⌊p·I⌋`` random combinations of an example's positions instead of the ``I`` positions.

    Each example has a random matrix ``R_n`` of its own, ``[I, m]`` with independent entries of mean 0 and variance
    ``1/m``, drawn again in backward instead of being stored. Held is ``Z_n = X_n R_n``; the weight VJP is the exact one
    of ``Z_n R_nᵀ``, rebuilt a few examples at a time: borders, strides and groups are PyTorch's own. It is unbiased
    because ``E[R Rᵀ] = 1``. With ``A = X_n`` (``[C, I]``) and ``B_k`` the output gradient shifted to the inputs that it
    meets through kernel entry ``k`` (``[D, I]``), the variance is, for a Gaussian,

    ``Σ_n Σ_k 1/m (‖A‖² ‖B_k‖² + ‖A B_kᵀ‖²)``

    and for Rademacher signs (``±1/√m``) smaller by ``2/m Σ_i ‖A_i‖² ‖B_ki‖²``. Images of more than ``block`` positions
    are projected stretch by stretch, each with a matrix of its own, which keeps the arithmetic linear in their size.

    For the input VJP the output channels of each group are projected, with one matrix for the whole batch; the
    convolution that is left has ``⌊p·D⌋`` channels.

    It saves memory, not time: the weight VJP costs the exact one plus ``N·C·I·m`` multiply-adds. Only in a linear
    layer, where each position meets one other, the output gradient is projected instead, and ``m`` positions are left.
    At least one combination per example is held.

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

    kind: Literal["gaussian", "rademacher"] = "rademacher"
    block: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.kind, str) or self.kind not in ("gaussian", "rademacher"):
            raise ValueError(f"Projection: kind={self.kind!r}, expected 'gaussian' or 'rademacher'")
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < 1:
            raise ValueError(f"Projection: block={self.block!r}, expected an integer >= 1")

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """Return the combinations ``[N, C, m]``."""
        return (self._combined(*examples_as_positions(input, spec), draw),)

    def _combined(self, tensor: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """Random combinations ``[N, C, m]`` of the positions of ``[N, C, *I]``."""
        sizes = self._sizes(spec)
        flat, used = flat_spatial(tensor), _used(spec, tensor.device)
        held = tensor.new_empty(*tensor.shape[:2], sum(m for _, m in sizes))
        for number, part in enumerate(self._parts(spec)):
            rows = flat[part] if used is None else flat[part].index_select(2, used)
            matrix = self._matrices(draw.child(number), len(rows), rows)
            first = column = 0
            for size, count in sizes:
                stretch = rows[:, :, first : first + size]
                held[part, :, column : column + count] = torch.bmm(stretch, matrix(size, count))
                first, column = first + size, column + count
        return held

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """The exact weight VJP of the input that is restored from the combinations."""
        output_grad, spec = examples_as_positions(output_grad, spec)
        if isinstance(spec, LinearSpec):
            return planned_weight_vjp(held[0], self._combined(output_grad, spec, draw), spec)
        sizes, used = self._sizes(spec), _used(spec, output_grad.device)
        if not sizes:  # every kernel entry lies in the padding
            return output_grad.new_zeros(spec.weight_shape)

        def rebuild(number: int, part: slice) -> Tensor:
            combinations = held[0][part]
            matrix = self._matrices(draw.child(number), len(combinations), combinations)
            stretches, column = [], 0
            for size, count in sizes:
                z = combinations[:, :, column : column + count]
                stretches.append(torch.bmm(z, matrix(size, count).transpose(1, 2)))
                column += count
            rows = torch.cat(stretches, 2) if len(stretches) > 1 else stretches[0]
            if used is not None:
                whole = rows.new_zeros(*rows.shape[:2], prod(spec.input_size))
                rows = whole.index_copy_(2, used, rows)
            return rows.unflatten(2, spec.input_size) if spec.dims else rows.squeeze(2)

        return chunked_weight_vjp(rebuild, self._parts(spec), output_grad, spec)

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """The native input VJP of random combinations of the output channels."""
        outer = spec.out_channels // spec.groups
        count = kept(outer, self.keep)
        matrix = self._matrices(draw, spec.groups, output_grad)(outer, count).transpose(1, 2)  # [G, m, D / G]
        small = replace_channels(spec, spec.groups, spec.in_channels // spec.groups, count)
        combined = matrix @ flat_spatial(output_grad).unflatten(1, (spec.groups, outer))
        kernels = torch.bmm(matrix, by_group(weight, spec).flatten(2)).unflatten(2, (-1, *spec.kernel_size))
        return planned_input_vjp(combined.reshape(small.output_shape), from_groups(kernels, small), small)

    def _matrices(self, draw: Draw, examples: int, like: Tensor) -> Callable[[int, int], Tensor]:
        """Make a function that draws matrices ``[examples, size, count]``, whose entries have variance ``1/count``."""
        generator = draw.generator(like.device)

        def matrix(size: int, count: int) -> Tensor:
            shape = (examples, size, count)
            if self.kind == "gaussian":
                dtype = like.dtype if like.dtype == torch.float64 else torch.float32
                entries = torch.randn(shape, generator=generator, device=like.device, dtype=dtype)
                return entries.div_(sqrt(count)).to(like.dtype)
            signs = torch.empty(shape, device=like.device, dtype=like.dtype).bernoulli_(0.5, generator=generator)
            return signs.mul_(2 / sqrt(count)).sub_(1 / sqrt(count))

        return matrix

    def _sizes(self, spec: LayerSpec) -> list[tuple[int, int]]:
        """Sizes of the stretches of positions and, for each, how many combinations are held; ``⌊p·I⌋`` in total."""
        positions = len(used_positions(spec, torch.device("cpu")))
        total = kept(positions, self.keep)
        stretches = max(1, min(-(-positions // self.block), total))
        edges = [positions * j // stretches for j in range(stretches + 1)]
        marks = [total * j // stretches for j in range(stretches + 1)]
        return [(edges[j + 1] - edges[j], marks[j + 1] - marks[j]) for j in range(stretches) if edges[j + 1] > edges[j]]

    def _parts(self, spec: LayerSpec) -> list[slice]:
        largest = max((size * count for size, count in self._sizes(spec)), default=1)
        return chunks(spec.batch_size, max(1, _MOST_RANDOM // largest))

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        seen, outer = sampled_spec(spec), spec.out_channels // spec.groups
        sizes, rows = self._sizes(seen), seen.batch_size * spec.in_channels
        matrices, combined = sum(size * count for size, count in sizes), sum(count for _, count in sizes)
        weight = spec.multiply_adds + 2 * rows * matrices
        if isinstance(seen, LinearSpec):
            weight = seen.batch_size * (spec.in_channels + spec.out_channels) * matrices
            weight += rows * combined * spec.out_channels
        count = kept(outer, self.keep)
        small = replace_channels(spec, spec.groups, spec.in_channels // spec.groups, count)
        entries = spec.batch_size * spec.out_channels * prod(spec.output_size) + prod(spec.weight_shape)
        variance = "Σ_n Σ_k 1/m (‖A‖² ‖B_k‖² + ‖A B_kᵀ‖²)"
        if self.kind == "rademacher":
            variance += " - 2/m Σ_i ‖A_i‖² ‖B_ki‖²"
        return Description(
            rows * combined * dtype.itemsize,
            weight,
            small.multiply_adds + entries * count,
            None,
            variance,
        )


def _used(spec: LayerSpec, device: torch.device) -> Tensor | None:
    """Flat input positions that some output uses; ``None`` if all are used."""
    used = used_positions(spec, device)
    return None if len(used) == prod(spec.input_size) else used
