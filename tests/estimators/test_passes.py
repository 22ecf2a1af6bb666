"""How often tensors are passed over: what is one part is neither added to zeros nor brought into another order."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from randbp import Exact, Precision, Rounding
from randbp.estimators import Draw, Estimator
from randbp.layers.layer_specs import as_sequence
from randbp.tn import linear_spec

COPIES = {"clone", "copy_", "zeros", "new_zeros", "zero_", "fill_", "add_", "add"}


class Passes(TorchDispatchMode):
    """Notes operations that pass over so many entries and calculate nothing that is needed."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.entries, self.found = entries, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in COPIES and result.numel() >= self.entries:
            self.found.append(name)
        return result


@pytest.mark.parametrize("estimator", [Rounding(4), Precision(estimator=Rounding(4)), Precision(), Exact()], ids=str)
def test_a_linear_layer_reads_and_writes_everything_once(estimator: Estimator) -> None:
    x, output_grad = torch.randn(4, 5, 3, 64), torch.randn(4, 5, 3, 48)
    spec, draw = linear_spec(tuple(x.shape), 48), Draw(0)
    with Passes(48 * 64) as passes:
        held = estimator.sketch(as_sequence(x), spec, draw)
        grad = estimator.weight_vjp(held, as_sequence(output_grad), spec, draw)
    assert not passes.found
    exact = output_grad.flatten(0, 2).t() @ x.flatten(0, 2)
    assert (grad[..., 0] - exact).norm() < 0.2 * exact.norm()


def test_the_input_gradient_is_written_once() -> None:
    output_grad, weight = torch.randn(4, 5, 3, 48), torch.randn(48, 64, 1)
    spec = linear_spec((4, 5, 3, 64), 48)
    with Passes(4 * 15 * 48) as passes:
        grad = Precision().input_vjp(as_sequence(output_grad), weight, spec, Draw(0))
    assert not passes.found and grad.dtype == torch.float32
    exact = as_sequence(output_grad @ weight[..., 0])
    assert (grad - exact).norm() < 0.02 * exact.norm()
