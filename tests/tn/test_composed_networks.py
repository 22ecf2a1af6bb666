"""Networks made of networks: what may share legs, and what then has no tensor to hold a leg."""

import pytest
import torch

from randbp import tn

from .strategies import assert_matches_einsum, random_operands

SMALL = tn.ConvSpec((1, 1, 4), 1, 2)
IMAGE = tn.ConvSpec((2, 2, 4, 3), 2, (3, 2), stride=(1, 2), padding=(1, 0))
X = torch.arange(1.0, 5.0).view(1, 1, 4)
NONE = torch.tensor([], dtype=torch.long)


def test_fold_of_unfold_counts_the_windows_of_an_input():
    jacobian = tn.fold(SMALL).compose(tn.unfold(SMALL), into="output_grad").remove("input")
    assert torch.equal(jacobian.contract().view(4, 4), torch.diag(torch.tensor([1.0, 2, 2, 1])))
    image = tn.fold(IMAGE).compose(tn.unfold(IMAGE), into="output_grad")
    operands = random_operands(image)
    unfolded = tn.unfold(IMAGE).contract(operands)
    torch.testing.assert_close(assert_matches_einsum(image), tn.fold(IMAGE).contract(output_grad=unfolded))
    assert_matches_einsum(image.remove("input"))


@pytest.mark.parametrize("spec", [SMALL, IMAGE])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_pattern_met_by_itself_through_any_of_its_legs(spec, number):
    jacobian = tn.unfold(spec).remove("input")
    patterns = [node for node in jacobian.nodes if isinstance(node, tn.Pattern)]
    shared = tuple(pattern.legs[number] for pattern in patterns)
    for share in (shared, tuple(set(jacobian.open_legs) - set(shared))):
        assert_matches_einsum(jacobian.outer(jacobian, share=share))


def test_a_network_of_zeros_and_ones_times_itself_is_itself():
    jacobian = tn.unfold(SMALL).remove("input").subsample(o1=torch.tensor([2, 0]))
    square = jacobian.outer(jacobian, share=jacobian.open_legs)
    assert torch.equal(square.contract(), jacobian.contract())
    assert sum(isinstance(node, tn.Pattern) for node in tn.unfold(SMALL).outer(tn.unfold(SMALL)).simplify().nodes) == 2


def test_positions_of_both_halves_of_a_gram_matrix_are_chosen_jointly():
    net = tn.kfac_expand(SMALL).subsample({"i1 i1'": torch.tensor([0, 5])})  # (0, 0) and (1, 1)
    assert net.contract(input=X).tolist() == [[[5, 0], [0, 4]]]
    for key in ("i1 k1'", "o1 k1", "k1 k1'", "i1 o1 k1", "i1' k1"):
        assert_matches_einsum(tn.kfac_expand(SMALL).subsample({key: torch.tensor([1, 3, 1])}))


def test_two_legs_of_one_pattern_are_chosen_jointly():
    net = tn.conv(SMALL).subsample({"i1 k1": torch.tensor([0, 3])})  # (0, 0) and (1, 1)
    assert net.contract(input=X, weight=torch.ones(1, 1, 2)).tolist() == [[[3, 0, 0]]]
    for key in ("i1 k1", "i1 o1", "o1 k1", "k1 i1 o1", "i1 k2", "o2 k1 i2", "i1 i2 k1 k2"):
        for operation in (tn.conv, tn.weight_vjp, tn.fold, tn.unfold):
            assert_matches_einsum(operation(IMAGE).subsample({key: torch.tensor([3, 0, 1, 5])}))


@pytest.mark.parametrize("first", ["o2", "o1", "k1", "c", "n", "i1"])
def test_an_empty_choice_can_be_followed_by_others(first):
    net = tn.unfold(tn.ConvSpec((1, 1, 4, 4), 1, 2)).subsample({first: NONE})
    for leg in sorted({"n", "c", "o1", "o2", "k1", "k2", "i1"} - {first}):
        result = assert_matches_einsum(net.subsample({leg: torch.tensor([0])}))
        assert not result.any()


