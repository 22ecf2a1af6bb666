"""Fused kernels give the estimates of separate operations, wherever they serve."""

from typing import Any

import pytest
import torch

from randbp import Spatial, kernels, tn
from randbp.estimators import Draw, fused, rebuilt
from randbp.kernels.operator import is_installed

LAYERS: dict[str, tuple[tuple[int, ...], int, int | tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((3, 9, 12, 16), 5, 3, {"padding": 1}),
    "3x3, with directions": ((32, 48, 24, 32), 64, 3, {"padding": 1}),
    "3x3, stride 2": ((3, 9, 16, 16), 4, 3, {"stride": 2, "padding": 1}),
    "1x1": ((4, 9, 12, 16), 5, 1, {}),
    "1x1, wide": ((2, 40, 12, 12), 48, 1, {}),
    "1x1, stride 2": ((3, 9, 24, 32), 4, 1, {"stride": 2}),
    "1x1, groups": ((2, 16, 12, 12), 6, 1, {"groups": 2}),
    "2x2, stride 2": ((2, 12, 16, 16), 8, 2, {"stride": 2}),
    "few channels": ((3, 2, 12, 16), 5, 3, {"padding": 1}),
    "depthwise": ((3, 6, 12, 16), 12, 3, {"padding": 1, "groups": 6}),
    "depthwise, stride 2": ((3, 6, 15, 16), 6, 3, {"padding": 1, "groups": 6, "stride": 2}),
    "depthwise, length 200": ((3, 6, 200), 6, 5, {"padding": 4, "groups": 6, "dilation": 2}),
    "depthwise, 15x15": ((2, 6, 20, 20), 6, 15, {"padding": (7, 3), "groups": 6}),
}


@pytest.mark.skipif(not is_installed("numba"), reason="needs numba")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    "estimator", [Spatial(0.5), Spatial(0.11), Spatial(0.3, center=False), Spatial(0.3, per_example=False)], ids=str
)
def test_estimates_by_kernels_are_those_without(name: str, estimator: Spatial) -> None:
    """In either half, so that one may run by a kernel and the other not."""
    shape, outputs, kernel, geometry = LAYERS[name]
    spec, draw = tn.ConvSpec(shape, outputs, kernel, **geometry), Draw(3)
    generator = torch.Generator().manual_seed(0)
    x, grad = (
        torch.randn(size, generator=generator, dtype=torch.float64) for size in (spec.input_shape, spec.output_shape)
    )
    found = []
    for before in ("reference", "numba"):
        with kernels.use(before):
            assert fused.gathers(x) == (before == "numba")
            held = estimator.sketch(x, spec, draw)
        for after in ("reference", "numba"):
            with kernels.use(after):
                found.append(estimator.weight_vjp(held, grad, spec, draw))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    assert rebuilt.serves_depthwise(spec, x.device) == name.startswith("depthwise")
