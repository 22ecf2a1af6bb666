"""Pooling: a maximum holds its place in the window in a few bits, an average holds nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._torch.second_derivatives import connected, graph_edge
from .._torch.state import has_storage
from ..codecs import Codes
from ..kernels import max_pool as fused_max_pool
from ..kernels import max_pool_grad
from ..kernels.max_pool import indices_of, offsets_of, position_bits
from ..tn.execute.convolution_kernels import memory_format_of, placeholder
from .composites import lean_inside
from .held_slopes import blocks
from .lean_call import Call, is_activation, is_plain
from .memory_order import pieces
from .slope_needs import hold_slope

aten = torch.ops.aten


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        function = aten.max_pool2d_with_indices if self.dims == 2 else aten.max_pool3d_with_indices
        return function(x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)

    def backward(self, grad: Tensor, stand_in: Tensor, indices: Tensor) -> Tensor:
        function = aten.max_pool2d_with_indices_backward if self.dims == 2 else aten.max_pool3d_with_indices_backward
        return function(grad, stand_in, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode, indices)

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

    def encode(self, indices: Tensor, input_size: torch.Size) -> Tensor:
        """Offsets within the window, packed: ``⌈log2 ∏K⌉`` bits each, rounded up to 1, 2, 4 or 8, or whole integers."""
        planes = indices.reshape(-1, *indices.shape[-self.dims :])
        dtype, bits = self._code
        codes = torch.empty(planes.shape, dtype=dtype, device=indices.device)
        per_plane = max(1, prod(planes.shape[1:]))
        for part in pieces(planes.numel(), indices.device, per_plane):
            rows = slice(part.start // per_plane, -(-part.stop // per_plane))
            codes[rows] = offsets_of(planes[rows], input_size[-self.dims :], *self.geometry).to(dtype)
        flat = codes.view(-1)
        if bits is None:
            return flat
        return Codes(bits).encode(flat)

    def decode(self, codes: Tensor, shape: torch.Size, input_size: torch.Size) -> Tensor:
        """Restore the encoded indices."""
        bits = self._code[1]
        flat = codes if bits is None else Codes(bits).decode(codes, prod(shape))
        planes = flat.view(-1, *shape[-self.dims :])
        return indices_of(planes, input_size[-self.dims :], *self.geometry).view(shape)

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


@dataclass(frozen=True)
class _Adaptive:
    """Max-pooling to a given size; windows differ, so positions are held in the narrowest integers."""

    size: tuple[int, ...]

    @property
    def dims(self) -> int:
        return len(self.size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (aten.adaptive_max_pool2d if self.dims == 2 else aten.adaptive_max_pool3d)(x, self.size)

    def backward(self, grad: Tensor, stand_in: Tensor, indices: Tensor) -> Tensor:
        function = aten.adaptive_max_pool2d_backward if self.dims == 2 else aten.adaptive_max_pool3d_backward
        return function(grad, stand_in, indices)

    def encode(self, indices: Tensor, input_size: torch.Size) -> Tensor:
        plane = prod(input_size[-self.dims :])
        return indices.to(torch.uint8 if plane <= 2**8 else torch.int16 if plane <= 2**15 else torch.int32)

    def decode(self, codes: Tensor, shape: torch.Size, input_size: torch.Size) -> Tensor:
        return codes.long()


class _MaxPool(torch.autograd.Function):
    """Holds the positions of the maxima, packed, and nothing of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, edge: Tensor | None, windows: _Windows | _Adaptive) -> tuple[Tensor, Tensor]:
        y, indices = windows.forward(x)
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(windows.encode(indices, x.shape), edge)
        ctx.windows, ctx.shape, ctx.format = windows, x.shape, memory_format_of(x)
        return y, indices

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, _ = output_grads
        if grad is None:
            return None, None, None
        codes, edge = ctx.saved_tensors
        indices = ctx.windows.decode(codes, grad.shape, ctx.shape)
        stand_in = placeholder(grad, ctx.shape, ctx.format, dense=False)
        return connected(ctx.windows.backward(grad, stand_in, indices), edge), None, None


