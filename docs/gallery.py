"""Writes the gallery: every operation of `randbp.tn` with its equation, its diagram and its contraction plan.

Run ``python docs/gallery.py`` from the root of a checkout; it writes ``docs/gallery.md`` and
``docs/gallery/*.svg``.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch

from randbp import tn
from randbp.tn.diagram.drawing import equation

FOLDER = Path(__file__).parent
SPEC = tn.ConvSpec((2, 4, 8, 8), out_channels=6, kernel_size=3, padding=1, groups=2)
PLAIN = tn.ConvSpec((2, 3, 8, 8), out_channels=4, kernel_size=3, padding=1)


def composed() -> tn.TensorNetwork:
    """A network that no operation of the library covers."""
    bottom = tn.conv(PLAIN).rename(slots={"weight": "W1"})
    top = tn.conv(tn.ConvSpec(PLAIN.output_shape, 5, 3, padding=1)).rename(slots={"weight": "W2"})
    return top.compose(bottom, into="input").named("two convolutions")


def entries() -> dict[str, list[tuple[str, tn.TensorNetwork]]]:
    """Sections of the gallery: titles with networks."""
    named: Callable[..., list[tuple[str, tn.TensorNetwork]]] = lambda *operations: [  # noqa: E731
        (operation.__name__, operation(PLAIN)) for operation in operations
    ]
    index = torch.zeros(2, 16, dtype=torch.long)
    return {
        "Convolution and its derivatives": [
            *named(tn.conv, tn.weight_vjp, tn.input_vjp, tn.weight_jvp, tn.input_jvp, tn.per_example_weight_vjp),
            ("conv, with groups", tn.conv(SPEC)),
        ],
        "Unfoldings": named(tn.unfold, tn.fold, tn.unfolded_kernel, tn.unfold_transpose),
        "Transposed convolution": named(
            tn.conv_transpose,
            tn.conv_transpose_weight_vjp,
            tn.conv_transpose_input_vjp,
            tn.conv_transpose_weight_jvp,
            tn.conv_transpose_input_jvp,
            tn.conv_transpose_per_example_weight_vjp,
        ),
        "Curvature": named(
            tn.kfac_expand,
            tn.kfac_reduce,
            tn.kfac_expand_output_grad,
            tn.kfac_reduce_output_grad,
            tn.kfac_expand_transpose,
            tn.kfac_reduce_transpose,
            tn.gradient_gram,
            tn.ggn_diagonal,
        ),
        "Simplified, subsampled, composed": [
            (
                "a dense convolution, simplified",
                tn.conv(tn.ConvSpec((2, 3, 8, 8), 4, 2, stride=2)).simplify(),
            ),
            (
                "weight_vjp with two rows of pixels kept",
                tn.weight_vjp(PLAIN).subsample(i1=torch.tensor([1, 5])),
            ),
            (
                "weight_vjp with 16 pixels per example kept",
                tn.weight_vjp(PLAIN).subsample({"i1 i2": index}, stored=("input",)),
            ),
            ("two convolutions", composed()),
        ],
    }


def write(folder: Path = FOLDER) -> None:
    """Write the page and the pictures."""
    matplotlib.rcParams["svg.hashsalt"] = "randbp"
    pictures = folder / "gallery"
    pictures.mkdir(exist_ok=True)
    lines = [
        "# Gallery of tensor networks",
        "",
        "Written by `python docs/gallery.py`. Blue discs are tensors, sand squares index patterns Π, green",
        "diamonds index selections δ. Lines are legs: open legs end free, a bar ends a leg that one tensor",
        "sums alone, a dot joins a leg of more than two tensors. Dashed red legs are restricted to a sample.",
        "Legs of size one are not drawn. In the equations R is the result and s the scale of a factor.",
        "",
    ]
    for section, networks in entries().items():
        lines += [f"## {section}", ""]
        for title, net in networks:
            name = "".join(ch if ch.isalnum() else "_" for ch in title)
            net.draw(title="").savefig(pictures / f"{name}.svg", metadata={"Date": None})
            lines += [f"### {title}", "", f"$${equation(net)}$$", "", f"![{title}](gallery/{name}.svg)", ""]
            lines += ["```", str(net.plan()), "```", ""]
    (folder / "gallery.md").write_text("\n".join(lines))


if __name__ == "__main__":
    write()
