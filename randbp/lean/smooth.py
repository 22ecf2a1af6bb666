"""Smooth activations: the derivative, stochastically rounded on a fixed grid."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autograd.once import edge_of, not_differentiable
from ..estimators.bits import pack, unpack
from ..estimators.draw import Draw
from ..estimators.noise import Noise
from .layout import flatten, memory_order, pieces, unflatten
from .rules import Call, is_plain, lean_version_of


@dataclass(frozen=True)
class Grid:
    """Levels ``first + step·k`` with ``k = 0 … 2^bits - 1`` that span the range of a derivative.

    Where there are enough levels, 0 and 1 are among them, so that saturated entries are exact.

    Example:
        >>> Grid.over(-0.13, 1.13, bits=4)
        Grid(first=-0.18181818181818182, step=0.09090909090909091, bits=4)
    """

    first: float
    step: float
    bits: int

    @staticmethod
    def over(low: float, high: float, bits: int) -> "Grid":
        """The finest such grid over ``[low, high]``."""
        levels = 2**bits - 1
        parts = int(levels / (high - low))
        while parts and ceil(-low * parts - 1e-9) + ceil(high * parts - 1e-9) > levels:
            parts -= 1
        if not parts:
            return Grid(low, (high - low) / levels, bits)
        return Grid(-ceil(-low * parts - 1e-9) / parts, 1 / parts, bits)

    def encode(self, values: Tensor, noise: Noise) -> Tensor:
        """Packed codes ``⌊(v - first)/step + u⌋`` with ``u`` uniform in ``[0, 1)``; the mean over ``u`` is ``v``."""
        levels = noise.next(values.numel()).add_(0.5)
        levels.add_(values, alpha=1 / self.step).sub_(self.first / self.step)
        codes = levels.clamp_(0, 2**self.bits - 1).nan_to_num_(0).to(torch.uint8).view(1, -1)
        if missing := -codes.shape[1] % 8:
            codes = torch.cat([codes, codes.new_zeros(1, missing)], 1)
        return pack(codes, self.bits).view(-1)

    def decode(self, packed: Tensor, count: int) -> Tensor:
        """The levels, in single precision."""
        return unpack(packed.view(1, -1), self.bits).view(-1)[:count].float().mul_(self.step).add_(self.first)


class _Smooth(torch.autograd.Function):
    """Holds ``φ'(x)`` in a few bits per entry; the input gradient is linear in it, hence unbiased."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, edge: Tensor, call: Call, grid: Grid, inplace: bool) -> Tensor:
        order, noise = memory_order(x), Noise(Draw(call.session.seed()), x.device)
        flat, codes, parts = flatten(x, order), [], pieces(x.numel(), x.device, 8)
        output = flat if inplace else None
        for part in parts:
            value, slope = _with_slope(call.run_on, flat[part], inplace)
            if output is None:
                output = torch.empty(flat.shape, dtype=value.dtype, device=x.device)
            output[part] = value
            codes.append(grid.encode(slope, noise))
        assert output is not None
        if inplace:
            if flat.data_ptr() != x.data_ptr():
                x.copy_(unflatten(output, x.shape, order))
            ctx.mark_dirty(x)
        ctx.save_for_backward(torch.cat(codes), edge)
        ctx.grid, ctx.order, ctx.shape, ctx.dtype = grid, order, x.shape, x.dtype
        return x if inplace else unflatten(output, x.shape, order)

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (output_grad,) = output_grads
        codes, edge = ctx.saved_tensors
        with torch.no_grad():
            flat = flatten(output_grad, ctx.order)
            result, first = torch.empty(flat.shape, dtype=ctx.dtype, device=flat.device), 0
            for part in pieces(flat.numel(), flat.device, 8):
                count = part.stop - part.start
                size = -(-count // 8) * ctx.grid.bits
                slope = ctx.grid.decode(codes[first : first + size], count)
                result[part] = flat[part] * slope if flat.dtype == torch.float64 else slope.mul_(flat[part])
                first += size
        grads = not_differentiable("lean activation", (unflatten(result, ctx.shape, ctx.order),), (edge, output_grad))
        return (*grads, None, None, None, None)


def _with_slope(function: Callable[[Tensor], Tensor], x: Tensor, inplace: bool) -> tuple[Tensor, Tensor]:
    """``φ(x)`` and ``φ'(x)``, both by PyTorch."""
    # Hooks of whoever called this (a checkpoint, say) are for what is held, and nothing of this small graph is.
    plain = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)
    with torch.enable_grad(), plain:
        x = x.detach().requires_grad_()
        y = function(x.clone() if inplace else x)
        (slope,) = torch.autograd.grad(y, x, torch.ones((), dtype=y.dtype, device=y.device).expand_as(y))
    return y.detach(), slope


def _apply(call: Call, x: Tensor, low: float, high: float, inplace: bool = False) -> Any:
    if not is_plain(x):
        return NotImplemented
    return _Smooth.apply(x, edge_of(x), call, Grid.over(low, high, call.session.bits), inplace)


@lean_version_of([F.gelu], exact=False)
def _gelu(call: Call, input: Tensor, approximate: str = "none") -> Any:
    return _apply(call, input, -0.13, 1.13)  # the extremes are at ±√2: 0.5 ± 0.6290 (with tanh 0.6291)


@lean_version_of([F.silu], exact=False)
def _silu(call: Call, input: Tensor, inplace: bool = False) -> Any:
    return _apply(call, input, -0.1, 1.1, inplace)  # -0.0998 and 1.0998


@lean_version_of([F.hardswish], exact=False)
def _hardswish(call: Call, input: Tensor, inplace: bool = False) -> Any:
    return _apply(call, input, -0.5, 1.5, inplace)


@lean_version_of([F.mish], exact=False)
def _mish(call: Call, input: Tensor, inplace: bool = False) -> Any:
    return _apply(call, input, -0.12, 1.09, inplace)  # -0.1132 and 1.0885


@lean_version_of([torch.tanh, Tensor.tanh, F.tanh], exact=False)
def _tanh(call: Call, input: Tensor) -> Any:
    return _apply(call, input, 0.0, 1.0)


@lean_version_of([torch.sigmoid, Tensor.sigmoid, F.sigmoid], exact=False)
def _sigmoid(call: Call, input: Tensor) -> Any:
    return _apply(call, input, 0.0, 0.25)


@lean_version_of([F.softplus], exact=False)
def _softplus(call: Call, input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Any:
    return _apply(call, input, 0.0, 1.0)


@lean_version_of([F.elu], exact=False)
def _elu(call: Call, input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Any:
    return NotImplemented if alpha < 0 else _apply(call, input, 0.0, max(1.0, alpha), inplace)


@lean_version_of([F.logsigmoid], exact=False)
def _logsigmoid(call: Call, input: Tensor) -> Any:
    return _apply(call, input, 0.0, 1.0)
