"""Contraction plans: the order found for a network, its cost, and the program that carries it out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod, sqrt

import torch
from torch import Tensor

from ...text.text_table import aligned
from ...text.units import format_bytes
from ..execute import dense
from ..execute.batch_parts import keep_memory
from ..execute.kernel import Kind
from ..execute.program import Program
from ..execute.registers import Builder, Value
from ..network import Network
from ..nodes import Pattern
from ..simplify import simplify
from . import machine
from .path import Optimize, Path, Search
from .relations import ONE, problem
from .steps import NATIVE_TYPES, Target


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    Args:
        expression: The joined items and the legs of the result.
        kernel: The printed name of the kernel that runs the step.
        multiplications: Multiply-adds; pairs that meet a zero of a pattern are not counted.
        result_bytes: Size of the result.
        kind: What kind of kernel it is.
    """

    expression: str
    kernel: str
    multiplications: int
    result_bytes: int
    kind: Kind


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
        rows = [("step", f"{'kernel':10}", "multiplications", f"{'result':10}", "expression")]
        for number, step in enumerate(self.steps, 1):
            size = format_bytes(step.result_bytes)
            rows.append((str(number), step.kernel, f"{step.multiplications:,}", size, step.expression))
        largest = format_bytes(self.largest_intermediate)
        total = f"total {self.multiplications:,} multiplications, largest intermediate {largest}"
        return "\n".join([self.network, *aligned(rows), total])


def make_plan(net: Network, dtype: torch.dtype, device: torch.device, optimize: Optimize = None) -> Plan:
    """Find the cheapest order over the network's equivalent forms, and lower it.

    The forms are the network as it is and simplified, each with selections merged into the patterns they
    feed (gather through the pattern) or apart (scatter first, then convolve).
    """
    slots = tuple(net.slots)
    vanishing = any(isinstance(node, Pattern) and node.pattern.nonzeros == 0 for node in net.nodes)
    if vanishing or 0 in net.sizes.values() or 0 in net.output_shape:
        program = Program(len(slots))
        result = torch.result_type(torch.empty(0, dtype=dtype), net.scale) if net.scale != 1 else dtype
        program.finish(program.emit(dense.constant, (), net.output_shape, 0, result, device))
        return Plan(str(net), slots, [], (), program)
    largest = max(map(prod, (*net.slots.values(), net.output_shape))) * dtype.itemsize
    if device.type == "cpu" and largest >= machine.cpu.mapped:
        keep_memory()
    best: tuple[float, Plan] | None = None
    for form, search in searches(net, Target(dtype, device, dtype in NATIVE_TYPES), optimize):
        path = search.path()
        plan, copied = lowered(net, form, search, path)
        time = sum(cost.time for cost in search.cost(path)) + 2 * machine.cpu.stream * copied
        if best is None or time < best[0]:
            best = (time, plan)
    assert best is not None
    return best[1]


def searches(net: Network, target: Target, optimize: Optimize = None) -> Iterator[tuple[Network, Search]]:
    """The network's equivalent forms, each with a search for its order."""
    simple = simplify(net)
    for form in [net] if simple == net else [simple, net]:
        for merge in (False, True) if net.index_slots else (True,):
            yield form, Search(problem(form, merge), target, optimize)


def lowered(net: Network, form: Network, search: Search, path: Path) -> tuple[Plan, int]:
    """The plan of one path, and the elements that its changes of layout copy."""
    slots, target = tuple(net.slots), search.legs.target
    program = Program(len(slots))
    register = {slot: index for index, slot in enumerate(slots)}
    builder = Builder(program, form.sizes, target, register, form.open_legs)
    items: list[tuple[Value | None, str]] = []
    for tensor in search.problem.tensors:
        if tensor is ONE:
            items.append((Value(program.emit(dense.constant, (), (), 1, target.dtype, target.device), ()), tensor.slot))
        else:
            items.append((builder.load(register[tensor.slot], tensor), tensor.slot))
    items += [(None, str(relation)) for relation in search.problem.relations]
    # A simplified form may have another scale; what is then a whole number leaves integers what they are.
    scale, scaled = (int(form.scale) if net.scale == 1 else form.scale), form.scale == 1
    steps: list[tuple[Step, int]] = []
    for number, (positions, move) in enumerate(search.follow(path), 1):
        values = [value for position in positions if (value := items[position][0]) is not None]
        before = program.count
        if number == len(path) and not scaled and target.native:
            values, scaled = _scale_operands(builder, values, scale, move.cost.size)
            builder.scale = 1.0 if scaled else scale
        done = move.kernel.emit(builder, move.join, values, move.form)
        scaled = scaled or (number == len(path) and target.native and builder.scale == 1)
        legs = " ".join(sorted(search.legs.names(move.join.out)))
        step = Step(
            f"{', '.join(items[position][1] for position in positions)} → {legs}",
            done.name,
            move.cost.multiplications,
            move.cost.size * target.dtype.itemsize,
            move.kernel.kind,
        )
        if program.count == before:  # every instruction was there already
            step = replace(step, kernel=f"shared: {done.name}", multiplications=0, result_bytes=0)
        steps.append((step, done.value.register))
        items = [item for index, item in enumerate(items) if index not in positions] + [(done.value, f"#{number}")]
    value = items[0][0]
    assert value is not None
    value = builder.sum(value, [leg for leg in value.legs if leg not in form.open_legs])
    result = builder.store(value, form.output)
    if not scaled:
        result = program.emit(dense.view, (result,), "mul", scale)
    needed = program.finish(result)
    # Windows of a Gram matrix are looked through and never made.
    shown = tuple(step if made in needed else replace(step, kernel="view", result_bytes=0) for step, made in steps)
    return Plan(str(net), slots, path, shown, program), builder.copied


def _scale_operands(builder: Builder, values: list[Value], factor: float, size: int) -> tuple[list[Value], bool]:
    """Multiply the smaller tensor of the last step by the network's scale, if it is smaller than the result."""
    if any(value.windows for value in values):
        return values, False
    if len({value.register for value in values}) == 1 < len(values) and factor > 0:
        chosen, factor = range(len(values)), sqrt(factor)  # a tensor times itself, which stays one tensor
    else:
        smallest = min(range(len(values)), key=lambda index: builder.volume(values[index].legs))
        chosen = range(smallest, smallest + 1)
    if any(builder.volume(values[index].legs) >= size for index in chosen):
        return values, False
    values = list(values)
    for index in chosen:
        register = builder.program.emit(dense.view, (values[index].register,), "mul", factor)
        values[index] = replace(values[index], register=register)
    return values, True
