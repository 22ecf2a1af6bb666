"""Kept (example, position) pairs of a whole batch: chosen by their norms, gathered, contracted as matrix products."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..layers.layer_specs import Side
from ..tn import LayerSpec, PositionClass
from .base import Estimator
from .chunks import chunks
from .coarse import (
    CoarseGrid,
    affordable_grid,
    coarse_input_vjp,
    coarse_multiply_adds,
    coarse_weight_vjp,
    subtract_sample_means,
)
from .description import Description
from .pair_products import add_pairs_input_vjp, add_pairs_weight_vjp, rows_with_blank
from .positions import (
    Part,
    class_positions,
    examples_as_positions,
    flat_spatial,
    products,
    sampled_spec,
    side_size,
    split,
    used_size,
    uses_every_position,
)


@dataclass(frozen=True)
class Pairs(Estimator):
    """Keep (example, position) pairs that depend on the data; their indices are therefore stored with the rows.

    What estimators that choose by norm have in common; a subclass says by :meth:`choose` which pairs it keeps. The
    whole batch shares one budget of ``p·N·I`` positions, so examples with larger norms keep more.
    """

    center: bool | int = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.center, int) or (not isinstance(self.center, bool) and self.center < 2):
            raise ValueError(f"{type(self).__name__}: center={self.center!r}, expected True, False or a cell size >= 2")

    def choose(self, norms: Tensor, count: int, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """Choose ``count`` pairs.

        Args:
            norms: Norm over channels of each pair's entries, ``[N·P]``, example by example.
            count: Number of pairs to keep.
            draw: The source of randomness.

        Returns:
            Indices into ``norms`` and the weights of those pairs, both ``[count]``; ``None`` for weights of 1.
        """
        raise NotImplementedError

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """Per position class weighted rows ``[1, S, C]`` and indices ``[S]``, then means ``[N, C·cells]``, if any."""
        input, spec = examples_as_positions(input, spec)
        plan = self._input_plan(spec, input.dtype)
        means = None if plan.coarse is None else plan.coarse.means(input)
        kept = list(self._kept(input, means, plan, spec, "input", draw))
        if means is not None and plan.coarse is not None and self.unbiased and uses_every_position(spec):
            for positions, rows, index in kept:
                where = class_positions(positions, spec, "input", index.device)[index % positions.size]
                subtract_sample_means(means, rows, index // positions.size, where, plan.coarse)
        held: list[Tensor] = []
        for positions, rows, index in kept:
            held += [rows.unsqueeze(0), index.to(index_dtype(positions.size * spec.batch_size))]
        return tuple(held) if means is None else (*held, means.flatten(1))

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """Kept rows times the output rows they meet, plus the exact VJP of the means."""
        output_grad, spec = examples_as_positions(output_grad, spec)
        result = output_grad.new_zeros(spec.weight_shape)
        if not held:
            return result
        plan, output_rows = self._input_plan(spec, held[0].dtype), rows_with_blank(output_grad)
        for (positions, _), rows, index in zip(plan.parts, held[::2], held[1::2], strict=False):
            add_pairs_weight_vjp(result, rows[0], index.long(), output_rows, spec, positions)
        if plan.coarse is not None:
            means = held[-1].unflatten(1, (spec.in_channels, -1))
            result += coarse_weight_vjp(means, output_grad, plan.coarse, spec)
        return result

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """Kept output rows times the kernel, added where they land, plus the exact VJP of the means."""
        plan = _plan(self.keep, self.center, spec, "output", None)
        means = None if plan.coarse is None else plan.coarse.means(output_grad)
        total = weight.new_zeros(spec.batch_size * (prod(spec.input_size) + 1), spec.in_channels)
        for positions, rows, index in self._kept(output_grad, means, plan, spec, "output", draw):
            add_pairs_input_vjp(total, rows, index, weight, spec, positions)
        by_example = total.view(spec.batch_size, -1, spec.in_channels)[:, :-1]
        result = by_example.transpose(1, 2).reshape(spec.input_shape)  # a view of memory ordered by rows
        if means is not None and plan.coarse is not None:
            result += coarse_input_vjp(means, weight, plan.coarse, spec)
        return result

    def _kept(
        self, tensor: Tensor, means: Tensor | None, plan: "_Plan", spec: LayerSpec, side: Side, draw: Draw
    ) -> Iterator[tuple[PositionClass, Tensor, Tensor]]:
        """Per class: weighted rows ``[S, C]`` and which pairs of the class they are, ``[S]``."""
        flat = flat_spatial(tensor)
        for number, (positions, count) in enumerate(plan.parts):
            where = class_positions(positions, spec, side, tensor.device)
            yield positions, *self._keep(flat, means, plan.coarse, where, count, draw.child(number))

    def _keep(
        self, flat: Tensor, means: Tensor | None, coarse: CoarseGrid | None, positions: Tensor, count: int, draw: Draw
    ) -> tuple[Tensor, Tensor]:
        """Weighted rows ``[count, C]`` of ``[N, C, P]`` less its means, and their indices into ``[N, positions]``."""
        cells = None if coarse is None else coarse.cell_of(flat.device)[positions]
        norms = flat.new_empty(flat.shape[0], len(positions), dtype=torch.promote_types(flat.dtype, torch.float32))
        for part in chunks(len(flat)):
            for piece in chunks(len(positions)) if len(flat) == 1 else [slice(None)]:
                rows = flat[part].index_select(2, positions[piece])
                if means is not None and cells is not None:
                    rows -= means[part].index_select(2, cells[piece])
                norms[part, piece] = torch.linalg.vector_norm(rows, dim=1, dtype=norms.dtype)
        index, weights = self.choose(norms.flatten(), count, draw)
        example, local = index // len(positions), index % len(positions)
        kept_rows = flat[example, :, positions[local]]
        if means is not None and cells is not None:
            kept_rows -= means[example, :, cells[local]]
        if weights is not None:
            kept_rows *= weights.to(flat.dtype).unsqueeze(1)
        return kept_rows, index

    def _input_plan(self, spec: LayerSpec, dtype: torch.dtype) -> "_Plan":
        return _plan(self.keep, self.center, spec, "input", spec.in_channels * dtype.itemsize)

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        seen = sampled_spec(spec)
        plan, outputs = self._input_plan(seen, dtype), _plan(self.keep, self.center, spec, "output", None)
        row, per_kernel = spec.in_channels * dtype.itemsize, spec.out_channels * spec.in_channels // spec.groups
        held, weight, input_ = 0, products(plan.parts) * per_kernel, products(outputs.parts) * per_kernel
        for positions, count in plan.parts:
            held += count * (row + index_dtype(positions.size * seen.batch_size).itemsize)
        if plan.coarse is not None:
            held += seen.batch_size * plan.coarse.cells * row
            weight += coarse_multiply_adds(plan.coarse, seen, "input")
        if outputs.coarse is not None:
            input_ += coarse_multiply_adds(outputs.coarse, spec, "output")
        return Description(held, weight, input_, None, self._variance(), self.unbiased)

    def _variance(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class _Plan:
    """The number of pairs kept of each position class, and the cells whose means are kept."""

    parts: tuple[Part, ...]
    coarse: CoarseGrid | None


@lru_cache(maxsize=512)
def _plan(keep: float, center: bool | int, spec: LayerSpec, side: Side, row: int | None) -> _Plan:
    """Spend a share ``p`` of all used positions (or of their bytes, if ``row`` is given) on means and rows.

    Indices count only then: those of the output side are never held.
    """
    size = used_size(spec, side)
    pairs = spec.batch_size * size
    if not pairs:  # every kernel entry lies in the padding, or there is no example
        return _Plan((), None)
    coarse = _cells(side_size(spec, side), center, keep * size / 2)
    positions = keep * pairs - (0 if coarse is None else spec.batch_size * coarse.cells)
    if row is not None:
        positions *= row / (row + index_dtype(pairs).itemsize)
    return _Plan(split(spec, side, max(1, int(positions + 1e-9)), spec.batch_size), coarse)


def _cells(sizes: tuple[int, ...], center: bool | int, budget: float) -> CoarseGrid | None:
    """The cells whose means are kept: one for ``center=True``, none for ``False``, or as many as can be afforded."""
    if center is False:
        return None
    return affordable_grid(sizes, max(sizes, default=1) if center is True else center, budget)


def index_dtype(size: int) -> torch.dtype:
    """The smallest integers that number ``size`` entries.

    Example:
        >>> index_dtype(1000), index_dtype(100_000)
        (torch.int16, torch.int32)
    """
    return torch.int16 if size <= 1 << 15 else torch.int32
