"""How far a call travels in the package: functions, files, and changes of file of a layer forward and backward.

Counted with ``sys.setprofile``, warm, on a layer of 8 x 64 x 32 x 32 that is the first of its network. A function is
a name in a file; a change of file lies between two calls in a row that are of different files.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

import randbp
from randbp import Axes, Batch, Channels, Exact, LowResolution, NormSpatial, Precision, Rounding, Spatial, tn
from randbp.functional import conv

from .harness import save, show

FOLDER = str(Path(randbp.__file__).parent)
ESTIMATORS = {
    "Spatial(0.25)": Spatial(0.25),
    "Spatial(0.25, center=False)": Spatial(0.25, center=False),
    "Axes(0.25)": Axes(0.25),
    "Batch(0.25)": Batch(0.25),
    "Channels(0.25)": Channels(0.25),
    "NormSpatial(0.25)": NormSpatial(0.25),
    "LowResolution(0.25)": LowResolution(0.25),
    "Rounding(4)": Rounding(4),
    "Rounding(4, Spatial(0.25))": Rounding(4, Spatial(0.25)),
    "Precision()": Precision(),
    "Exact()": Exact(),
}


@dataclass(frozen=True)
class Trace:
    """The package's functions in the order in which they were called."""

    codes: tuple[CodeType, ...]

    def __add__(self, other: "Trace") -> "Trace":
        return Trace(self.codes + other.codes)

    @property
    def functions(self) -> list[tuple[str, str]]:
        """File and name of each, once, in the order of first calls."""
        return list(dict.fromkeys((code.co_filename[len(FOLDER) + 1 :], code.co_name) for code in self.codes))

    @property
    def files(self) -> int:
        return len({code.co_filename for code in self.codes})

    @property
    def changes(self) -> int:
        """Calls in a row that are of different files."""
        names = [code.co_filename for code in self.codes]
        return sum(first != second for first, second in pairwise(names))

    @property
    def figures(self) -> dict[str, int]:
        return {
            "calls": len(self.codes),
            "functions": len(self.functions),
            "files": self.files,
            "changes": self.changes,
        }


def traced(function: Callable[[], Any]) -> tuple[Trace, Any]:
    """The calls within the package that a function causes, and its result."""
    codes: list[CodeType] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(FOLDER) and not file.endswith("_moved.py"):  # which imports ask
            codes.append(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        result = function()
    finally:
        sys.setprofile(before)
    return Trace(tuple(codes)), result


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, PyTorch works with one thread, on whose number plans and kernels depend."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def of_layer(**options: Any) -> tuple[Trace, Trace]:
    """Forward and backward pass of a convolution by :func:`randbp.functional.conv`."""
    x, weight = torch.randn(8, 64, 32, 32), torch.randn(64, 64, 3, 3).requires_grad_()
    for _ in range(2):  # plans and tables are made once
        conv(x, weight, padding=1, **options).sum().backward()
    forward, y = traced(lambda: conv(x, weight, padding=1, **options))
    output_grad = torch.ones_like(y)
    backward, _ = traced(lambda: y.backward(output_grad))
    return forward, backward


@one_thread()
def of_contraction() -> Trace:
    """A warm contraction."""
    spec = tn.ConvSpec((8, 64, 32, 32), 64, 3, padding=1)
    x, v = torch.randn(spec.input_shape), torch.randn(spec.output_shape)
    tn.weight_vjp(spec).contract(input=x, output_grad=v)
    network = tn.weight_vjp(spec)
    return traced(lambda: network.contract(input=x, output_grad=v))[0]


def run() -> dict[str, Any]:
    """Print and write the figures of some estimators, the default first, and of a contraction."""
    rows: list[dict[str, Any]] = []
    for name, estimator in {"default": None, **ESTIMATORS}.items():
        forward, backward = of_layer(**({} if estimator is None else {"weight_vjp": estimator}))
        both = (forward + backward).figures | {"changes": forward.changes + backward.changes}
        rows.append(
            {"what": name, "forward": forward.figures, "backward": backward.figures, "both": both}
            | {"names": [f"{file}: {each}" for file, each in (forward + backward).functions]}
        )
    contraction = of_contraction()
    names = [f"{file}: {each}" for file, each in contraction.functions]
    rows.append({"what": "warm contraction", "both": contraction.figures, "names": names})
    columns = ["weight VJP", *(f"{part}: calls, functions, files, changes" for part in ("forward", "backward", "both"))]
    cells = [
        [row["what"], *(", ".join(map(str, row.get(part, {}).values())) for part in ("forward", "backward", "both"))]
        for row in rows
    ]
    show("calls within the package", columns, cells)
    summary: dict[str, Any] = rows[0]["both"]
    print(f"written to {save('calls', rows, summary)}")
    return summary
