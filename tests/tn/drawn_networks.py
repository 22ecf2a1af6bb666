"""Networks that users could compose, drawn from a seed: an operation of the library, then moves of all kinds."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from randbp import tn

from . import meaning
from .drawn_parts import Parts

TERMS = 1_000_000  # index tuples of a network, at most: what a dense einsum would visit
LEGS = 40  # torch.einsum has 52 letters
MOVES = 4  # of a network, at most

Operands = dict[str, Tensor]
Meaning = Callable[[Operands, Tensor], tuple[Tensor, Tensor]]
"""Operands and the network's value to what a move says is equal: something made of the value, and an oracle."""
Moved = tuple[tn.TensorNetwork, str, Meaning | None]
"""The network after a move, the call that made it, and what the move means."""


@dataclass(frozen=True)
class Drawn:
    """A network, the calls that made it, what the last of them means, and the messages of calls that were refused."""

    seed: int
    net: tn.TensorNetwork
    calls: tuple[str, ...]
    meaning: Meaning | None
    refused: Counter[str]
    tried: int

    def __str__(self) -> str:
        return "\n    ".join((f"seed {self.seed}", *self.calls, f"= {self.net}"))


class Refused(Exception):
    """A call that the library refuses, with a line that says why."""


def drawn(seed: int, moves: int = MOVES) -> Drawn:
    """The network of a seed, after so many moves at most."""
    draw = _Moves(seed)
    net, call = draw.operation()
    calls, means, refused, tried = [f"net = {call}"], None, Counter[str](), 0
    for _ in range(draw.rng.randint(0, moves)):
        move = draw.rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        for _ in range(5):  # what is refused or too large is drawn again
            tried += 1
            try:
                moved = move(draw, net)
                if moved is None or not _is_small(moved[0]):
                    continue
            except Refused as refusal:
                refused[str(refusal)] += 1
                continue
            net, means = moved[0], moved[2]
            calls.append(f"net = {moved[1]}")
            break
    return Drawn(seed, net, tuple(calls), means, refused, tried)


def _is_small(net: tn.TensorNetwork) -> bool:
    return prod(net.sizes.values()) <= TERMS and len(net.sizes) <= LEGS


def _try(move: Callable[..., tn.TensorNetwork], *arguments: Any, **keywords: Any) -> tn.TensorNetwork:
    """A move, or what it is refused with: one line."""
    try:
        net = move(*arguments, **keywords)
        net.slots  # noqa: B018  refuses one name for tensors of two shapes
    except ValueError as error:
        if not str(error) or "\n" in str(error):
            raise
        raise Refused(str(error)) from error
    return net


def _data_slots(net: tn.TensorNetwork) -> list[str]:
    return [slot for slot in net.slots if slot not in net.index_slots and slot not in net.bound]


def _apart(net: tn.TensorNetwork, other: tn.TensorNetwork, names: dict[str, str]) -> bool:
    """Whether slots of one name are of one tensor."""
    for slot in net.slots.keys() & (other.slots.keys() - names.keys()):
        kinds = [(n.slots[slot], slot in n.index_slots, id(n.bound.get(slot))) for n in (net, other)]
        if kinds[0] != kinds[1]:
            return False
    return True


class _Moves(Parts):
    """Draws moves: each takes a network, and gives None where there is nothing to move."""

    def subsample(self, net: tn.TensorNetwork) -> Moved | None:
        free = _unrestricted(net)
        chosen: dict[str, tuple[Tensor, Tensor | None]] = {}
        for _ in range(self.rng.choice((1, 1, 2))):
            if not free:
                break
            keys = self.some(free, self.rng.choice((1, 1, 2, 3)))
            if self.chance(0.35):  # the positions of an image
                keys = [leg for leg in free if leg[0] == keys[0][0] and leg.endswith("'") == keys[0].endswith("'")]
            each = "n" in net.sizes and "n" not in keys and "n" not in " ".join(chosen).split() and self.chance(0.35)
            free = [leg for leg in free if leg not in keys and not (each and leg == "n")]
            index = self.index(prod(net.sizes[leg] for leg in keys), net.sizes["n"] if each else None)
            chosen[" ".join(keys)] = index, self.normal(index.shape) if self.chance(0.3) else None
        if not chosen:
            return None
        indices = {key: index for key, (index, _) in chosen.items()}
        weights = {key: weight for key, (_, weight) in chosen.items() if weight is not None}
        stored = tuple(slot for slot in _data_slots(net) if self.chance(0.1))
        after = _try(net.subsample, indices, weights=weights, stored=stored)
        means = None
        kept = [
            axis for node in after.nodes if isinstance(node, tn.Operand) and node.slot in stored for axis in node.axes
        ]
        plain = meaning.is_plain(after) and all(axis.is_plain(after.sizes) for axis in kept)
        if plain and prod(net.sizes.values()) <= meaning.FEW_TERMS:
            means = lambda operands, value: (value, meaning.subsampled(net, after, chosen, stored, operands))  # noqa: E731
        tensors = ", ".join(f"{k!r}: torch.tensor({i.tolist()}, dtype={i.dtype})" for k, i in indices.items())
        factors = ", ".join(f"{k!r}: torch.tensor({w.tolist()}, dtype={w.dtype})" for k, w in weights.items())
        return after, f"net.subsample({{{tensors}}}, weights={{{factors}}}, stored={stored})", means

    def sampled(self, net: tn.TensorNetwork) -> Moved | None:
        """Indices and weights that come with the operands."""
        free = _unrestricted(net)
        if not free:
            return None
        keys = self.some(free, 2)
        each = "n" in net.sizes and "n" not in keys and self.chance(0.4)
        size = self.rng.randint(0, 4) if all(net.sizes[leg] for leg in keys) else 0
        samples = {" ".join(keys): tn.Sample(size, each, self.chance(0.3))}
        stored = tuple(slot for slot in _data_slots(net) if self.chance(0.1))
        return _try(tn.sampled, net, samples, stored), f"tn.sampled(net, {samples}, stored={stored})", None

    def _linear(self, net: tn.TensorNetwork) -> str | None:
        """A slot that the network is linear in."""
        counts = Counter(node.slot for node in net.nodes if isinstance(node, tn.Operand))
        slots = [slot for slot, count in counts.items() if count == 1]
        return self.rng.choice(slots) if slots else None

    def remove(self, net: tn.TensorNetwork) -> Moved | None:
        slot = self._linear(net)
        if slot is None:
            return None
        after = _try(net.remove, slot)
        node = next(node for node in net.nodes if isinstance(node, tn.Operand) and node.slot == slot)
        means = None
        if meaning.is_plain(after) and all(axis.is_plain(net.sizes) for axis in node.axes):
            means = lambda operands, value: meaning.jacobian_times(net, node, after, operands, value)  # noqa: E731
        return after, f"net.remove({slot!r})", means

    def vjp(self, net: tn.TensorNetwork) -> Moved | None:
        slot, name = self._linear(net), f"cotangent{len(net.slots)}"
        if slot is None or name in net.slots:
            return None
        after = _try(net.vjp, slot, name)
        return after, f"net.vjp({slot!r}, {name!r})", lambda o, value: (value, meaning.vjp(net, slot, o[name], o))

    def jvp(self, net: tn.TensorNetwork) -> Moved | None:
        slot, name = self._linear(net), f"tangent{len(net.slots)}"
        if slot is None or name in net.slots:
            return None
        after = _try(net.jvp, slot, name)
        return after, f"net.jvp({slot!r}, {name!r})", lambda o, v: (v, meaning.evaluated(net, {**o, slot: o[name]}))

    def sum(self, net: tn.TensorNetwork) -> Moved | None:
        if not net.open_legs:
            return None
        legs = self.some(net.open_legs)
        after = _try(net.sum, *legs)
        return after, f"net.sum(*{legs})", self._laid_out(net, after)

    def group(self, net: tn.TensorNetwork) -> Moved | None:
        legs = self.rng.sample(net.open_legs, len(net.open_legs))
        axes: list[tuple[str, ...]] = []
        while legs:
            count = self.rng.choice((0, 1, 1, 2, 3)) if self.chance(0.3) else 1
            axes.append(tuple(legs[:count]))
            del legs[:count]
        after = _try(net.group, *axes)
        return after, f"net.group(*{axes})", self._laid_out(net, after)

    @staticmethod
    def _laid_out(net: tn.TensorNetwork, after: tn.TensorNetwork) -> Meaning | None:
        """The value before with some legs summed and the others in another order."""
        if not meaning.is_plain(net) or not meaning.is_plain(after):
            return None

        def means(operands: Operands, value: Tensor) -> tuple[Tensor, Tensor]:
            before = meaning.by_legs(net, meaning.evaluated(net, operands)), net.open_legs
            return value, meaning.join(before, to=after.open_legs).reshape(value.shape)

        return means

    def with_leg(self, net: tn.TensorNetwork) -> Moved | None:
        closed = [leg for leg in net.sizes if leg not in net.open_legs]
        if closed and self.chance(0.6):
            leg = self.rng.choice(closed)
            after = _try(net.with_leg, leg)
            return after, f"net.with_leg({leg!r})", lambda o, value: (value.sum(0), meaning.evaluated(net, o))
        if not _data_slots(net):
            return None
        slots, size, leg = self.some(_data_slots(net), 2), self.rng.randint(1, 3), f"v{len(net.sizes)}"
        after = _try(net.with_leg, leg, size, *slots)

        def stacked(operands: Operands, value: Tensor) -> tuple[Tensor, Tensor]:
            each = [{slot: t[v] if slot in slots else t for slot, t in operands.items()} for v in range(size)]
            return value, torch.stack([meaning.evaluated(net, given) for given in each])

        return after, f"net.with_leg({leg!r}, {size}, *{slots})", stacked

    def rename(self, net: tn.TensorNetwork) -> Moved | None:
        if not net.sizes:
            return None
        legs = self.some(net.sizes)
        names = dict(zip(legs, self.rng.sample(legs, len(legs)), strict=True))
        if self.chance(0.5):
            names = {legs[0]: f"{legs[0]}x"}
        return _try(net.rename, names), f"net.rename(legs={names})", lambda o, v: (v, meaning.evaluated(net, o))

    def scaled(self, net: tn.TensorNetwork) -> Moved | None:
        factor = self.rng.choice((-2.0, -1.0, 0.5, 3.0, 0.0))
        return net.scaled(factor), f"net.scaled({factor})", lambda o, v: (v, factor * meaning.evaluated(net, o))

    def bind(self, net: tn.TensorNetwork) -> Moved | None:
        if not _data_slots(net):
            return None
        slot = self.rng.choice(_data_slots(net))
        tensor = self.normal(net.slots[slot])
        after = _try(net.bind, **{slot: tensor})
        call = f"net.bind(**{{{slot!r}: torch.tensor({tensor.tolist()}, dtype={tensor.dtype})}})"
        return after, call, lambda o, v: (v, meaning.evaluated(net, {**o, slot: tensor}))

    def simplify(self, net: tn.TensorNetwork) -> Moved | None:
        return _try(net.simplify), "net.simplify()", lambda o, v: (v, meaning.evaluated(net, o))

    def outer(self, net: tn.TensorNetwork) -> Moved | None:
        other, call = net, "net"
        if self.chance(0.65):
            other, call = self.operation()
            if self.chance(0.3) and (slot := self._linear(other)) is not None:
                other, call = other.remove(slot), f"{call}.remove({slot!r})"
            other, call = self._renamed_apart(net, other, call)
        common = [leg for leg in net.open_legs if leg in other.open_legs and net.sizes[leg] == other.sizes[leg]]
        share = tuple(common if self.chance(0.3) else (leg for leg in common if self.chance(0.6)))
        after = _try(net.outer, other, share)
        means = None
        if meaning.is_plain(net) and meaning.is_plain(other):
            means = lambda o, value: (value, meaning.multiplied(net, other, share, after, o))  # noqa: E731
        return after, f"net.outer({call}, share={share})", means

    def compose(self, net: tn.TensorNetwork) -> Moved | None:
        slot = self._linear(net)
        if slot is None:
            return None
        made = self.producer(net, net.slots[slot])
        if made is None:
            return None
        other, call = self._renamed_apart(net.jvp(slot, "(gone)"), *made)
        after = _try(net.compose, other, slot)
        call = f"net.compose({call}, into={slot!r})"
        return after, call, lambda o, value: (value, meaning.composed(net, other, slot, o))

    def _renamed_apart(self, net: tn.TensorNetwork, other: tn.TensorNetwork, call: str) -> tuple[tn.TensorNetwork, str]:
        """The other network with slots renamed that both have: where they must be, and by chance."""
        names = {slot: f"{slot}{len(net.slots)}" for slot in other.slots if slot in net.slots and self.chance(0.5)}
        if not _apart(net, other, names):
            names = {slot: f"{slot}{len(net.slots)}" for slot in other.slots if slot in net.slots}
        return (other.rename(slots=names), f"{call}.rename(slots={names})") if names else (other, call)


def _unrestricted(net: tn.TensorNetwork) -> list[str]:
    """Legs that can be restricted, also jointly: once each, and their names are no lists of legs."""
    return [leg for leg in net.sizes if " " not in leg and f"{leg} index" not in net.slots]


_WEIGHTS: dict[Callable[[_Moves, tn.TensorNetwork], Moved | None], float] = {
    _Moves.subsample: 5,
    _Moves.sampled: 1,
    _Moves.remove: 2,
    _Moves.vjp: 1.5,
    _Moves.jvp: 0.5,
    _Moves.sum: 1.5,
    _Moves.with_leg: 1.5,
    _Moves.rename: 0.5,
    _Moves.scaled: 0.5,
    _Moves.group: 1,
    _Moves.outer: 2.5,
    _Moves.compose: 3,
    _Moves.simplify: 1.5,
    _Moves.bind: 0.3,
}
