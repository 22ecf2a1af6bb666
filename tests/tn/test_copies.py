"""Networks and plans in copies, pickles and other processes."""

import copy
import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from randbp import tn

from .strategies import random_operands

OTHER_HASHES = "1"

SPEC = tn.ConvSpec((2, 4, 8, 8), 6, 3, stride=2, padding=1, groups=2)
WIDE = tn.ConvSpec((3, 4, 40), 4, 5, padding=3, dilation=2, groups=4)
NETWORKS: dict[str, Callable[[tn.ConvSpec], tn.TensorNetwork]] = {
    name: getattr(tn, name)
    for name in (
        "conv",
        "weight_vjp",
        "input_vjp",
        "weight_jvp",
        "unfold",
        "unfold_transpose",
        "conv_transpose",
        "per_example_weight_vjp",
        "kfac_expand",
        "kfac_reduce",
    )
}


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [through_pickle, copy.deepcopy, copy.copy])
@pytest.mark.parametrize("spec", [SPEC, WIDE], ids=["strided", "depthwise"])
@pytest.mark.parametrize("name", NETWORKS)
def test_copies_contract_to_the_same(name: str, spec: tn.ConvSpec, copied: Callable[[Any], Any]) -> None:
    net = NETWORKS[name](spec)
    if spec is WIDE and name == "weight_vjp":
        net = net.subsample({"i1": torch.tensor([1, 5, 30])})
    operands = random_operands(net)
    expected = net.contract(operands)
    again = copied(net)
    assert again == net and hash(again) == hash(net) and again.name == net.name
    assert torch.equal(again.contract(operands), expected)
    plan = copied(net.plan(expected.dtype))
    assert str(plan) == str(net.plan(expected.dtype))
    tensors = [{**net.bound, **operands}[slot] for slot in plan.slots]
    assert torch.equal(plan.run(tensors), expected)
    assert torch.equal(through_pickle(plan).run(tensors), expected)  # a copy of a copy


def test_bound_tensors_travel_along() -> None:
    net = tn.weight_vjp(SPEC).subsample(i1=torch.tensor([0, 5]))
    again = copy.deepcopy(net)
    assert all(torch.equal(again.bound[slot], tensor) for slot, tensor in net.bound.items())
    assert all(again.bound[slot] is not tensor for slot, tensor in net.bound.items())


def made_and_hashed() -> tn.TensorNetwork:
    assert os.environ["PYTHONHASHSEED"] == OTHER_HASHES
    net = tn.weight_vjp(SPEC)
    hash(net)
    return net


def test_networks_and_plans_go_to_workers_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tn.weight_vjp(SPEC).subsample(i1=torch.tensor([0, 5]))
    operands = random_operands(net)
    expected = net.contract(operands)
    plan = net.plan(expected.dtype)
    tensors = [{**net.bound, **operands}[slot] for slot in plan.slots]
    monkeypatch.setenv("PYTHONHASHSEED", OTHER_HASHES)
    with torch.multiprocessing.get_context("spawn").Pool(1) as workers:
        torch.testing.assert_close(workers.apply(net.contract, (operands,)), expected)
        torch.testing.assert_close(workers.apply(plan.run, (tensors,)), expected)
        # Hashes of text differ between processes, so none may travel along.
        theirs = workers.apply(made_and_hashed)
    assert theirs == tn.weight_vjp(SPEC) and hash(theirs) == hash(tn.weight_vjp(SPEC))
