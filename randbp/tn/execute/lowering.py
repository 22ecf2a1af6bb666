"""Lowering: the choice of kernels for one step of a contraction."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...layers.pattern import IndexPattern
from ..nodes import Pattern
from ..planning.relations import Lookup, Windows
from . import banded, convolution_kernels, dense, diagonals, indexed, lines, window_products
from . import rows as indexed_rows
from .matrix_products import product
from .program import Program
from .registers import Axes, Builder, Value, Windowed


@dataclass(frozen=True)
class Lowered:
    """The result of a step and the name of the kernel that computes it."""

    value: Value
    kernel: str


class Lowering:
    """Emits the instructions of each kind of step.

    Args:
        program: The program to which instructions are appended.
        sizes: Leg sizes.
        indices: Register of each index slot.
        dtype: Data type of the operands.
        device: Device of the operands.
        result: Legs of the network's result in order; products that grow follow it.
    """

    def __init__(
        self,
        program: Program,
        sizes: Mapping[str, int],
        indices: Mapping[str, int],
        dtype: torch.dtype,
        device: torch.device,
        result: tuple[str, ...] = (),
    ) -> None:
        self.rank = {leg: index for index, leg in enumerate(result)}
        self.dtype = dtype
        self.device = device
        self.program = program
        self.sizes = sizes
        self.indices = indices
        self.builder = Builder(program, sizes)

    # Products of two tensors
    # ------------------------------------------------------------------------------------

    def product(self, left: Value, right: Value, out: frozenset[str]) -> Lowered:
        """A batched matrix product, or an elementwise product where no leg is summed."""
        precise = self.dtype not in (torch.float16, torch.bfloat16)
        return Lowered(*product(self.builder, left, right, out, self.rank, precise))

    # A tensor and a relation
    # ------------------------------------------------------------------------------------

    def relation(self, value: Value, relation: Windows | Lookup, out: frozenset[str]) -> Lowered:
        """Patterns or a selection applied to one tensor."""
        foreign = set(relation.legs)
        private = [leg for leg in value.legs if leg not in out and leg not in foreign]
        if private:
            value = self.builder.sum(value, private)
        if isinstance(relation, Lookup):
            return self._lookup(value, relation, out)
        ends = self._ends(value, relation, out)
        if ends is not None:
            return self._banded(value, relation, *ends)
        kernel = "place"
        held = {p.i for p in relation.patterns if p.i in value.legs}
        if held:
            value = self.windows(value, relation.patterns)
            kernel = "windows"
        gone: list[str] = []
        for pattern in relation.patterns:
            lonely = pattern.i not in held and pattern.i not in out  # Σ_i Π: which pairs (o, k) miss the padding
            if pattern.i in out or lonely:
                value = self.place(value, pattern, out)
                kernel = "windows + place" if held else "place"
                gone += [pattern.i] if lonely else []
            else:
                gone += [leg for leg in (pattern.o, pattern.k) if leg not in out]
        if gone:
            return Lowered(self.builder.sum(value, gone), f"{kernel} + sum")
        return Lowered(value, kernel)

    def _ends(self, value: Value, relation: Windows, out: frozenset[str]) -> tuple[str, str] | None:
        """The roles that all patterns go from and to, if each has its third leg summed on its own."""
        for source in "iok":
            for target in "iok".replace(source, ""):
                third = "iok".replace(source, "").replace(target, "")
                legs = [(getattr(p, source), getattr(p, target), getattr(p, third)) for p in relation.patterns]
                if all(
                    s in value.legs
                    and s not in out
                    and t not in value.legs
                    and t in out
                    and u not in {*value.legs, *out}
                    for s, t, u in legs
                ):
                    return source, target
        return None

    def _banded(self, value: Value, relation: Windows, source: str, target: str) -> Lowered:
        held = tuple(getattr(p, source) for p in relation.patterns)
        rest = tuple(leg for leg in value.legs if leg not in held)
        value = self.builder.convert(value, (rest[:1], rest[1:], *((leg,) for leg in held)))
        static = tuple(p.pattern for p in relation.patterns), source + target, self.builder.volume(value.legs)
        register = self.program.emit(banded.banded, (value.register,), *static, self.dtype, self.device, 1.0)
        reached = tuple(getattr(p, target) for p in relation.patterns)
        return Lowered(Value(register, (rest[:1], rest[1:], reached)), "box sums" if target == "k" else "banded sums")

    def windows(self, value: Value, patterns: tuple[Pattern, ...]) -> Value:
        """Strided views: each leg ``i`` that the value holds becomes ``o`` and ``k``."""
        patterns = tuple(p for p in patterns if p.i in value.legs)
        value = self.builder.convert(value, tuple((leg,) for leg in value.legs))
        origin = Windowed(value.register, value.legs, patterns)
        plain = not any(leg in value.legs for p in patterns for leg in (p.o, p.k))
        legs = list(value.legs)
        amounts = [0] * (2 * len(legs))
        for p in patterns:
            reach = p.pattern.stride * (p.pattern.output_size - 1) + p.pattern.dilation * (p.pattern.kernel_size - 1)
            at = 2 * (len(legs) - 1 - legs.index(p.i))
            amounts[at] = p.pattern.padding
            amounts[at + 1] = max(0, reach + 1 - p.pattern.padding - p.pattern.input_size)
        register = value.register
        if any(amounts):
            while amounts[-1] == 0 and amounts[-2] == 0:
                del amounts[-2:]
            register = self.program.emit(dense.pad, (register,), tuple(amounts))
        for p in patterns:
            dim = legs.index(p.i)
            register = self.program.emit(dense.window, (register,), dim, p.pattern)
            legs[dim] = "o*"
            legs.append("k*")
            for star, leg in (("o*", p.o), ("k*", p.k)):
                if leg in legs:
                    dims = sorted((legs.index(star), legs.index(leg)))
                    register = self.program.emit(dense.diagonal, (register,), *dims)
                    legs = [other for other in legs if other not in (star, leg)] + [leg]
                else:
                    legs[legs.index(star)] = leg
        return Value(register, tuple((leg,) for leg in legs), origin if plain else None)

    def place(self, value: Value, pattern: Pattern, out: frozenset[str]) -> Value:
        """The transpose of a window: ``o`` and ``k`` are added up into ``i``; legs that are still needed are kept."""
        rest = tuple(leg for leg in value.legs if leg not in (pattern.o, pattern.k))
        ends = tuple((leg,) if leg in value.legs else () for leg in (pattern.o, pattern.k))
        value = self.builder.convert(value, (*((leg,) for leg in rest), *ends))
        keep_o, keep_k = pattern.o in out, pattern.k in out
        register = self.program.emit(dense.place, (value.register,), pattern.pattern, keep_o, keep_k)
        kept = [leg for leg, keep in ((pattern.o, keep_o), (pattern.k, keep_k)) if keep]
        return Value(register, tuple((leg,) for leg in (*rest, pattern.i, *kept)))

    def _lookup(self, value: Value, relation: Lookup, out: frozenset[str]) -> Lowered:
        """A selection, perhaps merged with patterns: gather at a table's positions, or add up at them."""
        selection, determined, batch = relation.selection, relation.determined, relation.selection.batch
        table = self.program.emit(
            indexed.table,
            (self.indices[selection.slot],),
            tuple(self.sizes[leg] for leg in selection.targets),
            self._roles(relation),
            tuple(self.sizes[leg] for leg in determined),
        )
        free = relation.free
        volume = self.builder.volume(determined)
        kernel = "scatter"
        if any(leg in value.legs for leg in determined):
            batched = bool(batch) and batch[0] in value.legs
            inner = free[batched:] if batched else free
            held = tuple(leg for leg in value.legs if leg in inner)
            rest = tuple(leg for leg in value.legs if leg not in (*free, *determined))
            lead: Axes = (batch,) if batched else ()
            value = self.builder.convert(value, (*lead, *((leg,) for leg in (*rest, *held)), determined))
            static = tuple((inner.index(leg), self.sizes[leg]) for leg in held)
            register = self.program.emit(
                indexed.gather, (value.register, table), batched, static, volume, relation.partial
            )
            value = Value(register, (*lead, *((leg,) for leg in (*rest, *inner))))
            kernel = "gather"
        if kernel == "scatter" or any(leg in out for leg in determined):
            batched = bool(batch) and batch[0] in out
            inner = free[batched:] if batched else free
            rest = tuple(leg for leg in value.legs if leg not in (*free, *determined))
            kept = tuple(leg for leg in inner if leg in out)
            lead = (batch,) if batched else ()
            value = self.builder.convert(value, (*lead, *((leg,) for leg in (*rest, *inner))))
            static = tuple((inner.index(leg), self.sizes[leg]) for leg in kept)
            register = self.program.emit(indexed.scatter, (value.register, table), batched, static, volume)
            value = Value(register, (*lead, *((leg,) for leg in (*rest, *kept)), determined))
            if any(leg not in out for leg in determined):
                value = self.builder.sum(value, [leg for leg in determined if leg not in out])
            return Lowered(value, "gather + scatter" if kernel == "gather" else "scatter")
        gone = [leg for leg in free if leg not in out]
        return Lowered(self.builder.sum(value, gone), f"{kernel} + sum") if gone else Lowered(value, kernel)

    # Two tensors and the selection between them ------------------------------------------------------------------

    def lookup_product(self, tensor: Value, rows: Value, relation: Lookup, kind: str, out: frozenset[str]) -> Lowered:
        """Matrix products of rows gathered from, or scattered to, the positions of a selection."""
        selection, determined, enumerated = relation.selection, relation.determined, relation.enumerated
        own = (selection.sample, *determined, *enumerated)
        shared = [leg for leg in rows.legs if leg in tensor.legs and leg not in own]
        groups = tuple(leg for leg in shared if leg in out)
        summed = [leg for leg in shared if leg not in out]
        lone_tensor = tuple(leg for leg in tensor.legs if leg not in (*shared, *own))
        lone_rows = [leg for leg in rows.legs if leg not in (*shared, *own)]
        static = (
            tuple(self.sizes[leg] for leg in selection.targets),
            self._roles(relation),
            tuple(self.sizes[leg] for leg in determined),
            self.builder.volume(groups),
        )
        index = self.indices[selection.slot]
        if kind == "gather":
            lead = (*selection.batch, *(leg for leg in summed if leg not in selection.batch))
            x = self.builder.convert(tensor, (lead, groups + lone_tensor, determined))
            kept = self.builder.convert(rows, (lead, (selection.sample,), groups + tuple(lone_rows)))
            register = self.program.emit(indexed_rows.gathered_product, (x.register, kept.register, index), *static)
            axes: Axes = (groups, lone_tensor, tuple(lone_rows), enumerated)
            return Lowered(Value(register, axes), "gathered matmul")
        lead = (*selection.batch, *(leg for leg in lone_rows if leg not in selection.batch))
        inner = tuple(summed)
        x = self.builder.convert(tensor, (groups, inner, lone_tensor, enumerated))
        kept = self.builder.convert(rows, (lead, (selection.sample,), groups + inner))
        register = self.program.emit(indexed_rows.scattered_product, (x.register, kept.register, index), *static)
        return Lowered(Value(register, (lead, determined, groups + lone_tensor)), "scattered matmul")

    def _roles(self, relation: Lookup) -> tuple[tuple[str, IndexPattern] | None, ...]:
        """The role of each target of the selection in the pattern that it feeds."""
        return tuple(
            None if p is None else ("i" if target == p.i else "o" if target == p.o else "k", p.pattern)
            for p, target in zip(relation.via, relation.selection.targets, strict=True)
        )

    # Two tensors and the patterns between them -------------------------------------------------------------------

    def convolution(
        self,
        left: Value,
        right: Value,
        roles: tuple[str, str],
        patterns: tuple[Pattern, ...],
        out: frozenset[str],
    ) -> Lowered:
        """A native convolution, or one of its two gradients; dimensions beyond three become channels
        first."""
        holders = dict(zip(roles, (left, right), strict=True))
        if "k" not in holders:
            lowered = self._depthwise(holders["i"], holders["o"], patterns, out)
            if lowered is not None:
                return lowered
        patterns, beyond = patterns[:3], patterns[3:]
        if beyond and "i" in holders:
            holders["i"] = self.windows(holders["i"], beyond)
        later = [leg for p in beyond for leg in (p.o, p.k)] if "i" not in holders else []
        open_legs = out | set(later)
        spatial = {role: tuple(getattr(p, role) for p in patterns) for role in "iok"}
        plain = {role: [leg for leg in v.legs if leg not in spatial[role]] for role, v in holders.items()}
        first, second = holders
        shared = [leg for leg in plain[first] if leg in plain[second]]
        groups = tuple(leg for leg in shared if leg in open_legs)
        summed = tuple(leg for leg in shared if leg not in open_legs)
        own = {role: tuple(leg for leg in plain[role] if leg not in shared) for role in holders}
        geometry = tuple(p.pattern for p in patterns)
        count = self.builder.volume(groups)

        def laid(role: str, *channels: tuple[str, ...]) -> int:
            axes: Axes = (*channels, *((leg,) for leg in spatial[role]))
            return self.builder.convert(holders[role], axes).register

        if "o" not in holders:  # x [n, g·c], w [g·d, c]
            n, c, d = own["i"], summed, own["k"]
            registers = laid("i", n, groups + c), laid("k", groups + d, c)
            register = self.program.emit(convolution_kernels.forward, registers, geometry, count)
            axes: Axes = (n, groups + d, *((leg,) for leg in spatial["o"]))
            return Lowered(Value(register, axes), f"conv{len(patterns)}d")
        if "k" not in holders:  # x [n, g·c], y [n, g·d]
            n, c, d = summed, own["i"], own["o"]
            registers = laid("i", n, groups + c), laid("o", n, groups + d)
            axes = (groups + d, c, *((leg,) for leg in spatial["k"]))
            channels = self.builder.volume(c), self.builder.volume(d)
            here = count == 1 and diagonals.serves(self.dtype, self.device)
            if here and lines.pay(geometry, self.builder.volume(n), channels):
                register = self.program.emit(lines.line_products, registers, geometry)
                return Lowered(Value(register, axes), "line products")
            if here and window_products.pay(geometry, channels):
                register = self.program.emit(window_products.window_products, registers, geometry)
                return Lowered(Value(register, axes), "window products")
            shape = (
                self.builder.volume(groups + d),
                self.builder.volume(c),
                *(p.kernel_size for p in geometry),
            )
            static = geometry, count, shape, self.dtype, self.device
            register = self.program.emit(convolution_kernels.weight_gradient, registers, *static)
            return Lowered(Value(register, axes), "convolution_backward (weight)")
        n, c, d = own["o"], own["k"], summed
        registers = laid("k", groups + d, c), laid("o", n, groups + d)
        leading = (self.builder.volume(n), self.builder.volume(groups + c))
        register = self.program.emit(convolution_kernels.input_gradient, registers, geometry, count, leading)
        value = Value(register, (n, groups + c, *((leg,) for leg in spatial["i"])))
        for pattern in beyond:
            value = self.place(value, pattern, out)
        return Lowered(value, "convolution_backward (input)")

    def _depthwise(self, x: Value, y: Value, patterns: tuple[Pattern, ...], out: frozenset[str]) -> Lowered | None:
        """A depthwise weight gradient through matrix products; ``None`` if they are not faster."""
        inputs, outputs, entries = (tuple(getattr(p, role) for p in patterns) for role in "iok")
        shared = [leg for leg in x.legs if leg in y.legs]
        lone = tuple(leg for leg in (*x.legs, *y.legs) if leg not in (*shared, *inputs, *outputs))
        summed = tuple(leg for leg in shared if leg not in out)
        groups = tuple(leg for leg in shared if leg in out)
        if not diagonals.serves(self.dtype, self.device) or self.builder.volume(lone) > 1:
            return None
        method = diagonals.choose(tuple(p.pattern for p in patterns), self.builder.volume(summed))
        if method is None:
            return None
        x, y = (
            self.builder.convert(value, (summed, groups, *((leg,) for leg in legs)))
            for value, legs in ((x, inputs), (y, outputs))
        )
        geometry = tuple(p.pattern for p in patterns)
        register = self.program.emit(method.make, (x.register, y.register), geometry)
        return Lowered(Value(register, (groups + lone, *((leg,) for leg in entries))), method.name)
