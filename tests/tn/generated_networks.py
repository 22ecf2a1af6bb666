"""Generated networks against their meaning; as a command, as many as you like.

Each network of `drawn_networks` is contracted by its plan, and by one other order of every form that the planner looks
at. The oracles are `net.einsum()` in double precision, a sum over all index tuples one by one (of networks that have
few), and what the last move says it does. 10,000 take two processes about ten minutes:

    python -m tests.tn.generated_networks --count 10000 --seed 0 --processes 2
"""

import argparse
import copy
import pickle
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod
from multiprocessing import get_context
from time import perf_counter

import torch
from torch import Tensor

from randbp import tn
from randbp.tn.diagram.drawing import equation
from randbp.tn.planning.path_report import orders
from randbp.tn.planning.plan import lowered, searches
from randbp.tn.planning.steps import Target

from . import meaning
from .drawn_networks import MOVES, Drawn, drawn
from .strategies import another_machine, random_operands

REPORTS, DIAGRAMS = 8, 400  # every so many networks are copied and reported on, and drawn as a diagram
TYPES = (torch.float32, torch.bfloat16, torch.int64)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Outcome:
    """What became of a network: ``"right"``, ``"wrong"`` or ``"crashed"``, what to print then, and refused moves."""

    verdict: str
    report: str
    refused: Counter[str]
    tried: int


def outcome(seed: int, moves: int = MOVES) -> Outcome:
    """Draw a network and check it."""
    case = None
    try:
        case = drawn(seed, moves)
        check(case)
    except Exception as error:
        verdict = "wrong" if isinstance(error, AssertionError) else "crashed"
        return Outcome(verdict, f"{case or f'seed {seed}'}\n{type(error).__name__}: {error}", Counter(), 0)
    return Outcome("right", "", case.refused, case.tried)


def check(case: Drawn) -> None:
    """Everything that a network is asked; an AssertionError says which answer is wrong."""
    net = case.net
    rng = random.Random(case.seed)
    operands = {slot: _strided(tensor, rng) for slot, tensor in random_operands(net, seed=case.seed).items()}
    expected = meaning.evaluated(net, operands)
    _equal(net.contract(operands), expected, "contract() and einsum()")
    if prod(net.sizes.values()) <= meaning.FEW_TERMS:
        _equal(expected, meaning.network_value(net, operands), "einsum() and the sum over all terms")
    if case.meaning is not None:
        _equal(*case.meaning(operands, expected), "the network and what the last move means")
    simple = net.simplify()
    if simple != net:
        _equal(meaning.evaluated(simple, operands), expected, f"einsum() of {simple}")
    for plan, value in other_orders(net, operands, rng):
        _equal(value, expected, f"{plan}\nand einsum()")
    if case.seed % 4 == 2:
        _check_gradients(net, operands, rng)
    if case.seed % 2:
        _check_type(net, operands, TYPES[case.seed // 2 % len(TYPES)])
    if case.seed % REPORTS == 0:
        _check_reports(net, case.seed % DIAGRAMS == 0)


def _strided(tensor: Tensor, rng: random.Random) -> Tensor:
    """The tensor as it is, in another order of memory, or with gaps."""
    kind = rng.choice(("plain", "plain", "permuted", "apart"))
    if kind == "permuted":
        order = rng.sample(range(tensor.ndim), tensor.ndim)
        return tensor.permute(order).contiguous().permute([order.index(dim) for dim in range(tensor.ndim)])
    return torch.stack((tensor, tensor + 1), -1)[..., 0] if kind == "apart" else tensor


def _check_gradients(net: tn.TensorNetwork, operands: dict[str, Tensor], rng: random.Random) -> None:
    """Autograd through the plan, and through other orders, beside autograd through the naive einsum."""
    given = {**net.bound, **operands}
    data = [slot for slot in net.slots if slot not in net.index_slots]
    variables = {slot: given[slot].detach().requires_grad_() for slot in data}
    given |= variables

    def gradients(value: Tensor) -> list[Tensor]:
        if not value.requires_grad:
            return [torch.zeros_like(variable) for variable in variables.values()]
        weights = torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(1))
        return list(torch.autograd.grad(value, list(variables.values()), weights, materialize_grads=True))

    expected = gradients(meaning.evaluated(net, given))
    for text, value in (("contract()", net.contract(given)), *other_orders(net, given, rng)):
        for slot, found, right in zip(data, gradients(value), expected, strict=True):
            _equal(found, right, f"gradients of {slot} through {text}\nand einsum()")


def _equal(actual: Tensor, expected: Tensor, what: str, tolerance: float = 1e-9) -> None:
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} and {tuple(expected.shape)}"
    if expected.numel():
        apart, largest = float((actual.double() - expected).abs().max()), float(expected.abs().max())
        assert apart <= tolerance * max(1.0, largest), f"{what} differ by {apart:.3g} of {largest:.3g}"


