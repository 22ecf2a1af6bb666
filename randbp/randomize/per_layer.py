"""One estimator for all layers, or one for each: what a name or glob of a mapping means."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from ..estimators import Estimator, Exact
from ..estimators.base import Vjp
from ..functional import check_estimator

Estimators = Estimator | Mapping[str, Estimator]


def check_estimators(vjp: Vjp, estimators: object) -> None:
    """Raise unless this is an estimator that serves a VJP, or a mapping from names or globs to such estimators.

    Raises:
        ValueError: One line that names the VJP, the estimator, and the layers it is meant for.

    Example:
        >>> from randbp import Batch
        >>> check_estimators("input_vjp", {"": Batch(keep=0.5)})
        Traceback (most recent call last):
        ValueError: input_vjp=Batch(keep=0.5, bernoulli=False, center=False): Batch serves only weight_vjp (layers '')
    """
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


def estimators_by_layer(vjp: Vjp, estimators: Estimators, names: Iterable[str]) -> dict[str, Estimator]:
    """The estimator of each layer: of several keys that match its name the first counts, without one it is exact.

    Raises:
        ValueError: If a key matches none of the layers.

    Example:
        >>> from randbp import Spatial
        >>> chosen = {"head": Spatial(keep=0.5), "body.*": Spatial(keep=0.25)}
        >>> [str(e) for e in estimators_by_layer("weight_vjp", chosen, ["stem", "body.0", "head"]).values()]
        ['Exact()', 'Spatial(keep=0.25)', 'Spatial(keep=0.5)']
    """
    names = list(names)
    if not isinstance(estimators, Mapping):
        return dict.fromkeys(names, estimators)
    for pattern in estimators:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{vjp}: key {pattern!r} matches none of the layers {_listed(names)}")
    return {
        name: next((estimator for pattern, estimator in estimators.items() if fnmatchcase(name, pattern)), Exact())
        for name in names
    }


def _listed(names: list[str]) -> str:
    shown = [repr(name) for name in names[:8]]
    return ", ".join(shown) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
