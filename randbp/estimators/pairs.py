"""Kept (example, position) pairs of a whole batch: chosen by their norms, gathered, contracted as matrix products."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ..tn import ConvSpec, IndexPattern
from .base import Estimator, kept, shares
from .chunks import chunks
from .coarse import CoarseGrid, affordable_grid, coarse_input_vjp, coarse_multiply_adds, coarse_weight_vjp
from .description import Description
from .draw import Draw
from .positions import PositionClass, cached_tables, flat_kernels, input_classes, output_class, used_input_class
from .rows import add_weight_vjp, flat_spatial, rows_with_blank


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
        for number, (grid, count) in enumerate(plan.parts):
            positions, _ = cached_tables(grid, spec.patterns, input.device)
            rows, index = self._keep(flat, means, plan.coarse, positions, count, draw.child(number))
            held += [rows.unsqueeze(0), index.to(index_dtype(grid.size * spec.batch_size))]
        return tuple(held) if means is None else (*held, means.flatten(1))

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Kept rows times the output rows they meet, plus the exact VJP of the means."""
        groups, outer, inner = spec.groups, spec.out_channels // spec.groups, spec.in_channels // spec.groups
        result = output_grad.new_zeros(groups, outer, inner, prod(spec.kernel_size))
        if not held:
            return result.reshape(spec.weight_shape)
        plan, output_rows = self._plan(spec, held[0].dtype), rows_with_blank(output_grad)
        length, output_rows = output_rows.shape[1], output_rows.flatten(0, 1).unsqueeze(0)
        for (grid, count), rows, index in zip(plan.parts, held[::2], held[1::2], strict=False):
            _, table = cached_tables(grid, spec.patterns, output_grad.device)
            index = index.long()
            partners = table[:, index % grid.size] + (index // grid.size) * length
            everything = torch.arange(count, device=index.device).unsqueeze(0)
            kernels = flat_kernels(grid, spec.patterns)
            add_weight_vjp(result, rows, output_rows, partners, everything, kernels, 1.0)
        if plan.coarse is not None:
            means = held[-1].unflatten(1, (spec.in_channels, -1))
            result += coarse_weight_vjp(means, output_grad, plan.coarse, spec)
        return result.reshape(spec.weight_shape)

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Kept output rows times the kernel, added where they land, plus the exact VJP of the means."""
        grid, (count, coarse) = output_class(spec.patterns), self._output_plan(spec)
        positions, table = cached_tables(grid, spec.patterns, output_grad.device)
        means = None if coarse is None else coarse.means(output_grad)
        rows, index = self._keep(flat_spatial(output_grad), means, coarse, positions, count, draw)
        length = prod(spec.input_size) + 1  # the blank row collects what falls into the padding
        result = output_grad.new_zeros(spec.batch_size * length, spec.in_channels)
        matrices = weight.reshape(spec.groups, -1, spec.in_channels // spec.groups, prod(spec.kernel_size))
        rows = rows.unflatten(1, (spec.groups, -1))
        for row, kernel in enumerate(flat_kernels(grid, spec.patterns)):
            partners = table[row][index % grid.size] + (index // grid.size) * length
            product = torch.einsum("sgd,gdc->sgc", rows, matrices[..., kernel])
            result.index_add_(0, partners, product.flatten(1))
        result = result.view(spec.batch_size, length, -1)[:, :-1].transpose(1, 2).reshape(spec.input_shape)
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
        for grid, number in plan.parts:
            held += number * (row + index_dtype(grid.size * spec.batch_size).itemsize)
            weight += number * len(flat_kernels(grid, spec.patterns)) * per_kernel
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

    parts: tuple[tuple[PositionClass, int], ...]
    coarse: CoarseGrid | None


@lru_cache(maxsize=512)
def _plan(keep: float, center: bool | int, patterns: tuple[IndexPattern, ...], batch: int, row: int) -> _Plan:
    """Spend ``p`` of the bytes of all used positions on means, rows and indices; ``row``: bytes of one position."""
    whole = used_input_class(patterns)
    pairs = batch * whole.size
    if not pairs:  # every kernel entry lies in the padding, or there is no example
        return _Plan((), None)
    coarse = _cells(tuple(p.input_size for p in patterns), center, keep * whole.size / 2)
    positions = keep * pairs - (0 if coarse is None else batch * coarse.cells)
    classes = input_classes(patterns)
    count = max(1, int(positions * row / (row + index_dtype(pairs).itemsize) + 1e-9))
    counts = shares([batch * grid.size for grid in classes], count)
    return _Plan(((whole, count),) if counts is None else tuple(zip(classes, counts, strict=True)), coarse)


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