def test_empty_results_can_be_plugged_in():
    empty = tn.unfold(SMALL).subsample(n=NONE)
    net = tn.fold(SMALL).subsample(n=NONE, stored=("output_grad",)).compose(empty, into="output_grad")
    assert net.contract(input=X).shape == (0, 1, 4)
    inner = tn.conv(IMAGE).subsample(g=NONE)  # a dimension g·d of nothing
    outer = tn.conv(IMAGE).subsample(d=NONE).vjp("weight", "cotangent")
    assert_matches_einsum(outer.compose(inner, into="cotangent"))


def test_a_joined_leg_that_no_tensor_holds_counts_its_terms():
    jacobian = tn.conv(IMAGE).remove("weight").group(("n",), ("g",), ("d",), ("o1",), ("o2",), ("c",), ("k1",), ("k2",))
    sizes = {f"x{dim}": size for dim, size in enumerate(jacobian.output_shape)}
    axes = tuple(tn.Axis.grouped((leg,), sizes) for leg in sizes)
    total = tn.TensorNetwork((tn.Operand("all", axes),), tuple(sorted(sizes.items())), ())
    operands = random_operands(jacobian)
    expected = jacobian.contract(operands).sum()
    torch.testing.assert_close(total.compose(jacobian, into="all").contract(operands), expected)


@pytest.mark.parametrize("spec", [tn.ConvSpec((2, 3, 5), 2, 1), tn.ConvSpec((2, 3, 6), 2, 2, stride=2), SMALL])
def test_a_pattern_summed_on_its_own_is_a_number(spec):
    net = tn.conv(spec).remove("weight").remove("input").sum("o1", "i1", "k1")
    assert not net.simplify().nodes
    assert net.contract().unique().item() == net.simplify().contract().unique().item() == spec.patterns[0].nonzeros
    mean = tn.constant_input_weight_vjp(tn.linear_spec((2, 3, 4), 5)).remove("output_grad").sum("o1")
    assert_matches_einsum(mean)
    assert_matches_einsum(mean.simplify())


def test_integers_stay_integers_whatever_form_is_planned():
    for net in (
        tn.constant_output_grad_input_vjp(tn.linear_spec((2, 3, 4), 5)).sum("i1"),
        tn.weight_vjp(SMALL).subsample(n=NONE),
        tn.kfac_expand(SMALL).subsample(n=NONE),
    ):
        operands = random_operands(net, dtype=torch.int64)
        expected = torch.einsum(*net.einsum(operands))
        result = net.contract(operands)
        assert result.dtype == expected.dtype and torch.equal(result, expected)


def test_moves_take_bound_tensors_along_and_leave_behind_what_is_gone():
    index, weights = torch.tensor([2, 0]), torch.tensor([0.5, -3.0], dtype=torch.float64)
    net = tn.weight_vjp(SMALL).subsample(i1=index, weights={"i1": weights})
    operands = random_operands(net)
    for moved in (net.jvp("i1 weights", "tangent"), net.remove("i1 weights"), net.vjp("i1 weights", "cotangent")):
        assert set(moved.bound) == {"i1 index"}
    tangent = net.jvp("i1 weights", "tangent").contract(operands | {"tangent": weights})
    torch.testing.assert_close(tangent, net.contract(operands))


def test_networks_without_tensors_are_reported_on_like_others():
    for net in (tn.unfold(SMALL).remove("input"), tn.unfolded_kernel(tn.ConvSpec((2, 1), 1, ())).remove("weight")):
        assert net.path_report().orders == 1
        assert net.draw().axes
        assert_matches_einsum(net)
        assert_matches_einsum(net.sum(*net.open_legs))


def test_one_name_for_an_index_and_for_data_is_refused():
    restricted = tn.sampled(tn.weight_vjp(SMALL), {"i1": tn.Sample(2, weighted=True)})
    net = restricted.rename(slots={"i1 weights": "i1 index"})
    with pytest.raises(ValueError, match=r"^slot 'i1 index': used as an index and as data; rename one$"):
        net.slots  # noqa: B018
