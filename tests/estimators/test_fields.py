"""What the fields of an estimator may be, and as what they are kept."""

from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from randbp import Batch, Channels, Estimator, Precision, Rounding, Spatial
from randbp.estimators import plain_estimator
from tests import catalogue

# Whole numbers and other libraries' rates; and numbers of a choice that no test of all estimators makes.
SAME = [
    (Batch(np.float32(0.25)), Batch(0.25)),
    (Channels(Fraction(1, 2)), Channels(0.5)),
    (Spatial(1), Spatial(1.0)),
    (Precision("float16", Rounding(np.int64(4))), Precision("float16", Rounding(4))),
]


def from_numpy(estimator: Estimator) -> Estimator:
    """The same estimator made of NumPy's numbers, through and through."""

    def converted(value: object) -> object:
        if isinstance(value, Estimator):
            return from_numpy(value)
        numbers = {float: np.float64, int: np.int64}
        return numbers[type(value)](value) if type(value) in numbers else value

    given = {field.name: converted(getattr(estimator, field.name)) for field in fields(estimator) if field.init}
    return type(estimator)(**given)


@pytest.mark.parametrize(("given", "plain"), SAME, ids=[str(plain) for _, plain in SAME])
def test_numbers_are_kept_as_pythons_own(given: Estimator, plain: Estimator, tmp_path: Path) -> None:
    assert_plain(given, plain, tmp_path)


@pytest.mark.parametrize("case", catalogue.ESTIMATORS, ids=str)
def test_all_estimators_keep_pythons_own_numbers(case: catalogue.EstimatorCase, tmp_path: Path) -> None:
    assert_plain(from_numpy(case.make(0.5)), case.make(0.5), tmp_path)


def assert_plain(given: Estimator, plain: Estimator, tmp_path: Path) -> None:
    assert given == plain and repr(given) == repr(plain)
    for field in fields(plain):
        assert type(getattr(given, field.name)) is type(getattr(plain, field.name))
    assert type(given.keep) is float
    torch.save(plain_estimator(given), tmp_path / "estimator.pt")
    assert torch.load(tmp_path / "estimator.pt", weights_only=True) == plain_estimator(plain)


@pytest.mark.parametrize("value", ["false", 0, 1, None, np.bool_(True)], ids=repr)
@pytest.mark.parametrize(
    ("kind", "name"),
    [(Spatial, "center"), (Spatial, "per_example"), (Batch, "bernoulli"), (Channels, "bernoulli")],
    ids=lambda case: getattr(case, "__name__", case),
)
def test_flags_are_true_or_false(kind: type[Estimator], name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__}: {name}=.*expected True or False"):
        kind(keep=0.5, **{name: value})
