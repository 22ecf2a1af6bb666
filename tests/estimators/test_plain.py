"""Estimators written as plain data."""

import json
from dataclasses import asdict

import pytest

from randbp import Estimator, Exact, LowResolution, NormSpatial, Rounding, Spatial
from randbp.estimators import plain_estimator
from tests.catalogue import ESTIMATORS, EstimatorCase


@pytest.mark.parametrize("case", ESTIMATORS, ids=str)
def test_class_and_fields(case: EstimatorCase) -> None:
    estimator, fields = case.make(0.25), asdict(case.make(0.25))
    for name in fields:  # what holds another one names its class, too
        if isinstance(getattr(estimator, name), Estimator):
            fields[name] = plain_estimator(getattr(estimator, name))
    assert plain_estimator(estimator) == {"class": type(estimator).__name__, **fields}
    assert json.loads(json.dumps(fields)) == fields


@pytest.mark.parametrize("estimator", [Exact(), Spatial(0.25), LowResolution(0.5, block=8), NormSpatial(0.5)], ids=str)
def test_class_and_fields_of_one_that_holds_no_other(estimator: Estimator) -> None:
    assert plain_estimator(estimator) == {"class": type(estimator).__name__, **asdict(estimator)}


def test_the_class_is_named_at_every_level() -> None:
    plain = plain_estimator(Rounding(4, Spatial(0.25, center=False)))
    inner = {"class": "Spatial", "keep": 0.25, "per_example": True, "center": False, "runs": True}
    assert plain == {"class": "Rounding", "keep": 0.25 / 8, "bits": 4, "estimator": inner, "block": 256}
    assert json.loads(json.dumps(plain)) == plain


def test_estimators_within_are_told_apart() -> None:
    raw = Rounding(4, Spatial(0.25, per_example=False)), Rounding(4, LowResolution(0.25))
    assert len({json.dumps(plain_estimator(estimator)) for estimator in (*raw, Rounding(4))}) == 3
