"""The index pattern: the relation between input, output and kernel positions of a convolution."""

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from .integers import as_integer

_LEAST = {"input_size": 0, "output_size": 0, "kernel_size": 0, "stride": 1, "dilation": 1}


@dataclass(frozen=True)
class IndexPattern:
    """The 0/1 tensor ``Π[i, o, k] = [i = stride·o + dilation·k - padding]`` of one spatial dimension.

    A pattern is a relation, not data: any two of its legs determine the third. The methods answer which, so
    that nothing ever has to be multiplied by the zeros of ``Π``.

    Args:
        input_size: Number of input positions ``I``.
        output_size: Number of output positions ``O``.
        kernel_size: Number of kernel entries ``K``.
        stride: Step of the kernel between neighbouring outputs.
        dilation: Distance of neighbouring kernel entries.
        padding: Number of zeros to the left of the input (the right side shows in ``output_size``).

    Raises:
        ValueError: If a value is no integer, a size is negative, or stride or dilation is not positive.

    Example:
        >>> pattern = IndexPattern(input_size=4, output_size=4, kernel_size=3, padding=1)
        >>> pattern.dense(torch.int64).sum(dim=0).tolist()  # which (o, k) meet an input position
        [[0, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]]
    """

    input_size: int
    output_size: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    padding: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), _LEAST.get(field.name)
            number = as_integer(value)
            if number is None or (least is not None and number < least):
                allowed = "an integer" if least is None else f"an integer >= {least}"
                raise ValueError(f"{field.name}={value!r}: expected {allowed}")
            object.__setattr__(self, field.name, number)

    def met(self, kernel: int) -> tuple[range, range]:
        """The outputs that a kernel entry joins with inputs, and these inputs, in the same order.

        Example:
            >>> IndexPattern(input_size=8, output_size=4, kernel_size=3, stride=2, padding=1).met(0)
            (range(1, 4), range(1, 7, 2))
        """
        shift = self.dilation * kernel - self.padding
        low = max(0, -(shift // self.stride))
        count = max(0, min(self.output_size, (self.input_size - 1 - shift) // self.stride + 1) - low)
        first = self.stride * low + shift
        return range(low, low + count), range(first, first + self.stride * count, self.stride)

    def outputs_at(self, inputs: Tensor, kernel: int | Tensor) -> tuple[Tensor, Tensor]:
        """The output position that each input position meets through a kernel entry: ``(i + p - d·k) / s``.

        Returns:
            Integer positions, and a boolean mask of the same shape that is true where such an output exists;
            elsewhere the position is meaningless.
        """
        shifted = inputs + (self.padding - self.dilation * kernel)
        outputs = torch.div(shifted, self.stride, rounding_mode="floor")
        valid = (outputs * self.stride == shifted) & (outputs >= 0) & (outputs < self.output_size)
        return outputs, valid

    def inputs_at(self, outputs: Tensor, kernel: int | Tensor) -> tuple[Tensor, Tensor]:
        """The input position that each output position meets through a kernel entry: ``s·o + d·k - p``.

        Returns:
            Integer positions, and a boolean mask of the same shape that is false where the kernel entry lies
            in the padding.
        """
        inputs = outputs * self.stride + (self.dilation * kernel - self.padding)
        return inputs, (inputs >= 0) & (inputs < self.input_size)

    def dense(self, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Tensor:
        """``Π`` as a dense tensor of shape ``[I, O, K]``: for oracles and small sums, never for contractions."""
        i = torch.arange(self.input_size, device=device)[:, None, None]
        o = torch.arange(self.output_size, device=device)[None, :, None]
        k = torch.arange(self.kernel_size, device=device)[None, None, :]
        return (i == self.stride * o + self.dilation * k - self.padding).to(dtype)

    @cached_property
    def nonzeros(self) -> int:
        """Number of index triples that satisfy the pattern, which a contraction has to visit."""
        return sum(len(self.met(k)[0]) for k in range(self.kernel_size))
