"""Generated layers, and PyTorch's autograd as the oracle for their VJPs."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from randbp.functional import conv, conv_spec, conv_transpose, conv_transpose_spec, linear
from randbp.tn import LayerSpec, linear_spec

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


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

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.groups * self.inner, *self.input_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.groups * self.outer, self.inner, *self.kernel_size)

    def tensors(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, weight and bias, all requiring gradients."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return (torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.2).to(dtype).requires_grad_()

        x, weight = draw(*self.input_shape), draw(*self.weight_shape)
        return x, weight, draw(self.groups * self.outer) if self.bias else None

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """PyTorch's layer."""
        return CONV[len(self.input_size)](x, weight, bias, **self.geometry)

    def estimated(self, x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        """randbp's layer."""
        return conv(x, weight, bias, **self.geometry, **options)

    def spec(self) -> LayerSpec:
        """What estimators are told of the layer."""
        return conv_spec(torch.empty(self.input_shape), torch.empty(self.weight_shape), **self.geometry)

    def is_defined(self, dtype: torch.dtype) -> bool:
        """Whether PyTorch defines all of the weight's gradient.

        Its kernels for 16-bit types (2.13, on processors with AMX) leave entries unwritten that meet padding alone.
        """
        met = (
            p.inputs_at(torch.arange(p.output_size), k)[1].any()
            for p in self.spec().patterns
            for k in range(p.kernel_size)
        )
        return dtype.itemsize > 2 or all(met)

    def channels_second(self, tensor: Tensor) -> Tensor:
        """An input or output as estimators see it."""
        return tensor

    def output_grad(self, output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        return (torch.rand(output.shape, generator=generator, dtype=torch.float64) + 0.2).to(output.dtype)


@dataclass(frozen=True)
class TransposedCase(Case):
    """The same of a transposed convolution."""

    output_padding: int | tuple[int, ...] = 0

    @property
    def geometry(self) -> dict[str, Any]:
        return {**super().geometry, "output_padding": self.output_padding}

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.groups * self.inner, self.outer, *self.kernel_size)

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return TRANSPOSED[len(self.input_size)](x, weight, bias, **self.geometry)

    def estimated(self, x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        return conv_transpose(x, weight, bias, **self.geometry, **options)

    def spec(self) -> LayerSpec:
        return conv_transpose_spec(torch.empty(self.input_shape), torch.empty(self.weight_shape), **self.geometry)


@dataclass(frozen=True)
class LinearCase(Case):
    """The same of a linear layer; ``input_size`` is the sequence, ``batch`` is 0 for a vector without one."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (*([self.batch] if self.batch else []), *self.input_size, self.inner)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.outer, self.inner)

    def native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def estimated(self, x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        return linear(x, weight, bias, **options)

    def spec(self) -> LayerSpec:
        return linear_spec(self.input_shape, self.outer)

    def channels_second(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(max(1, self.batch), -1, tensor.shape[-1]).transpose(1, 2)


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


@st.composite
def transposed_cases(draw: st.DrawFn, largest: int = 4) -> TransposedCase:
    """Any transposed convolution that PyTorch accepts with 1 to 3 dimensions and small sizes."""
    count = draw(st.integers(1, 3))
    largest = min(largest, {1: 5, 2: 4, 3: 3}[count])

    def each(strategy: st.SearchStrategy[int]) -> tuple[int, ...]:
        return tuple(draw(strategy) for _ in range(count))

    sizes, kernel, stride = each(st.integers(1, largest)), each(st.integers(1, 3)), each(st.integers(1, 3))
    dilation, padding = (
        each(st.integers(1, 2)),
        draw(st.one_of(st.integers(0, 2), st.tuples(*[st.integers(0, 2)] * count))),
    )
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    pads = (padding,) * count if isinstance(padding, int) else padding
    geometry = zip(sizes, kernel, stride, dilation, pads, extra, strict=True)
    assume(all((i - 1) * s - 2 * p + d * (k - 1) + e + 1 >= 1 for i, k, s, d, p, e in geometry))
    return TransposedCase(
        batch=draw(st.integers(1, 3)),
        groups=draw(st.integers(1, 3)),
        inner=draw(st.integers(1, 3)),
        outer=draw(st.integers(1, 2)),
        input_size=sizes,
        kernel_size=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
        output_padding=extra,
    )


@st.composite
def linear_cases(draw: st.DrawFn, largest: int = 6) -> LinearCase:
    """A linear layer on a vector, vectors, or sequences of one or two dimensions."""
    dims = draw(st.integers(-1, 2))
    return LinearCase(
        batch=0 if dims < 0 else draw(st.integers(1, 6)),
        groups=1,
        inner=draw(st.integers(1, 5)),
        outer=draw(st.integers(1, 4)),
        input_size=tuple(draw(st.integers(1, largest)) for _ in range(max(0, dims))),
        kernel_size=(),
        stride=1,
        padding=0,
        dilation=1,
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )
