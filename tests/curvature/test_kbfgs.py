"""K-BFGS: its pairs against gradients of a shift of outputs, its inverses against the textbook, and how it trains."""

import copy
import math
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

from randbp.curvature import KBFGS, KroneckerBFGS, Preconditioner, input_factor, output_grad_factor
from randbp.curvature.bfgs import LEAST
from randbp.curvature.gathering import Means
from randbp.curvature.kronecker_inverse import FACTORS
from randbp.curvature.weight_matrices import Form, as_matrices, call_input, layer_call
from randbp.layers import kind_of

from .small_nets import KINDS, net
from .test_bfgs import textbook
from .test_changing_layers import CHANGES
from .test_changing_layers import network as changing_network
from .test_kfac import digits, digits_network
from .training import batch, loss_of, network, parameters

F64 = torch.float64


def closure_of(model, optimizer, loss, zero=True):
    def closure():
        if zero:
            optimizer.zero_grad()
        found = loss(model)
        found.backward()
        return found

    return closure


def run(model, optimizer, count, first=0):
    for seed in range(first, first + count):
        x, y = batch(seed=seed, dtype=next(model.parameters()).dtype)
        optimizer.step(closure_of(model, optimizer, lambda m, x=x, y=y: loss_of(m, x, y)))


def look(module, loss):
    """Spec, input and mean output ``[G, d]`` of a layer's call, and the loss's gradients by the output and a shift."""
    function, seen = kind_of(module)(), []

    def shifted(module, given, output):
        channels = function.channels_second(output)
        shift = torch.zeros(channels.shape[1], dtype=output.dtype, requires_grad=True)
        moved = channels + shift.view(1, -1, *[1] * (channels.dim() - 2))
        seen.append((given[0].detach(), channels, shift))
        return moved.movedim(1, -1) if channels is not output else moved

    handle = module.register_forward_hook(shifted)
    value = loss()
    handle.remove()
    input, output, shift = seen[0]
    by_shift, by_output = torch.autograd.grad(value, [shift, output])
    _, spec, input = call_input(layer_call(module, input, module(input)))
    mean = output.detach().transpose(0, 1).flatten(1).mean(1)
    return spec, input, mean.view(spec.groups, -1), by_output.reshape(spec.output_shape), by_shift.view(spec.groups, -1)


def mean_row(spec, input, bias):
    """From the factor of a layer with a bias, whose last column is the sum over positions."""
    column = input_factor(spec, input, "expand", True)[:, :, -1]
    return (column / column[:, -1:])[:, : None if bias else -1]


def matrices(module, tensors):
    return as_matrices(Form.of(module), *tensors, *[None] * (2 - len(tensors)))


def powell(h, s, y):
    product, least = s @ y, LEAST * (y @ h @ y)
    theta = 1 if product >= least else (y @ h @ y - least) / (y @ h @ y - product)
    return theta * s + (1 - theta) * h @ y


