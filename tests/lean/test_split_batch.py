"""Chains in parts of the batch: the same gradients, a lower peak, and the whole batch wherever it is needed."""

import copy
import pickle
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import randbp
from randbp import Batch, Exact, Rounding, Spatial
from randbp.callbacks import TensorDropout
from randbp.diagnostics import StepPeak
from randbp.diagnostics.live_storages import LiveStorages
from randbp.lean import split_batch as module
from randbp.lean.split_batch import wide_stretch


@pytest.fixture(autouse=True)
def anything_is_worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTHWHILE", 1)


class Seen:
    """Sizes of the batches that a layer sees."""

    def __init__(self, layer: nn.Module) -> None:
        self.sizes: list[int] = []
        layer.register_forward_hook(lambda layer, args, output: self.sizes.append(len(output)), always_call=True)


def wide(*, inplace: bool = False) -> nn.Sequential:
    """Narrow, wide, narrow."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(inplace),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(inplace),
        nn.MaxPool2d(4),
        nn.Conv2d(16, 4, 1),
    )


def images(batch: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=dtype)


def outcome(model: nn.Module, x: Tensor, seed: int = 2) -> list[Tensor]:
    """Output, all gradients, the input's included, and buffers."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    torch.manual_seed(seed)
    y = model(x * 1)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)).sum().backward()
    assert x.grad is not None
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [y.detach(), x.grad, *grads, *(buffer.clone() for buffer in model.buffers())]


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@st.composite
def chains(draw: Any) -> tuple[nn.Sequential, int]:
    """A chain of layers, some of which need the whole batch, and its number of input channels."""
    torch.manual_seed(draw(st.integers(0, 99)))
    first = channels = draw(st.integers(1, 3))
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(2, 7))):
        kind = draw(st.sampled_from(["conv", "conv", "transposed", "act", "act", "pool", "up", "drop", "nest", "norm"]))
        after = draw(st.sampled_from([1, 4, 12])) if kind in ("conv", "transposed", "nest") else channels
        inplace = draw(st.booleans()) and (not layers or isinstance(layers[-1], (nn.Conv2d, nn.ConvTranspose2d)))
        if kind == "conv":
            layer: nn.Module = nn.Conv2d(channels, after, 3, draw(st.integers(1, 2)), 1)
        elif kind == "transposed":
            layer = nn.ConvTranspose2d(channels, after, 3, padding=1)
        elif kind == "nest":
            layer = nn.Sequential(nn.Conv2d(channels, after, 1), nn.ReLU(inplace=draw(st.booleans())))
        elif kind == "act":
            layer = nn.ReLU(inplace)
        elif kind == "pool":
            layer = nn.MaxPool2d(2, ceil_mode=True)
        elif kind == "up":
            layer = nn.Upsample(scale_factor=2)
        elif kind == "drop":
            layer = nn.Dropout(draw(st.sampled_from([0.0, 0.5])))
        else:
            layer = nn.InstanceNorm2d(channels, track_running_stats=True)
        layers.append(layer)
        channels = after
    return nn.Sequential(*layers).double(), first


@settings(max_examples=60, deadline=None)
@given(chains(), st.integers(1, 7), st.integers(2, 5), st.booleans())
def test_chains_give_what_the_whole_batch_gives(
    chain: tuple[nn.Sequential, int], batch: int, parts: int, channels_last: bool
) -> None:
    model, channels = chain
    # What rounds is left out, for its noise differs from part to part.
    lean: Any = {"": True} | {name: "exact" for name, m in model.named_modules() if isinstance(m, nn.InstanceNorm2d)}
    other = copy.deepcopy(model)
    x = torch.randn(batch, channels, 8, 8, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WORTHWHILE", 1)
        with randbp.randomize(other, Exact(), lean=lean, parts=parts):
            ours = outcome(other, x)
    assert_close(ours, outcome(model, x))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(1, 6))
def test_a_stretch_holds_all_wide_layers_and_lowers_the_peak(sizes: list[int], parts: int) -> None:
    start, stop = wide_stretch(sizes, parts)
    pairs = [a + b for a, b in pairwise(sizes)]
    assert 0 <= start <= stop <= len(pairs)
    if start < stop:
        outside = pairs[:start] + pairs[stop:]
        assert all(pair * parts <= max(pairs) for pair in outside)
        assert max([*outside, sizes[start] + 2 * sizes[stop]]) < max(pairs)


def test_no_layer_is_run_on_what_it_was_not_given() -> None:
    """An empty batch, say, from which sizes could be learnt: some layers raise, others count it."""
    model = nn.Sequential(*list(wide())[:3], nn.InstanceNorm2d(16, affine=True), *list(wide())[3:])
    calls: list[tuple[str, torch.Size]] = []
    for name, layer in model.named_children():
        layer.register_forward_pre_hook(lambda layer, args, name=name: calls.append((name, args[0].shape)))
    whole = nn.Sequential(nn.Flatten(0, 0), model, nn.BatchNorm2d(4), nn.RReLU())
    with randbp.randomize(whole, Exact(), lean=True):
        state = torch.get_rng_state()
        whole[:3](images()).sum().backward()
        assert torch.equal(torch.get_rng_state(), state)
    assert sorted({name for name, _ in calls}) == [str(number) for number in range(7)]
    assert sum(size[0] for name, size in calls) == 8 * 7 and all(len(size) == 4 and size[0] for _, size in calls)
    assert int(whole[2].num_batches_tracked) == 1


def test_the_first_of_the_wide_layers_may_work_in_place() -> None:
    first = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 16, 3))
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(16, 2, 1)).double()
    exact = outcome(model, images(dtype=torch.float64))
    with randbp.randomize(model, Exact(), lean={"": True}):
        assert_close(outcome(model, images(dtype=torch.float64)), exact)


@pytest.mark.parametrize("inplace", [False, True])
def test_wide_layers_see_parts_and_narrow_ones_the_batch(inplace: bool) -> None:
    model = wide(inplace=inplace)
    seen = [Seen(layer) for layer in model]
    with randbp.randomize(model, Spatial(keep=0.5), lean=True, parts=3):
        model(images()).sum().backward()
        assert [s.sizes for s in seen] == [[3, 3, 2]] * 5 + [[8]]
        assert isinstance(model, nn.Sequential) and "PartwiseSequential" in repr(model)
    assert type(model) is nn.Sequential and not [name for name in vars(model) if "randbp" in name]


def test_the_peak_of_a_step_falls() -> None:
    model, x, peak = wide(), images(64), {}
    for parts in (1, 4):
        with randbp.randomize(model, Spatial(keep=1 / 8), lean=True, parts=parts):
            model(x).sum().backward()
            with StepPeak("cpu", model.parameters()) as measured:
                model(x).sum().backward()
        peak[parts] = measured.bytes
    assert peak[4] < 0.6 * peak[1]


def test_only_its_input_and_output_are_there_when_the_last_layer_has_run() -> None:
    """Beside what is held: neither what entered nor what left the layers in parts."""
    model, alive, live = wide().extend([nn.ReLU(), nn.Conv2d(4, 8, 1), nn.ReLU()]), [], LiveStorages()
    model[-1].register_forward_hook(lambda layer, args, output: alive.append(live.bytes), always_call=True)
    seen, x = Seen(model[0]), images(64)
    with randbp.randomize(model, Rounding(4), layers="*", lean=True, parts=4), live:
        y = model(x)
        assert alive == [live.bytes + y.nbytes]  # its input is as large
    assert seen.sizes == [16] * 4


def whole(model: nn.Module, x: Tensor, **options: Any) -> bool:
    """Whether the first layer of a randomised model sees the whole batch."""
    seen = Seen(next(m for m in model.modules() if isinstance(m, nn.Conv2d)))
    with randbp.randomize(model, **{"weight_vjp": Exact(), "lean": True, "parts": 2} | options):
        model(x)
    return seen.sizes == [len(x)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"weight_vjp": Spatial(keep=0.5)}, False),
        ({"lean": {"0": "exact"}}, True),
        ({"lean": {"0": False}}, True),
        ({"lean": {"": "exact", "5": True}}, True),
        ({"lean": {"": True, "5": "exact"}}, False),
        ({"lean": "exact"}, True),
        ({"lean": False}, True),
        ({"parts": 1}, True),
        ({"weight_vjp": Batch(keep=0.5)}, True),
        ({"weight_vjp": Rounding(4, Batch(keep=0.5))}, True),
        ({"weight_vjp": {"0": Batch(keep=0.5), "*": Spatial(keep=0.5)}}, True),
    ],
)
def test_the_batch_stays_whole_where_it_must(options: dict[str, Any], expected: bool) -> None:
    assert whole(wide(), images(), **options) is expected


def test_the_batch_stays_whole_where_nothing_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    assert whole(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)), images())  # as wide at its ends
    assert whole(wide(), images(1))
    assert not whole(wide(), images(2))
    assert not whole(nn.Sequential(nn.Flatten(0, 0), wide()), images())
    monkeypatch.setattr(module, "WORTHWHILE", 4 * 8 * 2 * 16 * 16 * 16 + 1)
    assert whole(wide(), images())
    monkeypatch.setattr(module, "WORTHWHILE", 4 * 8 * 2 * 16 * 16 * 16)
    assert not whole(wide(), images())


def test_evaluation_no_grad_single_images_and_compiled_graphs_are_whole() -> None:
    model = wide()
    seen = Seen(model[0])
    with randbp.randomize(model, Exact(), lean=True):
        model.eval()(images())
        with torch.no_grad():
            model.train()(images())
        assert seen.sizes == [8, 8]
        model(images()[0])  # channels come first
        assert seen.sizes == [8, 8, 16]
    compiled = wide()
    with randbp.randomize(compiled, Exact(), lean=True):
        expected = compiled(images())
        assert torch.equal(torch.compile(compiled, backend="eager", fullgraph=True)(images()), expected)


@pytest.mark.parametrize("place", [1, 3])
def test_dropout_sees_the_batch_whole(place: int) -> None:
    layers = list(wide().double())
    model = nn.Sequential(*layers[:place], nn.Dropout(0.5), *layers[place:])
    other = copy.deepcopy(model)
    seen = Seen(other[place])
    with randbp.randomize(other, Exact(), lean=True):
        ours = outcome(other, images(dtype=torch.float64))
    assert seen.sizes == [8]
    assert_close(ours, outcome(model, images(dtype=torch.float64)))


def test_a_tensor_that_enters_the_wide_layers_can_be_overwritten() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)).double()
    other, x = copy.deepcopy(model), images(dtype=torch.float64)
    seen = [Seen(layer) for layer in other]
    with randbp.randomize(other, Exact(), lean=True, parts=9):
        ours = outcome(other, x)
    assert [s.sizes for s in seen] == [[8], [1] * 8, [1] * 8, [1] * 8]
    assert_close(ours, outcome(model, x))


def test_a_layer_put_in_later_is_seen_for_what_it_is() -> None:
    model = wide()
    with randbp.randomize(model, Exact(), lean=True):
        model(images())
        model[1] = nn.BatchNorm2d(16)
        model(images()).sum().backward()
        assert int(model[1].num_batches_tracked) == 1
        model.append(nn.ReLU())
        assert model(images()).shape == (8, 4, 4, 4)
    assert type(model) is nn.Sequential


def test_layers_with_new_settings_are_seen_for_what_they_are() -> None:
    model = nn.Sequential(*list(wide())[:4], nn.Dropout(0.0), nn.MaxPool2d(4))
    seen = [Seen(model[0]), Seen(model[4])]
    with randbp.randomize(model, Exact(), lean=True, parts=2):
        model(images())
        model[4].p = 0.5
        model(images())
        assert seen[1].sizes == [4, 4, 8]


def test_layers_with_a_state_or_a_forward_pass_of_their_own_see_the_batch_whole() -> None:
    normed = wide()
    nn.utils.spectral_norm(normed[2])
    patched = wide()
    patched[2].forward = lambda x: x - x.mean(0)
    for model in (normed, patched):
        other = wide()
        if model is normed:
            nn.utils.spectral_norm(other[2]).load_state_dict(normed[2].state_dict())
        else:
            other[2].forward = patched[2].forward
        with randbp.randomize(model, Exact(), lean=True):
            torch.testing.assert_close(model(images()), other(images()))


