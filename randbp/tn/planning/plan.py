"""Contraction plans: the order found for a network, its cost, and the program that carries it out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from ...text.units import format_bytes
from ..execute import dense, diagonals
from ..execute.lowering import Lowering
from ..execute.program import Program
from ..execute.registers import Value
from ..network import Network
from ..nodes import Pattern
from ..simplify import simplify
from .cost import STREAM
from .path import Path, PatternAware
from .relations import ONE, Relation, Windows, problem

Item = tuple[Value | None, Relation | None, str]
GRAM_KERNELS = ("lag products", "windows + baddbmm")
NATIVE_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    Args:
        expression: The joined items and the legs of the result.
        kernel: The kernel that runs the step.
        multiplications: Multiply-adds; pairs that meet a zero of a pattern are not counted.
        result_bytes: Size of the result.
    """

    expression: str
    kernel: str
    multiplications: int
    result_bytes: int


@dataclass(frozen=True)
class Plan:
    """A way to contract a network, made once per structure, data type and device, then called often.

    Args:
        network: The network's equation.
        slots: Slots in the order in which `run` takes their tensors.
        path: The order, in opt_einsum's linear format over tensors, then relations.
        steps: The steps in order.
        program: The kernels.

    Example:
        >>> from randbp import tn
        >>> plan = tn.weight_vjp(tn.ConvSpec((2, 3, 8, 8), 4, 3)).plan()
        >>> [(step.kernel, step.multiplications) for step in plan.steps]
        [('convolution_backward (weight)', 7776)]
        >>> print(str(plan).splitlines()[-1])
        total 7,776 multiplications, largest intermediate 0 B
    """

    network: str
    slots: tuple[str, ...]
    path: Path
    steps: tuple[Step, ...]
    program: Program

    @property
    def multiplications(self) -> int:
        """Multiply-adds of all steps."""
        return sum(step.multiplications for step in self.steps)

    @property
    def largest_intermediate(self) -> int:
        """Bytes of the largest intermediate, the result of the last step not counted."""
        return max((step.result_bytes for step in self.steps[:-1]), default=0)

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Contract tensors given in the order of `slots`."""
        return self.program.run(tensors)

    def __str__(self) -> str:
        rows = [("step", "kernel", "multiplications", "result", "expression")]
        for number, step in enumerate(self.steps, 1):
            size = format_bytes(step.result_bytes)
            rows.append((str(number), step.kernel, f"{step.multiplications:,}", size, step.expression))
        widths = [max(5 if column == 0 else 10, *(len(row[column]) for row in rows)) for column in range(4)]
        lines = [
            " ".join(
                (
                    *(cell.ljust(width + (i > 0)) for i, (cell, width) in enumerate(zip(row, widths, strict=False))),
                    row[4],
                )
            )
            for row in rows
        ]
        largest = format_bytes(self.largest_intermediate)
        total = f"total {self.multiplications:,} multiplications, largest intermediate {largest}"
        return "\n".join([self.network, *lines, total])


def make_plan(net: Network, dtype: torch.dtype, device: torch.device) -> Plan:
    """Find the cheapest order over the network's equivalent forms, and lower it.

    The forms are the network as it is and simplified, each with selections merged into the patterns they
    feed (gather through the pattern) or apart (scatter first, then convolve).
    """
    slots = tuple(net.slots)
    vanishing = any(isinstance(node, Pattern) and node.pattern.nonzeros == 0 for node in net.nodes)
    if vanishing or 0 in net.sizes.values() or 0 in net.output_shape:
        program = Program(len(slots))
        result = torch.result_type(torch.empty(0, dtype=dtype), net.scale) if net.scale != 1 else dtype
        program.finish(program.emit(dense.zeros, (), net.output_shape, result, device))
        return Plan(str(net), slots, [], (), program)
    native = dtype in NATIVE_TYPES
    best: tuple[float, Plan] | None = None
    for form, search in searches(net, native, diagonals.serves(dtype, device)):
        path = search()
        plan, copied = lowered(net, form, search, path, dtype, device)
        time = sum(cost.time for cost in search.cost(path)) + 2 * STREAM * copied
        if best is None or time < best[0]:
            best = (time, plan)
    assert best is not None
    return best[1]


def searches(net: Network, native: bool, diagonal: bool) -> Iterator[tuple[Network, PatternAware]]:
    """The network's equivalent forms, each with a search for its order; `PatternAware` explains the arguments."""
    simple = simplify(net)
    for form in [net] if simple == net else [simple, net]:
        for merge in (False, True) if net.index_slots else (True,):
            yield form, PatternAware(problem(form, merge), native, diagonal)


