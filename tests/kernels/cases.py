"""What fused operations are tried with: an entry of a table for each, from which settings are drawn."""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from randbp.kernels import encode_normalised, max_pool
from randbp.kernels.derivatives import FUNCTIONS
from randbp.kernels.grid_bits import grid_bytes
from randbp.kernels.levels import Rows
from randbp.kernels.mask_bits import bits_of

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KINDS = ("normal", "constant", "zeros", "spoilt", "one row spoilt", "tiny", "huge")
LAYOUTS = ("contiguous", "transposed", "every second", "one for all rows")
SIZES = ((3, 300), (1, 1), (0, 5), (2, 0), (5, 49), (2, 777))
"""Rows and entries of each."""

BLOCKS = (256, 1, 7, 49, 1500)


class Case(NamedTuple):
    """An operation, and what it is tried with."""

    operator: str
    setting: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.operator}({', '.join(f'{name}={value}' for name, value in self.setting.items())})"

    def arguments(self) -> tuple[Any, ...]:
        """The same whenever it is asked for."""
        return TABLE[self.operator].arguments(random.Random(str(self)).randrange(2**31), **self.setting)


@dataclass(frozen=True)
class Trials:
    """How arguments of an operation are made of choices.

    Args:
        arguments: Called with a seed and one value for each choice.
        choices: What there is to choose of, by name.
        count: How many settings are drawn; the values of a choice take turns.
        close: For how much sums may differ that are taken in another order, relative to the largest entry.
    """

    arguments: Callable[..., tuple[Any, ...]]
    choices: dict[str, Sequence[Any]]
    count: int
    close: float = 0.0

    def settings(self) -> Iterator[dict[str, Any]]:
        """Draw them."""
        shuffled = [_turns(name, values) for name, values in self.choices.items()]
        for drawn in itertools.islice(zip(*shuffled, strict=True), self.count):
            yield dict(zip(self.choices, drawn, strict=True))


def _turns(name: str, values: Sequence[Any]) -> Iterator[Any]:
    """All values in some order, again and again."""
    order = random.Random(name)
    while True:
        yield from order.sample(values, len(values))


def cases(most: int | None = None) -> Iterator[Case]:
    """So many settings of each operation, all of them by default."""
    for operator, trials in TABLE.items():
        for setting in itertools.islice(trials.settings(), most):
            yield Case(operator, setting)


def matrix(seed: int, size: tuple[int, int], dtype: torch.dtype, kind: str, layout: str = "contiguous") -> Tensor:
    """Rows of numbers."""
    generator = torch.Generator().manual_seed(seed)
    rows, entries = size
    x = torch.randn(rows, entries, generator=generator, dtype=torch.float64)
    largest = torch.finfo(dtype).max
    if kind == "constant":
        x.fill_(float(torch.randn((), generator=generator)))
    elif kind == "zeros":
        x = torch.where(x < 0, -0.0, 0.0).to(x)
    elif kind == "tiny":
        x *= float(torch.finfo(dtype).smallest_normal) / 16
    elif kind == "huge":  # spans of more than the largest number, and below
        x = x.clamp(-1, 1) * torch.tensor([largest, largest / 3], dtype=x.dtype)[torch.arange(rows) % 2].unsqueeze(1)
    elif kind == "spoilt":
        where = torch.rand(rows, entries, generator=generator)
        for least, value in ((0.98, torch.nan), (0.985, torch.inf), (0.99, -torch.inf), (0.995, largest)):
            x = x.masked_fill(where > least, value)
    elif kind == "one row spoilt" and rows:
        x[0] = torch.nan
    x = x.to(dtype)
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "every second":
        return x.repeat_interleave(2, 1)[:, ::2]
    if layout == "one for all rows":
        return x[:1].expand(rows, entries) if rows else x
    return x


