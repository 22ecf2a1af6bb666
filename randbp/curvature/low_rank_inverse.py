"""K-FAC with factors of low rank: running averages kept as their largest eigenvectors, whose inverses are products."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed import get_rank
from torch.nn.functional import one_hot

from .arguments import check_number, positive
from .averages import Scales, weight_of_next
from .eigenvectors import eigh
from .gathering import Seen
from .inverse import least_shift, shared_damping
from .method import Method
from .moments import Moment
from .processes import Peers, Shape, processes

SIDES = ("input", "output_grad")


@dataclass(frozen=True)
class LowRankInverse(Method):
    """``Γ⁻¹ G A⁻¹`` with both factors of K-FAC as ``F ≈ RᵀR + ρ I``, where ``R`` has at most ``rank`` rows.

    ``R`` are the largest eigenvectors of the running average, scaled by the roots of their eigenvalues, and ``ρ`` is
    the mean of what was cut off, so that the trace is the average's. New rows, one per example, are put below ``R``,
    and the Gram matrix of both is decomposed: nothing of ``a²`` entries is ever made. With orthogonal rows,
    ``(F + λ I)⁻¹ = 1/μ (I - Rᵀ diag(1 / (μ + ‖r_i‖²)) R)`` and ``μ = ρ + λ`` (Woodbury). While nothing has been cut off
    this is :class:`~randbp.curvature.KroneckerInverse`.

    A gradient ``[d, a]`` takes ``4 rank d a`` multiply-adds instead of ``(d + a) d a``. All is renewed in every
    ``factor_every``-th step; ``inverse_every`` does not matter. Of several processes each gives its largest ``rank``
    directions.

    Args:
        approximation: Approximation of weight sharing; ``"reduce"``, as ``"expand"`` has a row per position.
        decay: Decay of the running averages of factors, in ``[0, 1)``.
        rank: Most rows of each factor.

    Raises:
        ValueError: If an argument is out of range.

    Source: C. Puiu, Randomized K-FACs: speeding up K-FAC with randomized numerical linear algebra, 2022
    (arXiv:2206.15397), who cuts off eigenvalues of running averages; V. Feinberg, X. Chen, Y. J. Sun, R. Anil and
    E. Hazan, Sketchy: memory-efficient adaptive regularization with frequent directions, 2023 (cut off as ``ρ I``).

    Example:
        >>> method, seen, state = LowRankInverse(), Seen(examples=1), {}
        >>> seen.input.add_rows(torch.tensor([[[3.0]]]))
        >>> seen.output_grad.add_rows(torch.tensor([[[2.0]]]))
        >>> method.update(state, seen, (1.0, 1.0))
        >>> method.refresh(state, damping=1.0)
        >>> method.direction(state, torch.tensor([[[49.0]]])).round(decimals=3)  # 49 / (9 + 1.5) / (4 + 1 / 1.5)
        tensor([[[1.]]])
    """

    decay: float = 0.95
    rank: int = 128

    keys: ClassVar[tuple[str, ...]] = tuple(f"{side}_{what}" for side in SIDES for what in ("rows", "rest", "shift"))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("decay", self.decay, 0, 1)
        positive("rank", self.rank)
        if self.approximation != "reduce":
            raise ValueError(f"approximation={self.approximation!r} with rank={self.rank}: expected 'reduce'")

    def update(self, state: dict[str, Any], seen: Seen, scales: tuple[float, float]) -> None:
        """Update the running averages of both factors."""
        weight = weight_of_next(state, self.decay)
        for side, moment, scale in zip(SIDES, seen.moments, scales, strict=True):
            rows = _rows(moment) * (weight * scale) ** 0.5
            rest = rows.new_zeros(len(rows))
            known = state.get(f"{side}_rows")
            if known is not None and known.shape[::2] == rows.shape[::2]:  # or the bias was frozen since
                rows = torch.cat([known * (1 - weight) ** 0.5, rows], 1)
                rest = state[f"{side}_rest"] * (1 - weight)
            state[f"{side}_rows"], cut = largest_rows(rows, self.rank)
            state[f"{side}_rest"] = rest + cut

    def refresh(self, state: dict[str, Any], damping: float) -> None:
        """Share the damping between the factors by their traces, if there are any."""
        if "input_rows" not in state:
            return
        means = [
            state[f"{side}_rows"].square().sum((1, 2)) / state[f"{side}_rows"].shape[2] + state[f"{side}_rest"]
            for side in SIDES
        ]
        for side, shift in zip(SIDES, shared_damping(means[0], means[1], damping), strict=True):
            state[f"{side}_shift"] = least_shift(shift + state[f"{side}_rest"])

    def direction(self, state: dict[str, Any], grad: Tensor) -> Tensor | None:
        """``Γ⁻¹ G A⁻¹``."""
        right, left = state.get("input_rows"), state.get("output_grad_rows")
        if left is None or right is None or "input_shift" not in state:
            return None
        if (len(right), left.shape[2], right.shape[2]) != tuple(grad.shape):
            return None  # the bias was frozen, or the weight has another shape, since they were made
        shifts = state["input_shift"], state["output_grad_shift"]
        made = grad / (shifts[0] * shifts[1]).view(-1, 1, 1)
        made.baddbmm_((made @ right.mT) / _sizes(right, shifts[0]).unsqueeze(1), right, alpha=-1)
        return made.baddbmm_(left.mT, (left @ made) / _sizes(left, shifts[1]).unsqueeze(2), alpha=-1)

    def over_processes(self, taken: Mapping[str, Seen], scales: Scales, peers: Peers) -> dict[str, Seen]:
        """The rows of all processes, each in places of its own."""
        number = processes()

        def wanted(shape: tuple[int, int, int]) -> list[Shape]:
            groups, outer, inner = shape
            return [(groups, number * min(self.rank, size), size) for size in (inner, outer)] + [(number,)]

        parts = {}
        for key, seen in taken.items():
            shapes = wanted(peers.shapes[key])
            sides = zip(seen.moments, scales[key], shapes, strict=False)
            parts[key] = [_in_place(_rows(moment) * scale**0.5, shape) for moment, scale, shape in sides]
            parts[key].append(one_hot(torch.tensor(get_rank()), number).to(parts[key][0]))
        found = {}
        for key, (*means, ranks) in peers.means(parts, wanted).items():
            found[key] = Seen(examples=1)
            for moment, mean in zip(found[key].moments, means, strict=True):
                moment.add_rows(mean / ranks.max() ** 0.5)  # of n processes: 1/n Σ F_p from rows that are divided by n
        return found


def largest_rows(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Orthogonal rows ``R`` ``[G, ≤ rank, a]`` with ``RᵀR ≈ rowsᵀ rows``, and the mean eigenvalue cut off ``[G]``.

    They are ``Vᵀ rows`` with the eigenvectors ``V`` of the Gram matrix ``rows rowsᵀ``; where there are more rows than
    columns, eigenvectors of ``rowsᵀ rows`` scaled by the roots of the eigenvalues.

    Example:
        >>> found, cut = largest_rows(torch.tensor([[[0.0, 3.0, 0.0], [1.0, 0.0, 0.0]]]), rank=1)
        >>> found.abs(), cut
        (tensor([[[0., 3., 0.]]]), tensor([0.3333]))
    """
    number, columns = rows.shape[1:]
    if number > columns:
        values, vectors = eigh(rows.mT @ rows)
        rows = vectors.mT * values.clamp_min(0).sqrt().unsqueeze(2)
    else:
        values, vectors = eigh(rows @ rows.mT)
        rows = vectors.mT @ rows
    cut = max(0, values.shape[1] - rank)
    return rows[:, cut:].contiguous(), values[:, :cut].clamp_min(0).sum(1) / columns


def _sizes(rows: Tensor, shift: Tensor) -> Tensor:
    """``μ + ‖r_i‖²`` ``[G, K]``."""
    return shift.unsqueeze(1) + rows.square().sum(2)


def _rows(moment: Moment) -> Tensor:
    """Rows of a moment; of one that has become a matrix its scaled eigenvectors."""
    if moment.has_rows:
        return moment.rows()
    values, vectors = eigh(moment.matrix())
    return vectors.mT * values.clamp_min(0).sqrt().unsqueeze(2)


def _in_place(rows: Tensor, shape: Shape) -> Tensor:
    """This process's rows in its part of ``shape``, with zeros elsewhere."""
    most = shape[1] // processes()
    if rows.shape[1] > most:
        rows, _ = largest_rows(rows, most)
    made = rows.new_zeros(shape)
    first = get_rank() * most
    made[:, first : first + rows.shape[1]] = rows
    return made
