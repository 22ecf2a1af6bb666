"""Python's share: a cached contraction over the kernels that it runs, and the time to plan a network."""

import time
from statistics import median
from typing import Any

import torch

from randbp import tn
from randbp.tn.planning.plan import make_plan

from .harness import save, show


def run() -> dict[str, Any]:
    """Microseconds over the bare kernel for cached calls; milliseconds to plan."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spec = tn.ConvSpec((3, 6, 7, 7), 4, 3, padding=1)
    x, v = torch.randn(spec.input_shape), torch.randn(spec.output_shape)
    w = torch.randn(spec.weight_shape)
    backward = torch.ops.aten.convolution_backward.default

    def native() -> Any:
        return backward(v, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False])

    def ours() -> Any:
        return tn.weight_vjp(spec).contract(input=x, output_grad=v)

    pairs = []
    for _ in range(400):
        readings = []
        for function in (native, ours):
            start = time.perf_counter()
            for _ in range(10):
                function()
            readings.append((time.perf_counter() - start) / 10)
        pairs.append(readings)
    call = 1e6 * median(second - first for first, second in pairs)
    rows: list[dict[str, Any]] = [{"what": "cached call over its kernel", "value": call, "unit": "µs", "at_most": 30}]
    for dims in (1, 2, 3):
        for operation in (
            tn.conv,
            tn.weight_vjp,
            tn.kfac_expand,
            tn.kfac_reduce,
            tn.gradient_gram,
            tn.ggn_diagonal,
        ):
            net = operation(tn.ConvSpec((3, 6, *(7,) * dims), 4, 3, padding=1))
            readings = []
            for _ in range(9):
                start = time.perf_counter()
                make_plan(net, torch.float32, torch.device("cpu"))
                readings.append(time.perf_counter() - start)
            what = f"plan {operation.__name__}, {dims}-d"
            rows.append({"what": what, "value": 1e3 * median(readings), "unit": "ms", "at_most": 10})
    torch.set_num_threads(threads)
    table = [[row["what"], f"{row['value']:.2f} {row['unit']}", f"{row['at_most']} {row['unit']}"] for row in rows]
    show("overhead", ["what", "measured", "held to"], table)
    summary = {"cached_call_us": call, "slowest_plan_ms": max(row["value"] for row in rows[1:])}
    print(f"written to {save('overhead', rows, summary)}")
    return summary
