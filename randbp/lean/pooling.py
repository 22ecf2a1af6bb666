"""Pooling: a maximum holds its place in the window in a few bits, an average holds nothing."""

from dataclasses import dataclass
from functools import partial
from math import inf, prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._torch.hooks import Hooks
from .._torch.state import has_storage
from ..codecs import Codes
from ..kernels import max_pool as fused_max_pool
from ..kernels import max_pool_grad
from ..kernels.max_pool import indices_of, offsets_of, position_bits
from .composites import lean_inside
from .held_slopes import blocks
from .indexing import hold_indices
from .lean_call import Call, is_activation, is_plain
from .lean_function import Made, run_lean
from .memory_order import pieces
from .packed import Packed, Substitute, packing, shape_of
from .slope_needs import hold_slope


def _planes(value: Any, filler: int, dims: int) -> tuple[int, ...]:
    """A setting for each dimension; as in PyTorch, a signal is a plane of one row."""
    values = (value,) if isinstance(value, int) else tuple(value)
    values = values * dims if len(values) == 1 else values
    return (filler, *values) if dims == 1 else values


@dataclass(frozen=True)
class _Windows:
    """The windows of a max-pooling; indices are PyTorch's flat positions in the (unpadded) input plane."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool

    @property
    def dims(self) -> int:
        return len(self.kernel)

    def fused_size(self, input_size: torch.Size) -> list[int] | None:
        """Size of the plane of maxima if the fused operation serves; ``None`` if PyTorch's should run or raise."""
        valid = (k > 0 and s > 0 and d > 0 and 0 <= 2 * p <= k for k, s, p, d in self._each)
        if prod(self.kernel) > 256 or not all(valid):
            return None
        sizes = []
        for size, (k, s, p, d) in zip(input_size[-self.dims :], self._each, strict=True):
            room = size + 2 * p - d * (k - 1) - 1
            count = (room + (s - 1 if self.ceil_mode else 0)) // s + 1
            if self.ceil_mode and (count - 1) * s >= size + p:  # the last window must begin within the input
                count -= 1
            if room < 0 or count < 1:
                return None
            sizes.append(count)
        return sizes

    @property
    def _each(self) -> list[tuple[int, int, int, int]]:
        return list(zip(*self.geometry, strict=True))

    def encode(self, indices: Tensor, input_size: tuple[int, ...]) -> Tensor:
        """Offsets within the window, packed: ``⌈log2 ∏K⌉`` bits each, rounded up to 1, 2, 4 or 8, or whole integers."""
        planes = indices.reshape(-1, *indices.shape[-self.dims :])
        dtype, bits = self._code
        codes = torch.empty(planes.shape, dtype=dtype, device=indices.device)
        per_plane = max(1, prod(planes.shape[1:]))
        for part in pieces(planes.numel(), indices.device, per_plane):
            rows = slice(part.start // per_plane, -(-part.stop // per_plane))
            codes[rows] = offsets_of(planes[rows], input_size, *self.geometry).to(dtype)
        flat = codes.view(-1)
        return flat if bits is None else Codes(bits).encode(flat)

    def decode(self, codes: Tensor, shape: torch.Size, input_size: tuple[int, ...]) -> Tensor:
        """Restore the encoded indices."""
        bits = self._code[1]
        flat = codes if bits is None else Codes(bits).decode(codes, prod(shape))
        planes = flat.view(-1, *shape[-self.dims :])
        return indices_of(planes, input_size, *self.geometry).view(shape)

    @property
    def geometry(self) -> tuple[tuple[int, ...], ...]:
        """The arguments of fused operations, by name."""
        return self.kernel, self.stride, self.padding, self.dilation

    @property
    def _code(self) -> tuple[torch.dtype, int | None]:
        """Data type of an offset, and its number of bits when packed, if a byte can hold it."""
        size = prod(self.kernel)
        if size > 256:
            return (torch.int16 if size <= 2**15 else torch.int32), None
        return torch.uint8, position_bits(self.kernel)


def _fused(x: Tensor, windows: _Windows, output_size: list[int]) -> Made:
    """The maxima and their packed positions in one pass, without 64-bit integers in between."""
    dims, shape, geometry = windows.dims, x.shape, windows.geometry
    y, codes = fused_max_pool(x.reshape(-1, *shape[-dims:]), *geometry, output_size)

    def vjp(v: Tensor, wanted: Any, noise: None, codes: Tensor) -> list[Tensor]:
        # (Only the reference is differentiable, and serves a whole batch of gradients in a vectorised Jacobian.)
        run = max_pool_grad if has_storage(v) and not torch.is_grad_enabled() else max_pool_grad.reference
        return [run(v.reshape(-1, *v.shape[-dims:]), codes, *geometry, list(shape[-dims:])).view(shape)]

    return y.view(*shape[:-dims], *output_size), (codes,), vjp


def _hold_places(call: Call, windows: _Windows | None, size: tuple[int, ...]) -> Any:
    """Run a pooling, of which places in windows are held, or indices into planes of that size."""

    def pack(tensor: Tensor, outer: Hooks | None) -> Packed:
        if tensor.is_floating_point():
            return shape_of(tensor)
        if windows is None:
            return hold_indices(tensor, prod(size), outer)
        shape = tensor.shape
        return Substitute((windows.encode(tensor, size),), outer, lambda codes: windows.decode(codes, shape, size))

    with packing(pack):
        return call.run()


def _is_pooled(x: Tensor, dims: int) -> bool:
    return is_plain(x) and x.dim() in (dims + 1, dims + 2)


def max_pool(
    dims: int,
    call: Call,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Max-pooling, of ``torch`` or of ``F``."""
    if not _is_pooled(input, dims) or input.numel() >= 2**31:
        return NotImplemented
    step = kernel_size if stride is None or stride == [] else stride
    given = ((kernel_size, 1), (step, 1), (padding, 0), (dilation, 1))
    kernel, step, padding, dilation = (_planes(value, filler, dims) for value, filler in given)
    windows = _Windows(kernel, step, padding, dilation, ceil_mode)
    plain = not return_indices and not call.function.__name__.endswith("_with_indices")
    if plain and dims > 1 and input.is_contiguous() and input.element_size() > 2:
        output_size = windows.fused_size(input.shape)
        if output_size is not None:
            return run_lean("FusedMaxPool", partial(_fused, input, windows, output_size), input, exact=True)
    return _hold_places(call, windows, _planes(input.shape[-dims:], 1, dims))


def adaptive_max_pool(dims: int, call: Call, input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Max-pooling to a given size; windows differ, so indices are held in the narrowest integers."""
    if not _is_pooled(input, dims) or input.numel() >= 2**31:
        return NotImplemented
    return _hold_places(call, None, input.shape[-dims:])


def avg_pool(dims: int, call: Call, input: Tensor, *args: Any, **options: Any) -> Any:
    """Average pooling, to a given size as well."""
    if not _is_pooled(input, dims):
        return NotImplemented
    with packing(lambda tensor, outer: shape_of(tensor)):
        return call.run()


def power_pool(
    dims: int,
    call: Call,
    input: Tensor,
    norm_type: Any,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
) -> Any:
    """Power-average pooling: both of its powers are held with small relative errors.

    With ``s`` the sum of ``x^p`` over a window the output is ``s^(1/p)``, and the gradient is
    ``v s^(1/p - 1) x^(p - 1)``. Where a window is nearly zero the first power is huge and the second tiny, so an error
    in the second must be small relative to the number itself, not only to those of other windows.
    """
    kernel = (kernel_size,) * dims if isinstance(kernel_size, int) else kernel_size
    usual = isinstance(norm_type, int | float) and norm_type not in (inf, -inf) and isinstance(kernel, tuple)
    if not (call.rounds and usual and is_activation(input) and len(kernel) == dims):
        return lean_inside(call, *call.args, **call.kwargs)
    powers = hold_slope(call, input, lambda part: part.pow(norm_type), blocks(call.context.bits, poles=True))
    with call.context.inside():  # PyTorch's steps
        means = getattr(F, f"avg_pool{dims}d")(powers, kernel_size, stride, 0, ceil_mode)
        sums = (torch.sign(means).detach() * F.relu(torch.abs(means))).mul(prod(kernel))
        return sums.pow(1.0 / norm_type)
