"""Products of two tensors, lowered to matrix products that copy as little as possible."""

from collections.abc import Mapping
from typing import Any

from ..planning import machine
from ..planning.steps import Cost, Join
from . import dense
from .kernel import Kernel, Kind, Lowered
from .registers import Axes, Builder, Value


class MatrixProduct(Kernel):
    """The contraction of two tensors over the legs that they share and that are not kept."""

    kind, joins = Kind.PRODUCT, (2, None)

    def fits(self, join: Join) -> Any:
        """Always."""
        return True

    def cost(self, join: Join, form: Any) -> Cost:
        """A batched matrix product."""
        left, right = join.tensors
        union = (left & (right | join.out)) | (right & (left | join.out))
        return Cost(join.volume(union), join.touched, join.size)

    def emit(self, builder: Builder, join: Join, values: list[Value], form: Any) -> Lowered:
        """The product that copies least."""
        return Lowered(*product(builder, values[0], values[1], join.legs.names(join.out)))


def product(builder: Builder, left: Value, right: Value, out: frozenset[str]) -> tuple[Value, str]:
    """The product of two values with the legs ``out``, and the name of what computes it."""
    rank, precise = builder.rank, builder.target.precise
    left, right = (
        builder.sum(a, [leg for leg in a.legs if leg not in out and leg not in b.legs])
        for a, b in ((left, right), (right, left))
    )
    shared = [leg for leg in left.legs if leg in right.legs]
    batch = [leg for leg in shared if leg in out]
    summed = [leg for leg in shared if leg not in out]
    rows = tuple(leg for leg in left.legs if leg not in shared)
    columns = tuple(leg for leg in right.legs if leg not in shared)
    larger = max(left.legs, right.legs, key=builder.volume)
    if builder.volume(summed) == 1:
        axes: Axes = (tuple(batch), rows, columns)
        a, b = builder.convert(left, (*axes[:2], ())), builder.convert(right, (axes[0], (), columns))
        return Value(builder.program.emit(dense.multiply, (a.register, b.register)), axes), "multiply"
    for a, b in ((left, right), (right, left)):
        repeated = _repeated(builder, a, b, batch, summed)
        if repeated is not None:
            return repeated, "batched matmul"
    images = _image_by_image(builder, left, right, out, rank) if precise and builder.volume(batch) == 1 else None
    if images is not None:
        return images, "summed matmul"
    if min(_ranks(columns, rank)) < min(_ranks(rows, rank)):  # the result then lies in the network's order, or nearly
        left, right, rows, columns = right, left, columns, rows
    batch_legs = tuple(leg for leg in larger if leg in batch)
    summed_legs = tuple(leg for leg in larger if leg in summed)
    result = builder.volume((*batch_legs, *rows, *columns))
    # A matrix that is copied anyway, or is smaller than the result, is brought into the result's order at once.
    if result > builder.volume(left.legs) or _lies(builder, left, batch_legs, rows, summed_legs) is None:
        rows = _ranked(rows, rank)
    if result > builder.volume(right.legs) or _lies(builder, right, batch_legs, columns, summed_legs) is None:
        columns = _ranked(columns, rank)
    a, flipped_a = _matrix(builder, left, batch_legs, rows, summed_legs)
    if left.register == right.register:  # perhaps one matrix serves twice
        b, flipped_b = _matrix(builder, right, batch_legs, columns, summed_legs)
    else:
        b, straight_b = _matrix(builder, right, batch_legs, summed_legs, columns)
        flipped_b = not straight_b
    register = builder.program.emit(dense.matmul, (a.register, b.register), flipped_a, not flipped_b)
    axes = (rows, columns) if builder.volume(batch_legs) == 1 else (batch_legs, rows, columns)
    return Value(register, axes), "matmul"


