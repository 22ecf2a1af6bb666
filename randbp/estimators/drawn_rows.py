"""Products with a few rows of an output gradient, which were drawn from all of its (example, position) pairs.

A row ``g_r`` of an output gradient meets the input in one patch ``x_r``, so both VJPs are sums over rows:

``V_W = Σ_r g_r ⊗ x_r``,    ``V_X = Σ_r patch_r(W g_r)``,

and both keep their means if a few rows stand in for all, each divided by the probability that it was drawn.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from math import prod

import torch
from torch import Tensor

from .._torch.clean_thread import without_modes
from ..draws.draw import Draw, mix
from ..kernels.patches import gather_patches, scatter_patches, sum_dtype
from ..kernels.position_rows import position_rows
from ..kernels.stochastic_cast import narrow
from ..layers.grouped_weights import by_group, from_groups
from ..layers.layer_specs import LayerSpec, LinearSpec, role
from ..tn.execute.kept_positions import partner_targets
from ..tn.execute.layer_vjps import native_input_vjp, native_weight_vjp
from ..tn.execute.rows import PartnerTable
from ..tn.execute.segments import flat_spatial
from .race import GAIN, race

TOGETHER = 2**21
"""Entries of patches that are multiplied at a time [entries]."""

DEVICE = 16
"""How many times as many on a GPU, which has no such caches [1]."""

SIDE = 512
"""Of the matrices whose product tells which type is faster [entries]."""

_GRAD, _HELD, _WEIGHT = 1, 2, 3  # keys of the draws that round


@dataclass(frozen=True)
class DrawnRows:
    """Rows of an output gradient ``[N, D, *O]``, and the VJPs of these."""

    grad: Tensor  # the whole output gradient
    numbers: Tensor  # int64 [S], ascending: of (example, position) pairs
    weights: Tensor  # [S]: one over the probability of being drawn, or zero
    draw: Draw  # of the noise that rounds
    dtype: torch.dtype  # in which rows are multiplied

    @property
    def scale(self) -> float:
        """What weights are divided by within products, so that rows in half precision stay within its range."""
        if self.dtype != torch.float16:
            return 1.0
        return prod((len(self.grad), *self.grad.shape[2:])) / max(1, len(self.numbers))

    def weight_vjp(self, examples: Callable[[slice], Tensor], spec: LayerSpec) -> Tensor:
        """``Σ_s w_s g_s ⊗ x_s``; ``examples`` gives a slice of the input, ``[n, C, *I]``."""
        if spec.groups > 1:
            return native_weight_vjp(examples(slice(0, spec.batch_size)), self._restored(), spec)
        table, positions = partners(spec, self.grad.device), prod(spec.input_size)
        entries, inner = table.shape[1], spec.in_channels
        total = torch.zeros(spec.out_channels, entries * inner, dtype=sum_dtype(self.grad.dtype), device=table.device)
        for part, pieces in self._parts(entries * inner):
            inputs, seed = flat_spatial(examples(part)), self.draw.child(_HELD, part.start).seed
            same = entries == 1 and len(table) == positions  # each output position meets the input of its number
            rows = None if same else position_rows(inputs, None, None, seed, self.dtype)
            for some in pieces:
                numbers = self._within(part, some)
                if rows is None:
                    patches = position_rows(inputs, numbers, None, mix(seed, some.start), self.dtype)
                else:
                    patches = gather_patches(rows, numbers, table, positions)
                total += self._rows[some].t() @ patches.view(len(numbers), -1)
        grouped = total.mul_(self.scale).view(1, -1, entries, inner).transpose(2, 3)
        return from_groups(grouped.unflatten(3, spec.kernel_size or (1,)), spec).reshape(spec.weight_shape)

    def input_vjp(self, weight: Tensor, spec: LayerSpec) -> Tensor:
        """``Σ_s w_s patch_s(W g_s)``, ``[N, C, *I]``."""
        if spec.groups > 1:
            return native_input_vjp(self._restored(), weight, spec)
        table, positions, channels = partners(spec, self.grad.device), prod(spec.input_size), spec.in_channels
        matrix = by_group(weight, spec)[0].flatten(2 if spec.dims else 1)  # [D, C, K] or [D, C]
        matrix = matrix.view(spec.out_channels, channels, -1).transpose(1, 2).flatten(1).contiguous()  # [D, K·C]
        if matrix.dtype != self.dtype:
            matrix = narrow(matrix, self.draw.child(_WEIGHT).seed, 0, self.dtype)
        dtype, linear, batch = sum_dtype(self.grad.dtype), isinstance(spec, LinearSpec), spec.batch_size
        shape = (batch * positions, channels) if linear else (batch, channels, positions)
        result, done = (torch.zeros if linear else torch.empty)(shape, dtype=dtype, device=table.device), 0
        for part, pieces in self._parts(table.shape[1] * channels):
            total = None
            for some in pieces:
                columns = self._rows[some] @ matrix
                if linear:  # each row meets one row
                    result.index_add_(0, self.numbers[some], columns.to(dtype))
                    continue
                numbers, columns = self._within(part, some), columns.view(len(columns), -1, channels)
                found = scatter_patches(columns, numbers, table, positions, part.stop - part.start)
                total = found if total is None else total.add_(found)
            if total is not None:
                result[part], result[done : part.start], done = total, 0, part.stop
        if not linear:
            result[done:] = 0  # examples of which nothing was drawn
        if self.scale != 1:
            result *= self.scale
        return result.view(batch, positions, channels).transpose(1, 2) if linear else result.view(spec.input_shape)

    def _restored(self) -> Tensor:
        """The output gradient with all rows weighted, most of them by zero."""
        factors = self.weights.new_zeros(len(self.grad) * prod(self.grad.shape[2:]))
        factors.index_add_(0, self.numbers, self.weights)
        return self.grad * factors.view(len(self.grad), 1, *self.grad.shape[2:]).to(self.grad.dtype)

    @cached_property
    def _rows(self) -> Tensor:
        """The rows ``[S, D]``, weighted; both VJPs use them."""
        planes, weights = flat_spatial(self.grad), (self.weights / self.scale).to(sum_dtype(self.grad.dtype))
        return position_rows(planes, self.numbers, weights, self.draw.child(_GRAD).seed, self.dtype)

    def _parts(self, entries: int) -> Iterator[tuple[slice, list[slice]]]:
        """Slices of the examples of which rows were drawn, and slices of these rows; a patch has ``entries``."""
        batch, positions = len(self.grad), prod(self.grad.shape[2:])
        if self.grad.device.type != "cpu":  # where examples end is not known without waiting for the device
            yield slice(0, batch), _pieces(0, len(self.numbers), DEVICE * TOGETHER // entries)
            return
        ends = torch.searchsorted(self.numbers, torch.arange(0, batch * positions + 1, positions)).tolist()
        first, most = 0, max(1, TOGETHER // entries)
        while first < batch:
            last = first + 1
            while last < batch and ends[last + 1] - ends[first] <= most:
                last += 1
            if ends[last] > ends[first]:
                yield slice(first, last), _pieces(ends[first], ends[last], most)
            first = last

    def _within(self, examples: slice, some: slice) -> Tensor:
        """The numbers of some rows within some examples."""
        return self.numbers[some] - examples.start * prod(self.grad.shape[2:])


def _pieces(start: int, stop: int, most: int) -> list[slice]:
    """Slices of at most so many rows."""
    return [slice(at, min(at + most, stop)) for at in range(start, stop, max(1, most))]


@cache
def _narrow_is_faster() -> bool:
    """Whether this processor multiplies matrices faster in bfloat16 than in single precision."""
    factors = [torch.ones(SIDE, SIDE, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    _, (_, ratio) = race([partial(torch.mm, each, each) for each in factors], torch.device("cpu"))
    return ratio < GAIN


def narrowed_type(tensor: Tensor) -> torch.dtype:
    """The type in which rows of a tensor are multiplied."""
    if tensor.dtype != torch.float32 or tensor.is_meta:
        return tensor.dtype
    narrows = _narrow_is_faster() if tensor.device.type == "cpu" else torch.cuda.is_bf16_supported()
    return torch.bfloat16 if narrows else torch.float32


def patch_sums(values: Tensor, spec: LayerSpec) -> Tensor:
    """Sums ``[N, O]`` of what each output position meets of values ``[N, I]``."""
    index, blank = partners(spec, values.device), values.new_zeros(len(values), 1)
    values = torch.cat([values, blank], 1)  # -1 means the last one
    result = values[:, index[:, 0]]
    for entry in index[:, 1:].t():
        result += values[:, entry]
    return result


@lru_cache(maxsize=512)
def partners(spec: LayerSpec, device: torch.device) -> Tensor:
    """The input position ``int32 [O, K]`` that each output position meets through each kernel entry, or -1."""
    if not spec.dims:
        return torch.zeros(1, 1, dtype=torch.int32, device=device)
    table = PartnerTable(partner_targets(spec.patterns, role(spec, "output")))
    found = without_modes(lambda: table(device).t())
    return torch.where(found == prod(spec.input_size), -1, found).int()
