"""Steps that involve a selection: gathers, scatters, and products of gathered or scattered rows."""

from typing import Any

from ...layers.pattern import IndexPattern
from ..planning import machine
from ..planning.relations import Lookup
from ..planning.steps import Cost, Join
from . import indexed, rows
from .kernel import Kernel, Kind, Lowered
from .pattern_steps import without_private
from .registers import Axes, Builder, Value


class GatherOrScatter(Kernel):
    """A selection applied to one tensor: it is read at a table's positions, or added up at them."""

    kind, joins = Kind.RELATION, (1, Lookup)

    def fits(self, join: Join) -> Any:
        """Always."""
        return True

    def cost(self, join: Join, form: Any) -> Cost:
        """Two irregular passes, since tables are read as well; filling up the full size multiplies by zeros."""
        roles, tensor = join.roles, join.tensors[0]
        needed = roles.free & (join.out | tensor) if not roles.i & (tensor | join.out) else roles.free
        expanded = join.volume(tensor & ~roles.all | needed)
        if roles.i & join.out and roles.free & tensor:
            return Cost(0, machine.cpu.last_resort * (join.touched + expanded), join.size)
        return Cost(0, join.touched + machine.cpu.gather / machine.cpu.stream * expanded, join.size)

    def emit(self, builder: Builder, join: Join, values: list[Value], form: Any) -> Lowered:
        """A gather if the tensor holds positions, and a scatter if the result does."""
        relation, out = _lookup(join), join.legs.names(join.out)
        value = without_private(builder, join, values[0])
        determined, free, batch = relation.determined, relation.free, relation.selection.batch
        index = builder.indices[relation.selection.slot]
        table = builder.program.emit(indexed.table, (index,), _targets(builder, relation))
        volume, name = builder.volume(determined), "scatter"

        def inner(legs: Any) -> tuple[Axes, tuple[str, ...]]:
            """The leading batch axis where these legs have it, and the free legs behind it."""
            batched = bool(batch) and batch[0] in legs
            return ((batch,) if batched else ()), (free[1:] if batched else free)

        if any(leg in value.legs for leg in determined):
            lead, following = inner(value.legs)
            held = tuple(leg for leg in value.legs if leg in following)
            rest = tuple(leg for leg in value.legs if leg not in (*free, *determined))
            value = builder.convert(value, (*lead, *((leg,) for leg in (*rest, *held)), determined))
            places = tuple((following.index(leg), builder.sizes[leg]) for leg in held)
            static = bool(lead), places, volume, relation.partial
            register = builder.program.emit(indexed.gather, (value.register, table), *static)
            value, name = Value(register, (*lead, *((leg,) for leg in (*rest, *following)))), "gather"
        if name == "gather" and not any(leg in out for leg in determined):
            gone = [leg for leg in free if leg not in out]
            return Lowered(builder.sum(value, gone), f"{name} + sum" if gone else name)
        lead, following = inner(out)
        rest = tuple(leg for leg in value.legs if leg not in (*free, *determined))
        kept = tuple(leg for leg in following if leg in out)
        value = builder.convert(value, (*lead, *((leg,) for leg in (*rest, *following))))
        places = tuple((following.index(leg), builder.sizes[leg]) for leg in kept)
        register = builder.program.emit(indexed.scatter, (value.register, table), bool(lead), places, volume)
        value = Value(register, (*lead, *((leg,) for leg in (*rest, *kept)), determined))
        value = builder.sum(value, [leg for leg in determined if leg not in out])
        return Lowered(value, "gather + scatter" if name == "gather" else "scatter")


