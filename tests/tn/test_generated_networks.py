"""Some hundred generated networks; `python -m tests.tn.generated_networks` checks as many as you like."""

import pytest
import torch

from randbp import tn

from . import meaning
from .drawn_networks import drawn
from .generated_networks import main, outcome

NETWORKS, REFUSED = 320, 0.05


@pytest.mark.parametrize("part", range(8))
def test_generated_networks(part: int) -> None:
    outcomes = [outcome(seed) for seed in range(part, NETWORKS, 8)]
    failed = [found.report for found in outcomes if found.report]
    assert not failed, "\n\n".join(failed)
    refused = [message for found in outcomes for message in found.refused.elements()]
    assert len(refused) <= REFUSED * sum(found.tried for found in outcomes), refused


def test_all_moves_are_drawn() -> None:
    calls = " ".join(call for seed in range(NETWORKS) for call in drawn(seed).calls)
    for move in (
        "subsample",
        "remove",
        "vjp",
        "jvp",
        "sum",
        "with_leg",
        "rename",
        "scaled",
        "group",
        "outer",
        "compose",
    ):
        assert f"net.{move}(" in calls
    assert all(f"{text}(" in calls for text in ("net.simplify", "net.bind", "tn.sampled"))


def test_the_command_reports_what_it_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--count", "3", "--seed", "5"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("3 networks, seeds 5 to 7: 0 wrong, 0 crashed; ")


def test_a_wrong_network_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    contract = tn.TensorNetwork.contract
    monkeypatch.setattr(tn.TensorNetwork, "contract", lambda *arguments: contract(*arguments) + 1e-3)
    found = outcome(0)
    assert found.verdict == "wrong"
    assert (
        found.report.startswith("seed 0\n    net = tn.") and "contract() and einsum() differ by 0.001" in found.report
    )


def test_the_sum_over_all_terms_is_pytorchs_convolution() -> None:
    spec = tn.ConvSpec((2, 4, 5, 4), 6, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), groups=2)
    x, w = torch.randn(spec.input_shape, dtype=torch.float64), torch.randn(spec.weight_shape, dtype=torch.float64)
    expected = torch.conv2d(x, w, None, spec.stride, (1, 1), spec.dilation, 2)
    torch.testing.assert_close(meaning.network_value(tn.conv(spec), {"input": x, "weight": w}), expected)
