"""Generated convolutions, and PyTorch's autograd as the oracle for their VJPs."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Case:
    """Shapes and hyper-parameters of one convolution call."""

    batch: int
    groups: int
    inner: int
    outer: int
    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: int | tuple[int, ...]
    padding: int | tuple[int, ...] | str
    dilation: int | tuple[int, ...]
    bias: bool
    seed: int

    @property
    def geometry(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def tensors(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, weight and bias, all requiring gradients."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return (torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.2).to(dtype).requires_grad_()

        x = draw(self.batch, self.groups * self.inner, *self.input_size)
        weight = draw(self.groups * self.outer, self.inner, *self.kernel_size)
        return x, weight, draw(self.groups * self.outer) if self.bias else None

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return CONV[len(self.input_size)](x, weight, bias, **self.geometry)

    def output_grad(self, output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        return (torch.rand(output.shape, generator=generator, dtype=torch.float64) + 0.2).to(output.dtype)


@st.composite
def cases(draw: st.DrawFn, dims: int | None = None, largest: int = 6, **fixed: Any) -> Case:
    """Any convolution that PyTorch accepts with 1 to 3 dimensions and small sizes."""
    count = draw(st.integers(1, 3)) if dims is None else dims
    largest = min(largest, {1: 8, 2: 6, 3: 4}[count])

    def each(strategy: st.SearchStrategy[int]) -> tuple[int, ...]:
        return tuple(draw(strategy) for _ in range(count))

    dilation = each(st.integers(1, 2))
    kernel = each(st.integers(1, 3))
    padding: int | tuple[int, ...] | str = draw(
        st.one_of(st.integers(0, 2), st.tuples(*[st.integers(0, 2)] * count), st.sampled_from(["same", "valid"]))
    )
    stride = (1,) * count if padding == "same" else each(st.integers(1, 3))
    sizes = each(st.integers(1, largest))
    if padding == "same":
        pads = (99,) * count
    elif padding == "valid":
        pads = (0,) * count
    else:
        pads = (padding,) * count if isinstance(padding, int) else padding  # type: ignore[assignment]
    assume(all(i + 2 * p >= d * (k - 1) + 1 for i, p, d, k in zip(sizes, pads, dilation, kernel, strict=True)))
    groups = draw(st.integers(1, 3))
    inner, outer = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    made = {
        "batch": draw(st.integers(1, 3)),
        "groups": groups,
        "inner": inner,
        "outer": outer,
        "input_size": sizes,
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }
    return Case(**{**made, **fixed})
