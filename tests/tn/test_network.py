"""Graphical moves and their errors."""

import pytest
import torch

from randbp import tn
from randbp.tn.planning.plan import make_plan

from .strategies import another_machine, assert_matches_einsum, random_operands

SPEC = tn.ConvSpec((2, 4, 5, 4), 6, (3, 2), stride=(2, 1), padding=1, groups=2)


@pytest.mark.parametrize("slot", ["input", "weight"])
def test_remove_is_the_jacobian(slot):
    net = tn.conv(SPEC)
    assert_matches_einsum(net.remove(slot).remove("weight" if slot == "input" else "input"))
    operands = random_operands(net)
    other = "weight" if slot == "input" else "input"
    full = torch.autograd.functional.jacobian(lambda t: net.contract({slot: t, other: operands[other]}), operands[slot])
    blocks = net.remove(slot).contract({other: operands[other]})
    if slot == "weight":  # [n, g·d, o1, o2, g·d, c, k1, k2], diagonal in g·d
        full = full.diagonal(dim1=1, dim2=4).movedim(-1, 1)
        torch.testing.assert_close(blocks, full)
    else:  # [n, g·d, o1, o2, n, g·c, i1, i2], diagonal in n and g
        full = full.diagonal(dim1=0, dim2=4).movedim(-1, 0).unflatten(1, (2, -1)).unflatten(5, (2, -1))
        full = full.diagonal(dim1=1, dim2=5).movedim(-1, 1).flatten(1, 2)
        torch.testing.assert_close(blocks, full)


def test_vjps_and_jvps_follow_from_moves():
    conv = tn.conv(SPEC)
    assert conv.vjp("weight") == tn.weight_vjp(SPEC)
    assert conv.jvp("input") == tn.input_jvp(SPEC)
    assert tn.weight_vjp(SPEC).with_leg("n") == tn.per_example_weight_vjp(SPEC)


@pytest.mark.parametrize("order", [("n", "g"), ("g", "n")])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_matrix_is_repeated_along_any_leading_legs(order, groups):
    sizes = {"n": 4, "g": groups, "c": 2, "d": 3, "o1": 50}

    def operand(slot, *legs):
        return tn.Operand(slot, tuple(tn.Axis.grouped((leg,), sizes) for leg in legs))

    nodes = (operand("w", "g", "d", "c"), operand("x", *order, "c", "o1"))
    output = tuple(tn.Axis.grouped((leg,), sizes) for leg in ("n", "g", "d", "o1"))
    net = tn.TensorNetwork(nodes, tuple(sorted(sizes.items())), output)
    assert_matches_einsum(net)


def test_foreign_networks_do_not_materialise_patterns():
    """A dense pattern of 4000 x 4000 x 5 alone would be 320 MB; all intermediates here stay near the
    operands' size."""
    spec = tn.ConvSpec((1, 2, 4000), 2, 5, padding=2)
    bottom = tn.conv(spec).rename(slots={"weight": "weight1"})
    for net in (
        tn.conv(spec).compose(bottom, into="input"),
        tn.conv(spec).compose(bottom, into="input").vjp("weight1"),
        tn.weight_vjp(spec).outer(tn.weight_vjp(spec), share=("g", "d", "c", "k1")).sum("g", "d", "c", "k1"),
        tn.kfac_expand(spec),
    ):
        assert net.plan().largest_intermediate <= 2 * 5 * 2 * 4000 * 4
        assert net.contract(random_operands(net, torch.float32)).isfinite().all()