@pytest.mark.parametrize("approximation", ["reduce", "expand"])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_and_inverses_of_all_layers(kind, approximation):
    """In two steps, from autograd and dense matrices: the change of the gradient is that by a shift of all outputs."""
    damping, decay, lr = 0.3, 0.6, 0.2
    root = damping**0.5
    for seed, loss in enumerate(("classes", "squares")):
        model, x, y, function = net(kind, loss, seed)
        module, mean, bias = model[0], function.reduction == "mean", model[0].bias is not None
        options = {"damping": damping, "decay": decay, "momentum": 0, "kl_clip": None}
        optimizer = KBFGS(model, lr, reduction=function.reduction, approximation=approximation, **options)
        average, inverses, pair = None, [], [0.0, 0.0]

        def value(m, x=x, y=y, function=function):
            return function(m(x), y)

        for _ in range(2):
            spec, input, output, own, by_shift = look(module, partial(value, model))
            a = input_factor(spec, input, approximation, bias)
            gamma = output_grad_factor(spec, own * (len(x) if mean else 1), approximation)
            average = a if average is None else 0.5 * (average + a)
            if not inverses:
                inverses = [torch.linalg.inv(f + root * torch.eye(f.shape[1], dtype=F64)) for f in (average, gamma)]
            before = [parameter.detach().clone() for parameter in module.parameters()]
            grads = torch.autograd.grad(value(model), list(module.parameters()))
            optimizer.step(closure_of(model, optimizer, value))
            moved = matrices(module, [b - p for b, p in zip(before, module.parameters(), strict=True)])
            direction = inverses[1] @ matrices(module, grads) @ inverses[0]
            torch.testing.assert_close(moved / lr, direction, rtol=1e-8, atol=1e-10)
            _, _, new_output, _, new_by_shift = look(module, partial(value, model))
            scale = (1 if mean else 1 / len(x)) / (1 if approximation == "reduce" else math.prod(spec.output_size))
            for i, difference in enumerate((new_output - output, scale * (new_by_shift - by_shift))):
                pair[i] = decay * pair[i] + (1 - decay) * difference
            for g, u in enumerate(mean_row(spec, input, bias)):
                s = inverses[0][g] @ u
                inverses[0][g] = textbook(inverses[0][g], s, average[g] @ s + root * s)
                s = powell(inverses[1][g], pair[0][g], pair[1][g])
                inverses[1][g] = textbook(inverses[1][g], s, pair[1][g] + root * s)
        state = optimizer.state[module.weight]
        torch.testing.assert_close([state["step"], state["change"]], pair, rtol=1e-8, atol=1e-10)
        found = [state["input_inverse"], state["output_grad_inverse"]]
        torch.testing.assert_close(found, inverses, rtol=1e-8, atol=1e-8)


def test_the_secant_equation_and_its_limit_on_a_quadratic_loss():
    """A linear layer under a squared error: the pairs are those of one matrix, and the inverse becomes its inverse."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    root = torch.randn(3, 3, dtype=F64)
    hessian = root @ root.T + 0.5 * torch.eye(3, dtype=F64)
    optimizer = KBFGS(model, 0.5, decay=0, damping=1e-16, momentum=0.3, kl_clip=None)
    for _ in range(120):
        x, y = torch.randn(5, 4, dtype=F64), torch.randn(5, 3, dtype=F64)

        def value(m, x=x, y=y):
            return 0.5 * ((m(x) - y) @ hessian * (m(x) - y)).sum(1).mean()

        optimizer.step(closure_of(model, optimizer, value))
        state = optimizer.state[model.weight]
        torch.testing.assert_close(state["change"], state["step"] @ hessian, rtol=1e-7, atol=1e-10)
        secant = state["change"] @ state["output_grad_inverse"][0]
        torch.testing.assert_close(secant, state["step"], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(state["output_grad_inverse"][0], torch.linalg.inv(hessian), rtol=1e-6, atol=1e-6)


def test_it_trains_better_than_sgd():
    """Thirty steps on handwritten digits, against SGD with the best of many learning rates."""
    x, y = digits()

    def trained(make):
        model, generator = digits_network(), torch.Generator().manual_seed(0)
        optimizer = make(model)
        for _ in range(30):
            index = torch.randint(len(x), (128,), generator=generator)
            optimizer.step(closure_of(model, optimizer, lambda m, i=index: loss_of(m, x[i], y[i])))
        with torch.no_grad():
            return float(loss_of(model, x, y))

    rates = [0.04 * 4**power for power in range(4)]
    sgd = min(loss for r in rates if (loss := trained(lambda m, r=r: torch.optim.SGD(m.parameters(), r, 0.9))) > 0)
    assert trained(KBFGS) < 0.6 * sgd


def test_the_closure_may_be_the_last_of_several_micro_batches():
    """What is compared are its two passes, while factors and the step are of all of them."""
    model, decay = network(), 0.9
    optimizer = KBFGS(model, 0.1, decay=decay)
    (loss_of(model, *batch(seed=5)) / 2).backward()
    x, y = batch()
    *_, output, _, by_shift = look(model[4], lambda: loss_of(model, x, y))
    optimizer.step(closure_of(model, optimizer, lambda m: loss_of(m, x, y) / 2, zero=False))
    *_, new_output, _, new_by_shift = look(model[4], lambda: loss_of(model, x, y))
    state = optimizer.state[model[4].weight]
    torch.testing.assert_close(state["step"], (1 - decay) * (new_output - output))
    torch.testing.assert_close(state["change"], (1 - decay) * (new_by_shift - by_shift))


def test_sums_and_means_see_the_same_curvature():
    x, y = batch()
    ends = []
    for reduction, lr in (("mean", 0.1), ("sum", 0.1 / 8)):
        model = network()
        optimizer = KBFGS(model, lr, kl_clip=None, momentum=0.5, reduction=reduction)
        for _ in range(3):
            optimizer.step(closure_of(model, optimizer, lambda m, r=reduction: loss_of(m, x, y, r)))
        ends.append(parameters(model))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-11)


def test_the_second_pass_has_the_same_random_numbers_and_is_made_when_due():
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    optimizer, masks, counts = KBFGS(model, factor_every=4), [], []
    model[1].register_forward_hook(lambda module, given, output: masks.append(output != 0))
    x = torch.randn(8, 4, dtype=F64)
    for step in range(10):
        torch.manual_seed(step)
        masks.clear()
        optimizer.step(closure_of(model, optimizer, lambda m: loss_of(m, x, torch.arange(8) % 3)))
        after = torch.rand(())
        torch.manual_seed(step)
        nn.functional.dropout(torch.ones(8, 6, dtype=F64))
        assert after == torch.rand(())  # as after one pass
        assert all(torch.equal(mask, masks[0]) for mask in masks)
        counts.append(len(masks))
    assert counts == [2, 2, 2, 1, 2, 1, 1, 1, 2, 1]


def test_a_resumed_run_goes_on_bit_for_bit():
    options = {"lr": 0.1, "factor_every": 2, "weight_decay": 0.01}
    model, other = network(), network(seed=9)
    optimizer, resumed = KBFGS(model, **options), KBFGS(other, **options)
    run(model, optimizer, 5)
    saved = pickle.loads(pickle.dumps((model.state_dict(), optimizer.state_dict())))
    run(model, optimizer, 5, first=5)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    run(other, resumed, 5, first=5)
    assert resumed.steps == 10 and torch.equal(parameters(model), parameters(other))


def test_what_is_not_finite_changes_nothing():
    model = network(dtype=torch.float32)
    optimizer = KBFGS(model, 0.1)
    run(model, optimizer, 2)
    state = optimizer.state[model[0].weight]
    before = {key: state[key].clone() for key in optimizer.method.keys}
    weights = copy.deepcopy(model.state_dict())
    x, y = batch(dtype=torch.float32)
    x[0, 0, 0, 0] = math.inf
    optimizer.step(closure_of(model, optimizer, lambda m: loss_of(m, x, y)))
    assert all(torch.equal(state[key], value) for key, value in before.items())
    model.load_state_dict(weights)
    for entry in optimizer.state.values():
        entry["momentum_buffer"].zero_()
    run(model, optimizer, 2, first=3)
    assert parameters(model).isfinite().all() and state["updates"] == 4


def test_groups_have_their_own_numbers():
    model = network()
    old = copy.deepcopy(model)
    last = list(model[8].parameters())
    others = [p for p in model.parameters() if all(p is not q for q in last)]
    optimizer = KBFGS(model, 0.1, params=[{"params": others, "lr": 0.0}, {"params": last, "damping": 1.0}])
    run(model, optimizer, 1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, old.get_parameter(name)) == (not name.startswith("8."))
    largest = [torch.linalg.eigvalsh(optimizer.state[model[i].weight]["output_grad_inverse"]).max() for i in (0, 8)]
    assert largest[0] > 2 and largest[1] <= 1 + 1e-9  # 1 / √λ


def grown(model):
    for parameter, shape in zip(model[3:].parameters(), ((5, 64), (5,), (3, 5)), strict=False):
        parameter.data, parameter.grad = torch.randn(shape, dtype=F64), None


@pytest.mark.filterwarnings("ignore:KBFGS")
@pytest.mark.parametrize("change", ["frozen", "without bias", "another layer", "pruned", "grown"])
def test_layers_may_change(change):
    model = changing_network()
    optimizer = KBFGS(model, 0.05)
    run(model, optimizer, 2)
    (grown if change == "grown" else CHANGES[change])(model)
    run(model, optimizer, 3, first=2)
    assert parameters(model).isfinite().all()
    for module in optimizer.layers.values():
        state, bias = optimizer.state[module.weight], module.bias is not None
        groups, outer, inner = Form.of(module).shape(module.weight.shape, bias)
        for key, rows in (("input_inverse", inner), ("output_grad_inverse", outer)):
            assert state[key].shape == (groups, rows, rows) and (torch.linalg.eigvalsh(state[key]) > 0).all()
        assert state["step"].shape == state["change"].shape == (groups, outer)


def test_calls_of_one_pass_count_by_their_examples():
    ends = []
    for sizes in ([8], [3, 5]):
        model = network()
        optimizer = KBFGS(model, 0.1)
        x, y = batch()
        value = lambda m, x=x, y=y, n=sizes: cross_entropy(torch.cat([m(part) for part in x.split(n)]), y)  # noqa: E731
        for _ in range(2):
            optimizer.step(closure_of(model, optimizer, value))
        ends.append([optimizer.state[model[4].weight][key] for key in optimizer.method.keys])
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_pairs_that_are_not_finite_are_not_kept(bad):
    """Of one group; the other one goes on."""
    method, state = KroneckerBFGS(), {name: torch.eye(2).repeat(2, 1, 1) for name in FACTORS}
    method.refresh(state, 1.0)
    before, after = Means(*torch.zeros(3, 2, 2)), Means(*torch.tensor([[1.0, 2.0], [2.0, 1.0]]).expand(3, 2, 2).clone())
    method.compare(state, before, after, 1.0)
    old = dict(state)
    after = Means(*(2 * each for each in after))
    after.output[0, 1] = bad
    method.compare(state, before, after, 1.0)
    for key in ("output_grad_inverse", "step", "change"):
        assert torch.equal(state[key][0], old[key][0]) and not torch.equal(state[key][1], old[key][1])


def test_a_sharded_model_steps_as_a_whole_one():
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        whole, sharded = changing_network(), changing_network()
        for layer in (sharded[0], sharded[3], sharded):
            fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
        for model in (whole, sharded):
            run(model, KBFGS(model, 0.1), 3)
        for name, parameter in sharded.named_parameters():
            torch.testing.assert_close(parameter.full_tensor(), whole.get_parameter(name), rtol=1e-9, atol=1e-11)
    finally:
        destroy_process_group()


def test_without_a_closure():
    model = network(dtype=torch.float32)
    optimizer = KBFGS(model)
    message = "closure=None: KBFGS.step expected a function that computes loss and gradients"
    with pytest.raises(TypeError, match=message):
        optimizer.step()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model, *batch(dtype=torch.float32))).backward()
    with pytest.raises(TypeError, match=message):
        scaler.step(optimizer)
    with pytest.raises(ValueError, match=r"method=KroneckerBFGS\(.*: it compares two passes, which only KBFGS makes"):
        Preconditioner(model, KroneckerBFGS())
    with pytest.raises(ValueError, match="decay=1: expected a number from 0 and below 1"):
        KBFGS(model, decay=1)