class _FusedMaxPool(torch.autograd.Function):
    """Computes the maxima and their packed positions in one pass, without 64-bit integers in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, edge: Tensor | None, windows: _Windows, output_size: list[int]) -> Tensor:
        planes = x.reshape(-1, *x.shape[-windows.dims :])
        y, codes = fused_max_pool(planes, *windows.geometry, output_size)
        ctx.save_for_backward(codes, edge)
        ctx.windows, ctx.shape = windows, x.shape
        return y.view(*x.shape[: -windows.dims], *output_size)

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = output_grads
        codes, edge = ctx.saved_tensors
        windows: _Windows = ctx.windows
        planes, size = grad.reshape(-1, *grad.shape[-windows.dims :]), list(ctx.shape[-windows.dims :])
        # (Only the reference is differentiable, and serves a whole batch of gradients in a vectorised Jacobian.)
        run = max_pool_grad if has_storage(grad) and not torch.is_grad_enabled() else max_pool_grad.reference
        made = run(planes, codes, *windows.geometry, size)
        return connected(made.view(ctx.shape), edge), None, None, None


def _pool(dims: int, x: Tensor, return_indices: bool, make: Callable[[int], _Windows | _Adaptive]) -> Any:
    """Pool in ``dims`` dimensions; ``make`` builds windows of PyTorch's own kernel, which has two or three."""
    if not is_plain(x) or x.dim() not in (dims + 1, dims + 2) or x.numel() >= 2**31:
        return NotImplemented
    if not return_indices and dims > 1 and x.is_contiguous() and x.element_size() > 2:
        windows = make(dims)
        output_size = windows.fused_size(x.shape) if isinstance(windows, _Windows) else None
        if output_size is not None:
            return _FusedMaxPool.apply(x, graph_edge(x), windows, output_size)
    if dims == 1:  # as PyTorch: a plane of one row
        y, indices = _MaxPool.apply(x.unsqueeze(-2), graph_edge(x), make(2))
        y, indices = y.squeeze(-2), indices.squeeze(-2)
    else:
        y, indices = _MaxPool.apply(x, graph_edge(x), make(dims))
    return (y, indices) if return_indices else y


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
    step = kernel_size if stride is None or stride == [] else stride

    def windows(count: int) -> _Windows:
        def of(value: Any, filler: int) -> tuple[int, ...]:
            return _planes(value, filler, dims, count)

        return _Windows(of(kernel_size, 1), of(step, 1), of(padding, 0), of(dilation, 1), ceil_mode)

    return _pool(dims, input, return_indices or _returns_indices(call), windows)


def adaptive_max_pool(dims: int, call: Call, input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Max-pooling to a given size."""
    wanted = _wanted(output_size, dims)
    if wanted is None or input.dim() not in (dims + 1, dims + 2):
        return NotImplemented
    size = tuple(given if each is None else each for each, given in zip(wanted, input.shape[-dims:], strict=True))
    both = return_indices or _returns_indices(call)
    return _pool(dims, input, both, lambda count: _Adaptive((1,) * (count - dims) + size))


def _returns_indices(call: Call) -> bool:
    name: str = call.function.__name__
    return name.endswith("_with_indices")


def _planes(value: Any, filler: int, dims: int, count: int) -> tuple[int, ...]:
    """A setting per dimension; a signal is a plane of one row."""
    return (filler, *_tuple(value, 1)) if count > dims else _tuple(value, count)


def _wanted(size: Any, dims: int) -> tuple[int | None, ...] | None:
    """The output size of an adaptive pooling, if it is given in a documented form."""
    if isinstance(size, int):
        return (size,) * dims
    if not isinstance(size, tuple | list) or len(size) != dims:
        return None
    return tuple(size) if all(each is None or isinstance(each, int) for each in size) else None


class _ShapeOnly(torch.autograd.Function):
    """An operation whose gradient reads only the shape of its input; it holds nothing."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        edge: Tensor | None,
        run: Callable[[Tensor], Tensor],
        vjp: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(edge)
        ctx.shape, ctx.format, ctx.vjp = x.shape, memory_format_of(x), vjp
        return run(x)

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = output_grads
        (edge,) = ctx.saved_tensors
        stand_in = placeholder(grad, ctx.shape, ctx.format, dense=False)
        return connected(ctx.vjp(grad, stand_in), edge), None, None, None


def avg_pool(
    dims: int,
    call: Call,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """Average pooling."""
    if not is_plain(input) or input.dim() not in (dims + 1, dims + 2):
        return NotImplemented
    forward = aten.avg_pool3d if dims == 3 else aten.avg_pool2d
    backward = aten.avg_pool3d_backward if dims == 3 else aten.avg_pool2d_backward
    step = kernel_size if stride is None or stride == [] else stride
    geometry = tuple(
        _planes(value, filler, dims, max(2, dims)) for value, filler in ((kernel_size, 1), (step, 1), (padding, 0))
    )
    rest = (ceil_mode, count_include_pad, divisor_override)
    return _hold_shape(
        dims,
        input,
        lambda x: forward(x, *geometry, *rest),
        lambda grad, stand_in: backward(grad, stand_in, *geometry, *rest),
    )


def adaptive_avg_pool(dims: int, call: Call, input: Tensor, output_size: Any) -> Any:
    """Average pooling to a given size."""
    sizes = _wanted(output_size, dims)
    if sizes is None or not is_plain(input) or all(size == 1 for size in sizes):  # a mean, which holds nothing
        return NotImplemented
    if dims == 1 and sizes[0] is None:
        return NotImplemented
    backward = aten._adaptive_avg_pool3d_backward if dims == 3 else aten._adaptive_avg_pool2d_backward
    size = (1, sizes[0])
    run = call.run_on if dims > 1 else lambda x: F.adaptive_avg_pool2d(x, size)
    return _hold_shape(dims, input, run, backward)


def _hold_shape(
    dims: int, x: Tensor, run: Callable[[Tensor], Tensor], vjp: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    y: Tensor = _ShapeOnly.apply(x.unsqueeze(-2) if dims == 1 else x, graph_edge(x), run, vjp)
    return y.squeeze(-2) if dims == 1 else y


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