def test_copies_pickles_and_slices() -> None:
    model = wide()
    handle = randbp.randomize(model, Spatial(keep=0.5), lean=True)
    expected = outcome(model, images())[0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        seen = Seen(other[0])
        assert torch.equal(outcome(other, images())[0], expected) and seen.sizes == [2] * 4
        assert type(other) is type(model)
    first = model[:3]
    assert torch.equal(first(images()), nn.Sequential(*list(model)[:3])(images()))
    handle.remove()
    handle.remove()
    assert type(model) is nn.Sequential


def test_a_chain_in_a_chain_in_parts_is_not_split_again() -> None:
    block = nn.Sequential(nn.Conv2d(16, 64, 1), nn.ReLU(), nn.Conv2d(64, 8, 1))  # itself narrow, wide, narrow
    model = nn.Sequential(nn.Conv2d(3, 16, 1), block, nn.MaxPool2d(4), nn.ReLU())
    seen = [Seen(module) for module in (model[0], block, block[1], model[2], model[3])]
    with randbp.randomize(model, Exact(), lean=True):
        model(images())
        assert [s.sizes for s in seen] == [[2] * 4] * 4 + [[8]]
        block(torch.randn(8, 16, 16, 16))
        assert seen[2].sizes == [2] * 8
    assert whole(model, images(), lean={"": True, "1.1": "exact"}) and type(block) is nn.Sequential


def test_layers_whose_output_somebody_wants_run_whole() -> None:
    model, outputs = wide(), []
    for layer in (model[0], model[3]):
        hook = layer.register_forward_hook(lambda layer, args, output: outputs.append(output))
        assert whole(model, images()) and len(outputs.pop()) == 8
        outputs.clear()
        hook.remove()
        assert not whole(model, images()) and not outputs


def test_two_handles_and_failures_leave_nothing_behind() -> None:
    model = wide()
    with randbp.randomize(model, Exact(), layers="0", lean=True) as first:
        with randbp.randomize(model, Exact(), layers="2", lean=True):
            model(images()).sum().backward()
        with pytest.raises(RuntimeError, match="channels"):
            model(torch.randn(8, 5, 16, 16))
        seen = Seen(model[0])
        model(images())
        assert seen.sizes == [2] * 4
        first.remove()
    assert type(model) is nn.Sequential


def test_checkpoints_repeat_the_samples_of_each_part() -> None:
    grads = []
    for again in (False, True):
        model = wide()
        with randbp.randomize(model, Spatial(keep=0.25), lean=True) as handle:
            handle.set_step(3)
            y = checkpoint(model, images(), use_reentrant=False) if again else model(images())
            y.square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def estimates(model: nn.Module, draws: int) -> Iterator[Tensor]:
    with randbp.randomize(model, Spatial(keep=0.25), lean=True) as handle:
        for step in range(draws):
            handle.set_step(step)
            model.zero_grad()
            (model(images(4)) ** 2).sum().backward()
            yield model[2].weight.grad.clone()


def test_estimates_in_parts_are_unbiased() -> None:
    """A z-test of the estimate's product with the exact gradient; wrongly fails in 1 of 10,000 cases (|z| > 3.9)."""
    model = wide()
    (model(images(4)) ** 2).sum().backward()
    exact = model[2].weight.grad.clone()
    products = torch.stack([(estimate * exact).sum() for estimate in estimates(model, 80)]) / exact.square().sum()
    z = (products.mean() - 1) / (products.std() / len(products) ** 0.5)
    assert products.std() > 0.001 and abs(z) < 3.9


@pytest.mark.parametrize("parts", [0, -1, 2.0, True, "4", None])
def test_a_wrong_number_of_parts_is_named(parts: Any) -> None:
    with pytest.raises(ValueError, match=r"^parts=.*: expected an integer >= 1$"):
        randbp.randomize(wide(), lean=True, parts=parts)
    with pytest.raises(ValueError, match=r"^parts="):
        TensorDropout(lean=True, parts=parts)
