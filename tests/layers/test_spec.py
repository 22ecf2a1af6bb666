"""What hyper-parameters of a convolution may be."""

from typing import Any

import numpy as np
import pytest

from randbp import tn

PLAIN = {"input_shape": (2, 4, 8, 8), "out_channels": 4, "kernel_size": 3}


def test_integers_of_any_type_and_lists_mean_the_same() -> None:
    expected = tn.ConvSpec((2, 4, 8, 8), 4, (3, 2), (2, 1), ((1, 2), (0, 1)), 1, 2)
    given = tn.ConvSpec(
        np.array([2, 4, 8, 8]),
        np.int64(4),
        [3, np.int32(2)],
        np.array([2, 1]),
        [[1, 2], [0, 1]],
        np.int64(1),
        np.int8(2),
    )
    assert given == expected and repr(given) == repr(expected) and hash(given) == hash(expected)
    assert tn.ConvSpec((2, 4, 8), 4, 1, padding=((1, -1),)).output_shape == (2, 4, 8)
    assert tn.transposed_spec([2, 3, 5], np.int64(4), [3]) == tn.transposed_spec((2, 3, 5), 4, 3)


def test_without_spatial_dimensions() -> None:
    assert tn.ConvSpec((2, 4), 4, ()) == tn.ConvSpec((2, 4), 4, 1)
    for changed in ({"kernel_size": 3}, {"stride": 2}, {"padding": 1}, {"dilation": 2}):
        with pytest.raises(ValueError, match=r"expected \(\) without spatial dimensions"):
            tn.ConvSpec(**{"input_shape": (2, 4), "out_channels": 4, "kernel_size": (), **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_shape": (2.5, 4, 8, 8)}, r"input_shape=\(2.5, 4, 8, 8\): expected \(batch, channels"),
        ({"input_shape": 5}, "input_shape=5: expected"),
        ({"input_shape": None}, "input_shape=None: expected"),
        ({"out_channels": "4"}, "out_channels='4': expected a positive multiple of groups=1"),
        ({"out_channels": 4.0}, "out_channels=4.0: expected"),
        ({"kernel_size": None}, "kernel_size=None: expected one integer >= 1, or 2 of them"),
        ({"kernel_size": 3.0}, "kernel_size=3.0: expected"),
        ({"kernel_size": "33"}, "kernel_size='33': expected"),
        ({"kernel_size": True}, "kernel_size=True: expected"),
        ({"stride": (1, 1.5)}, r"stride=\(1, 1.5\): expected"),
        ({"padding": ((1.5, 1), (1, 1))}, r"padding=\(\(1.5, 1\), \(1, 1\)\): expected 2 pairs"),
        ({"padding": ((1, 1), 1)}, "expected 2 pairs"),
        ({"padding": [[1, 1], [1, 1], [1, 1]]}, "expected 2 pairs"),
        ({"padding": None}, "padding=None: expected"),
        ({"groups": None}, "groups=None: expected a positive integer"),
        ({"groups": 1.0}, "groups=1.0: expected a positive integer"),
        ({"groups": True}, "groups=True: expected a positive integer"),
    ],
)
def test_anything_else_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        tn.ConvSpec(**{**PLAIN, **changed})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"stride": -1}, "stride=-1: expected an integer >= 1"),
        ({"dilation": 0}, "dilation=0: expected an integer >= 1"),
        ({"kernel_size": 2.0}, "kernel_size=2.0: expected an integer >= 0"),
        ({"padding": "same"}, "padding='same': expected an integer"),
    ],
)
def test_index_patterns_are_checked(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tn.IndexPattern(**{"input_size": 4, "output_size": 4, "kernel_size": 1, **changed})
    assert tn.IndexPattern(0, 0, 1).nonzeros == 0
