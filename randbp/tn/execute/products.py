"""Products of two tensors, lowered to matrix products that copy as little as possible."""

from collections.abc import Mapping

from . import kernels, lags
from .layout import Axes, Builder, Value


def product(
    builder: Builder, left: Value, right: Value, out: frozenset[str], rank: Mapping[str, int]
) -> tuple[Value, str]:
    """The contraction of two values over the legs that they share and that are not kept.

    Args:
        builder: Emits the instructions.
        left: One operand.
        right: The other operand.
        out: Legs to keep.
        rank: Position of legs in the network's result; products that grow follow this order.

    Returns:
        The product and the name of its kernel.
    """
    gram = _window_gram(builder, left, right, out)
    if gram is not None:
        return gram
    left, right = _without_private(builder, left, right, out), _without_private(builder, right, left, out)
    shared = [leg for leg in left.legs if leg in right.legs]
    batch = [leg for leg in shared if leg in out]
    summed = [leg for leg in shared if leg not in out]
    rows = tuple(leg for leg in left.legs if leg not in shared)
    columns = tuple(leg for leg in right.legs if leg not in shared)
    larger = max(left.legs, right.legs, key=builder.volume)
    if builder.volume(rows) * builder.volume(columns) > builder.volume(larger):
        # It is cheaper to bring the operands into the result's order than the result.
        rows, columns = _ranked(rows, rank), _ranked(columns, rank)
    if builder.volume(summed) == 1:
        return _elementwise(builder, left, right, tuple(batch), rows, columns), "multiply"
    for a, b in ((left, right), (right, left)):
        repeated = _repeated(builder, a, b, batch, summed)
        if repeated is not None:
            return repeated, "batched matmul"
    batch_legs = tuple(leg for leg in larger if leg in batch)
    summed_legs = tuple(leg for leg in larger if leg in summed)
    a, transposed_a = _matrix(builder, left, batch_legs, rows, summed_legs)
    b, transposed_b = _matrix(builder, right, batch_legs, summed_legs, columns)
    register = builder.program.emit(kernels.matmul, (a.register, b.register), transposed_a, transposed_b)
    axes: Axes = (rows, columns) if builder.volume(batch_legs) == 1 else (batch_legs, rows, columns)
    return Value(register, axes), "matmul"


def _window_gram(builder: Builder, left: Value, right: Value, out: frozenset[str]) -> tuple[Value, str] | None:
    """The product of windows of one tensor with themselves, summed over positions: a kernel of its own."""
    a, b = left.windows, right.windows
    if a is None or b is None or a.register != b.register:
        return None
    if [p.pattern for p in a.patterns] != [p.pattern for p in b.patterns]:
        return None
    for p, q in zip(a.patterns, b.patterns, strict=True):
        if p.o != q.o or p.o in out or p.k == q.k or not {p.k, q.k} <= out:
            return None
    if [a.legs.index(p.i) for p in a.patterns] != [b.legs.index(q.i) for q in b.patterns]:
        return None
    inputs = {p.i for p in a.patterns}
    pairs = [(x, y) for x, y in zip(a.legs, b.legs, strict=True) if x not in inputs]
    summed = tuple(x for x, y in pairs if x == y and x not in out)
    groups = tuple(x for x, y in pairs if x == y and x in out)
    rows = [(x, y) for x, y in pairs if x != y]
    if not all({x, y} <= out for x, y in rows):
        return None
    first, second = tuple(x for x, _ in rows), tuple(y for _, y in rows)
    flat = Value(a.register, tuple((leg,) for leg in a.legs))
    base = builder.convert(flat, (summed, groups, first, *((p.i,) for p in a.patterns)))
    geometry = tuple(p.pattern for p in a.patterns)
    register = builder.program.emit(lags.window_gram, (base.register,), geometry)
    kernels_a, kernels_b = tuple((p.k,) for p in a.patterns), tuple((p.k,) for p in b.patterns)
    name = "lag products" if lags.has_lags(geometry) else "windows + baddbmm"
    return Value(register, (groups, *kernels_a, first, *kernels_b, second)), name


def _repeated(builder: Builder, small: Value, large: Value, batch: list[str], summed: list[str]) -> Value | None:
    """``[n, summed, rest]`` times a matrix that lacks ``n``: the matrix is repeated along ``n``, nothing is
    copied.

    This is how a channel-mixing matrix meets an image: ``W [c, d]`` and ``X [n, c, o]``.
    """
    sizes = builder.sizes
    lies = tuple(leg for leg in large.legs if sizes[leg] > 1)
    inner = [leg for leg in summed if sizes[leg] > 1]
    first = next((index for index, leg in enumerate(lies) if leg in inner), 0)
    lead, middle, rest = lies[:first], lies[first : first + len(inner)], lies[first + len(inner) :]
    groups = tuple(leg for leg in lead if leg in batch)
    images = tuple(leg for leg in lead if leg not in batch)
    if set(middle) != set(inner) or not images or not rest or any(leg in batch for leg in rest):
        return None
    if lead != images + groups or any(leg in batch and sizes[leg] > 1 and leg not in groups for leg in small.legs):
        return None
    rows = tuple(leg for leg in small.legs if leg not in (*batch, *summed))
    if groups and builder.volume(images) * builder.volume(small.legs) > builder.volume(large.legs):
        return None  # the repeated matrices would be copied, and they are the larger part
    matrix = builder.convert(small, ((), groups, rows, middle) if groups else ((), rows, middle))
    blocks = builder.convert(large, (images, groups, middle, rest) if groups else (images, middle, rest))
    register = builder.program.emit(kernels.repeated_matmul, (matrix.register, blocks.register), builder.volume(images))
    return Value(register, (images, groups, rows, rest) if groups else (images, rows, rest))


def _ranked(legs: tuple[str, ...], rank: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(sorted(legs, key=lambda leg: rank.get(leg, -1)))


def _without_private(builder: Builder, value: Value, other: Value, out: frozenset[str]) -> Value:
    private = [leg for leg in value.legs if leg not in out and leg not in other.legs]
    return builder.sum(value, private) if private else value


def _matrix(
    builder: Builder, value: Value, batch: tuple[str, ...], first: tuple[str, ...], second: tuple[str, ...]
) -> tuple[Value, bool]:
    """The value as ``[batch, first, second]``, or transposed if it lies that way in memory."""
    long = lambda legs: tuple(leg for leg in legs if builder.sizes[leg] > 1)  # noqa: E731
    lead: Axes = (batch,) if builder.volume(batch) > 1 else ()
    flipped = long((*batch, *second, *first))
    if long(value.legs) == flipped != long((*batch, *first, *second)):
        return builder.convert(value, (*lead, second, first)), True
    return builder.convert(value, (*lead, first, second)), False


def _elementwise(
    builder: Builder,
    left: Value,
    right: Value,
    batch: tuple[str, ...],
    rows: tuple[str, ...],
    columns: tuple[str, ...],
) -> Value:
    a = builder.convert(left, (batch, rows, ()))
    b = builder.convert(right, (batch, (), columns))
    register = builder.program.emit(kernels.multiply, (a.register, b.register))
    return Value(register, (batch, rows, columns))