@pytest.mark.parametrize(
    ("spec", "left"),
    [
        (tn.ConvSpec((2, 4, 6, 6), 2, 2, stride=2), 0),  # dense
        (tn.ConvSpec((2, 4, 7, 7), 2, 2, stride=2), 0),  # dense with a remainder
        (tn.ConvSpec((2, 4, 6, 6), 2, 1, stride=2), 0),  # down-sampling
        (tn.ConvSpec((2, 4, 6, 6), 2, 2, stride=3), 0),  # down-sampling with gaps
        (tn.ConvSpec((2, 4, 6, 6), 2, 1), 0),  # identity
        (tn.ConvSpec((2, 4, 6, 6), 2, 6), 0),  # one output
        (tn.ConvSpec((2, 4, 6, 6), 2, 2, dilation=3), 1),
        (tn.ConvSpec((2, 4, 6, 6), 2, 2, dilation=3, stride=1, padding=((0, 0), (0, 0))), 1),
        (tn.ConvSpec((2, 4, 6, 6), 2, 3, padding=1), 2),
        (tn.ConvSpec((2, 4, 6, 6), 2, (1, 3), padding=(0, 1)), 1),
    ],
)
def test_simplify_removes_simple_patterns(spec, left):
    left = 0 if spec.dilation == (3, 3) and spec.output_size == (3, 3) else left
    for operation in (tn.conv, tn.weight_vjp, tn.input_vjp, tn.unfold, tn.kfac_expand, tn.gradient_gram):
        net = operation(spec)
        simple = net.simplify()
        halves = 2 if operation in (tn.kfac_expand, tn.gradient_gram) else 1
        assert sum(isinstance(node, tn.Pattern) for node in simple.nodes) == left * halves
        assert_matches_einsum(simple)
        assert simple.slots == net.slots
        assert simple.output_shape == net.output_shape


@pytest.mark.parametrize("operation", [tn.kfac_expand, tn.kfac_reduce_output_grad, tn.weight_vjp])
def test_integers_times_a_number_are_floating_point_as_in_pytorch(operation):
    net = operation(SPEC)
    operands = random_operands(net, dtype=torch.int64)
    expected = net.contract({slot: tensor.double() for slot, tensor in operands.items()})
    for result in (net.contract(operands), net.einsum()(**operands)):
        assert result.dtype == (torch.int64 if net.scale == 1 else torch.float32)
        torch.testing.assert_close(result.double(), expected)


def test_networks_are_values():
    assert tn.conv(SPEC) == tn.conv(SPEC).rename(legs={"c": "x"}).rename(legs={"x": "c"})
    assert hash(tn.conv(SPEC)) == hash(tn.conv(SPEC).named("other"))
    assert tn.conv(SPEC) != tn.conv(SPEC).scaled(2.0)
    with pytest.raises(AttributeError):
        tn.conv(SPEC).scale = 2.0


def test_contraction_is_differentiable():
    for operation in (tn.conv, tn.unfold, tn.fold, tn.kfac_reduce, tn.unfold_transpose):
        net = operation(tn.ConvSpec((1, 2, 4), 2, 2, padding=1))
        operands = {slot: t.requires_grad_() for slot, t in random_operands(net).items()}
        slots = list(operands)
        assert torch.autograd.gradcheck(
            lambda *tensors, net=net, slots=slots: net.contract(dict(zip(slots, tensors, strict=True))),
            tuple(operands.values()),
        )


def test_line_products_are_differentiable() -> None:
    spec = tn.ConvSpec((2, 3, 4, 3), 2, (3, 2), stride=(1, 2), padding=1)
    net = tn.weight_vjp(spec)
    with another_machine(line_wide=0, line_widest=0, line_long=0, line_small=10**6):
        plan = make_plan(net, torch.float64, torch.device("cpu"))
    assert [step.kernel for step in plan.steps] == ["line products"]
    x, y = (tensor.requires_grad_() for tensor in random_operands(net).values())
    assert torch.autograd.gradcheck(lambda *tensors: plan.run(tensors), (x, y))


@pytest.mark.parametrize("width", [1, 4096])
def test_contractions_piece_by_piece_are_differentiable(width: int) -> None:
    spec = tn.ConvSpec((2, 2, 11, 9), 2, 3, padding=1)
    index = torch.tensor([[3, 7, 50], [98, 0, 60]])
    sampled = tn.sampled(tn.weight_vjp(spec), {"i1 i2": tn.Sample(3, per_example=True)}, stored=("input",))
    with another_machine(joint=0, small=0, row_piece=1, row_width=width, row_gathered=4, row_narrow=0):
        for net, bound in ((tn.kfac_reduce(spec), {}), (sampled, {"i1 i2 index": index})):
            operands = {slot: t for slot, t in random_operands(net).items() if slot not in bound}
            plan = make_plan(net, torch.float64, torch.device("cpu"))
            assert any(step.kernel in ("box sums", "gathered matmul") for step in plan.steps)

            def run(*tensors, plan=plan, operands=operands, bound=bound):
                given = dict(zip(operands, tensors, strict=True)) | bound
                return plan.run([given[slot] for slot in plan.slots])

            values = tuple(t.requires_grad_() for t in operands.values())
            assert torch.autograd.gradcheck(run, values)
            if bound:  # also in forward mode
                torch.testing.assert_close(*_both_modes(run, values))


