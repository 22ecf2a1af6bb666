"""Diagrams: what they show, and that their labels can be read."""

import runpy
from collections import Counter
from pathlib import Path

import pytest
import torch

from randbp import tn
from randbp.tn.diagram.drawing import equation, sketch
from tests.tn.drawn_parts import OPERATIONS

matplotlib = pytest.importorskip("matplotlib")

SPEC = tn.ConvSpec((2, 4, 8, 8), 6, 3, padding=1, groups=2)
PLAIN = tn.ConvSpec((2, 3, 8, 8), 4, 3, padding=1)
NETWORKS = {operation.__name__: operation(PLAIN) for operation in OPERATIONS} | {
    "grouped": tn.conv(SPEC),
    "sampled": tn.weight_vjp(PLAIN).subsample(i1=torch.tensor([1, 5])),
    "jointly sampled": tn.weight_vjp(PLAIN).subsample(
        {"i1 i2": torch.zeros(2, 4, dtype=torch.long)}, stored=("input",)
    ),
    "volume": tn.conv(tn.ConvSpec((2, 3, 6, 6, 6), 4, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_do_not_overlap(name):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = NETWORKS[name].draw()
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    for index, box in enumerate(boxes):
        for other in range(index):
            assert not box.overlaps(boxes[other]), f"{texts[index].get_text()} lies on {texts[other].get_text()}"
    frame = figure.bbox
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)


def test_every_leg_is_shown_once_and_size_one_is_not():
    for net in NETWORKS.values():
        shown = [leg for line in sketch(net).lines for leg in line.legs]
        assert sorted(shown) == sorted(leg for leg, size in net.sizes.items() if size > 1)


def test_nodes_are_told_apart_and_dropped_legs_marked():
    figure = NETWORKS["sampled"].draw(title="my title")
    ax = figure.axes[0]
    assert ax.get_title() == "my title"
    kinds = Counter((type(patch), getattr(patch, "orientation", 0)) for patch in ax.patches)
    assert sorted(kinds.values()) == [2, 2, 2]
    red = [line for line in ax.lines if line.get_color() == "#c0392b"]
    assert len(red) == 1 and red[0].is_dashed()
    assert not [line for line in NETWORKS["conv"].draw().axes[0].lines if line.is_dashed()]


def test_drawing_is_repeatable_and_saves_svg(tmp_path):
    net = NETWORKS["conv"]
    one, two = net.draw(), net.draw()
    assert [t.get_position() for t in one.axes[0].texts] == [t.get_position() for t in two.axes[0].texts]
    one.savefig(tmp_path / "net.svg")
    assert (tmp_path / "net.svg").read_text().lstrip().startswith("<?xml")


def test_draw_on_given_axes():
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots(1, 2)
    assert NETWORKS["conv"].draw(ax=axes[1]) is figure
    assert axes[1].patches and not axes[0].patches


def test_equation():
    text = equation(tn.kfac_reduce(PLAIN))
    assert text.count(r"\Pi") == 4 and r"\sum" in text and "s \\cdot" in text


def test_gallery_is_written(tmp_path):
    gallery = runpy.run_path(str(Path(__file__).parents[3] / "docs" / "gallery.py"))
    sections = gallery["entries"]()
    shown = {net.name for networks in sections.values() for _, net in networks}
    assert {"conv", "weight_vjp", "kfac_reduce", "gradient_gram", "unfold_transpose"} <= shown
    few = {"One": sections["Unfoldings"][:1]}
    gallery["write"].__globals__["entries"] = lambda: few
    gallery["write"](tmp_path)
    assert (tmp_path / "gallery" / "unfold.svg").exists()
    assert "gallery/unfold.svg" in (tmp_path / "gallery.md").read_text()
