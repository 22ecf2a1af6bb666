"""The register of lean versions: which calls a version takes, and what its model's layers cost the mode."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import randbp
from randbp import Precision, Rounding
from randbp.lean.mode import LeanContext
from randbp.lean.needs import Rule, table
from randbp.lean.rules import BY_NAME, RULES
from randbp.lean.slope_needs import Slope

from .same import Listens


@pytest.mark.parametrize(
    ("function", "args", "names", "taken"),
    [
        (F.gelu, 1, (), True),
        (F.gelu, 1, ("approximate",), True),
        (F.gelu, 0, ("input",), True),
        (F.gelu, 0, (), False),
        (F.gelu, 3, (), False),
        (F.gelu, 1, ("input",), False),  # twice
        (F.gelu, 1, ("out",), False),
        (torch.var, 1, ("dim", "correction"), True),  # of any other name
        (torch.div, 2, ("rounding_mode",), True),
        (torch.div, 3, (), False),  # by name alone
        (F.max_pool2d, 2, ("return_indices",), True),  # the number of dimensions is no argument
        (F.max_pool2d, 8, (), False),
        (torch.exp, 5, ("any",), True),
    ],
)
def test_a_rule_takes_the_arguments_that_it_names(
    function: Any, args: int, names: tuple[str, ...], taken: bool
) -> None:
    assert RULES[function].takes((1,) * args, dict.fromkeys(names, 1)) is taken


def test_a_function_has_one_rule_and_a_name_a_function() -> None:
    rule = Rule("exp", Slope())
    with pytest.raises(ValueError, match=r"names='Tensor\.exp': a rule for 'exp' has that function already"):
        table([rule, Rule("Tensor.exp", Slope())])
    with pytest.raises(ValueError, match="names='exq': expected the name of a function of PyTorch"):
        table([Rule("exq", Slope())])
    alone = Rule("exp_", Slope(poles=True))
    for rows in ([rule, alone], [alone, rule]):
        found = table(rows)
        assert found[torch.exp] is found[torch.Tensor.exp] is rule
        assert found[torch.exp_] is found[torch.Tensor.exp_] is alone


def test_the_report_knows_all_functions_with_a_rule() -> None:
    for function, rule in RULES.items():
        held = BY_NAME[function.__name__].need.held
        assert held.why and held == rule.need.held


def test_the_mode_is_not_asked_within_an_estimated_layer_but_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()).train()
    x = torch.randn(4, 8, 16, 16)
    randbp.randomize(model, weight_vjp=Precision(estimator=Rounding(4)), input_vjp=Precision(), lean=True, seed=0)
    asked: list[Any] = []
    call = LeanContext.call

    def watched(self: LeanContext, function: Any, args: Any, kwargs: Any) -> Any:
        asked.append(function)
        return call(self, function, args, kwargs)

    monkeypatch.setattr(LeanContext, "call", watched)
    alone = model(x)
    assert F.relu in asked and F.conv2d not in asked and torch.ops.randbp.encode.default not in asked
    with Listens() as mode:
        beside = model(x)
    assert F.conv2d in mode.seen
    assert torch.equal(alone, beside)


def test_layers_of_other_tensors_hide_nothing_from_them() -> None:
    """A subclass of ``Tensor`` sees the operations of a lean, estimated layer, and stays what it is."""

    class Own(torch.Tensor):
        pass

    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)).train()
    randbp.randomize(model, weight_vjp=Rounding(4), lean=True, seed=0)
    assert type(model(torch.randn(4, 8, 16, 16).as_subclass(Own))) is Own