def _repeated(builder: Builder, small: Value, large: Value, batch: list[str], summed: list[str]) -> Value | None:
    """``[n, summed, rest]`` times a matrix that lacks ``n``: the matrix is repeated along ``n``, nothing is copied.

    This is how a channel-mixing matrix meets an image: ``W [c, d]`` and ``X [n, c, o]``.
    """
    sizes = builder.sizes
    lies = tuple(leg for leg in large.legs if sizes[leg] > 1)
    inner = [leg for leg in summed if sizes[leg] > 1]
    first = next((index for index, leg in enumerate(lies) if leg in inner), 0)
    lead, middle, rest = lies[:first], lies[first : first + len(inner)], lies[first + len(inner) :]
    groups = tuple(leg for leg in lead if leg in batch)
    images = tuple(leg for leg in lead if leg not in batch)
    if set(middle) != set(inner) or not images or any(leg in batch for leg in rest):
        return None
    if builder.volume(rest) <= machine.cpu.few:
        return None
    if lead != images + groups or any(leg in batch and sizes[leg] > 1 and leg not in groups for leg in small.legs):
        return None
    rows = tuple(leg for leg in small.legs if leg not in (*batch, *summed))
    if groups and builder.volume(images) * builder.volume(small.legs) > builder.volume(large.legs):
        return None  # the repeated matrices would be copied, and they are the larger part
    matrix = builder.convert(small, ((), groups, rows, middle) if groups else ((), rows, middle))
    blocks = builder.convert(large, (images, groups, middle, rest) if groups else (images, middle, rest))
    register = builder.program.emit(dense.repeated_matmul, (matrix.register, blocks.register), builder.volume(images))
    return Value(register, (images, groups, rows, rest) if groups else (images, rows, rest))


def _image_by_image(
    builder: Builder, left: Value, right: Value, out: frozenset[str], rank: Mapping[str, int]
) -> Value | None:
    """``Σ_n X[n, rows, inner] Y[n, columns, inner]``: a product per image, and a sum over images.

    This is the weight gradient of a channel-mixing matrix. At least one value is read in its memory order, the larger
    one if both could be. It pays while the products are smaller than the images.
    """
    values = sorted((left, right), key=lambda value: builder.volume(value.legs), reverse=True)
    lies = [tuple(leg for leg in value.legs if builder.sizes[leg] > 1) for value in values]
    own = [tuple(leg for leg in legs if leg in out) for legs in lies]
    around = next((found for found in map(_around, lies, own) if found is not None), None)
    if around is None or not all(own):
        return None
    sizes = [builder.volume(legs) for legs in own]
    if 2 * sizes[0] * sizes[1] > builder.volume(around[1]) * sum(sizes):
        return None
    pairs = sorted(zip(values, own, strict=True), key=lambda pair: [rank.get(leg, -1) for leg in pair[1]])
    a, b = (builder.convert(value, (around[0], kept, around[1])).register for value, kept in pairs)
    register = builder.program.emit(dense.summed_matmul, (a, b))
    return Value(register, (pairs[0][1], pairs[1][1]))


def _around(legs: tuple[str, ...], middle: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The legs before and after some neighbouring legs; None if these are not neighbours or an end is empty."""
    first = legs.index(middle[0]) if middle else 0
    last = first + len(middle)
    found = legs[:first], legs[last:]
    return found if legs[first:last] == middle and all(found) else None


def _ranks(legs: tuple[str, ...], rank: Mapping[str, int]) -> list[int]:
    """Positions of legs in the network's result; legs that are not in it come last."""
    return [rank.get(leg, len(rank)) for leg in legs] or [len(rank)]


def _ranked(legs: tuple[str, ...], rank: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(sorted(legs, key=lambda leg: rank.get(leg, -1)))


def _matrix(
    builder: Builder, value: Value, batch: tuple[str, ...], first: tuple[str, ...], second: tuple[str, ...]
) -> tuple[Value, bool]:
    """The value as ``[batch, first, second]``, or transposed if that is its memory order."""
    lead: Axes = (batch,) if builder.volume(batch) > 1 else ()
    lies = _lies(builder, value, batch, first, second)
    straight, flipped = (_copying(builder, value, (*batch, *legs)) for legs in ((*first, *second), (*second, *first)))
    if lies or (lies is None and flipped < straight):
        return builder.convert(value, (*lead, second, first)), True
    return builder.convert(value, (*lead, first, second)), False


def _copying(builder: Builder, value: Value, legs: tuple[str, ...]) -> tuple[bool, int]:
    """Cost of copying a value into another order: the number of torn lines of memory, then that of pieces."""
    neighbours, pieces = builder.moving(value, legs)
    return neighbours < machine.cpu.line, pieces


def _lies(
    builder: Builder, value: Value, batch: tuple[str, ...], first: tuple[str, ...], second: tuple[str, ...]
) -> bool | None:
    """Whether the memory order is ``[batch, second, first]``; None if it is neither that nor the other way round."""
    held, *orders = (
        tuple(leg for leg in legs if builder.sizes[leg] > 1)
        for legs in (value.legs, (*batch, *first, *second), (*batch, *second, *first))
    )
    return orders.index(held) == 1 if held in orders else None
