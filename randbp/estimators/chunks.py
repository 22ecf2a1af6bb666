"""The exact weight VJP of an input that is rebuilt a few examples at a time."""

from collections.abc import Callable

from torch import Tensor

from ..tn import LayerSpec
from .planned import planned_weight_vjp


def chunks(examples: int, most: int | None = None) -> list[slice]:
    """Slices of about an eighth of the examples each: small beside the whole, large enough to be efficient.

    Args:
        examples: How many there are.
        most: A smaller bound on the examples of one slice.

    Example:
        >>> [(part.start, part.stop) for part in chunks(3)]
        [(0, 1), (1, 2), (2, 3)]
    """
    size = max(1, -(-examples // 8) if most is None else min(most, -(-examples // 8)))
    return [slice(start, min(start + size, examples)) for start in range(0, examples, size)]


def chunked_weight_vjp(
    rebuild: Callable[[int, slice], Tensor], parts: list[slice], output_grad: Tensor, spec: LayerSpec
) -> Tensor:
    """Sum of the exact weight VJPs of parts of the batch, so that no full-size copy of the input appears at once.

    Args:
        rebuild: Makes the input ``[n, C, *I]`` of a part from its number and its slice of the batch.
        parts: The slices.
        output_grad: ``[N, D, *O]``.
        spec: The layer.
    """
    result = output_grad.new_zeros(spec.weight_shape)
    for number, part in enumerate(parts):
        input = rebuild(number, part).to(output_grad.dtype)
        result += planned_weight_vjp(input, output_grad[part], spec)
    return result
