"""What the fields of an estimator may be, and as what they are kept."""

from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from randbp import (
    Batch,
    Channels,
    Estimator,
    LowResolution,
    NormChannels,
    NormSpatial,
    Precision,
    Projection,
    Rounding,
    Spatial,
)
from randbp.estimators import plain_estimator

SAME = [
    (Spatial(np.float64(0.5)), Spatial(0.5)),
    (Batch(np.float32(0.25)), Batch(0.25)),
    (Channels(Fraction(1, 2)), Channels(0.5)),
    (Spatial(1), Spatial(1.0)),
    (NormChannels(np.float64(0.5), top=np.float32(0.25)), NormChannels(0.5, top=0.25)),
    (NormSpatial(0.5, center=np.int64(4)), NormSpatial(0.5, center=4)),
    (LowResolution(0.5, block=np.int32(8)), LowResolution(0.5, block=8)),
    (Projection(0.5, block=np.int64(64)), Projection(0.5, block=64)),
    (Precision("float16", Rounding(np.int64(4))), Precision("float16", Rounding(4))),
    (Rounding(np.int64(4), Spatial(np.float64(0.5)), np.int64(64)), Rounding(4, Spatial(0.5), 64)),
]


@pytest.mark.parametrize(("given", "plain"), SAME, ids=[str(plain) for _, plain in SAME])
def test_numbers_are_kept_as_pythons_own(given: Estimator, plain: Estimator, tmp_path: Path) -> None:
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
