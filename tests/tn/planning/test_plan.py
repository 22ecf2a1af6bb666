"""Plans: order, cost model, program, cache."""

import threading
from unittest import mock

import opt_einsum as oe
import pytest
import torch

from randbp import tn
from randbp.layers.pattern import IndexPattern
from randbp.tn.execute.grams import Way, fastest
from randbp.tn.planning.path import Search
from randbp.tn.planning.plan import lowered, searches
from randbp.tn.planning.relations import problem
from randbp.tn.planning.steps import Target

from ..strategies import another_machine, random_operands

SPEC = tn.ConvSpec((2, 4, 8, 8), 6, 3, stride=2, padding=1, groups=2)


def brute_force_multiplications(spec):
    """Multiply-adds of a convolution that meet neither padding nor a zero of the pattern, counted one by
    one."""
    count = 0
    for n_c_d in [spec.batch_size * spec.in_channels * spec.out_channels // spec.groups]:
        triples = 1
        for p in spec.patterns:
            triples *= sum(
                0 <= p.stride * o + p.dilation * k - p.padding < p.input_size
                for o in range(p.output_size)
                for k in range(p.kernel_size)
            )
        count += n_c_d * triples
    return count


def test_a_convolution_costs_what_its_pattern_leaves():
    expected = brute_force_multiplications(SPEC)
    assert tn.conv(SPEC).plan().multiplications == expected == SPEC.multiply_adds
    assert tn.weight_vjp(SPEC).plan().multiplications == expected
    assert tn.input_vjp(SPEC).plan().multiplications == expected


def test_kfac_reduce_sums_before_it_multiplies():
    plan = tn.kfac_reduce(SPEC).plan()
    rows = 4 // 2 * 9
    assert plan.multiplications == 2 * 2 * rows**2  # n · g · (c k)²
    assert plan.largest_intermediate <= 2 * 4 * 9 * 8 * 4


STRATEGIES = ("auto", "dp", "greedy", "optimal", oe.RandomGreedy(max_repeats=4), oe.DynamicProgramming())


@pytest.mark.parametrize("optimize", STRATEGIES)
@pytest.mark.parametrize("operation", [tn.conv, tn.weight_vjp, tn.kfac_expand, tn.kfac_reduce, tn.gradient_gram])
def test_strategies_of_opt_einsum_order_networks(operation, optimize):
    """They find what the own search finds, but do not know that halves of a Gram matrix are computed once."""
    net = operation(SPEC)
    plan = net.plan(torch.float64, optimize=optimize)
    assert plan.multiplications == net.plan(torch.float64).multiplications or operation is tn.gradient_gram
    operands = random_operands(net)
    torch.testing.assert_close(net.contract(operands, optimize=optimize), torch.einsum(*net.einsum(operands)))


def test_optimizers_are_called_as_opt_einsum_calls_them():
    """A leg that a pattern determines is written as the legs that it follows from."""
    seen = []

    class Remembering(oe.paths.PathOptimizer):
        def __call__(self, inputs, output, size_dict, memory_limit=None):
            seen.append((inputs, output, memory_limit))
            return [(0, 1)]

        def __deepcopy__(self, memo):
            return self

    spec = tn.ConvSpec((2, 3, 8), 4, 3, padding=1)
    tn.weight_vjp(spec).plan(optimize=Remembering())
    assert seen == [([set("ngc") | {"o1", "k1"}, set("ngd") | {"o1"}], set("gdc") | {"k1"}, None)]
    for wrong, message in (("fast", "optimize='fast': expected a strategy"), (3, "optimize=3: expected a strategy")):
        with pytest.raises(ValueError, match=message):
            tn.weight_vjp(spec).plan(optimize=wrong)


def test_optimal_search_is_no_worse_than_others():
    for operation in (
        tn.conv,
        tn.weight_vjp,
        tn.kfac_expand,
        tn.kfac_reduce,
        tn.gradient_gram,
        tn.ggn_diagonal,
    ):
        search = Search(problem(operation(SPEC)))
        best = sum(cost.time for cost in search.cost(search.path()))
        for optimize in ("greedy", "dp"):
            found = Search(problem(operation(SPEC)), optimize=optimize).path()
            assert best <= sum(cost.time for cost in search.cost(found))
        assert best == pytest.approx(operation(SPEC).path_report().time[0])


def test_long_chains_are_ordered_by_opt_einsum():
    spec = tn.ConvSpec((1, 2, 9), 2, 2)
    net = tn.conv(spec)
    for number in range(5):
        deeper = tn.ConvSpec(net.output_shape, 2, 2)
        net = tn.conv(deeper).compose(net.rename(slots={"weight": f"weight{number}"}), into="input")
    assert len(problem(net).tensors) + len(problem(net).relations) > 9
    operands = random_operands(net)
    y = operands["input"]
    for slot in [f"weight{number}" for number in range(5)] + ["weight"]:
        y = torch.nn.functional.conv1d(y, operands[slot])
    torch.testing.assert_close(net.contract(operands), y)


def test_both_halves_of_a_gram_matrix_are_computed_once():
    plan = tn.kfac_reduce(SPEC).plan()
    single = tn.unfold(SPEC).sum("o1", "o2").plan()
    assert [step.kernel for step in plan.steps] == ["box sums", "shared: box sums", "matmul"]
    assert len(plan.program) <= len(single.program) + 4  # two layouts, a scale and the product


def test_plan_prints_steps():
    text = str(tn.kfac_reduce(SPEC).plan())
    assert text.startswith("kfac_reduce: ")
    assert "multiplications" in text and "largest intermediate" in text and "matmul" in text


def test_path_report():
    report = tn.kfac_expand(SPEC).path_report()
    assert report.exhaustive
    for best, middle, worst in (report.time, report.multiplications, report.largest):
        assert best <= middle <= worst
    assert "order" in str(report)
    assert tn.conv(SPEC).path_report().orders >= 2
    sampled = tn.gradient_gram(SPEC).path_report(samples=5)
    assert not sampled.exhaustive
    assert sampled.orders <= 6
    with pytest.raises(ValueError, match="samples=0"):
        tn.conv(SPEC).path_report(samples=0)


@pytest.mark.parametrize(
    "net",
    [
        tn.unfold(tn.ConvSpec((2, 3), 4, ())),
        tn.unfolded_kernel(tn.ConvSpec((2, 3), 4, ())),
        tn.gradient_gram(tn.ConvSpec((0, 3, 5), 4, 2)),
    ],
    ids=lambda net: net.name,
)
def test_path_report_where_nothing_is_computed(net):
    """Without arithmetic (a view, an empty batch) every order is as good as the next."""
    report = net.path_report()
    assert report.time == (0, 0, 0) and report.spread == 1
    assert "the order hardly matters" in str(report)


def test_cache_counts_and_is_bounded():
    cache = tn.PlanCache(maxsize=2)
    nets = [tn.conv(tn.ConvSpec((1, 1, size), 1, 2)) for size in (4, 5, 6)]
    cpu = torch.device("cpu")
    assert cache.plan(nets[0]) is cache.plan(nets[0])
    assert cache.plan(nets[0]) is not cache.plan(nets[0], torch.float64)
    info = cache.info()
    assert (info.hits, info.misses, info.size, info.maxsize) == (2, 2, 2, 2)
    first = cache.plan(nets[0])
    cache.plan(nets[1])
    assert cache.plan(nets[0]) is first  # used lately, so it stays
    cache.plan(nets[2])
    assert cache.info().size == 2
    assert cache.plan(nets[0], torch.float32, cpu) is first
    assert cache.info().saved_seconds > 0
    cache.clear()
    assert cache.info() == tn.CacheInfo(0, 0, 0, 2, 0.0, 0.0)
    with pytest.raises(ValueError, match="maxsize=0"):
        tn.PlanCache(maxsize=0)


def test_equal_networks_share_a_plan():
    tn.cache.clear()
    a = tn.conv(SPEC).vjp("weight")
    b = tn.conv(tn.ConvSpec((2, 4, 8, 8), 6, 3, stride=2, padding=1, groups=2)).vjp("weight").named("same")
    operands = random_operands(a)
    a.contract(operands)
    b.contract(operands)
    assert (tn.cache.info().misses, tn.cache.info().hits) == (1, 1)


def test_cache_under_threads():
    cache = tn.PlanCache(maxsize=4)
    nets = [tn.conv(tn.ConvSpec((1, 1, size), 1, 2)) for size in range(3, 11)]
    failures = []

    def work(shift):
        try:
            for step in range(200):
                net = nets[(step * shift) % len(nets)]
                plan = cache.plan(net)
                assert plan.network == str(net)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(shift,)) for shift in (1, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    info = cache.info()
    assert info.hits + info.misses == 800
    assert info.size <= 4


def test_the_cache_keeps_no_bound_tensor_alive():
    import gc
    import weakref

    index = torch.tensor([0, 1])
    net = tn.weight_vjp(tn.ConvSpec((1, 1, 17), 1, 2)).subsample(i1=index)
    net.contract(random_operands(net))
    alive = weakref.ref(index)
    del net, index
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("inner", [0, 1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "spec",
    [
        ((2, 4, 9), 3, 1, 1, 1),
        ((2, 4, 9, 8), 3, 1, 1, 1),
        ((2, 4, 9, 8), 3, 1, 0, 1),
        ((2, 4, 11, 8), (3, 2), 1, (4, 0), (2, 1)),
        ((2, 4, 9, 8), (2, 3), 1, ((0, 1), (3, 0)), 1),
        ((3, 2, 9, 8), 3, 2, 1, 1),
        ((3, 2, 11, 9), 4, (2, 3), (3, 1), (1, 2)),
        ((3, 2, 4, 5, 4), 2, 1, 1, 1),
        ((3, 2, 5, 5, 4), 3, (2, 1, 2), 1, 1),
    ],
)
def test_kfac_expand_through_lags_and_windows(spec, groups, inner):
    shape, kernel, stride, padding, dilation = spec
    spec = tn.ConvSpec(shape, 2 * groups, kernel, stride, padding, dilation, groups)
    net = tn.kfac_expand(spec)
    inner = min(inner, spec.dims)
    way = mock.patch("randbp.tn.execute.grams.fastest", lambda *_: Way(inner, 1.0, 1.0))
    with way, another_machine(gram_rows=4, gram_positions=50, gram_part=500, products=8):
        *_, (form, search) = searches(net, Target(torch.float64))
        plan, _ = lowered(net, form, search, search.path())
        operands = random_operands(net)
        result = plan.run([operands["input"]])
    assert plan.steps[-1].kernel == ("lag products" if inner < spec.dims else "windows + baddbmm")
    unfolded = tn.unfold(spec).contract(operands).unflatten(1, (groups, -1))
    oracle = torch.einsum("ngro,ngso->grs", unfolded, unfolded) / shape[0]
    torch.testing.assert_close(result, oracle, rtol=1e-10, atol=1e-12)


def test_windows_are_unfolded_in_as_many_dimensions_as_pays():
    """Lags save multiplications, which narrow matrices, strides and short lines do not feel."""

    def unfolded(*sizes: int, channels: int, kernel: int = 3, stride: int = 1) -> int:
        patterns = tuple(IndexPattern(size, -(-size // stride), kernel, stride, 1, kernel // 2) for size in sizes)
        return fastest(patterns, channels, 1, 32).inner

    assert unfolded(32, 32, channels=96) == 0
    assert unfolded(16, 16, 16, channels=16) == 1
    assert unfolded(224, 224, channels=3, kernel=7, stride=2) == 1
    assert unfolded(4, 4, channels=4) == 2
    assert unfolded(256, channels=64) == 0


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [(1, 1), (1, 2), (2, 2), (3, 1), (3, 2)],
)
def test_vjps_of_layers_run_the_kernels_that_copy_nothing(kernel, stride):
    spec = tn.ConvSpec((32, 64, 56, 56), 128, kernel, stride, padding=kernel // 3)
    expected = ("weight", "input") if kernel == 3 else ("summed matmul", "batched matmul")
    for net, name in zip((tn.weight_vjp(spec), tn.input_vjp(spec)), expected, strict=True):
        assert [step.kernel for step in net.plan().steps] == [f"convolution_backward ({name})" if kernel == 3 else name]
