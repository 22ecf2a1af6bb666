"""Measures what randbp does to the networks of other libraries, and writes docs/zoo.md: ``python -m tests.zoo``.

Networks that runs/zoo.jsonl has are not measured again: remove it after a change.
"""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from experiments.runs_once import runs_once

from .measure import measure
from .networks import CASES

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
PACKAGES = ("torch", "timm", "transformers", "diffusers", "monai", "dynamic_network_architectures")
HEAD = """# Networks of other libraries

What randbp does to one training step of small networks with random weights, losses included. `python -m tests.zoo`
writes this page; `make zoo` installs what it needs.

- *Exact [MiB]*: what the step holds for its backward pass without randbp. The next columns are shares of it:
  `preset="exact"`, `preset="memory"`, and `lean=True` with exact layers. *Autocast* is `preset="memory"` within
  autocast to bfloat16, as a share of what PyTorch holds there. Autocast's narrow copies of weights count on both sides,
  the more the smaller the images are.
- *Error*: root mean square error of all gradients over the gradient's length, with `preset="memory"`.
- *Bias*: p-value of t-tests of the mean error over draws, of each parameter, times the number of parameters.
- *The rest*: who holds the most of what is left with `preset="memory"`, in shares of it; where no name is given, many
  hold little.

"""


REST = """More than a fifth stays where attention has small heads and many positions: an unbiased rounding needs the
probabilities, one per query and key, which take more than queries, keys and values of 8 channels (diffusers' U-Nets;
`scaled_dot_product_attention` is left to PyTorch there). Mamba's scan multiplies tensors of every state and step, each
of them rounded. Dice losses hold one-hot targets in full, since lean mode leaves tensors without a gradient alone.

`preset="exact"` can take 1 % more than PyTorch where a ReLU or leaky ReLU is followed by a convolution alone (nnU-Net's
blocks): PyTorch holds the activation's output once for both, and the preset also holds a bit per entry, for when the
activation runs, nobody knows yet who will hold its output. Under autocast, small networks on small images gain little:
what they hold there is mostly the narrow copies of their weights."""


def page(rows: list[dict[str, Any]]) -> str:
    """The page of these rows."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines = [HEAD + f"Python {platform.python_version()}, {platform.machine()}, one thread, {packages},"]
    lines += [f"segmentation_models_pytorch {version('segmentation_models_pytorch')}.", ""]
    titles = ["library", "network", "layers", "exact [MiB]", "exact", "memory", "lean", "autocast", "error", "bias"]
    titles += ["the rest"]
    lines += [f"| {' | '.join(titles)} |"]
    lines += ["|" + "---|" * len(titles)]
    for row in rows:
        shares = " | ".join(f"{row[name]:.2f}" for name in ("exact", "memory", "lean", "half", "error"))
        bias = f"{row['p']:.0e}" if row["p"] < 0.1 else f"{row['p']:.1f}"
        told = f"{row['library']} | {row['network']} | {row['layers']} | {row['bytes'] / 2**20:.1f}"
        lines.append(f"| {told} | {shares} | {bias} | {row['rest']} |")
    done = {(row["library"], row["network"]) for row in rows}
    left = [f"{case.library} {case.name}" for case in CASES if (case.library, case.name) not in done]
    lines += ["", f"Not measured yet: {', '.join(left)}."] if left else []
    lines += ["", REST]
    faults = [f"- {row['network']}: {fault}" for row in rows for fault in row["faults"]]
    lines += ["", "## Faults", "", *(faults or ["None: losses are the same bit for bit, gradients with `exact`, too."])]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the page."""
    torch.set_num_threads(1)
    cases = {f"{case.library} {case.name}": case for case in CASES}

    def do(run: Any) -> dict[str, Any]:
        return measure(cases[run["network"]])

    def told(row: Any) -> str:
        return f"{row['library']} {row['network']}: {row['memory']:.2f}"

    path = PAGE.parents[1] / "runs" / "zoo.jsonl"
    path.parent.mkdir(exist_ok=True)
    rows = runs_once(path, [{"network": name} for name in cases], do, told)
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
