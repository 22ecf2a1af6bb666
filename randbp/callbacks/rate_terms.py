"""What one keep rate decides, and the variances and costs that follow from the norms of rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..estimators import Importance
from ..estimators.observed_rows import RowNorms
from ..estimators.sampling_variance import sampling_variances
from ..tune.rate_allocation import RATES

OVERHEAD = 0.1
"""Of a sampled VJP over the multiply-adds of its share, for norms, drawing and gathering, as part of the exact VJP."""


@dataclass(frozen=True)
class Term:
    """The VJPs of a layer that have one keep rate: both, where one sample serves both, else one."""

    layer: str
    vjps: tuple[str, ...]
    unit: Literal["positions", "examples"]
    by_input: bool  # whether rows are drawn by the norms of the input, too

    @property
    def name(self) -> str:
        """Layer, and VJPs."""
        return f"{self.layer}:{'+'.join(self.vjps)}"


def terms_of(layers: Mapping[str, Mapping[str, Importance]]) -> list[Term]:
    """The terms of estimators by layer and VJP.

    Example:
        >>> terms_of({"a": {"weight_vjp": Importance(0.5), "input_vjp": Importance(0.5)}})[0].name
        'a:weight_vjp+input_vjp'
    """
    found = []
    for layer, own in layers.items():
        weight, input = own.get("weight_vjp"), own.get("input_vjp")
        if weight is not None and input is not None and (weight.keep, weight.unit) == (input.keep, input.unit):
            found.append(Term(layer, ("weight_vjp", "input_vjp"), weight.unit, weight.bits is None))
            continue
        for vjp, one in own.items():
            found.append(Term(layer, (vjp,), one.unit, vjp == "weight_vjp" and one.bits is None))
    return found


def curves(terms: Sequence[Term], notes: Sequence[RowNorms]) -> dict[str, Tensor]:
    """Variances and costs at each rate of ``RATES``, by term.

    ``own/<term>`` is the variance of the layer's weight VJP, ``Σ_r (1/π_r - 1) ‖g_r‖² ‖x_r‖²``. ``passed/<term>`` is
    what its input VJP adds to the weights of the layers below: ``Σ_r (1/π_r - 1) ‖g_r‖² / Σ_r ‖g_r‖²``, the share of
    noise in its gradient, times ``Σ_r ‖g_r‖² ‖x_r‖²`` of all layers whose backward pass comes later.
    ``cost/<term>`` counts multiply-adds.
    """
    energy: dict[int, float] = {}
    own, costs, shares = {}, {}, {}
    for index, term in enumerate(terms):
        weight = [note for note in notes if note.layer == index and note.vjp == "weight_vjp"]
        input = [note for note in notes if note.layer == index and note.vjp == "input_vjp"]
        if not weight and not input:
            continue
        first = min(place for place, note in enumerate(notes) if note.layer == index)
        variance, share = torch.zeros(len(RATES)).double(), torch.zeros(len(RATES)).double()
        for call in range(max(len(weight), len(input))):
            grad = (weight or input)[call].grad
            met = weight[call].met if call < len(weight) else None
            sizes = grad.sqrt()
            if met is not None and term.by_input:
                sizes = sizes * (met.sqrt() + met.sqrt().mean())
            squares = torch.stack([grad * met if met is not None else torch.zeros_like(grad), grad])
            found = sampling_variances(sizes, squares, RATES).cpu()
            if weight:
                variance += found[0]
                energy[first] = energy.get(first, 0.0) + float(squares[0].double().sum())
            if input:
                share += found[1] / grad.double().sum().cpu().clamp_min(1e-300)
        calls = weight + input
        work = sum(note.spec.multiply_adds for note in calls)
        saves = term.unit == "examples" or calls[0].spec.groups == 1
        costs[term.name] = torch.tensor([work * (min(1.0, rate + OVERHEAD) if saves else 1.0) for rate in RATES])
        if not saves:  # sampling would only add noise
            costs[term.name][:-1] *= 1 + OVERHEAD
        own[term.name], shares[term.name] = variance, (first, share)
    result = {f"own/{name}": value for name, value in own.items()} | {f"cost/{n}": value for n, value in costs.items()}
    usual = sum(energy.values()) / max(1, len(energy)) or 1.0  # where the layers below are not seen
    for name, (first, share) in shares.items():
        below = sum(value for place, value in energy.items() if place > first)
        result[f"passed/{name}"] = share * max(usual, below)
    return result
