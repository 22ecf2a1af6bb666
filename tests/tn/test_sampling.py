"""Subsampled networks against dense einsums, and against scattering by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from randbp import tn
from randbp.tn.network import INDEX_TYPES

from .strategies import assert_matches_einsum, random_operands, specs


@settings(max_examples=30, deadline=None)
@given(spec=specs(dims=(2, 2)), per_example=st.booleans(), seed=st.integers(0, 99))
def test_stored_positions_give_the_weight_vjp_of_the_masked_input(spec, per_example, seed):
    """What a randomised weight VJP does: keep some pixels with weights, forget the rest."""
    generator = torch.Generator().manual_seed(seed)
    net = tn.weight_vjp(spec)
    operands = random_operands(net, seed=seed)
    x, y = operands["input"], operands["output_grad"]
    n, c, pixels = spec.batch_size, spec.in_channels, spec.input_size[0] * spec.input_size[1]
    count = max(1, pixels // 2)
    rows = [torch.randperm(pixels, generator=generator)[:count] for _ in range(n if per_example else 1)]
    index = torch.stack(rows) if per_example else rows[0]
    weights = torch.rand(index.shape, generator=generator, dtype=torch.float64)
    wide = index.expand(n, count)[:, None].expand(n, c, count)
    kept = x.flatten(2).gather(2, wide)
    masked = torch.zeros_like(x.flatten(2)).scatter(2, wide, kept * weights.expand(n, count)[:, None]).reshape(x.shape)
    expected = net.contract(input=masked, output_grad=y)
    form = {"i1 i2": tn.Sample(count, per_example, weighted=True)}
    sampled = tn.sampled(net, form, stored=("input",))
    slots = {"input": kept, "output_grad": y, "i1 i2 index": index, "i1 i2 weights": weights}
    torch.testing.assert_close(sampled.contract(slots), expected, rtol=1e-10, atol=1e-10)
    bound = net.subsample({"i1 i2": index}, weights={"i1 i2": weights})
    torch.testing.assert_close(bound.contract(operands), expected, rtol=1e-10, atol=1e-10)
    assert_matches_einsum(sampled, seed)


def test_per_example_index_refers_to_the_examples_that_are_left():
    net = tn.weight_vjp(tn.ConvSpec((4, 2, 5), 3, 2))
    examples, positions = torch.tensor([3, 1]), torch.tensor([[0, 4], [2, 2]])
    operands = random_operands(net)
    x, y = operands["input"], operands["output_grad"]
    masked = torch.zeros_like(x)
    masked[3, :, [0, 4]] = x[3, :, [0, 4]]
    masked[1, :, 2] = 2 * x[1, :, 2]  # chosen twice
    expected = net.contract(input=masked, output_grad=y)
    result = net.subsample(i1=positions, n=examples).contract(operands)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def test_plans_do_not_depend_on_index_values():
    net = tn.weight_vjp(tn.ConvSpec((2, 2, 9), 3, 2))
    operands = random_operands(net)
    tn.cache.clear()
    for seed in range(3):
        index = torch.randint(9, (2, 4), generator=torch.Generator().manual_seed(seed))
        net.subsample(i1=index).contract(operands)
    info = tn.cache.info()
    assert (info.misses, info.hits, info.size) == (1, 2, 1)


def test_no_operand_is_ever_a_dense_pattern():
    """A sampled weight VJP of a large image would need terabytes of dense patterns."""
    net = tn.weight_vjp(tn.ConvSpec((1, 1, 512, 512), 1, 3, padding=1))
    index = torch.arange(0, 512 * 512, 64)
    operands = random_operands(net, torch.float32)
    sampled = net.subsample({"i1 i2": index})
    x = operands["input"].flatten()
    masked = torch.zeros_like(x)
    masked[index] = x[index]
    expected = net.contract(input=masked.view(1, 1, 512, 512), output_grad=operands["output_grad"])
    torch.testing.assert_close(sampled.contract(operands), expected, rtol=1e-3, atol=1e-2)
    assert sampled.plan().largest_intermediate < 16 * 2**20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"i3": torch.tensor([0])}, "unknown leg 'i3'"),
        ({"i1 j": torch.tensor([0])}, "unknown leg 'j'"),
        ({"i1 i1": torch.tensor([0])}, "several different ones"),
        ({"i1": torch.tensor([5])}, r"'i1' reaches from 5 to 5; allowed is 0 to 4"),
        ({"i1": torch.tensor([-1])}, r"'i1' reaches from -1 to -1"),
        ({"i1": torch.tensor([0.0])}, "'i1' must be an integer tensor"),
        ({"i1": torch.tensor([0j])}, "'i1' must be an integer tensor"),
        ({"i1": [0, 1]}, "'i1' must be an integer tensor"),
        ({"i1": torch.zeros(1, 1, 1, dtype=torch.long)}, r"'i1' has shape \(1, 1, 1\)"),
        ({"i1": torch.zeros(3, 1, dtype=torch.long)}, r"i1 index of shape \(3, 1\)"),
        ({"n": torch.zeros(2, 1, dtype=torch.long)}, "batch leg itself"),
    ],
)
def test_errors(arguments, message):
    net = tn.weight_vjp(tn.ConvSpec((2, 2, 5), 3, 2))
    with pytest.raises(ValueError, match=message):
        net.subsample(arguments)


def test_more_errors():
    net = tn.weight_vjp(tn.ConvSpec((2, 2, 5), 3, 2))
    index = torch.tensor([0])
    with pytest.raises(ValueError, match="weights for 'c'"):
        net.subsample(i1=index, weights={"c": torch.ones(1)})
    with pytest.raises(ValueError, match="unknown slot 'weight'; weight_vjp takes input, output_grad"):
        net.subsample(i1=index, stored=("weight",))
    with pytest.raises(ValueError, match="'i1' is restricted already"):
        net.subsample(i1=index).subsample(i1=index)
    with pytest.raises(ValueError, match="Sample: size=-2"):
        tn.Sample(-2)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0, 9], "i1 index of weight_vjp reaches from 0 to 9; allowed is 0 to 4"),
        ([-7, 0], "i1 index of weight_vjp reaches from -7 to 0; allowed is 0 to 4"),
        ([True, False], "i1 index of dtype torch.bool: an index needs integers"),
    ],
)
def test_indices_that_come_with_the_operands_are_checked(index, message):
    net = tn.sampled(tn.weight_vjp(tn.ConvSpec((2, 2, 5), 3, 2)), {"i1": tn.Sample(2)})
    operands = random_operands(net) | {"i1 index": torch.tensor(index)}
    for evaluate in (net.contract, net.einsum):
        with pytest.raises(ValueError, match=message):
            evaluate(operands)


@pytest.mark.parametrize("dtype", sorted(INDEX_TYPES, key=str))
@pytest.mark.parametrize("leg", ["i1", "o1", "i2 i1"])
def test_an_index_of_any_integer_type_reaches_positions_beyond_its_range(dtype, leg):
    index = torch.tensor([0, 100, 127, 3])
    for operation in (tn.conv, tn.weight_vjp, tn.input_vjp, tn.fold, tn.kfac_reduce):
        net = operation(tn.ConvSpec((2, 1, 300, 1), 2, (3, 1), stride=(1, 1), padding=(130, 0)))
        expected = assert_matches_einsum(net.subsample({leg: index}))
        operands = random_operands(net)
        torch.testing.assert_close(net.subsample({leg: index.to(dtype)}).contract(operands), expected)


@pytest.mark.parametrize("channels", [1, 3, 64])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("per_example", [True, False])
def test_kept_positions_are_never_put_back_into_a_full_size_tensor(channels, kernel, per_example):
    """Also where a dense native kernel on scattered zeros would look cheap."""
    spec = tn.ConvSpec((8, channels, 13, 11), 12, kernel, padding=kernel // 2)
    sample = tn.Sample(35, per_example)
    for net in (
        tn.sampled(tn.weight_vjp(spec), {"i1 i2": sample}, stored=("input",)),
        tn.sampled(tn.input_vjp(spec), {"o1 o2": sample}, stored=("output_grad",)),
    ):
        kernels = {step.kernel for step in net.plan().steps}
        assert not any("convolution" in name or name == "scatter" for name in kernels), kernels


@given(spec=specs((1, 3)), count=st.integers(1, 9))
def test_rows_of_a_batch_are_one_gathered_product(spec: tn.ConvSpec, count: int) -> None:
    """Examples and positions that are chosen jointly: two selections of one sample are one."""
    legs = ("n", *(f"i{dim}" for dim in range(1, spec.dims + 1)))
    net = tn.sampled(tn.weight_vjp(spec), {" ".join(legs): tn.Sample(count)}, stored=("input",))
    assert_matches_einsum(net)
    if min(net.sizes.values()) > 1 and all(p.kernel_size > 1 for p in spec.patterns):
        assert [step.kernel for step in net.plan(torch.float64).steps] == ["gathered matmul"]
