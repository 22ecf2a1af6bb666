"""Means over the same examples in two passes, before and after a step."""

from collections.abc import Mapping

from .averages import Reduction
from .gathering import Means, Seen
from .processes import Peers


def terms_of(taken: Mapping[str, Seen], reduction: Reduction) -> dict[str, int]:
    """What a mean gradient of examples is multiplied by, to be that of a shift of all outputs.

    A loss that is a mean divides gradients by the number of examples. Of a sum, means stay means, as in K-FAC's factor.
    """
    return {key: 1 if reduction == "sum" else seen.examples for key, seen in taken.items()}


def means_of(taken: Mapping[str, Seen], terms: Mapping[str, int], peers: Peers | None) -> dict[str, Means]:
    """Means of what all processes have seen in their last backward passes."""
    means = {
        key: seen.means._replace(output_grad=seen.means.output_grad * terms[key])
        for key, seen in taken.items()
        if seen.means is not None and key in terms
    }
    if peers is None:
        return means
    found = peers.means(means, lambda shape: [(shape[0], shape[2]), shape[:2], shape[:2]])
    return {key: Means(*each) for key, each in found.items()}
