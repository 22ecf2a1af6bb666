"""Experiments that draw curves: every row is measured once, and pages have what the command promises."""

import json

import pytest
import torch
from torch.nn.functional import conv2d

from bench import lean
from bench.contractions import kfac_contenders
from bench.lean_settings import Network
from experiments import kfac, memory, training_curves, vjp_time
from experiments.__main__ import main as experiments
from experiments.data import FashionMNIST
from experiments.data.images import Samples
from experiments.models import AllCNNC
from experiments.pages import as_html
from randbp.tn import ConvSpec


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for module in (kfac, vjp_time):
        monkeypatch.setattr(module, "QUICK", ("all-cnn-c.8", 0.0))


def check_page(folder, name, *texts):
    """The Markdown names command and versions, and the HTML page has its tables and the figure inside."""
    text, page = ((folder / f"{name}.{suffix}").read_text() for suffix in ("md", "html"))
    assert f"`python -m experiments {name.replace('_', '-')} --quick`" in text and f"torch {torch.__version__}" in text
    assert all(each in text for each in texts), text
    assert (folder / f"{name}.svg").stat().st_size > 1000
    assert "![" in text and 'src="data:image/png;base64,' in page and page.count("<table>") == page.count("</table>")
    assert page.count("<tr>") == sum(line.startswith("| ") for line in text.splitlines())


@pytest.mark.parametrize("name", ["kfac", "vjp-time"])
def test_layers_are_measured_once(name, capsys, tmp_path, monkeypatch):
    folder = tmp_path / "runs" / name.replace("-", "_")
    assert experiments([name, "--quick"]) == 0
    check_page(folder, folder.name, "192x6→100", *(["up to 4.5"] if name == "kfac" else ["| bound |", "Channels, 1/8"]))
    monkeypatch.setattr({"kfac": kfac, "vjp-time": vjp_time}[name], "runs_once", _only_read)
    assert experiments([name, "--quick"]) == 0


def _only_read(path, wanted, do, told):
    rows = {json.dumps(row["run"]): row for row in map(json.loads, path.read_text().splitlines())}
    return [rows[json.dumps(run)] for run in wanted]


def test_contenders_of_kfac_hold_what_they_say():
    """Unfolding is the textbook's factor."""
    spec = ConvSpec((2, 3, 5, 5), 4, 3, padding=1)
    contenders = kfac_contenders(spec, "reduce")
    torch.testing.assert_close(contenders["randbp"](), contenders["unfold"]())


def test_exact_estimates_and_times_are_of_the_same_vjps(monkeypatch):
    (layer,) = vjp_time.layers("all-cnn-c.8")
    found = []
    monkeypatch.setattr("bench.estimators.interleave", lambda contenders, budget: found.append(contenders))
    for vjp in ("weight", "input"):
        torch.manual_seed(0)
        vjp_time.timed_vjps(layer, vjp, {"kept": vjp_time.KINDS[vjp]["Spatial"](keep=1.0)}, 0, vjp_time.Place())
        torch.manual_seed(0)
        x, w, v = (
            torch.randn(shape) for shape in (layer.spec.input_shape, layer.spec.weight_shape, layer.spec.output_shape)
        )
        x.requires_grad_(), w.requires_grad_()
        (expected,) = torch.autograd.grad(conv2d(x, w), w if vjp == "weight" else x, v)
        for run in found.pop().values():
            torch.testing.assert_close(run(), expected, rtol=1e-3, atol=1e-3)


def test_bytes_are_counted_once(tmp_path, monkeypatch):
    small = {"all-cnn-c": Network(lambda: AllCNNC(width=0.05, dropout=False), 4, 16, 4)}
    for module in (lean, memory):
        monkeypatch.setattr(module, "NETWORKS", small)
    monkeypatch.setattr(memory, "QUICK", ("all-cnn-c",))
    monkeypatch.setattr(memory, "EAGER", ("exact", "preset memory", "checkpoint per block"))
    assert experiments(["memory", "--quick"]) == 0
    check_page(tmp_path / "runs/memory", "memory", "| checkpoint per block |", "| exact |")
    monkeypatch.setattr(memory, "measure", None)
    assert experiments(["memory", "--quick"]) == 0


def test_trainings_have_curves_of_all_seeds(tmp_path, monkeypatch):
    def load(self):
        images = torch.randint(0, 256, (16, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return Samples(images, torch.arange(16) % 10), Samples(images, torch.arange(16) % 10)

    monkeypatch.setattr(FashionMNIST, "load", load)
    monkeypatch.setattr(training_curves, "QUICK", {"width": 0.05, "steps": 2, "batch": 4, "test_images": 8, "seeds": 2})
    settings = {name: training_curves.SETTINGS[name] for name in ("exact", "Spatial(1/16)")}
    monkeypatch.setattr(training_curves, "SETTINGS", settings)
    assert experiments(["training-curves", "--quick"]) == 0
    folder = tmp_path / "runs/training_curves"
    check_page(folder, "training_curves", "| Spatial(1/16) |")
    rows = [json.loads(line) for line in (folder / "trainings.jsonl").read_text().splitlines()]
    assert [[point["step"] for point in row["curve"]] for row in rows] == [[1, 2]] * 4
    first = {row["setting"]: row["curve"][0]["loss"] for row in rows if row["seed"] == 1}
    last = {row["setting"]: row["curve"][1]["loss"] for row in rows if row["seed"] == 1}
    assert first["exact"] == first["Spatial(1/16)"] and last["exact"] != last["Spatial(1/16)"]  # one start, two ways


def test_pages_escape_their_titles(tmp_path):
    (tmp_path / "a.md").write_text("# 1 < 2\n\ntext\n")
    assert "<title>1 &lt; 2</title>" in as_html(tmp_path / "a.md").read_text()
