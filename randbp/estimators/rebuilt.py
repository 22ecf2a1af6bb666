"""Weight VJPs by rebuilding inputs from kept positions, where the exact kernel beats products of gathered rows."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..kernels.depthwise import depthwise_weight_vjp
from ..layers.layer_specs import replace_batch, replace_channels, role
from ..tn import LayerSpec
from ..tn.execute.rows import pieces
from .chunks import chunked_weight_vjp, chunks
from .planned import planned_weight_vjp
from .positions import flat_spatial, gather_columns, gather_rows, memory_rows
from .runs import Runs, steps

NARROW = 8  # below this, gathering output rows costs more than the products that it saves [channels per group]
SMALL_KERNEL = 9  # PyTorch's depthwise kernels are fast up to this size [kernel entries]
MANY = 1 / 4  # above this keep rate, matrix products of larger depthwise kernels are faster than sums over a sample
LARGE = 2**21  # the same holds for inputs from this size on [entries]
FEW, VAST = 1 / 6, 2**23  # runs beat PyTorch's depthwise kernels below this keep rate and from this size on [entries]


def rebuilding_pays(spec: LayerSpec, keep: float, dtype: torch.dtype) -> bool:
    """Whether the exact weight VJP is cheaper than any sum over kept positions.

    In these layers (the first of a network, and depthwise ones unless the keep rate is small) a kept position has few
    channels and meets output rows with many, so sums over kept positions are bound by memory. Rebuilding takes slightly
    more than the exact kernel's time, and does not change what is held from forward to backward.

    Example:
        >>> from randbp import tn
        >>> layers = [tn.ConvSpec((8, channels, 32, 32), 64, 3) for channels in (3, 64)]
        >>> [rebuilding_pays(layer, keep=0.5, dtype=torch.float32) for layer in layers]
        [True, False]
    """
    entries = prod(spec.kernel_size)
    if entries == 1 or spec.in_channels // spec.groups >= NARROW:
        return False
    if spec.groups == 1:
        return True
    if spec.groups < spec.in_channels:  # PyTorch's kernels are slow with few channels in each of many groups
        return False
    if entries <= SMALL_KERNEL:
        return keep >= FEW or prod(spec.input_shape) < VAST
    # Plans have matrix products for these types only; layouts must not depend on the device, which may be none.
    has_products = _is_large_depthwise(spec) and dtype in (torch.float32, torch.float64)
    return has_products and keep >= MANY and prod(spec.input_shape) >= LARGE


def _is_large_depthwise(spec: LayerSpec) -> bool:
    """Whether a plan computes the exact weight VJP channel by channel for all examples at once."""
    depthwise = spec.in_channels == spec.out_channels == spec.groups > 1
    return depthwise and prod(spec.kernel_size) > SMALL_KERNEL


def gather_centred(input: Tensor, where: Runs, mean: Tensor | None) -> Tensor:
    """Kept entries ``[N, C, S]`` of ``[N, C, *I]`` at flat positions, less their mean ``[N, C]``."""
    if memory_rows(input) is not None:
        return gather_rows(input, where, mean).transpose(1, 2)
    kept = gather_columns(flat_spatial(input), where)
    return kept if mean is None else kept.sub_(mean.unsqueeze(2))


def rebuilt_weight_vjp(
    kept: Tensor,
    where: Runs,
    weights: Sequence[tuple[int, float]],
    mean: Tensor | None,
    output_grad: Tensor,
    spec: LayerSpec,
) -> Tensor:
    """The exact weight VJP of an unbiased estimate of the input: ``m + w (X - m)`` where kept, ``m`` elsewhere.

    Args:
        kept: Kept entries less their mean, ``[N, C, S]``.
        where: Their flat positions.
        weights: Numbers of consecutive entries with their common weights, first to last.
        mean: The mean from which entries are deviations, ``[N, C]``; zero if ``None``.
        output_grad: ``[N, D, *O]``.
        spec: The layer.
    """
    examples, channels, _ = kept.shape
    size = prod(spec.input_size)
    if serves_depthwise(spec, kept.device):
        return depthwise_vjp(kept, where, weights, mean, output_grad, spec)
    middle = kept.new_zeros(1, 1, 1).expand(examples, channels, 1) if mean is None else mean.unsqueeze(2)
    counts = [count for count, _ in weights]
    fill = _fill_runs if where.length > 1 else _fill_positions

    def rebuild(part: tuple[slice, slice], space: Tensor) -> Tensor:
        here = kept[part]
        values = torch.empty_like(here)
        for target, entries, (_, weight) in zip(values.split(counts, 2), here.split(counts, 2), weights, strict=True):
            torch.add(middle[part], entries, alpha=weight, out=target)
        flat = space[: here.shape[0], : here.shape[1]]
        return fill(flat, where.of(part[0]), values, middle[part]).unflatten(2, spec.input_size)

    if _is_large_depthwise(spec):
        parts = chunks(channels)
        space, grads = kept.new_empty(examples, parts[0].stop, size), []
        for part in parts:
            input = rebuild((slice(None), part), space).to(output_grad.dtype)
            thin = replace_channels(replace_batch(spec, examples), part.stop - part.start, 1, 1)
            grads.append(planned_weight_vjp(input, output_grad[:, part], thin))
        return torch.cat(grads)
    on_cpu = kept.device.type == "cpu"
    parts = pieces(examples, channels * size, kept.device) if on_cpu else chunks(examples)
    space = kept.new_empty(parts[0].stop, channels, size)
    return chunked_weight_vjp(lambda _, part: rebuild((part, slice(None)), space), parts, output_grad, spec)


def serves_depthwise(spec: LayerSpec, device: torch.device) -> bool:
    """Whether a fused kernel serves the layer: a depthwise convolution of one or two dimensions."""
    if depthwise_weight_vjp.backend(device.type) == "reference":
        return False
    return spec.groups == spec.in_channels > 1 and role(spec, "input") == "i" and spec.dims <= 2


def depthwise_vjp(
    kept: Tensor,
    where: Runs,
    weights: Sequence[tuple[int, float]],
    mean: Tensor | None,
    output_grad: Tensor,
    spec: LayerSpec,
) -> Tensor:
    """:func:`rebuilt_weight_vjp` by one fused kernel, which treats one dimension as two."""
    middle = kept.new_zeros(kept.shape[:2]) if mean is None else mean
    lone = spec.dims == 1
    geometry = [
        [none, *(getattr(pattern, name) for pattern in spec.patterns)]
        if lone
        else [getattr(p, name) for p in spec.patterns]
        for name, none in (("kernel_size", 1), ("input_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
    ]
    counts, factors = zip(*weights, strict=True)
    grad = output_grad.unsqueeze(2) if lone else output_grad
    vjp = depthwise_weight_vjp(kept, where.numbers, where.length, counts, factors, middle, grad, *geometry)
    return vjp.view(spec.weight_shape)


def _fill_positions(space: Tensor, where: Runs, values: Tensor, middle: Tensor) -> Tensor:
    """Fill ``[N, C, P]`` with values ``[N, C, S]`` at some positions and one value ``[N, C, 1]`` everywhere else."""
    everywhere = where.positions.unsqueeze(1).expand(len(values), values.shape[1], -1)
    return space.copy_(middle.expand_as(space)).scatter_(2, everywhere, values)


def _fill_runs(space: Tensor, where: Runs, values: Tensor, middle: Tensor) -> Tensor:
    """:func:`_fill_positions` run by run, written from front to back: each run is a kept one or the filling."""
    (batch, channels, size), length, device = space.shape, where.length, values.device
    count, total = where.numbers.shape[1], size // length
    table = values.new_empty(batch, channels, count + 1, length)
    table[:, :, :count].copy_(values.unflatten(2, (count, length)))
    table[:, :, count:].copy_(middle.unsqueeze(3).expand(-1, -1, 1, length))
    taken = torch.full((where.examples, total), count, device=device)
    taken.scatter_(1, where.numbers, steps(count, 1, device).expand_as(where.numbers))
    first = steps(batch * channels, count + 1, device).view(batch, channels, 1)
    index = (first + taken.unsqueeze(1)).flatten()
    torch.index_select(table.view(-1, length), 0, index, out=space.view(-1, length))
    return space
