"""Comparing what backends make of the same arguments."""

from typing import Any

import torch
from torch import Tensor

from randbp.kernels import use
from randbp.kernels.operator import OPERATORS
from tests.kernels.cases import TABLE, Case


def results(case: Case, backend: Any, device: str = "cpu") -> tuple[Tensor, ...]:
    """What an operation gives by a backend."""
    arguments = [x.to(device) if isinstance(x, Tensor) else x for x in case.arguments()]
    with use(backend):
        result = OPERATORS[case.operator](*arguments)
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def assert_same(case: Case, ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    """Bit for bit, the sign of zero included, and NaN where NaN is; sums up to the order of their terms."""
    close = TABLE[case.operator].close
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype and mine.shape == other.shape
        if not mine.is_floating_point():
            assert torch.equal(mine, other)
        elif close:
            close = max(close, torch.finfo(mine.dtype).eps)  # the nearest number of 16 bits may be another one
            scale = other[other.isfinite()].abs().max().item() if other.isfinite().any() else 0.0
            torch.testing.assert_close(mine, other, rtol=close, atol=close * scale, equal_nan=True)
        else:
            nan = mine.isnan()
            assert torch.equal(nan, other.isnan())
            assert torch.equal(mine.masked_fill(nan, 0), other.masked_fill(nan, 0))
            assert torch.equal(mine.masked_fill(nan, 0).signbit(), other.masked_fill(nan, 0).signbit())