def other_orders(
    net: tn.TensorNetwork, operands: dict[str, Tensor], rng: random.Random
) -> Iterator[tuple[str, Tensor]]:
    """The network contracted in a drawn order of each of its forms, on ways that small and that large tensors take."""
    if 0 in net.sizes.values() or any(isinstance(n, tn.Pattern) and not n.pattern.nonzeros for n in net.nodes):
        return
    tensors = [{**net.bound, **operands}[slot] for slot in net.slots]
    large = rng.random() < 0.5
    target = Target(torch.float64, CPU, rng.random() < 0.7)
    for form, search in searches(net, target):
        with another_machine(**LARGE) if large else nullcontext():
            plan, _ = lowered(net, form, search, next(orders(search, rng)))
            yield f"{plan}\n{large=}", plan.run(tensors)


LARGE = {
    **{
        "joint": 0,
        "small": 0,
        "partial_sums": 1,
        "partial_share": 0.0,
        "margin": float("inf"),
        "chunk": 8,
        "products": 1,
    },
    **{
        "gram_start": -(10**12),
        "gram_part": 1,
        "gram_positions": 1,
        "gram_rows": 1,
        "gram_blocks": 2,
        "large": 0,
        "part": 1,
    },
    **{"line_wide": 0, "line_widest": 0, "line_long": 0, "line_small": 10**6},
    **{"few": 0, "line": 1},
    **{"row_piece": 1, "row_width": 1, "row_gathered": 4, "row_weighted": 4, "row_narrow": 0},
}
"""Thresholds of time and memory beyond which tensors take other ways, set so that small ones take them."""


def _check_type(net: tn.TensorNetwork, operands: dict[str, Tensor], dtype: torch.dtype) -> None:
    """A network of another data type, of integers too: they stay integers where PyTorch's would."""
    given = {**net.bound, **operands}
    data = [slot for slot in net.slots if slot not in net.index_slots]
    if not data:
        return
    values = given | {slot: (8 * given[slot]).round().to(dtype) for slot in data}
    result, naive = net.contract(values), torch.einsum(*net.einsum(values))
    assert result.dtype == naive.dtype, f"contract() gives {result.dtype} of {dtype}, einsum() {naive.dtype}"
    if dtype != torch.bfloat16:
        exact = meaning.evaluated(net, {slot: t.double() if slot in data else t for slot, t in values.items()})
        _equal(result, exact, f"contract() of {dtype}", 1e-3 if dtype == torch.float32 else 1e-5)


def _check_reports(net: tn.TensorNetwork, diagram: bool) -> None:
    """Copies, plans and reports."""
    assert pickle.loads(pickle.dumps(net)) == copy.deepcopy(net) == net
    assert str(net.plan()).startswith(str(net))
    assert net.path_report(samples=5).spread >= 1.0
    equation(net)
    if diagram:
        net.draw()


def main(arguments: list[str] | None = None) -> int:
    """Check as many networks as asked for; print those that are wrong or crash, and which calls were refused."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="number of networks")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first one")
    parser.add_argument("--moves", type=int, default=MOVES, help="moves after the first operation, at most")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args(arguments)
    start, verdicts, refused, tried = perf_counter(), Counter[str](), Counter[str](), 0
    seeds = range(given.seed, given.seed + given.count)
    for found in _outcomes(partial(outcome, moves=given.moves), seeds, given.processes):
        verdicts[found.verdict] += 1
        refused += found.refused
        tried += found.tried
        if found.report:
            print(f"{found.verdict}: {found.report}\n", flush=True)
    for kind, count in _kinds(refused).most_common():
        print(f"refused {count}: {kind}")
    print(
        f"{given.count} networks, seeds {seeds[0]} to {seeds[-1]}: {verdicts['wrong']} wrong, {verdicts['crashed']} "
        f"crashed; {refused.total()} of {tried} moves refused; {perf_counter() - start:.0f} s"
    )
    return 1 if verdicts["wrong"] or verdicts["crashed"] else 0


def _outcomes(check_one: Callable[[int], Outcome], seeds: Iterable[int], processes: int) -> Iterator[Outcome]:
    if processes == 1:
        yield from map(check_one, seeds)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), partial(torch.set_num_threads, 1)) as workers:
        yield from workers.map(check_one, seeds, chunksize=20)


def _kinds(refused: Counter[str]) -> Counter[str]:
    """Messages without names and numbers."""
    kinds = Counter[str]()
    for text, count in refused.items():
        kinds[re.sub(r"'[^']*'+|\"[^\"]*\"|\[[^]]*\]|\([^)]*\)|\d+", "…", text)] += count
    return kinds


if __name__ == "__main__":
    sys.exit(main())
