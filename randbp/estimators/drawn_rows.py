"""Products with a few rows of an output gradient, which were drawn from all of its (example, position) pairs.

A row ``g_r`` of an output gradient meets the input in one patch ``x_r``, so both VJPs are sums over rows:

``V_W = Σ_r g_r ⊗ x_r``,    ``V_X = Σ_r patch_r(W g_r)``,

and both keep their means if a few rows stand in for all, each divided by the probability that it was drawn.
"""

from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..kernels.patches import gather_patches, scatter_patches
from ..kernels.position_rows import position_rows
from ..kernels.stochastic_cast import narrow
from ..layers.grouped_weights import by_group, from_groups
from ..layers.layer_specs import ConvTransposeSpec, LayerSpec, LinearSpec, role
from ..layers.pattern import IndexPattern
from ..tn.execute.indexed import Targets, table
from ..tn.execute.layer_vjps import native_input_vjp, native_weight_vjp

TOGETHER = 2**20
"""Entries of patches that are multiplied at a time, so that they stay in a processor's cache [entries]."""

_GRAD, _HELD, _WEIGHT = 1, 2, 3  # keys of the draws that round


class DrawnRows(NamedTuple):
    """Rows of an output gradient ``[N, D, *O]``."""

    grad: Tensor  # the whole output gradient
    numbers: Tensor  # [S], ascending: of (example, position) pairs
    weights: Tensor  # [S]: one over the probability of being drawn, or zero
    scale: float  # what weights are divided by within the products, so that their entries stay small
    draw: Draw  # of the noise that rounds
    dtype: torch.dtype  # in which rows are multiplied

    def restored(self) -> Tensor:
        """The output gradient with all rows weighted, most of them by zero."""
        (batch, _), positions = self.grad.shape[:2], prod(self.grad.shape[2:])
        factors = self.weights.new_zeros(batch * positions, dtype=self.grad.dtype)
        factors.index_add_(0, self.numbers, self.weights.to(factors.dtype))
        # (Rows that are not finite are always drawn.)
        return self.grad * factors.view(batch, 1, *self.grad.shape[2:])

    def parts(self, entries: int) -> Iterator[tuple[slice, slice]]:
        """Slices of the examples, and of the rows that were drawn from them; ``entries`` are those of one patch."""
        batch, positions = len(self.grad), prod(self.grad.shape[2:])
        if self.grad.device.type != "cpu":  # where examples end is not known without waiting for the device
            yield slice(0, batch), slice(0, len(self.numbers))
            return
        limits = torch.arange(0, batch * positions + 1, positions)
        ends = torch.searchsorted(self.numbers, limits).tolist()
        first = 0
        while first < batch:
            last = first + 1
            while last < batch and (ends[last + 1] - ends[first]) * entries <= TOGETHER:
                last += 1
            if ends[last] > ends[first]:
                yield slice(first, last), slice(ends[first], ends[last])
            first = last

    def rows(self, examples: slice, some: slice) -> Tensor:
        """Rows ``[s, D]`` drawn from some examples, weighted."""
        positions = prod(self.grad.shape[2:])
        return position_rows(
            self.grad[examples].flatten(2),
            self.numbers[some] - examples.start * positions,
            self.weights[some] / self.scale,
            self.draw.child(_GRAD, examples.start).seed,
            self.dtype,
        )


def weight_vjp_of_rows(drawn: DrawnRows, examples: Callable[[slice], Tensor], spec: LayerSpec) -> Tensor:
    """The weight VJP of drawn rows; ``examples`` gives a slice of the input ``[n, C, *I]``."""
    if spec.groups > 1:
        return native_weight_vjp(examples(slice(0, spec.batch_size)), drawn.restored(), spec)
    index = _partners(spec, drawn.grad.device)
    entries, inner = index.shape[1], spec.in_channels
    total = drawn.weights.new_zeros(spec.out_channels, entries * inner, dtype=_sums(drawn.grad))
    for part, some in drawn.parts(entries * inner):
        partners, inputs = _met(drawn, part, some, index, spec), examples(part).flatten(2)
        seed = drawn.draw.child(_HELD, part.start).seed
        if entries == 1 and _complete(spec):
            patches = position_rows(inputs, partners[:, 0].long(), None, seed, drawn.dtype)
        else:
            patches = gather_patches(position_rows(inputs, None, None, seed, drawn.dtype), partners)
        total += drawn.rows(part, some).t() @ patches.view(len(partners), -1)
    grouped = (total * drawn.scale).view(1, -1, entries, inner).transpose(2, 3)
    return from_groups(grouped.unflatten(3, spec.kernel_size) if spec.dims else grouped[..., 0], spec)


def input_vjp_of_rows(drawn: DrawnRows, weight: Tensor, spec: LayerSpec) -> Tensor:
    """The input VJP ``[N, C, *I]`` of drawn rows."""
    if spec.groups > 1:
        return native_input_vjp(drawn.restored(), weight, spec)
    index, positions = _partners(spec, drawn.grad.device), prod(spec.input_size)
    matrix = by_group(weight, spec)[0].flatten(2).transpose(1, 2).flatten(1).contiguous()  # [D, K·C]
    if matrix.dtype != drawn.dtype:
        matrix = narrow(matrix, drawn.draw.child(_WEIGHT).seed, 0, drawn.dtype)
    result = torch.zeros(spec.batch_size, spec.in_channels, positions, dtype=_sums(drawn.grad), device=weight.device)
    for part, some in drawn.parts(index.shape[1] * spec.in_channels):
        columns = drawn.rows(part, some) @ matrix
        partners = _met(drawn, part, some, index, spec)
        sums = scatter_patches(columns.view(*partners.shape, -1), partners, (part.stop - part.start) * positions)
        torch.mul(sums.view(-1, positions, spec.in_channels).transpose(1, 2), drawn.scale, out=result[part])
    return result.view(spec.input_shape)


def _sums(grad: Tensor) -> torch.dtype:
    return torch.float64 if grad.dtype == torch.float64 else torch.float32


def _met(drawn: DrawnRows, examples: slice, some: slice, index: Tensor, spec: LayerSpec) -> Tensor:
    """The input positions ``int32 [s, K]`` that drawn rows meet, numbered through some examples, or -1."""
    outputs, inputs = prod(spec.output_size), prod(spec.input_size)
    numbers = drawn.numbers[some] - examples.start * outputs
    example = torch.div(numbers, outputs, rounding_mode="floor")
    met = index.index_select(0, numbers - example * outputs)
    return torch.where(met < 0, met, met + (example * inputs).unsqueeze(1)).int()


@lru_cache(maxsize=512)
def _partners(spec: LayerSpec, device: torch.device) -> Tensor:
    """The input position ``int32 [O, K]`` that each output position meets through each kernel entry, or -1."""
    side = role(spec, "output")
    here, there = spec.output_size, spec.input_size
    found = table(Targets(here, tuple((side, pattern) for pattern in spec.patterns), there))(
        torch.arange(prod(here))
    ).reshape(prod(here), -1)
    return torch.where(found == prod(there), -1, found).int().to(device)


@lru_cache(maxsize=512)
def _complete(spec: LayerSpec) -> bool:
    return bool((_partners(spec, torch.device("cpu")) >= 0).all())
