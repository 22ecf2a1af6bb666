"""Methods: what an optimiser keeps of the curvature of one weight, and how it divides a gradient by that."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .averages import Scales
from .gathering import Means, Seen
from .layer_factors import Approximation, check_approximation
from .processes import Peers


@dataclass(frozen=True)
class Method:
    """What is kept of the curvature of one weight, in a plain dictionary of tensors and numbers.

    A subclass says in :attr:`keys` which tensors it keeps, and writes :meth:`update`, which counts in
    ``state["updates"]``, :meth:`refresh` and :meth:`direction`. The weight and its bias are ``G`` matrices
    ``[G, d, a]`` with ``d = D / G`` and ``a = C / G·ΠK``, or one column more if there is a bias. Tensors are in single
    precision at least, and move with their weight.

    Args:
        approximation: Approximation of weight sharing in what is gathered: ``"reduce"`` or ``"expand"``.

    Attributes:
        keys: Names of all tensors in the state of a weight.
        numbers: Names of all numbers there.
        pairs: Whether both sides of each call are gathered, too.
        second_pass: Whether ``step(closure)`` calls the closure again, with the new parameters, for :meth:`compare`.
        costly: Whether :meth:`refresh` takes long: it runs in every ``inverse_every``-th step, and each weight's in one
            process for all. Otherwise it follows every update.

    Raises:
        ValueError: If the approximation is neither.

    Example:
        >>> import torch
        >>> from randbp.curvature import Preconditioner
        >>> class ByTrace(Method):  # divides by the means of both factors' eigenvalues
        ...     keys = ("means",)
        ...     def update(self, state, seen, scales):
        ...         state["updates"] = state.get("updates", 0) + 1
        ...         factors = [moment.matrix() * scale for moment, scale in zip(seen.moments, scales)]
        ...         state["means"] = torch.stack([each.diagonal(dim1=1, dim2=2).mean(1) for each in factors])
        ...     def direction(self, state, grad):
        ...         return grad / state["means"].prod(0).view(-1, 1, 1) if "means" in state else None
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> preconditioner = Preconditioner(model, ByTrace(), reduction="sum")
        >>> (2 * model(torch.ones(1, 3))).sum().backward()
        >>> preconditioner.step()
        >>> model.weight.grad  # 2, divided by 1 · 4
        tensor([[0.5000, 0.5000, 0.5000]])
    """

    approximation: Approximation = "reduce"

    keys: ClassVar[tuple[str, ...]] = ()
    numbers: ClassVar[tuple[str, ...]] = ("updates",)
    pairs: ClassVar[bool] = False
    second_pass: ClassVar[bool] = False
    costly: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_approximation(self.approximation)

    @property
    def diagonals(self) -> tuple[bool, bool]:
        """Whether the diagonals of the factors of input and output gradient are all that is needed of them."""
        return False, False

    def update(self, state: dict[str, Any], seen: Seen, scales: tuple[float, float]) -> None:
        """Add what a step's backward passes have seen, in steps in which it was gathered.

        Args:
            state: The state of the weight.
            seen: Sums over examples, all of them finite.
            scales: What these are to be multiplied by, to be the factors of input and output gradient.
        """
        raise NotImplementedError

    def refresh(self, state: dict[str, Any], damping: float) -> None:
        """Put new tensors for :meth:`direction` into the state, if anything is known."""

    def direction(self, state: dict[str, Any], grad: Tensor) -> Tensor | None:
        """The preconditioned gradient ``[G, d, a]``, or ``None`` if nothing is known of a weight of this shape."""
        raise NotImplementedError

    def entrywise(self, state: dict[str, Any], groups: int, outer: int, inner: int) -> tuple[Tensor, Tensor] | None:
        """``r`` ``[G, d]`` and ``c`` ``[G, a]``, if directions are ``r_i G[i, j] c_j``: no direction is then made."""
        return None

    def compare(self, state: dict[str, Any], before: Means, after: Means, damping: float) -> None:
        """Learn from the same batch before and after a step, if the method has a :attr:`second_pass`."""

    def over_processes(self, taken: Mapping[str, Seen], scales: Scales, peers: Peers) -> dict[str, Seen]:
        """What all processes together have seen, with scales of 1; all of them call this together."""
        return peers.factors(taken, scales, self.diagonals)

    def observe(self, state: dict[str, Any], seen: Seen) -> None:
        """Take what is needed of the pairs of a call while a backward pass runs, if the method has :attr:`pairs`.

        It is not called in steps that refresh, for which they are held until then.
        """

    def correct(self, state: dict[str, Any], squares: Tensor) -> None:
        """Learn from the mean of squares that :meth:`observe` has made of pairs, after refreshing."""
