"""Preconditioning in front of other optimisers, as docs/preconditioning.md shows it."""

import copy
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from randbp.curvature import EigenvalueCorrected, KroneckerInverse, Preconditioner, StructuredInverseFree

from .lightning_runs import trainer
from .training import batch, loss_of, network, parameters

PAGE = (Path(__file__).parents[2] / "docs" / "preconditioning.md").read_text(encoding="utf-8")

BEHIND = {
    "Nesterov": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True),
    "AdamW": partial(torch.optim.AdamW, lr=1e-2),
    "Muon": partial(torch.optim.Muon, lr=1e-2),
}


def matrices(model):
    return [parameter for parameter in model.parameters() if parameter.dim() == 2]


@pytest.mark.parametrize("name", BEHIND)
@pytest.mark.parametrize("method", [KroneckerInverse("expand"), EigenvalueCorrected(), StructuredInverseFree()])
def test_each_steps_along_the_preconditioned_gradient(method, name):
    """Bit for bit as where somebody hands it the gradients that another preconditioner has made."""
    model = network()
    twin = copy.deepcopy(model)
    taken = matrices if name == "Muon" else lambda model: list(model.parameters())
    ways = {"params": taken(model)} if name == "Muon" else {}
    optimizer = Preconditioner(model, method, factor_every=1, **ways).before(BEHIND[name](taken(model)))
    ways = {"params": taken(twin)} if name == "Muon" else {}
    preconditioner, behind = Preconditioner(twin, method, factor_every=1, **ways), BEHIND[name](taken(twin))
    for seed in range(4):
        x, y = batch(seed=seed)
        for each in (model, twin):
            each.zero_grad()
            loss_of(each, x, y).backward()
        plain = [parameter.grad.clone() for parameter in twin.parameters()]
        preconditioner.step()
        changed = [not torch.equal(p.grad, grad) for p, grad in zip(twin.parameters(), plain, strict=True)]
        behind.step()
        optimizer.step()
        assert torch.equal(parameters(model), parameters(twin))
        weights = [p.dim() == 2 for p in twin.parameters()] if name == "Muon" else None
        assert changed == weights if weights else sum(changed) == len(changed) - 2  # but the norm's


@pytest.fixture(scope="module")
def page():
    namespace = {"__name__": "page"}
    torch.manual_seed(0)
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, namespace)
    return namespace


def test_the_page_trains(page):
    model = page["model"]
    assert {"matrices", "others", "muon", "adam", "nesterov"} <= page.keys()
    start = nn.functional.cross_entropy(model(page["images"]), page["labels"]).detach()
    assert page["train"](page["nesterov"]).detach() < start
    for optimizer in (page["muon"], page["adam"]):
        assert optimizer.state_dict()["preconditioner"]["param_groups"][0]["steps"] == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["One", "Two"])
def test_lightning_trains_and_resumes(page, kind, tmp_path):
    x, y = batch(32)
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    whole, first, second = (page[kind](network()) for _ in range(3))
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(whole, loader)
    half = trainer(tmp_path, max_epochs=1)
    half.fit(first, loader)
    half.save_checkpoint(tmp_path / "one.ckpt")
    trainer(tmp_path, max_epochs=2).fit(second, loader, ckpt_path=tmp_path / "one.ckpt", weights_only=False)
    assert torch.equal(parameters(whole), parameters(second))
    assert not torch.equal(parameters(whole), parameters(first))
    optimizers = whole.optimizers() if kind == "Two" else [whole.optimizers()]
    states = [optimizer.optimizer.state_dict()["preconditioner"] for optimizer in optimizers]
    assert [state["param_groups"][0]["steps"] for state in states] == [8] * len(optimizers)
    assert all(any("input_inverse" in entry for entry in state["state"].values()) for state in states)
