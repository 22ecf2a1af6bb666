"""The space of a model's parameters: vectors in it as one tensor, as a list of tensors or by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import described

Vectors = Tensor | list[Tensor] | dict[str, Tensor]
"""A vector, or a matrix of ``K`` of them: ``[P]`` or ``[P, K]``; or one tensor per parameter, of its shape or with
one more axis ``K`` at the end, in a list or by the parameters' names."""


class ParameterSpace:
    """All parameters of a model that require gradients, in the model's order: ``P`` entries in total.

    The flat order is that of ``torch.nn.utils.parameters_to_vector``.

    Args:
        model: The network; of one that ``torch.compile`` returned, the network within.

    Attributes:
        model: The network.
        parameters: Its parameters by name.
        size: ``P``.
        dtype: Data type of flat vectors, which holds all the parameters'.
        device: Device of flat vectors, that of the first parameter.

    Raises:
        ValueError: If no parameter requires a gradient, or one is complex.

    Example:
        >>> space = ParameterSpace(nn.Linear(2, 3))
        >>> space.size, list(space.parameters)
        (9, ['weight', 'bias'])
        >>> [piece.shape for piece in space.pieces(torch.zeros(9))]
        [torch.Size([3, 2]), torch.Size([3])]
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model={described(model)}: expected an nn.Module")
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.parameters = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        if not self.parameters or any(not each.is_floating_point() for each in self.parameters.values()):
            raise ValueError(f"model: {type(model).__name__}: expected real parameters that require gradients")
        first, *rest = self.parameters.values()
        self.dtype = first.dtype
        for each in rest:
            self.dtype = torch.promote_types(self.dtype, each.dtype)
        self.device = first.device
        self.size = sum(each.numel() for each in self.parameters.values())

    def pieces(self, vectors: Tensor) -> list[Tensor]:
        """Split ``[P]`` or ``[P, K]`` into one tensor per parameter."""
        parameters = list(self.parameters.values())
        parts = vectors.split([each.numel() for each in parameters])
        return [part.reshape(*like.shape, *vectors.shape[1:]) for part, like in zip(parts, parameters, strict=True)]

    def flat(self, pieces: Sequence[Tensor]) -> Tensor:
        """Join one tensor per parameter to ``[P]``, or, if they have an axis more, to ``[P, K]``."""
        rows = [
            piece.reshape(each.numel(), *piece.shape[each.dim() :]).to(self.device, self.dtype)
            for piece, each in zip(pieces, self.parameters.values(), strict=True)
        ]
        return torch.cat(rows)

    def read(self, vectors: Any) -> Tensor:
        """Convert vectors in any of the formats to ``[P]`` or ``[P, K]``.

        Raises:
            ValueError: If names, number or shapes are not those of the parameters.
        """
        if isinstance(vectors, Tensor):
            if vectors.dim() not in (1, 2) or len(vectors) != self.size:
                raise ValueError(f"vectors: shape {tuple(vectors.shape)}, expected ({self.size},) or ({self.size}, K)")
            return vectors.detach().to(self.device, self.dtype)
        if isinstance(vectors, Mapping):
            if vectors.keys() != self.parameters.keys():
                wrong = sorted(map(repr, vectors.keys() ^ self.parameters.keys()))
                raise ValueError(f"vectors: names {', '.join(wrong)} are missing or unknown, expected the parameters'")
            vectors = [vectors[name] for name in self.parameters]
        if not isinstance(vectors, (list, tuple)) or not all(isinstance(each, Tensor) for each in vectors):
            raise ValueError(f"vectors={described(vectors)}: expected a tensor, or a list or dict of them")
        shapes = [each.shape for each in self.parameters.values()]
        more = {tuple(each.shape[len(shape) :]) for each, shape in zip(vectors, shapes, strict=False)}
        fits = len(vectors) == len(shapes) and len(more) == 1 and len(next(iter(more))) <= 1
        if not fits or any(each.shape[: len(shape)] != shape for each, shape in zip(vectors, shapes, strict=True)):
            raise ValueError(
                f"vectors: shapes {[tuple(each.shape) for each in vectors]}, "
                f"expected {[tuple(shape) for shape in shapes]}, perhaps with one more axis at the end"
            )
        return self.flat([each.detach() for each in vectors])

    def like(self, flat: Tensor, given: Any) -> Any:
        """Convert ``[P]`` or ``[P, K]`` to the format of given vectors."""
        if isinstance(given, Tensor):
            return flat
        pieces = self.pieces(flat)
        return dict(zip(self.parameters, pieces, strict=True)) if isinstance(given, Mapping) else pieces
