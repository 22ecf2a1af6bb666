"""The base class of estimators: unbiased, cheaper substitutes for one VJP of a layer."""

import re
from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from math import inf, prod
from numbers import Integral, Real
from operator import index
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .._torch.dataclass_text import register
from ..draws.draw import Draw
from ..text.near_words import nearest
from ..tn import LayerSpec
from .description import Description

Vjp = Literal["weight_vjp", "input_vjp"]

Allowed = tuple[Callable[[Any], bool], str]


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def at_least(least: int, most: float = inf) -> Allowed:
    """Integers from ``least`` on, or up to ``most``."""
    return (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
        f"an integer >= {least}" if most == inf else f"an integer from {least} to {most}",
    )


def one_of(*names: str) -> Allowed:
    """One of two names."""
    return lambda value: isinstance(value, str) and value in names, " or ".join(map(repr, names))


RATE: Allowed = (lambda value: _number(value) and 0 < float(value) <= 1, "a number in (0, 1]")
SHARE: Allowed = (lambda value: _number(value) and 0 <= float(value) < 1, "a number in [0, 1)")
CELLS: Allowed = (
    lambda value: isinstance(value, bool) or (isinstance(value, int) and value >= 2),
    "True, False or a cell size >= 2",
)


@dataclass(frozen=True)
class Estimator(ABC):
    """An estimator of the weight VJP, the input VJP, or both, of a convolution, a transposed one or a linear layer.

    The weight VJP is estimated in two halves. :meth:`sketch` runs in the forward pass and returns all that is held
    for backward; :meth:`weight_vjp` runs in the backward pass on what was held. Both get the same :class:`Draw`, so
    random indices are drawn again instead of being stored. The input VJP needs nothing of the input, so
    :meth:`input_vjp` works on the output gradient alone.

    All three kinds of layers look alike to an estimator: an input ``[N, C, *I]``, an output gradient ``[N, D, *O]`` and
    a ``spec`` with shapes and hyper-parameters, which is a :class:`randbp.tn.ConvSpec`, a
    :class:`randbp.tn.ConvTransposeSpec` (whose weight is ``[C, D / groups, *K]``) or a :class:`randbp.tn.LinearSpec`
    (a convolution along the sequence with a kernel of one entry: vectors are sequences of one).

    Unbiased means: averaged over draws, the estimate is the exact VJP.

    ``torch.compile`` runs :meth:`sketch` on a tensor without data (``device="meta"``) to learn the sizes of what is
    held, and passes an estimator as text: its fields must be numbers, strings, tuples of these, or estimators.

    To add an estimator, write a frozen dataclass that derives from this class, implement :meth:`sketch` and
    :meth:`weight_vjp`, or :meth:`input_vjp`, or all three, and name in ``serves`` what it can stand in for. The
    page docs/estimators.md shows a complete one.

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``, the kept share of the sampled leg; 1 is exact.

    Raises:
        ValueError: If ``keep``, or another field, is not one of its ``allowed`` values.

    Attributes:
        allowed: By name of a field, whether a value is allowed, and what to say if it is not.
        serves: Which of ``"weight_vjp"`` and ``"input_vjp"`` the estimator can stand in for.
    """

    keep: float
    allowed: ClassVar[Mapping[str, Allowed]] = {}
    serves: ClassVar[frozenset[str]] = frozenset({"weight_vjp", "input_vjp"})

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        register(cls)

    def __post_init__(self) -> None:
        self._check("keep", RATE)
        make_plain(self)
        for name, allowed in self.allowed.items():
            self._check(name, allowed)

    def _check(self, name: str, allowed: Allowed) -> None:
        value = getattr(self, name)
        if not allowed[0](value):
            meant = nearest(value, re.findall(r"'([^']*)'", allowed[1])) if isinstance(value, str) else ""
            raise ValueError(f"{type(self).__name__}: {name}={value!r}, expected {allowed[1]}{meant}")

    @property
    def exact(self) -> bool:
        """Whether this estimator is PyTorch's own VJP."""
        return self.keep == 1

    @property
    def unbiased(self) -> bool:
        """Whether the average over draws is the exact VJP."""
        return True

    @property
    def fixed_size(self) -> bool:
        """Whether the sizes of what is held depend on shapes only, never on the draw."""
        return True

    @property
    def draws_examples(self) -> bool:
        """Whether the estimate drops examples, and should therefore see the whole batch at once."""
        return False

    @property
    def holds_input(self) -> bool:
        """Whether the sketch is the input itself."""
        return self.exact

    @property
    def sample_key(self) -> object:
        """What the sample of the output gradient depends on, apart from draw and layer; ``None`` if none is drawn.

        Where both VJPs of a layer have the same key, one :meth:`sample` takes the output gradient's place in both.
        """
        return None

    def sample(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Any:
        """What both VJPs take in the output gradient's place, where ``sample_key`` is not ``None``."""
        return output_grad

    @property
    def fallback(self) -> "Estimator | None":
        """The estimator that :class:`randbp.IfFaster` uses where this one is not faster; ``None`` for the exact VJP.

        An estimator that holds the same as another one, and only computes differently, falls back to that one.
        """
        return None

    def for_layer(self, vjp: Vjp, spec: LayerSpec, dtype: torch.dtype, device: torch.device) -> "Estimator":
        """The estimator for a VJP of a certain layer: this one, unless a class decides layer by layer."""
        return self

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """Return the tensors that the weight VJP holds of the input ``[N, C, *I]``; they own their memory."""
        raise NotImplementedError(f"{type(self).__name__} does not serve weight_vjp")

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """Estimate the weight VJP, of ``spec.weight_shape``, from the sketch and the output gradient ``[N, D, *O]``."""
        raise NotImplementedError(f"{type(self).__name__} does not serve weight_vjp")

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """Estimate the input VJP ``[N, C, *I]`` from the output gradient ``[N, D, *O]`` and the weight."""
        raise NotImplementedError(f"{type(self).__name__} does not serve input_vjp")

    def describe(self, spec: LayerSpec, dtype: torch.dtype = torch.float32) -> Description:
        """Costs and variance of the estimator in one layer, as numbers.

        Args:
            spec: The layer.
            dtype: Data type of input and output gradient.

        Returns:
            See :class:`Description`. An estimator without a description of its own is run once on zeros of the
            input's size to count the bytes held; its multiply-adds and variance are then ``None``.

        Raises:
            ValueError: If ``spec`` is not the spec of a layer.

        Example:
            >>> from randbp import Channels, tn
            >>> layer = tn.ConvSpec((8, 16, 32, 32), out_channels=16, kernel_size=3, padding=1)
            >>> Channels(keep=0.25).describe(layer).relative_variance
            3.0
        """
        if not isinstance(spec, LayerSpec):
            raise ValueError(f"spec={spec!r:.60}: expected a tn.ConvSpec, tn.ConvTransposeSpec or tn.linear_spec(…)")
        if self.exact or not spec.batch_size:
            size = spec.batch_size * spec.in_channels * prod(spec.input_size) * dtype.itemsize
            return Description(size, spec.multiply_adds, spec.multiply_adds, 0.0, "0")
        return self._describe(spec, dtype)

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        """:meth:`describe` where something is estimated."""
        held = None
        if "weight_vjp" in self.serves:
            sketch = self.sketch(torch.zeros(spec.input_shape, dtype=dtype), spec, Draw(0))
            held = sum(tensor.untyped_storage().nbytes() for tensor in sketch)
        return Description(held, None, None, None, "not stated", self.unbiased)

    def check_serves(self, vjp: Vjp) -> None:
        """Raise ``ValueError`` if this estimator cannot stand in for ``"weight_vjp"`` or ``"input_vjp"``."""
        if vjp not in self.serves and not self.exact:
            allowed = ", ".join(sorted(self.serves))
            raise ValueError(f"{vjp}={self!r}: {type(self).__name__} serves only {allowed}")

    def __str__(self) -> str:
        given = [f for f in fields(self) if f.init and getattr(self, f.name) != f.default]
        changed = [f"{f.name}={getattr(self, f.name)}" for f in given]
        return f"{type(self).__name__}({', '.join(changed)})"


def within(name: str) -> Any:
    """A property that an estimator with a field ``estimator`` takes from that one."""
    return property(lambda self: getattr(self.estimator, name), doc=f"``{name}`` of the wrapped estimator.")


class Wrapping:
    """Mixed in before :class:`Estimator` by classes with a field ``estimator``."""

    unbiased, fixed_size, draws_examples = within("unbiased"), within("fixed_size"), within("draws_examples")


def make_plain(estimator: Estimator) -> None:
    """Turn numbers of NumPy and other libraries into Python's own, which checkpoints and ``torch.compile`` can read.

    Raises:
        ValueError: If a field that is true or false is something else.

    Example:
        >>> from randbp import Batch
        >>> Batch(keep=0.5, bernoulli="false")
        Traceback (most recent call last):
        ValueError: Batch: bernoulli='false', expected True or False
    """
    for field in (field for field in fields(estimator) if field.init):
        value = getattr(estimator, field.name)
        if field.type is bool and not isinstance(value, bool):
            raise ValueError(f"{type(estimator).__name__}: {field.name}={value!r}, expected True or False")
        if isinstance(value, Real) and not isinstance(value, bool):
            number = index(value) if isinstance(value, Integral) and field.type is not float else float(value)
            object.__setattr__(estimator, field.name, number)


def kept(size: int, keep: float) -> int:
    """Number of entries that a keep rate leaves of ``size``: ``⌊p·size⌋``, at least one; it never depends on the draw.

    Example:
        >>> kept(10, 0.25), kept(3, 0.1)
        (2, 1)
    """
    # The tiny lift keeps 0.1 * 30 = 3 at 3 although the product rounds to just below it.
    return max(1, min(size, int(size * keep + 1e-9)))