class RowProduct(Kernel):
    """Two tensors and the selection between them, in matrix products row by row: see :mod:`.rows`.

    The chosen rows hold the sample leg. Of the other tensor, rows are gathered at positions (a weight VJP), or it is
    multiplied first and added up at positions (an input VJP).
    """

    kind, joins = Kind.ROWS, (2, Lookup)

    def fits(self, join: Join) -> Any:
        """``"gather"`` or ``"scatter"``, and the number of the tensor of chosen rows."""
        relation, roles, out = _lookup(join), join.roles, join.out
        encode = join.legs.encode
        sample, batch = encode((relation.selection.sample,)), encode(relation.selection.batch)
        positions, entries = roles.i, encode(relation.enumerated)
        if not relation.partial or out & sample or positions & entries:
            return None
        for number in (1, 0):
            chosen, tensor = join.tensors[number], join.tensors[1 - number]
            if not chosen & sample or chosen & (positions | entries) or tensor & sample:
                continue
            if (chosen ^ tensor) & ~(sample | positions | entries) & ~out:
                continue  # a leg of one tensor alone that is summed: sum it first
            gathers = not positions & ~tensor and not tensor & entries and not out & positions
            if gathers and not entries & ~out and not out & batch and tensor & batch == batch == chosen & batch:
                return "gather", number
            scatters = not entries & ~tensor and not tensor & positions and not out & entries
            if scatters and not positions & ~out and not tensor & batch and chosen & out & batch == batch:
                return "scatter", number
        return None

    def cost(self, join: Join, form: Any) -> Cost:
        """Multiply-adds of pairs that meet, and the rows that pass through the index."""
        kind, number = form
        chosen, tensor = join.tensors[number], join.tensors[1 - number]
        relation, positions = _lookup(join), join.roles.i
        passing = join.legs.encode((relation.selection.sample, *relation.enumerated))
        passed = join.volume((tensor if kind == "gather" else join.out) & ~positions | passing)
        moved = join.volume(chosen) + 2 * passed + join.size
        if join.legs.innermost(tensor, positions) & positions:  # else its rows are read where they lie
            moved += 2 * join.volume(tensor)
        return Cost(join.volume((chosen | tensor | passing) & ~positions), moved, join.size)

    def emit(self, builder: Builder, join: Join, values: list[Value], form: Any) -> Lowered:
        """One product for each value of the free legs that the patterns add."""
        kind, number = form
        chosen, tensor, relation = values[number], values[1 - number], _lookup(join)
        selection, determined, enumerated = relation.selection, relation.determined, relation.enumerated
        own = (selection.sample, *determined, *enumerated)
        shared = [leg for leg in chosen.legs if leg in tensor.legs and leg not in own]
        out = join.legs.names(join.out)
        groups = tuple(leg for leg in shared if leg in out)
        summed = tuple(leg for leg in shared if leg not in out)
        lone = tuple(leg for leg in tensor.legs if leg not in (*shared, *own))
        lone_rows = tuple(leg for leg in chosen.legs if leg not in (*shared, *own))
        static = _targets(builder, relation), builder.volume(groups)
        index = builder.indices[selection.slot]
        lead = (
            *selection.batch,
            *(leg for leg in (summed if kind == "gather" else lone_rows) if leg not in selection.batch),
        )
        inner = groups + (lone_rows if kind == "gather" else summed)
        rows_register = builder.convert(chosen, (lead, (selection.sample,), inner)).register
        if kind == "gather":
            x = builder.convert(tensor, (lead, groups + lone, determined)).register
            register = builder.program.emit(rows.gathered_product, (x, rows_register, index), *static)
            return Lowered(Value(register, (groups, lone, lone_rows, enumerated)), "gathered matmul")
        x = builder.convert(tensor, (groups, summed, lone, enumerated)).register
        register = builder.program.emit(rows.scattered_product, (x, rows_register, index), *static)
        return Lowered(Value(register, (lead, determined, groups + lone)), "scattered matmul")


def _lookup(join: Join) -> Lookup:
    assert isinstance(join.relation, Lookup)
    return join.relation


def _targets(builder: Builder, relation: Lookup) -> indexed.Targets:
    roles: list[tuple[str, IndexPattern] | None] = [
        None if p is None else ("i" if target == p.i else "o" if target == p.o else "k", p.pattern)
        for p, target in zip(relation.via, relation.selection.targets, strict=True)
    ]
    chosen, determined = (
        builder.shape(tuple((leg,) for leg in legs)) for legs in (relation.selection.targets, relation.determined)
    )
    return indexed.Targets(chosen, tuple(roles), determined)