def _both_modes(run, values):
    tangents = tuple(torch.ones_like(value) for value in values)
    plain = tuple(value.detach() for value in values)
    return torch.func.jvp(run, plain, tangents)[1], torch.autograd.functional.jvp(run, values, tangents)[1]


X, Y = torch.zeros(2, 4, 5, 4), torch.zeros(2, 6, 3, 5)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"input": X}, r"missing output_grad \(2, 6, 3, 5\); weight_vjp takes input, output_grad"),
        ({}, "missing input"),
        ({"input": X, "output_grad": Y, "foo": Y}, "unknown slot 'foo'; weight_vjp takes input, output_grad"),
        (
            {"input": X[:1], "output_grad": Y},
            r"input of shape \(1, 4, 5, 4\): weight_vjp needs \(2, 4, 5, 4\) for input\[n g·c i1 i2\]",
        ),
        (
            {"input": X, "output_grad": Y.double()},
            "input torch.float32 on cpu, output_grad torch.float64 on cpu",
        ),
        ({"input": X, "output_grad": 3.0}, "output_grad=float: expected a torch.Tensor"),
        (X, "operands=Tensor: expected a mapping from slots, or keywords; weight_vjp takes input, output_grad"),
    ],
)
def test_contract_errors(slots, message):
    with pytest.raises(ValueError, match=message):
        tn.weight_vjp(SPEC).contract(slots)


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (lambda net: net.remove("foo"), "remove: unknown slot 'foo'; conv takes input, weight"),
        (lambda net: net.vjp("foo"), "vjp: unknown slot 'foo'"),
        (lambda net: net.sum("z"), "sum: unknown leg 'z'; the legs of conv are c d g i1"),
        (lambda net: net.sum("c"), "leg 'c' is summed already"),
        (lambda net: net.with_leg("n"), "leg 'n' is open already"),
        (lambda net: net.with_leg("v"), "a new leg needs a positive size and slots"),
        (lambda net: net.with_leg("v", 2.5, "input"), "a new leg needs a positive size and slots"),
        (lambda net: net.with_leg("v", "input"), "a new leg needs a positive size and slots"),
        (lambda net: net.with_leg("c", 7), "with_leg: size=7: leg 'c' of conv has size 2"),
        (lambda net: net.with_leg("v", 2, "foo"), "with_leg: unknown slot 'foo'"),
        (lambda net: net.rename(legs={"z": "y"}), "rename: unknown leg 'z'"),
        (lambda net: net.rename(legs={"c": "d"}), "two legs of conv the same name"),
        (lambda net: net.group(("n",)), "must hold each open leg once"),
        (lambda net: net.compose(net, into="weight"), r"conv gives \(2, 6, 3, 5\), but slot 'weight'"),
        (lambda net: net.outer(net, share=("c",)), "share='c' is no open leg"),
        (lambda net: net.outer(3), "outer: other=3, expected a TensorNetwork"),
        (lambda net: net.compose("conv", into="input"), "compose: other='conv', expected a TensorNetwork"),
        (lambda net: tn.ggn_diagonal(SPEC, columns=0), "columns=0: expected a positive integer"),
        (lambda net: tn.ggn_diagonal(SPEC, columns=2.0), "columns=2.0: expected a positive integer"),
        (lambda net: tn.PlanCache(maxsize=2.5), "maxsize=2.5: expected a positive integer"),
        (lambda net: net.einsum(input=X), "einsum: missing weight"),
        (lambda net: net.plan(dtype="float32"), "dtype='float32': expected a torch.dtype such as torch.float32"),
        (lambda net: net.einsum(input=Y), "input of shape"),
        (lambda net: tn.kfac_reduce(SPEC).remove("input"), "slot 'input' occurs 2 times in kfac_reduce"),
        (lambda net: net.rename(slots={"weight": "input"}).slots, "slot 'input': used with shapes"),
    ],
)
def test_move_errors(move, message):
    with pytest.raises(ValueError, match=message):
        move(tn.conv(SPEC))
