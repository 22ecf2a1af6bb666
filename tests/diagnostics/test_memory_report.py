"""memory_report(): every byte that is alive for the backward pass, and whose it is."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import matplotlib
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from randbp.diagnostics import LiveStorages, MemoryReport, StepPeak, memory_report

matplotlib.use("agg")
N = 1000  # entries of the tensors below, 4 bytes each


def leaf() -> Tensor:
    return torch.linspace(-1, 1, N).requires_grad_()


class Call(nn.Module):
    """A module whose forward pass is a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


class OnCtx(torch.autograd.Function):
    """Keeps a tensor where autograd does not know of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.secret = x.exp()
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.secret


def hooked(x: Tensor) -> Tensor:
    y, secret = x + 1, x * 3
    y.register_hook(lambda grad: grad * secret)
    return y


def packed(x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (t.to(torch.float16),), lambda p: p[0].float()):
        return x.exp()


def twice(x: Tensor) -> Tensor:
    y = x * 2.0
    return (y[: N // 2] * y[N // 2 :]).sum() + y.square().sum()


CASES = {
    "saved": (lambda x: x.exp(), 4 * N),
    "ctx": (lambda x: OnCtx.apply(x), 4 * N),
    "closure": (hooked, 4 * N),
    "packed in 16 bits": (packed, 2 * N),
    "views of one storage, two holders": (twice, 4 * N),
    "in place": (lambda x: (x + 1).relu_().add(1).sigmoid_(), 8 * N),
    "input only": (lambda x: x.square(), 0),
    "nothing": (lambda x: x + 1, 0),
    "the output, saved": (lambda x: (x + 1).tanh(), 4 * N),
    "two tensors": (lambda x: (x * 2).exp().exp(), 8 * N),
}


@pytest.mark.parametrize("name", CASES)
def test_known_byte_counts(name: str) -> None:
    function, expected = CASES[name]
    report = memory_report(Call(function), leaf())
    assert report.held_bytes == expected
    assert report.kept_bytes == 0
    assert sum(row.alone for row in report.rows) <= expected <= sum(row.bytes for row in report.rows) or not expected


def test_hidden_holders_are_said_to_be_hidden() -> None:
    for function in (lambda x: OnCtx.apply(x), hooked, packed):
        (row,) = memory_report(Call(function), leaf()).rows
        assert row.hidden and "outside" in row.why
    (row,) = memory_report(Call(lambda x: x.exp()), leaf()).rows
    assert not row.hidden and row.operation == "exp"


def test_parameters_buffers_and_inputs_do_not_count() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))
    report = memory_report(model, torch.randn(8, 16))
    statistics = 2 * 16 * 4
    assert report.held_bytes == 8 * 16 * 4 + statistics
    assert [(row.module, row.operation) for row in report.rows] == [("1", "batch_norm")]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.MaxPool2d(2))


def test_rows_name_module_operation_and_sharers() -> None:
    x = torch.randn(4, 3, 18, 18)
    report = memory_report(network(), x)
    rows = {(row.module, row.operation): row for row in report.rows}
    one = 4 * 8 * 16 * 16 * 4  # bytes of a hidden tensor
    assert rows["1", "batch_norm"].bytes == one + 2 * 8 * 4
    relu, conv, pool = rows["2", "relu"], rows["3", "conv2d"], rows["4", "max_pool2d"]
    assert (relu.bytes, relu.alone, relu.shared_with) == (one, 0, ("3 conv2d",))
    assert (conv.bytes, conv.alone, conv.shared_with) == (one, 0, ("2 relu",))
    assert pool.bytes == one + one // 4 * 2  # its input, and an int64 for each of a quarter of the entries
    assert relu.least == one // 32 and pool.least == one // 16 and conv.least is None
    assert report.held_bytes == 3 * one + one // 2 + 64
    assert report.excess[0] is max(report.rows, key=lambda row: row.excess)
    text = str(report)
    assert "also held by 3 conv2d" in text and "one bit per entry" in text
    assert text.splitlines()[0].startswith("held for backward: 1")


def test_functions_outside_any_submodule_belong_to_the_module_that_calls_them() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Call(lambda x: F.relu(x + 1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(self.inner(x))

    report = memory_report(Outer(), leaf(), loss=lambda y: y.sigmoid().sum())
    assert {(row.module, row.operation): row.bytes for row in report.rows} == {
        ("inner", "relu"): 4 * N,
        ("Outer", "exp"): 4 * N,
        ("(outside the model)", "sigmoid"): 4 * N,
    }


def test_what_the_model_keeps_is_told_apart() -> None:
    class Keeps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = (x * 5).detach()
            return x.exp()

    report = memory_report(Keeps(), leaf())
    assert (report.held_bytes, report.kept_bytes) == (4 * N, 4 * N)


def test_checkpointing_shows() -> None:
    block = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    x = torch.randn(64, 32)
    exact = memory_report(block, x)
    again = memory_report(Call(lambda x: checkpoint(block, x + 0, use_reentrant=False)), x.requires_grad_())
    one = 64 * 32 * 4
    assert exact.held_bytes == 2 * one  # both tanh; the first linear holds the input, which does not count
    assert again.held_bytes == one


def test_peak_of_a_step_without_gradients() -> None:
    # exp's output (held) and its gradient (one more); the gradient of the parameter itself does not count.
    model = Call(lambda x: (x * weight).exp())
    weight = nn.Parameter(torch.ones(N))
    model.weight = weight
    report = memory_report(model, torch.ones(N))
    assert 2 * 4 * N <= report.peak_bytes <= 3 * 4 * N
    with StepPeak("cpu", [weight]) as peak:
        small = torch.ones(8)
        weight.grad = torch.ones(N)
    assert peak.bytes == small.nbytes
    weight.grad = None
    with StepPeak("cpu") as peak:
        weight.grad = torch.ones(N)
    assert peak.bytes == 4 * N


def test_peak_sees_scratch_memory_and_forgets_what_came_before() -> None:
    x = torch.randn(1, 8, 32, 32)
    weight = torch.randn(8, 8, 3, 3, requires_grad=True)
    with StepPeak("cpu") as peak:
        y = x * 1
        del y
        z = x[:, :4] * 1
    assert x.nbytes <= peak.bytes < x.nbytes + 64 and z.nbytes < x.nbytes  # beside a scalar
    with StepPeak("cpu") as scratch, LiveStorages() as live:
        F.conv2d(x.double(), weight.double())  # unfolds its input inside the kernel
    assert scratch.bytes > live.peak_bytes >= x.nbytes * 2
    with LiveStorages() as live:
        x[0].add_(1)  # a view, and what an operation in place returns
    assert live.peak_bytes == 0


def test_marks_tell_what_is_in_use_in_between() -> None:
    weight = torch.ones(N, requires_grad=True)
    with StepPeak("cpu", [weight]) as peak:
        peak.mark()
        loss = (weight * 2).exp().sum()  # exp holds its output, the product nothing but a number
        peak.mark()
        loss.backward()
        del loss
        peak.mark()
    first, held, last = peak.marks
    assert first == last == 0 and 4 * N <= held < 4 * N + 64 and peak.bytes >= 8 * N


def test_a_profiler_at_work_is_no_obstacle() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        with StepPeak("cpu") as peak:
            y = torch.ones(N)
            peak.mark()
            z = y * 2
        assert (
            peak.bytes == 8 * N
            and peak.marks == [4 * N]
            and "dispatcher" not in peak.source
            and "scratch" in peak.source
        )
    assert z.sum() == 2 * N


def test_no_gradient_no_report() -> None:
    with pytest.raises(ValueError, match="no output requires a gradient"):
        memory_report(nn.ReLU(), torch.ones(3))


def test_wrong_arguments_are_named() -> None:
    model, x = nn.Linear(3, 2), torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"loss: returned shape \(4, 2\), expected a scalar tensor"):
        memory_report(model, x, loss=lambda y: y)
    with pytest.raises(ValueError, match="loss=3: expected a function of the output"):
        memory_report(model, x, loss=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model=None: expected a torch"):
        memory_report(None, x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="other=3: expected a MemoryReport"):
        memory_report(model, x).compare(3)  # type: ignore[arg-type]


def reports() -> tuple[MemoryReport, MemoryReport]:
    x = torch.randn(4, 3, 18, 18)
    lean = network()
    lean[4] = nn.AvgPool2d(2)
    return memory_report(network(), x), memory_report(lean, x)


def test_comparison() -> None:
    before, after = reports()
    comparison = before.compare(after)
    assert comparison.held_ratio == after.held_bytes / before.held_bytes < 1
    assert comparison.peak_ratio == after.peak_bytes / before.peak_bytes
    assert comparison.modules["4"][0] - comparison.modules["4"][1] == 4 * 8 * 8 * 8 * 8  # the indices
    assert "→" in str(comparison) and len(str(comparison).splitlines()) == 6


def test_plots_show_every_row() -> None:
    before, after = reports()
    ax = before.plot()
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"{r.module}  {r.operation}" for r in before.rows]
    widths = [patch.get_width() for patch in ax.patches]
    assert sum(widths) == pytest.approx(sum(row.bytes for row in before.rows) / 2**10)
    assert len(before.compare(after).plot().patches) == 2 * 4


def test_keyword_inputs() -> None:
    """A model in the manner of Hugging Face: keywords in, a dictionary out."""

    def forward(*, input_ids: Tensor, attention_mask: Tensor, inputs: float = 1.0) -> dict[str, Any]:
        return {"loss": ((input_ids + attention_mask) * inputs).exp().sum(), "logits": None}

    model, batch = Call(lambda: None), {"input_ids": leaf(), "attention_mask": torch.ones(N)}
    model.forward = forward  # type: ignore[method-assign, assignment]
    report = memory_report(model, **batch, inputs=2.0, loss=lambda output: output["loss"])
    assert report.held_bytes == 4 * N and [row.operation for row in report.rows] == ["exp"]
    assert memory_report(model, **batch).held_bytes == 4 * N
    with pytest.raises(TypeError, match="attention_mask"):
        memory_report(model, input_ids=leaf())


FIRST_REPORTS = """
import torch
from torch import nn
import randbp
from randbp import Axes, LowResolution, NormSpatial
from randbp.diagnostics import memory_report