def lowered(
    net: Network,
    form: Network,
    search: PatternAware,
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Plan, int]:
    """The plan of one path, and the elements that its changes of layout copy."""
    slots = tuple(net.slots)
    program = Program(len(slots))
    register = {slot: index for index, slot in enumerate(slots)}
    lowering = Lowering(program, form.sizes, register, dtype, device, form.open_legs)
    items: list[Item] = []
    for tensor in search.problem.tensors:
        if tensor is ONE:
            items.append((Value(program.emit(dense.one, (), dtype, device), ()), None, tensor.slot))
        else:
            items.append((lowering.builder.load(register[tensor.slot], tensor), None, tensor.slot))
    items += [(None, relation, str(relation)) for relation in search.problem.relations]
    state = search.start()
    names = {search.model.encode((leg,)): leg for leg in form.sizes}
    steps: list[Step] = []
    # A simplified form may have another scale; what is then a whole number leaves integers what they are.
    scale, scaled = (int(form.scale) if net.scale == 1 else form.scale), False
    for positions in path:
        joined = [items[position] for position in positions]
        move = search.join(state, positions)
        before = program.count
        if scale != 1 and not scaled and len(state) == len(positions) and dtype in NATIVE_TYPES:
            joined, scaled = _scale_operand(joined, lowering, scale, move.cost.size)
        out = frozenset(leg for bit, leg in names.items() if bit & move.legs)
        tensors = [value for value, _, _ in joined if value is not None]
        relations = [relation for _, relation, _ in joined if relation is not None]
        if not relations:
            done = lowering.product(tensors[0], tensors[1], out)
        elif len(tensors) == 1:
            done = lowering.relation(tensors[0], relations[0], out)
        else:
            between = relations[0]
            left, right = (state[position][1] for position in positions if state[position][2])
            if isinstance(between, Windows):
                roles = search.model.convolution_roles(left, between, right, move.legs)
                assert roles is not None
                done = lowering.convolution(tensors[0], tensors[1], roles, between.patterns, out)
            else:
                found = search.model.lookup_form(left, between, right, move.legs)
                assert found is not None
                kind, left_is_rows = found
                rows, other = tensors if left_is_rows else reversed(tensors)
                done = lowering.lookup_product(other, rows, between, kind, out)
        name = f"#{len(steps) + 1}"
        expression = f"{', '.join(text for _, _, text in joined)} → {' '.join(sorted(out))}"
        cost = move.cost
        if done.kernel in GRAM_KERNELS:  # the windows were only looked through, never made
            steps = [
                replace(step, kernel="view", result_bytes=0) if "windows" in step.kernel else step for step in steps
            ]
        if program.count == before:  # every instruction was there already
            steps.append(Step(expression, f"shared: {done.kernel}", 0, 0))
        else:
            steps.append(Step(expression, done.kernel, cost.multiplications, cost.size * dtype.itemsize))
        items = [item for index, item in enumerate(items) if index not in positions] + [(done.value, None, name)]
        state = search.advance(state, move)
    value = items[0][0]
    assert value is not None
    value = lowering.builder.sum(value, [leg for leg in value.legs if leg not in form.open_legs])
    result = lowering.builder.store(value, form.output)
    if scale != 1 and not scaled:
        result = program.emit(dense.scale, (result,), scale)
    program.finish(result)
    return Plan(str(net), slots, path, tuple(steps), program), lowering.builder.copied


def _scale_operand(joined: list[Item], lowering: Lowering, factor: float, size: int) -> tuple[list[Item], bool]:
    """Multiply a tensor of the last step by the network's scale: one whose kernel does that for nothing, else the
    smallest, if it is smaller than the result."""
    values = [(index, value) for index, (value, _, _) in enumerate(joined) if value is not None and not value.windows]
    if len(values) < sum(value is not None for value, _, _ in joined):
        return joined, False
    if len({value.register for _, value in values}) == 1 < len(values) and factor > 0:
        every, factor = [values], sqrt(factor)  # a tensor times itself, which stays one tensor
    else:
        every = [[pair] for pair in sorted(values, key=lambda pair: lowering.builder.volume(pair[1].legs))]
    for chosen in every:
        registers = [lowering.program.scaled(value.register, factor) for _, value in chosen]
        if None not in registers:
            break
    else:
        chosen = every[0]
        if any(lowering.builder.volume(value.legs) >= size for _, value in chosen):
            return joined, False
        registers = [lowering.program.emit(dense.scale, (value.register,), factor) for _, value in chosen]
    joined = list(joined)
    for (index, value), register in zip(chosen, registers, strict=True):
        assert register is not None
        joined[index] = (Value(register, value.axes), None, joined[index][2])
    return joined, True
