"""The exact weight VJP of an input that is restored a few examples at a time."""

from collections.abc import Callable

from torch import Tensor

from ..tn import LayerSpec
from .planned import planned_weight_vjp

LITTLE = 2**22  # restored at once: kernels lose time on small parts, and this takes little memory [entries]


def chunks(examples: int, most: int | None = None, entries: int | None = None) -> list[slice]:
    """Slices of about an eighth of the examples each: few enough to take little memory, enough to be efficient.

    ``most`` is a smaller bound on the examples of one slice. With ``entries``, those of one example, slices may be
    larger, up to 2^22 entries.

    Example:
        >>> [(part.start, part.stop) for part in chunks(3)]
        [(0, 1), (1, 2), (2, 3)]
        >>> chunks(3, entries=1000)
        [slice(0, 3, None)]
    """
    size = max(1, -(-examples // 8) if most is None else min(most, -(-examples // 8)))
    if entries is not None:
        size = max(size, LITTLE // max(1, entries))
    return [slice(start, min(start + size, examples)) for start in range(0, examples, size)]


def chunked_weight_vjp(
    rebuild: Callable[[int, slice], Tensor], parts: list[slice], output_grad: Tensor, spec: LayerSpec
) -> Tensor:
    """Sum of the exact weight VJPs of parts of the batch, so that no copy of the whole input exists at any time.

    ``rebuild`` makes the input ``[n, C, *I]`` of a part from its number and its slice of the batch.
    """
    result: Tensor | None = None
    for number, part in enumerate(parts):
        each = planned_weight_vjp(rebuild(number, part).to(output_grad.dtype), output_grad[part], spec)
        result = each if result is None else result.add_(each)
    return output_grad.new_zeros(spec.weight_shape) if result is None else result