def _encode(
    seed: int, size: tuple[int, int], dtype: torch.dtype, kind: str, layout: str, bits: int, block: int, dithered: bool
) -> tuple[Any, ...]:
    return matrix(seed, size, dtype, kind, layout), seed - 2**30, seed % 1000, bits, block, dithered


def _decode(
    seed: int, size: tuple[int, int], scales: torch.dtype, bits: int, block: int, dithered: bool, dtype: torch.dtype
) -> tuple[Any, ...]:
    rows, entries = size
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, Rows(entries, block, bits).nbytes), generator=generator, dtype=torch.uint8)
    both = torch.randn(rows, -(-entries // block), 2, generator=generator, dtype=torch.float64).to(scales)
    for value in (torch.nan, -0.0):
        both[..., 1].masked_fill_(torch.rand(both.shape[:2], generator=generator) < 0.1, value)
    return codes, both, (seed - 2**30) * 2**32, seed, bits, block, entries, dithered, dtype


def _narrow(seed: int, size: tuple[int, int], kind: str, scale: float, dtype: torch.dtype) -> tuple[Any, ...]:
    return matrix(seed, size, torch.float32, kind) * scale, seed, seed, dtype


Windows = tuple[list[int], list[int], list[int], list[int], list[int]]

POOLS: tuple[tuple[Windows, list[int]], ...] = (
    (([9, 10], [3, 3], [2, 2], [1, 1], [1, 1]), [5, 5]),
    (([9, 10], [3, 3], [2, 2], [1, 1], [1, 1]), [5, 6]),  # rounded up
    (([7, 3], [2, 1], [3, 1], [1, 0], [2, 2]), [3, 3]),
    (([5, 6, 7], [2, 3, 2], [1, 2, 3], [0, 1, 1], [1, 1, 2]), [4, 3, 3]),
    (([7, 6], [5, 4], [1, 1], [0, 0], [1, 1]), [3, 3]),
)
"""Sizes of a plane and of a window, stride, padding, dilation; sizes of the plane of maxima."""


def _max_pool(
    seed: int, planes: int, pool: tuple[Windows, list[int]], dtype: torch.dtype, kind: str
) -> tuple[Any, ...]:
    (size, *geometry), output_size = pool
    x = matrix(seed, (planes, math.prod(size)), dtype, kind)
    return x.mul(2).round().view(planes, *size), *geometry, output_size  # some are equal


def _max_pool_grad(seed: int, planes: int, pool: tuple[Windows, list[int]], dtype: torch.dtype) -> tuple[Any, ...]:
    x, *geometry, output_size = _max_pool(seed, planes, pool, torch.float32, "normal")
    codes = max_pool(x, *geometry, output_size)[1]
    grad = matrix(seed, (planes, math.prod(output_size)), dtype, "normal").view(planes, *output_size)
    return grad, codes, *geometry, list(x.shape[1:])


def _places(seed: int, most: int) -> Tensor:
    """Some of so many numbers, ascending."""
    generator = random.Random(seed)
    return torch.tensor(sorted(generator.sample(range(most), generator.randint(0, most))), dtype=torch.int64)


def _position_rows(
    seed: int, shape: tuple[int, int, int], layout: str, listed: bool, weighted: bool, kind: str, dtype: torch.dtype
) -> tuple[Any, ...]:
    (batch, channels, positions), generator = shape, torch.Generator().manual_seed(seed)
    precise = dtype if dtype == torch.float64 else torch.float32
    planes = matrix(seed, (batch * channels, positions), precise, kind).view(shape)
    if layout == "channels innermost":
        planes = planes.transpose(1, 2).contiguous().transpose(1, 2)
    numbers = _places(seed, batch * positions) if listed else None
    weights = torch.rand(batch * positions if numbers is None else len(numbers), generator=generator, dtype=precise)
    return planes, numbers, weights if weighted else None, seed, dtype


def _patches(seed: int, sizes: tuple[int, int, int, int, int], dtype: torch.dtype, scattered: bool) -> tuple[Any, ...]:
    (examples, inputs, outputs, entries, channels), generator = sizes, torch.Generator().manual_seed(seed)
    table = torch.randint(-1, inputs, (outputs, entries), generator=generator, dtype=torch.int32)
    numbers = _places(seed, examples * outputs)
    if scattered:
        patches = matrix(seed, (len(numbers) * entries, channels), dtype, "normal").view(
            len(numbers), entries, channels
        )
        return patches, numbers, table, inputs, examples
    return matrix(seed, (examples * inputs, channels), dtype, "normal"), numbers, table, inputs


def _systematic(seed: int, size: int, share: float, kind: str) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(size, generator=generator) ** (20 if kind == "few large" else 1)
    if kind == "equal":
        sizes.fill_(3)
    elif kind == "zeros":
        sizes.zero_()
    elif kind == "most zeros":
        sizes *= torch.rand(size, generator=generator) < 0.3
    elif kind == "spoilt":
        sizes[::3], sizes[1::7] = torch.nan, torch.inf
    elif kind == "tiny and huge":
        sizes *= torch.tensor([1e-44, 1e38])[torch.arange(size) % 2]
    return sizes, max(1, int(share * size)), seed * 2


def _gather(
    seed: int,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    layout: str,
    length: int,
    shared: bool,
    order: str,
    what: str,
) -> tuple[Any, ...]:
    batch, channels, stretches = shape
    rows = matrix(seed, (batch * channels, stretches * length), dtype, "normal", layout)
    generator = torch.Generator().manual_seed(seed)
    kept = [torch.randperm(stretches, generator=generator)[: -(-stretches // 2)] for _ in range(1 if shared else batch)]
    numbers = torch.stack(kept) if kept else torch.zeros(0, 0, dtype=torch.long)
    return rows.unflatten(0, (batch, channels)), numbers, length, order, what


def _depthwise_weight_vjp(
    seed: int,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    kernel: tuple[int, int],
    input: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    shared: bool,
) -> tuple[Any, ...]:
    batch, channels, copies = shape
    generator = torch.Generator().manual_seed(seed)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    outputs = [max(1, (i + 2 * p - r - 1) // s + 1) for i, p, r, s in zip(input, padding, reach, stride, strict=True)]
    total = input[0] * input[1]
    kept = [torch.randperm(total, generator=generator)[: -(-total // 3)] for _ in range(1 if shared else batch)]
    numbers = torch.stack(kept)
    entries, means, grad = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
        for size in (
            (batch, channels, numbers.shape[1]),
            (batch, channels),
            (batch, channels * copies, *outputs),
        )
    )
    return entries, numbers, means, grad, kernel, input, stride, padding, dilation


def _pair_sums(
    seed: int, shape: tuple[int, int, int, int], dtype: torch.dtype, lengths: tuple[int, ...], layout: str
) -> tuple[Any, ...]:
    batch, inputs, outputs, channels = shape
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        matrix(seed + place, (batch * size, channels), dtype, "normal", layout).unflatten(0, (batch, size))
        for place, size in enumerate((inputs, outputs))
    )
    several = [torch.randint(0, size, (sum(lengths),), generator=generator) for size in (inputs, outputs)]
    return left, right, torch.stack(several, 1), torch.tensor([0, *lengths]).cumsum(0)


ENTRIES: dict[str, Sequence[Any]] = {
    "count": (3000, 1, 0, 256, 2049, 7),
    "dtype": FLOATS,
    "kind": KINDS,
    "layout": ("contiguous", "every second"),
}
"""Of flat tensors."""


def _flat(seed: int, count: int, dtype: torch.dtype, kind: str, layout: str) -> Tensor:
    return matrix(seed, (1, count), dtype, kind, layout)[0]


def _inside(
    seed: int, count: int, dtype: torch.dtype, kind: str, layout: str, test: tuple[str, float, float]
) -> tuple[Any, ...]:
    x = _flat(seed, count, dtype, kind, layout)
    return (x > 0 if test[0] == "true" else x), *test


def _bits(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return bits_of(torch.rand(count, generator=generator) > 0.4)


def _unmask(seed: int, count: int) -> tuple[Any, ...]:
    return _bits(seed, count), count


def _masked(
    seed: int, count: int, dtype: torch.dtype, kind: str, layout: str, factors: tuple[float, float | None]
) -> tuple[Any, ...]:
    return _flat(seed, count, dtype, kind, layout), _bits(seed, count), *factors


def _relu(seed: int, count: int, dtype: torch.dtype, kind: str, layout: str) -> tuple[Any, ...]:
    return (_flat(seed, count, dtype, kind, layout),)


def _scaled(seed: int, shape: tuple[int, int, int], kind: str, relu: bool) -> tuple[Any, ...]:
    x = matrix(seed, (shape[0] * shape[1], shape[2]), torch.float32, kind).view(shape)
    scale, shift = matrix(seed + 1, (2, shape[1]), torch.float32, "normal")
    return x, scale, shift, relu


def _to_grid(
    seed: int, count: int, dtype: torch.dtype, kind: str, layout: str, function: str, bits: int
) -> tuple[Any, ...]:
    x = _flat(seed, count, dtype, kind, layout) * 3
    factor = 2.0 if function.startswith("tanh") else 1.0
    return x, function, [factor, 1.5, 1.0], seed - 2**30, seed % 1000, bits, (2**bits - 1) / 2, 0.13


def _times_grid(seed: int, count: int, dtype: torch.dtype, kind: str, layout: str, bits: int) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    held = torch.randint(0, 256, (grid_bytes(count, bits),), generator=generator, dtype=torch.uint8)
    return _flat(seed, count, dtype, kind, layout), held, bits, 1.3 / (2**bits - 1), 0.13


Planes = tuple[int, int, int, int]

PLANES: tuple[Planes, ...] = (
    *((2, 1, 6, 300), (3, 1, 4, 3), (1, 1, 2, 31), (0, 1, 4, 9), (2, 1, 34, 32), (5, 1, 4, 257)),
    *((4, 50, 6, 1), (1, 7, 300, 1), (3, 1, 34, 1), (8, 64, 24, 1)),
)
"""Examples, positions before the channels, channels, and positions behind them."""


def _statistics(seed: int, shape: Planes, dtype: torch.dtype, over_batch: bool) -> tuple[Tensor, Tensor]:
    precise = torch.promote_types(dtype, torch.float32)
    mean, rstd = (matrix(seed + n, (1 if over_batch else shape[0], shape[2]), precise, "normal") for n in (1, 2))
    return mean, rstd.abs().add(0.25)


def _encode_normalised(
    seed: int, shape: Planes, dtype: torch.dtype, kind: str, layout: str, bits: int, over_batch: bool
) -> tuple[Any, ...]:
    x = matrix(seed, (shape[0] * shape[1] * shape[2], shape[3]), dtype, kind, layout).unflatten(0, shape[:3])
    return x, *_statistics(seed, shape, dtype, over_batch), seed - 2**30, bits


def _channel_norm_backward(
    seed: int,
    shape: Planes,
    dtype: torch.dtype,
    layout: str,
    bits: int,
    groups: str,
    weighted: bool,
    corrected: bool,
    needs_input: bool,
) -> tuple[Any, ...]:
    over_batch, channels = groups == "batch", shape[2]
    x, mean, rstd, *rest = _encode_normalised(seed, shape, dtype, "normal", layout, bits, over_batch)
    held = encode_normalised(x, mean, rstd, *rest)
    grad = _encode_normalised(seed + 1, shape, dtype, "normal", layout, bits, over_batch)[0]
    weight = matrix(seed + 3, (1, channels), rstd.dtype, "normal")[0] if weighted else None
    count = {"two": 2, "one": 1}.get(groups, channels)
    return *held, *rest, grad, rstd, weight, count if channels % count == 0 else 1, over_batch, corrected, needs_input


def _row_norm_backward(
    seed: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    layout: str,
    bits: int,
    weighted: bool,
    centred: bool,
    corrected: bool,
    needs_input: bool,
) -> tuple[Any, ...]:
    rows, columns = size
    x, mean, rstd, *rest = _encode_normalised(seed, (rows, 1, 1, columns), dtype, "normal", layout, bits, False)
    held = encode_normalised(x, mean, rstd, *rest)
    grad = matrix(seed + 1, size, dtype, "normal", layout)
    weight = matrix(seed + 3, (1, columns), rstd.dtype, "normal")[0] if weighted else None
    return *held, *rest, grad, rstd[:, 0].contiguous(), weight, centred, corrected, needs_input


PATCHES = ((2, 9, 4, 3, 17), (1, 1, 1, 1, 1), (3, 25, 25, 9, 64), (2, 16, 9, 4, 600), (2, 5, 5, 2, 0))
"""Examples, input and output positions of each, kernel entries, channels."""

TABLE = {
    "encode": Trials(
        _encode,
        {
            "size": SIZES,
            "dtype": FLOATS,
            "kind": KINDS,
            "layout": LAYOUTS,
            "bits": range(1, 9),
            "block": BLOCKS,
            "dithered": (True, False),
        },
        count=240,
    ),
    "decode": Trials(
        _decode,
        {
            "size": SIZES,
            "scales": FLOATS[:2],
            "bits": range(1, 9),
            "block": BLOCKS,
            "dithered": (True, False),
            "dtype": FLOATS,
        },
        count=120,
    ),
    "narrow": Trials(
        _narrow, {"size": SIZES, "kind": KINDS, "scale": (1, 1e-4, 1e-7, 1e30), "dtype": FLOATS[2:]}, count=60
    ),
    "max_pool": Trials(_max_pool, {"planes": (3, 1, 0), "pool": POOLS, "dtype": FLOATS, "kind": KINDS}, count=40),
    "max_pool_grad": Trials(_max_pool_grad, {"planes": (3, 1, 0), "pool": POOLS, "dtype": FLOATS}, count=20),
    "systematic_rows": Trials(
        _systematic,
        {
            "size": (1, 2, 40, 1000),
            "share": (0.1, 0.25, 0.5, 1.0),
            "kind": ("uniform", "few large", "equal", "zeros", "most zeros", "spoilt", "tiny and huge"),
        },
        count=60,
    ),
    "position_rows": Trials(
        _position_rows,
        {
            "shape": ((2, 3, 40), (1, 1, 3), (5, 17, 6), (3, 64, 9), (2, 0, 4), (1, 300, 30)),
            "layout": ("contiguous", "channels innermost"),
            "listed": (True, False),
            "weighted": (True, False),
            "kind": KINDS[:4],
            "dtype": FLOATS,
        },
        count=60,
    ),
    "gather_patches": Trials(
        lambda seed, sizes, dtype: _patches(seed, sizes, dtype, False),
        {"sizes": PATCHES, "dtype": FLOATS},
        count=20,
    ),
    "scatter_patches": Trials(
        lambda seed, sizes, dtype: _patches(seed, sizes, dtype, True),
        {"sizes": PATCHES, "dtype": FLOATS},
        count=20,
        close=1e-6,
    ),
    "gather_planes": Trials(
        _gather,
        {
            "shape": ((2, 3, 40), (1, 1, 3), (5, 17, 6), (3, 40, 9), (2, 0, 4), (1, 300, 30)),
            "dtype": FLOATS,
            "layout": LAYOUTS[:3],
            "length": (1, 2, 7, 16),
            "shared": (True, False),
            "order": ("examples", "channels"),
            "what": ("entries", "means", "deviations"),
        },
        count=60,
        close=1e-5,
    ),
    "depthwise_weight_vjp": Trials(
        _depthwise_weight_vjp,
        {
            "shape": ((2, 3, 1), (1, 1, 2), (9, 5, 1), (3, 40, 1), (12, 2, 3)),
            "dtype": FLOATS,
            "kernel": ((3, 3), (1, 1), (7, 7), (1, 5), (4, 2)),
            "input": ((8, 8), (7, 4), (5, 20), (20, 32), (14, 14)),
            "stride": ((1, 1), (2, 2), (1, 3), (2, 1)),
            "padding": ((0, 0), (1, 1), (3, 3), (2, 0), (0, 4)),
            "dilation": ((1, 1), (1, 2), (2, 1)),
            "shared": (True, False),
        },
        count=90,
        close=2e-5,
    ),
    "pair_sums": Trials(
        _pair_sums,
        {
            "shape": ((3, 5, 4, 40), (1, 1, 1, 1), (9, 16, 16, 300), (2, 40, 600, 128), (0, 2, 3, 4), (2, 2, 2, 0)),
            "dtype": FLOATS,
            "lengths": ((1, 4, 0, 7), (9,), (0,), (3, 2, 25, 6, 5), ()),
            "layout": ("contiguous", "transposed", "every second"),
        },
        count=60,
        close=2e-5,
    ),
    "inside": Trials(
        _inside,
        {
            **ENTRIES,
            "test": (
                *(("over", 0.0, 0.0), ("not_under", 0.3, 0.0), ("not_under", -0.0, 0.0), ("between", -1.0, 0.0)),
                *(("within", -0.5, math.inf), ("within", -math.inf, 0.7), ("within", 0.0, -0.0), ("true", 0.0, 0.0)),
                *(("within", 1.0, -1.0), ("over", math.nan, 0.0), ("not_under", math.nan, 0.0)),
            ),
        },
        count=60,
    ),
    "unmask": Trials(_unmask, {"count": (3000, 1, 0, 256, 2049, 7, 70_000)}, count=7),
    "masked": Trials(
        _masked, {**ENTRIES, "factors": ((1.0, None), (1 / 6, None), (1.0, 0.3), (1.25, 0.0), (1.0, -0.2))}, count=40
    ),
    "relu": Trials(_relu, ENTRIES, count=30),
    "scaled": Trials(
        _scaled,
        {
            "shape": ((2, 3, 100), (5, 7, 4), (40, 9, 1), (0, 3, 5), (3, 2, 0), (1, 1, 70)),
            "kind": KINDS,
            "relu": (True, False),
        },
        count=30,
    ),
    "to_grid": Trials(_to_grid, {**ENTRIES, "function": ("", *FUNCTIONS), "bits": range(1, 9)}, count=100),
    "times_grid": Trials(_times_grid, {**ENTRIES, "bits": range(1, 9)}, count=40),
    "encode_normalised": Trials(
        _encode_normalised,
        {
            "shape": PLANES,
            "dtype": FLOATS,
            "kind": KINDS,
            "layout": LAYOUTS,
            "bits": range(1, 9),
            "over_batch": (True, False),
        },
        count=60,
    ),
    "channel_norm_backward": Trials(
        _channel_norm_backward,
        {
            "shape": PLANES,
            "dtype": FLOATS,
            "layout": LAYOUTS,
            "bits": range(1, 9),
            "groups": ("batch", "each", "one", "two"),
            "weighted": (True, False),
            "corrected": (True, False),
            "needs_input": (True, True, False),
        },
        count=60,
        close=1e-4,
    ),
    "row_norm_backward": Trials(
        _row_norm_backward,
        {
            "size": ((3, 300), (1, 1), (0, 5), (200, 49), (2, 777), (40, 96), (9, 256), (700, 32)),
            "dtype": FLOATS,
            "layout": LAYOUTS,
            "bits": range(1, 9),
            "weighted": (True, False),
            "centred": (True, False),
            "corrected": (True, False),
            "needs_input": (True, True, False),
        },
        count=60,
        close=1e-4,
    ),
}
"""Of each operation, how it is tried."""
