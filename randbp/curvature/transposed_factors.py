"""The input factor of KFAC-expand of a transposed convolution: those of ordinary convolutions, output phase by phase.

Output ``o = s·q + φ`` of a transposed convolution with stride ``s`` sees the input ``i`` through the entry ``k`` with
``s·i + d·k - p = o``: only through every ``m``-th one, ``k = k₀ + m·j`` with ``m = s / gcd(s, d)``. For outputs of one
phase ``φ`` these are the entries, in reverse order, of a kernel with stride 1 and dilation ``d·m / s`` over the input.
Entries of different phases never meet, so their blocks are zero, and the input with zeros between is not made.
"""

from functools import lru_cache
from itertools import product
from math import gcd

from torch import Tensor

from ..tn import ConvSpec, ConvTransposeSpec, IndexPattern
from ..tn.operations.curvature import window_gram

Phase = tuple[IndexPattern, slice]
"""The windows of the input that outputs of one phase see, and the kernel entries through which they do, reversed."""


def transposed_expand(spec: ConvTransposeSpec, input: Tensor) -> Tensor:
    """``1/N Σ_n U_n U_nᵀ`` ``[G, C/G·ΠK, C/G·ΠK]`` with the unfolded input ``U_n`` of a transposed convolution.

    Example:
        >>> import torch
        >>> from randbp import tn
        >>> spec = ConvTransposeSpec(tn.transposed_spec((2, 1, 3), out_channels=1, kernel_size=2, stride=2))
        >>> transposed_expand(spec, torch.ones(2, 1, 3))
        tensor([[[3., 0.],
                 [0., 3.]]])
    """
    groups, channels, dims = spec.groups, spec.in_channels // spec.groups, spec.dims
    seen_from = ConvSpec(spec.input_shape, spec.in_channels, 1, groups=groups)
    gram = input.new_zeros(groups, channels, *spec.kernel_size, channels, *spec.kernel_size)
    reversed_dims = [*range(2, 2 + dims), *range(3 + dims, 3 + 2 * dims)]
    made: dict[tuple[IndexPattern, ...], Tensor] = {}
    for phases in product(*map(phases_of, spec.patterns)):
        patterns, entries = zip(*phases, strict=True)
        if patterns not in made:
            sizes = (channels, *(pattern.kernel_size for pattern in patterns))
            block = window_gram(seen_from, patterns).contract(input=input)
            made[patterns] = block.view(groups, *sizes, *sizes).flip(reversed_dims)
        gram[(slice(None), slice(None), *entries, slice(None), *entries)] = made[patterns]
    return gram.flatten(2 + dims).flatten(1, 1 + dims)


@lru_cache(maxsize=1024)
def phases_of(pattern: IndexPattern) -> tuple[Phase, ...]:
    """The phases of one dimension that see anything, from a pattern whose inputs are the layer's outputs.

    Example:
        >>> for windows, entries in phases_of(IndexPattern(6, 3, kernel_size=3, stride=2)):
        ...     print(windows.padding, windows.output_size, entries)
        1 3 slice(0, None, 2)
        0 3 slice(1, None, 2)
    """
    p, stride, dilation = pattern, pattern.stride, pattern.dilation
    step = stride // gcd(stride, dilation)
    found = []
    for first in range(min(step, p.kernel_size)):
        phase = (dilation * first - p.padding) % stride
        entries = len(range(first, p.kernel_size, step))
        spread = dilation * step // stride
        padding = (dilation * first - p.padding - phase) // stride + spread * (entries - 1)
        outputs = len(range(phase, p.input_size, stride))
        windows = IndexPattern(p.output_size, outputs, entries, dilation=spread, padding=padding)
        found.append((windows, slice(first, None, step)))
    return tuple(found)
