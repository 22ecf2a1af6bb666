"""Shapes found without computing an output are those of PyTorch's layers."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from randbp.lean.shapes import _ANY_DIMS, _DIMS, chain_shapes, example_shape


@st.composite
def layers(draw: Any) -> tuple[nn.Module, tuple[int, ...]]:
    """Any layer of the register with any settings, and an example that it may take."""
    kind = draw(st.sampled_from(sorted((*_ANY_DIMS, *_DIMS), key=lambda kind: kind.__name__)))
    dims = int(kind.__name__[-2]) if kind.__name__[-1] == "d" else draw(st.integers(1, 3))

    def each(strategy: st.SearchStrategy[Any]) -> Any:
        return draw(st.one_of(strategy, st.tuples(*[strategy] * dims)))

    channels, sizes = draw(st.integers(1, 4)), draw(st.tuples(*[st.integers(2, 9)] * dims))
    window: dict[str, Any] = {"stride": each(st.integers(1, 3))}
    if "Conv" in kind.__name__:
        window |= {"kernel_size": each(st.integers(1, 3)), "dilation": each(st.integers(1, 2))}
        if "Transpose" in kind.__name__:
            window |= {"output_padding": each(st.integers(0, 1)), "padding": each(st.integers(0, 2))}
        else:
            same = {"padding": "same", "stride": 1}
            window |= draw(st.sampled_from([{"padding": each(st.integers(0, 2))}, {"padding": "valid"}, same]))
        return kind(channels, draw(st.integers(1, 4)), **window), (channels, *sizes)
    if "Adaptive" in kind.__name__:
        size = st.integers(1, 5)
        return kind(draw(st.one_of(size, st.tuples(*[st.one_of(size, st.none())] * dims)))), (channels, *sizes)
    if "Pool" in kind.__name__:
        window |= {"kernel_size": each(st.integers(2, 4)), "ceil_mode": draw(st.booleans())}
        window |= {"padding": each(st.integers(0, 1))}
        if "Max" in kind.__name__:
            window |= {"dilation": each(st.integers(1, 2))}
        return kind(**window), (channels, *sizes)
    if kind is nn.Upsample:
        named = draw(st.sampled_from(["size", "scale_factor"]))
        return kind(**{named: each(st.integers(1, 9) if named == "size" else st.floats(0.4, 2.5))}), (channels, *sizes)
    arguments = (1, channels) if kind is nn.GroupNorm else (channels,)
    return kind(*arguments), (channels, *sizes)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=400, deadline=None)
@given(layers(), st.integers(1, 2))
def test_they_are_pytorchs(case: tuple[nn.Module, tuple[int, ...]], batch: int) -> None:
    layer, shape = case
    try:
        expected = tuple(layer(torch.zeros(batch, *shape)).shape[1:])
    except (RuntimeError, ValueError, TypeError):
        assume(False)
    assert example_shape(layer, shape) == (None if 0 in expected else expected)


def test_what_a_layer_does_not_take_has_none() -> None:
    assert example_shape(nn.Conv2d(3, 4, 3), (2, 8, 8)) is None
    assert example_shape(nn.ConvTranspose2d(3, 4, 3), (2, 8, 8)) is None
    assert example_shape(nn.Conv2d(3, 4, 3), (3, 8)) is example_shape(nn.Conv2d(3, 4, 3), (3, 8, 8, 8)) is None
    assert example_shape(nn.Conv2d(3, 4, 3), (3, 2, 8)) is example_shape(nn.MaxPool2d(9), (3, 8, 8)) is None
    assert example_shape(nn.GroupNorm(1, 3), (3,)) is None
    assert example_shape(nn.AdaptiveAvgPool2d((2,)), (3, 8, 8)) is example_shape(nn.MaxPool1d(2, 0), (3, 8)) is None
    assert example_shape(nn.LazyConv2d(4, 3), (3, 8, 8)) is None


def test_chains_end_where_the_batch_is_needed() -> None:
    inner = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(2))
    assert chain_shapes([nn.Conv1d(1, 2, 3), inner, nn.ReLU()], (1, 6)) == [(1, 6), (2, 4)]
    assert chain_shapes([nn.Conv1d(1, 2, 3), inner[:1], nn.ReLU()], (1, 6)) == [(1, 6)] + [(2, 4)] * 3
