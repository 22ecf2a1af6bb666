"""What generated networks are made of, drawn from a seed: hyper-parameters, operations, index tensors."""

import random
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from randbp import tn

OPERATIONS: tuple[Callable[[tn.ConvSpec], tn.TensorNetwork], ...] = (
    tn.conv,
    tn.weight_vjp,
    tn.input_vjp,
    tn.weight_jvp,
    tn.input_jvp,
    tn.unfold,
    tn.fold,
    tn.unfolded_kernel,
    tn.per_example_weight_vjp,
    tn.kfac_expand,
    tn.kfac_reduce,
    tn.kfac_expand_output_grad,
    tn.kfac_reduce_output_grad,
    tn.gradient_gram,
    tn.ggn_diagonal,
    tn.squared_gradient_norms,
    tn.conv_transpose,
    tn.conv_transpose_weight_vjp,
    tn.conv_transpose_input_vjp,
    tn.conv_transpose_weight_jvp,
    tn.conv_transpose_input_jvp,
    tn.conv_transpose_per_example_weight_vjp,
    tn.unfold_transpose,
    tn.kfac_expand_transpose,
    tn.kfac_reduce_transpose,
)
OF_CLASSES = {tn.weight_vjp_of_positions: "input", tn.input_vjp_of_positions: "output"}
OF_LAYERS = (tn.constant_input_weight_vjp, tn.constant_output_grad_input_vjp)
DTYPES = (torch.int64, torch.int64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""Of indices; those that PyTorch pickles."""

Made = tuple[tn.TensorNetwork, str]
"""A network, and the call that makes it."""
Dimension = tuple[int, int, int, tuple[int, int]]
"""Kernel size, stride, dilation and padding."""


class Parts:
    """Draws parts; the same ones from the same seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.shared = self.spec()

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def some(self, of: Iterable[str], most: int = 3) -> list[str]:
        """One to so many of them, in any order."""
        of = list(of)
        return self.rng.sample(of, self.rng.randint(1, min(most, len(of))))

    def normal(self, shape: Iterable[int]) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def spec(self) -> tn.ConvSpec:
        """A small convolution of any geometry; often with gaps, overlaps, padding alone, or inputs that are not met."""
        rng = self.rng
        dims = rng.choices((0, 1, 2, 3), (1, 10, 8, 3))[0]
        geometry = [self._dimension(3 if dims < 3 else 2, 3) for _ in range(dims)]
        sizes = []
        for kernel, _, dilation, pads in geometry:
            least = max(1, dilation * (kernel - 1) + 1 - sum(pads))
            sizes.append(rng.randint(least, least + (4, 2, 1)[dims - 1]))
        groups = rng.choice((1, 1, 2))
        shape = (rng.randint(1, 3), groups * rng.randint(1, 2), *sizes)
        return tn.ConvSpec(shape, groups * rng.randint(1, 2), *_columns(geometry), groups)

    def _dimension(self, kernel: int, stride: int) -> Dimension:
        rng = self.rng
        pads = (rng.choice((0, 0, 1, 2)), rng.choice((0, 0, 1, 2, -1)))
        return rng.randint(1, kernel), rng.randint(1, stride), rng.choice((1, 1, 2)), pads

    def operation(self) -> Made:
        """An operation of the library, mostly on the layer that a network's parts share."""
        spec = self.shared if self.chance(0.8) else self.spec()
        if self.chance(0.12):
            return self._of_positions(spec)
        operation = self.rng.choice(OPERATIONS)
        return operation(spec), f"tn.{operation.__name__}({spec})"

    def _of_positions(self, spec: tn.ConvSpec) -> Made:
        layer = self.rng.choice((spec, tn.ConvTransposeSpec(spec), tn.linear_spec((2, 3, 2), 2)))
        operation = self.rng.choice((*OF_CLASSES, *OF_LAYERS))
        if operation in OF_LAYERS:
            return operation(layer), f"tn.{operation.__name__}({layer})"
        side = OF_CLASSES[operation]
        classes = (*tn.position_classes(layer, side), tn.whole_class(layer, side))
        chosen = self.rng.choice(classes)
        return operation(layer, chosen), f"tn.{operation.__name__}({layer}, tn.{chosen})"

    def index(self, size: int, batch: int | None) -> Tensor:
        """Empty, a permutation, some in order, or any with repetitions; of any integer type that holds them."""
        rows = []
        kind = self.rng.choices(("empty", "permutation", "part", "any"), (1, 2, 4, 4))[0]
        count = 0 if kind == "empty" or not size else self.rng.randint(1, size + (kind == "any"))
        for _ in range(1 if batch is None else batch):
            if kind == "part":
                rows.append(sorted(self.rng.sample(range(size), count)))
            elif kind == "any":
                rows.append([self.rng.randrange(size) for _ in range(count)])
            else:
                rows.append(self.rng.sample(range(size), size if kind == "permutation" else 0))
        dtype = self.rng.choice([dtype for dtype in DTYPES if torch.iinfo(dtype).max >= size])
        index = torch.tensor(rows, dtype=dtype).reshape(len(rows), len(rows[0]) if rows else 0)
        return index[0] if batch is None else index

    # Networks whose result has a given shape ------------------------------------------------------------------------

    def producer(self, net: tn.TensorNetwork, shape: tuple[int, ...]) -> Made | None:
        """A network to plug into a slot of another one: itself, an operation, or a plain tensor."""
        found: list[Callable[[], Made | None]] = [lambda: _whole(shape)]
        if net.output_shape == shape:
            found += [lambda: (net, "net")] * 3
        fitting = [operation for operation in OPERATIONS if operation(self.shared).output_shape == shape]
        found += [
            lambda made=operation: (made(self.shared), f"tn.{made.__name__}({self.shared})") for operation in fitting
        ]
        if len(shape) >= 2 and min(shape[1:]) > 0:
            found += [lambda: self._with_output(shape), lambda: self._with_input(shape)] * 2
            if shape[0]:
                found.append(lambda: self._with_weight(shape))
        return self.rng.choice(found)()

    def _groups(self, channels: int) -> int:
        return self.rng.choice([groups for groups in (1, 2) if channels % groups == 0])

    def _with_output(self, shape: tuple[int, ...]) -> Made | None:
        geometry = [self._dimension(2, 2) for _ in shape[2:]]
        pairs = zip(shape[2:], geometry, strict=True)
        sizes = [(o - 1) * s + d * (k - 1) + 1 - sum(p) for o, (k, s, d, p) in pairs]
        if min(sizes, default=1) < 1:
            return None
        groups = self._groups(shape[1])
        inputs = (shape[0], groups * self.rng.randint(1, 2), *sizes)
        spec = tn.ConvSpec(inputs, shape[1], *_columns(geometry), groups)
        operation = self.rng.choice((tn.conv, tn.weight_jvp, tn.conv_transpose_input_vjp))
        return operation(spec), f"tn.{operation.__name__}({spec})"

    def _with_input(self, shape: tuple[int, ...]) -> Made | None:
        geometry = [self._dimension(2, 2) for _ in shape[2:]]
        if any(i + sum(p) < d * (k - 1) + 1 for i, (k, _, d, p) in zip(shape[2:], geometry, strict=True)):
            return None
        groups = self._groups(shape[1])
        spec = tn.ConvSpec(shape, groups * self.rng.randint(1, 2), *_columns(geometry), groups)
        operation = self.rng.choice((tn.input_vjp, tn.fold, tn.conv_transpose))
        return operation(spec), f"tn.{operation.__name__}({spec})"

    def _with_weight(self, shape: tuple[int, ...]) -> Made:
        groups = self._groups(shape[0])
        sizes = tuple(k + self.rng.randint(0, 2) for k in shape[2:])
        spec = tn.ConvSpec((self.rng.randint(1, 2), groups * shape[1], *sizes), shape[0], shape[2:], groups=groups)
        operation = self.rng.choice((tn.weight_vjp, tn.conv_transpose_weight_vjp))
        return operation(spec), f"tn.{operation.__name__}({spec})"


def _columns(geometry: list[Dimension]) -> tuple[Any, ...]:
    """Kernel sizes, strides, paddings and dilations, as a spec takes them."""
    kernels, strides, dilations, pads = zip(*geometry, strict=True) if geometry else ((),) * 4
    return kernels, strides, pads, dilations


def _whole(shape: tuple[int, ...]) -> Made:
    sizes = {f"x{dim}": size for dim, size in enumerate(shape)}
    axes = tuple(tn.Axis.grouped((leg,), sizes) for leg in sizes)
    net = tn.TensorNetwork((tn.Operand("whole", axes),), tuple(sorted(sizes.items())), axes, name="whole")
    return net, f"tn.{net!r}"
