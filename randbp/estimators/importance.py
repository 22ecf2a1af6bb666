"""Rows of the output gradient, drawn in the backward pass in proportion to their norms."""

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..kernels.systematic import UNIT, systematic_rows
from ..layers.layer_specs import replace_batch
from ..tn import LayerSpec
from ..tn.execute.layer_vjps import native_input_vjp, native_weight_vjp
from .base import Estimator, kept
from .drawn_rows import DrawnRows, input_vjp_of_rows, weight_vjp_of_rows
from .exact import Exact
from .rounding import Rounding


@dataclass(frozen=True)
class Importance(Estimator):
    """Draw a fixed number of rows of the output gradient by their norms, in the backward pass."""

    unit: Literal["positions", "examples"] = "positions"
    bits: int | None = None
    narrows: ClassVar[bool] = True

    @property
    def exact(self) -> bool:
        return self.keep == 1 and self.bits is None

    @property
    def draws_examples(self) -> bool:
        return self.unit == "examples"

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        return (input,) if self.bits is None else Rounding(self.bits).sketch(input, spec, draw)

    def drawn(self, output_grad: Tensor, spec: LayerSpec, draw: Draw) -> DrawnRows:
        flat = output_grad.flatten(2)
        norms = flat.square().sum(1).sqrt()
        if self.unit == "examples":
            raise NotImplementedError
        count = kept(norms.numel(), self.keep)
        start = int(torch.randint(UNIT, (), generator=draw.generator()))
        numbers, weights = systematic_rows(norms.flatten().float(), count, start)
        dtype = torch.bfloat16 if output_grad.dtype == torch.float32 and self.narrows else output_grad.dtype
        return DrawnRows(output_grad, numbers, weights, 1 / self.keep, draw, dtype)

    def weight_vjp(self, held, output_grad, spec, draw):
        drawn = output_grad if isinstance(output_grad, DrawnRows) else self.drawn(output_grad, spec, draw)
        if self.bits is None:
            examples = held[0].__getitem__
        else:
            examples = Rounding(self.bits).examples(held, spec, draw)
        return weight_vjp_of_rows(drawn, examples, spec)

    def input_vjp(self, output_grad, weight, spec, draw):
        drawn = output_grad if isinstance(output_grad, DrawnRows) else self.drawn(output_grad, spec, draw)
        return input_vjp_of_rows(drawn, weight, spec)
