"""One estimator for all layers, or a mapping from names or globs to estimators."""

from collections.abc import Mapping, Sequence

from ..autograd import check_estimator
from ..estimators import Estimator, Exact
from ..estimators.base import Vjp
from ..text.near_words import nearest
from .selection import Selection, matching, shortened

Estimators = Estimator | Mapping[str, Estimator]


def check_estimators(vjp: Vjp, estimators: object) -> None:
    """Raise ``ValueError`` unless given an estimator that serves a VJP, or such by names or globs of layers."""
    if not isinstance(estimators, Mapping):
        check_estimator(vjp, estimators)
        return
    if not estimators:
        raise ValueError(f"{vjp}={{}}: expected at least one name or glob with an estimator")
    for pattern, estimator in estimators.items():
        if not isinstance(pattern, str):
            raise ValueError(f"{vjp}: key {pattern!r}, expected the name or glob of layers")
        try:
            check_estimator(vjp, estimator)
        except ValueError as error:
            raise ValueError(f"{error} (layers {pattern!r})") from None


def estimators_by_layer(vjp: Vjp, estimators: Estimators, chosen: Selection) -> dict[str, Estimator]:
    """The estimator of each layer: the first key that matches any of its names decides; without one it is exact.

    Raises:
        ValueError: If a key matches none of the layers, or none that can be estimated, or different keys give
            different names of a shared layer different estimators.
    """
    served = chosen.served
    if not isinstance(estimators, Mapping):
        return dict.fromkeys(served.layers, estimators)
    for pattern in estimators:
        if not served.named(pattern).layers:
            exact = list(map(repr, chosen.named(pattern).layers))
            what = f"only layers that stay exact, {shortened(exact)}" if exact else ""
            what = what or f"none of the layers {shortened(list(map(repr, served.layers)))}"
            raise ValueError(f"{vjp}: key {pattern!r} matches {what}{'' if exact else nearest(pattern, served.layers)}")
    return {name: _first(vjp, estimators, one.names) for name, one in served.layers.items()}


def _first(vjp: Vjp, estimators: Mapping[str, Estimator], names: Sequence[str]) -> Estimator:
    """The estimator of the first key that matches a layer, unless a key for another name of it says otherwise."""
    keys = [(pattern, matching(names, pattern)) for pattern in estimators]
    keys = [(pattern, meant) for pattern, meant in keys if meant]
    if not keys:
        return Exact()
    first, meant = keys[0]
    for other, also_meant in keys:
        if estimators[other] != estimators[first] and not also_meant & meant:
            raise ValueError(
                f"{vjp}: keys {first!r} and {other!r} give one layer, shared as {' and '.join(map(repr, names))}, "
                "different estimators"
            )
    return estimators[first]
