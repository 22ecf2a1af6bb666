"""Stochastic rounding of what is held for backward."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..codecs import Uniform
from ..draws.draw import Draw
from ..tn import ConvSpec, LayerSpec, LinearSpec
from .base import Estimator, Wrapping, at_least
from .chunks import chunked_weight_vjp, chunks
from .description import Description
from .exact import Exact

_NOISE, _OF_SCALES = -2, 1  # keys of the draws that round; the wrapped estimator uses others


@dataclass(frozen=True)
class Rounding(Wrapping, Estimator):
    """Hold the input, or what another estimator keeps of it, in 1 to 8 bits per entry.

    Each block of entries gets an offset ``a`` (its least entry) and a step ``h = range / (2^b - 1)``; an entry is held
    as the integer ``⌊(x - a)/h + u⌋`` with ``u`` uniform in ``[0, 1)`` and read as ``a + h·integer``. The expectation
    over ``u`` is ``x``, and every VJP is linear in what is held, so the estimate stays unbiased. The variance of an
    entry is ``h²·f·(1 - f) ≤ h²/4`` with ``f`` the fractional part; errors of different entries are independent. The
    variance of the weight VJP is thus at most ``Σ_i h_i²/4`` times the squared norm of the output gradients that entry
    ``i`` meets, in addition to the variance of the wrapped estimator.

    Where all entries are kept, sequences of linear layers and inputs that a convolution cuts into patches (a stride as
    large as the kernel) are read as ``a + h·(integer + 1/2 - u)``: the noise is generated again and subtracted, and the
    variance of an entry is ``h²/12``, half of the mean variance without that. Everywhere else entries on a level stay
    exact, such as the zeros of a ReLU, which has the smaller variance where more than half of the entries are zeros.

    The bytes are ``b/8`` per entry plus two scales per block, in the input's precision but at least in single
    precision. With codes of one or two bits, scales in single precision are rounded stochastically to bfloat16; the
    relative variance that this adds to an entry is at most ``2^-16``.

    Rounding saves no arithmetic: the weight VJP decodes an eighth of the batch (or 2^22 entries if that is more) at a
    time and runs the exact kernel. If the wrapped estimator is a sampler, only the sample is decoded.

    What an estimator holds as a ``[N, M]`` matrix after its sample, such as means, is rounded to eight bits at least,
    since an error in it touches all positions at once. Tensors that would not get smaller are held as they are. NaN
    and Inf come back as NaN and leave other entries alone; with one bit their whole block is NaN.

    Source: Chakrabarti and Moseley, Backprop with approximate activations, NeurIPS 2019 (arXiv:1901.07988); Chen et
    al., ActNN: reducing training memory footprint via 2-bit activation compressed training, ICML 2021
    (arXiv:2104.14129), whose blocks and stochastic rounding these are.

    Args:
        bits: Bits per entry, 1 to 8.
        estimator: The estimator that decides which entries are kept; by default all are.
        block: Number of entries that share two scales; ``"channel"`` for one block per example and channel.

    Raises:
        ValueError: If ``bits`` or ``block`` is out of range, or ``estimator`` does not serve the weight VJP.

    Example:
        >>> from randbp import Spatial
        >>> Rounding(bits=4, estimator=Spatial(keep=0.25)).keep  # share of the bytes in single precision
        0.03125
    """

    allowed = {  # noqa: RUF012 -- never changed
        "bits": at_least(1, 8),
        "block": (
            lambda block: (isinstance(block, str) and block == "channel") or at_least(8)[0](block),
            "an integer >= 8 or 'channel'",
        ),
        "estimator": (
            lambda inner: isinstance(inner, Estimator) and not isinstance(inner, Rounding),
            "an estimator that does not round",
        ),
    }
    keep: float = field(default=1.0, init=False, repr=False, compare=False)
    bits: int
    estimator: Estimator = Exact()  # noqa: RUF009 -- a frozen value
    block: int | Literal["channel"] = 256
    serves: ClassVar[frozenset[str]] = frozenset({"weight_vjp"})
    exact = False  # rounding always loses something

    def __post_init__(self) -> None:
        super().__post_init__()
        if "weight_vjp" not in self.estimator.serves:
            raise ValueError(f"Rounding: estimator={self.estimator!r}, expected one that serves weight_vjp")
        object.__setattr__(self, "keep", self.estimator.keep * self.bits / 32)

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """For each tensor of the estimator within an empty one of its shape and dtype, then it, or codes and scales."""
        if self.estimator.exact:
            inner: tuple[Tensor, ...] = (input.movedim(1, -1) if self._rows(spec) else input,)
        else:
            inner = self.estimator.sketch(input, spec, draw)
        held: list[Tensor] = []
        for number, tensor in enumerate(inner):
            dithered = self.estimator.exact and _is_dithered(spec)
            layout = self._layout(tuple(tensor.shape), tensor.dtype, number, dithered)
            held.append(tensor.new_empty(0, *tensor.shape))
            if layout is None:
                held.append(tensor)
                continue
            codes, scales = _encode(layout, tensor, draw.child(_NOISE, number).seed)
            held.extend((codes, layout.short_scales(scales, draw.child(_NOISE, number, _OF_SCALES).seed)))
        return tuple(held)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """The VJP of what is held, decoded."""
        if not self.estimator.exact:
            return self.estimator.weight_vjp(tuple(self._decode(held)), output_grad, spec, draw)
        if len(held) == 2:  # not rounded
            return Exact().weight_vjp((self.examples(held, spec, draw)(slice(None)),), output_grad, spec, draw)
        examples, parts = self.examples(held, spec, draw), chunks(spec.batch_size, entries=prod(spec.input_shape[1:]))
        return chunked_weight_vjp(lambda _, part: examples(part), parts, output_grad, spec)

    def examples(self, held: tuple[Tensor, ...], spec: LayerSpec, draw: Draw) -> Callable[[slice], Tensor]:
        """Where the estimator within keeps everything: what decodes a slice of the batch, an input ``[n, C, *I]``."""
        like, *rest = held
        layout, rows = self._layout(tuple(like.shape[1:]), like.dtype, 0, _is_dithered(spec)), self._rows(spec)
        noise = draw.child(_NOISE, 0).seed

        def decoded(part: slice) -> Tensor:
            found = rest[0][part]
            if layout is not None:
                found = layout.decode(found, rest[1][part], noise, first_row=part.start).view(-1, *like.shape[2:])
            return found.movedim(-1, 1) if rows else found

        return decoded

    def _rows(self, spec: LayerSpec) -> bool:
        """Whether the input is held with its channels innermost: as linear layers take it, and need it back."""
        return isinstance(spec, LinearSpec) and self.block != "channel"

    def _decode(self, held: tuple[Tensor, ...]) -> Iterator[Tensor]:
        tensors = iter(held)
        for number, like in enumerate(tensors):
            layout = self._layout(tuple(like.shape[1:]), like.dtype, number)
            if layout is None:
                yield next(tensors)
            else:
                yield layout.decode(next(tensors), next(tensors), dtype=like.dtype).view(like.shape[1:])

    def _layout(
        self, shape: tuple[int, ...], dtype: torch.dtype, number: int, dithered: bool = False
    ) -> Uniform | None:
        """How the ``number``-th tensor of a sketch is rounded, ``None`` if that would not save bytes."""
        if not prod(shape) or not dtype.is_floating_point:
            return None
        entries = prod(shape[1:])
        block = min(256 if self.block == "channel" else self.block, entries)
        if self.block == "channel" and prod(shape[2:]) > 1:
            block = prod(shape[2:])
        bits = max(8, self.bits) if number and len(shape) == 2 else self.bits
        layout = Uniform(bits, entries, block, dithered)
        return layout if layout.nbytes(1, dtype, short=True) < entries * dtype.itemsize else None

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        inner, zeros = self.estimator.describe(spec, dtype), torch.zeros(spec.input_shape, dtype=dtype)
        sketch = (zeros,) if self.estimator.exact else self.estimator.sketch(zeros, spec, Draw(0))
        held = 0
        for number, tensor in enumerate(sketch):
            layout = self._layout(tuple(tensor.shape), tensor.dtype, number)
            held += tensor.nbytes if layout is None else len(tensor) * layout.nbytes(1, dtype, short=True)
        variance = "≤ Σ_i (h_i²/4) ‖V_Y met by entry i‖², h = range of its block / (2^bits - 1)"
        if not self.estimator.exact:
            variance = f"{inner.variance}; plus {variance}, times squared weights"
        return Description(held, inner.weight_multiply_adds, None, None, variance, self.unbiased)


def _is_dithered(spec: LayerSpec) -> bool:
    """Whether the input is a linear layer's sequence or is cut into patches: images, and outputs of normalisations and
    smooth activations, in which no entries are zeros that should stay exact.
    """
    if isinstance(spec, LinearSpec):
        return prod(spec.input_size) > 1
    return isinstance(spec, ConvSpec) and prod(spec.kernel_size) > 1 and spec.kernel_size == spec.stride


def _encode(layout: Uniform, tensor: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of ``[N, …]``; of one in another memory order a few examples at a time, which are copied."""
    if tensor.is_contiguous():
        return layout.encode(tensor.flatten(1), seed)
    parts = chunks(len(tensor), entries=layout.entries)
    several = [layout.encode(tensor[part].flatten(1), seed, part.start * layout.blocks) for part in parts]
    codes, scales = zip(*several, strict=True)
    return torch.cat(codes), torch.cat(scales)