estimators = [Axes(0.25), NormSpatial(0.25), LowResolution(0.25)]
for number, estimator in enumerate(estimators):
    channels = 16 + 8 * number  # shapes of which no cache knows
    model = nn.Sequential(
        nn.Conv2d(3, channels, 3, stride=2), nn.GELU(), nn.Conv2d(channels, channels, 3, padding=1),
    )
    randbp.randomize(model, estimator, lean=True)
    reports = [memory_report(model, torch.randn(4, 3, 40 + number, 40)) for _ in range(2)]
    assert reports[0].kept_bytes == reports[1].kept_bytes == 0, estimator
    assert reports[0].held_bytes == reports[1].held_bytes and "still alive" not in str(reports[0]), estimator
print("done")
"""


def test_the_first_report_of_a_process_does_not_count_caches() -> None:
    result = subprocess.run([sys.executable, "-c", FIRST_REPORTS], capture_output=True, text=True)
    assert result.stdout == "done\n", result.stderr


def test_what_a_model_keeps_for_good_is_told_from_a_cache() -> None:
    class Keeps(nn.Module):
        def __init__(self, growing: bool) -> None:
            super().__init__()
            self.layer, self.growing, self.kept = nn.Linear(8, 8), growing, {}

        def forward(self, x: Tensor) -> Tensor:
            key = len(self.kept) if self.growing else 0
            if key not in self.kept:
                self.kept[key] = torch.ones(64) * 2
            return self.layer(x)

    assert memory_report(Keeps(growing=True), torch.ones(4, 8)).kept_bytes == 256
    assert memory_report(Keeps(growing=False), torch.ones(4, 8)).kept_bytes == 0


def test_a_peak_is_measured_without_a_word_and_lets_others_speak(capfd: pytest.CaptureFixture[str]) -> None:
    old = [torch.ones(N) for _ in range(3)]
    with StepPeak("cpu"):
        del old
        os.write(2, b"heard at once\n")
        assert capfd.readouterr().err == "heard at once\n"
    assert capfd.readouterr().err == ""
