"""Kept (example, position) pairs of a whole batch: chosen by their norms, gathered, contracted as matrix products."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from .. import tn
from ..tn import ConvSpec, IndexPattern, ResidueClass
from .base import Estimator, kept
from .chunks import chunks
from .coarse import CoarseGrid, affordable_grid, coarse_input_vjp, coarse_multiply_adds, coarse_weight_vjp
from .description import Description
from .draw import Draw
from .pair_products import add_pairs_weight_vjp, pairs_input_vjp, rows_with_blank
from .positions import flat_spatial, grid_positions, shares


@dataclass(frozen=True)
class Pairs(Estimator):
    """Keep (example, position) pairs that depend on the data, so that their indices are stored beside the rows.

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
            norms: Of each pair's entries over the channels, ``[N·P]``; example by example.
            count: How many to keep.
            draw: Where randomness comes from.

        Returns:
            Indices into ``norms`` and the weights of those pairs, both ``[count]``; ``None`` for weights of 1.
        """
        raise NotImplementedError

    def sketch(self, input: Tensor, spec: ConvSpec, draw: Draw) -> tuple[Tensor, ...]:
        """Per position class weighted rows ``[1, S, C]`` and indices ``[S]``, then means ``[N, C·cells]``, if any."""
        plan, flat = self._plan(spec, input.dtype), flat_spatial(input)
        means = None if plan.coarse is None else plan.coarse.means(input)
        held: list[Tensor] = []
        for number, (residue, count) in enumerate(plan.parts):
            positions = grid_positions(residue.inputs, spec.input_size, input.device)
            rows, index = self._keep(flat, means, plan.coarse, positions, count, draw.child(number))
            held += [rows.unsqueeze(0), index.to(index_dtype(residue.size * spec.batch_size))]
        return tuple(held) if means is None else (*held, means.flatten(1))

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Kept rows times the output rows they meet, plus the exact VJP of the means."""
        result = output_grad.new_zeros(spec.weight_shape)
        if not held:
            return result
        plan, output_rows = self._plan(spec, held[0].dtype), rows_with_blank(output_grad)
        for (residue, _), rows, index in zip(plan.parts, held[::2], held[1::2], strict=False):
            add_pairs_weight_vjp(result, rows[0], index.long(), output_rows, spec, residue)
        if plan.coarse is not None:
            means = held[-1].unflatten(1, (spec.in_channels, -1))
            result += coarse_weight_vjp(means, output_grad, plan.coarse, spec).reshape(spec.weight_shape)
        return result

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Kept output rows times the kernel, added where they land, plus the exact VJP of the means."""
        count, coarse = self._output_plan(spec)
        positions = torch.arange(prod(spec.output_size), device=output_grad.device)
        means = None if coarse is None else coarse.means(output_grad)
        rows, index = self._keep(flat_spatial(output_grad), means, coarse, positions, count, draw)
        result = pairs_input_vjp(rows, index, weight, spec)
        if coarse is not None and means is not None:
            result += coarse_input_vjp(means, weight, coarse, spec)
        return result

    def _keep(
        self, flat: Tensor, means: Tensor | None, coarse: CoarseGrid | None, positions: Tensor, count: int, draw: Draw
    ) -> tuple[Tensor, Tensor]:
        """Weighted rows ``[count, C]`` of ``[N, C, P]`` less its means, and their indices into ``[N, positions]``."""
        cells = None if coarse is None else coarse.cell_of(flat.device)[positions]
        norms = flat.new_empty(flat.shape[0], len(positions), dtype=torch.promote_types(flat.dtype, torch.float32))
        for part in chunks(len(flat)):
            rows = flat[part].index_select(2, positions)
            if means is not None and cells is not None:
                rows -= means[part].index_select(2, cells)
            torch.linalg.vector_norm(rows, dim=1, dtype=norms.dtype, out=norms[part])
        index, weights = self.choose(norms.flatten(), count, draw)
        example, local = index // len(positions), index % len(positions)
        kept_rows = flat[example, :, positions[local]]
        if means is not None and cells is not None:
            kept_rows -= means[example, :, cells[local]]
        if weights is not None:
            kept_rows *= weights.to(flat.dtype).unsqueeze(1)
        return kept_rows, index

    def _plan(self, spec: ConvSpec, dtype: torch.dtype) -> "_Plan":
        return _plan(self.keep, self.center, spec.patterns, spec.batch_size, spec.in_channels * dtype.itemsize)

    def _output_plan(self, spec: ConvSpec) -> tuple[int, CoarseGrid | None]:
        """Pairs kept for the input VJP, and the cells whose means are, too."""
        size = prod(spec.output_size)
        coarse = _cells(spec.output_size, self.center, self.keep * size / 2)
        budget = kept(spec.batch_size * size, self.keep)
        return budget - (0 if coarse is None else spec.batch_size * coarse.cells), coarse

    def _describe(self, spec: ConvSpec, dtype: torch.dtype) -> Description:
        plan, (count, coarse) = self._plan(spec, dtype), self._output_plan(spec)
        row = spec.in_channels * dtype.itemsize
        per_kernel = spec.out_channels * spec.in_channels // spec.groups
        held, weight, input_ = 0, 0, count * prod(spec.kernel_size) * per_kernel
        for residue, number in plan.parts:
            held += number * (row + index_dtype(residue.size * spec.batch_size).itemsize)
            weight += number * prod(map(len, residue.kernels)) * per_kernel
        if plan.coarse is not None:
            held += spec.batch_size * plan.coarse.cells * row
            weight += coarse_multiply_adds(plan.coarse, spec, "input")
        if coarse is not None:
            input_ += coarse_multiply_adds(coarse, spec, "output")
        return Description(held, weight, input_, None, self._variance(), self.unbiased)

    def _variance(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class _Plan:
    """How many pairs of which position classes are kept, and the cells whose means are."""

    parts: tuple[tuple[ResidueClass, int], ...]
    coarse: CoarseGrid | None


@lru_cache(maxsize=512)
def _plan(keep: float, center: bool | int, patterns: tuple[IndexPattern, ...], batch: int, row: int) -> _Plan:
    """Spend ``p`` of the bytes of all used positions on means, rows and indices; ``row``: bytes of one position."""
    classes = tn.residue_classes(patterns)
    size = sum(residue.size for residue in classes)
    pairs = batch * size
    if not pairs:  # every kernel entry lies in the padding, or there is no example
        return _Plan((), None)
    coarse = _cells(tuple(p.input_size for p in patterns), center, keep * size / 2)
    positions = keep * pairs - (0 if coarse is None else batch * coarse.cells)
    count = max(1, int(positions * row / (row + index_dtype(pairs).itemsize) + 1e-9))
    if count < len(classes):
        classes = (tn.whole_class(patterns),)
    counts = shares(tuple(batch * residue.size for residue in classes), count)
    return _Plan(tuple(zip(classes, counts, strict=True)), coarse)


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
