"""Products of the Jacobians with respect to one parameter, which are made only where that is the cheapest way."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from .. import tn
from ..layers.layer_specs import ConvTransposeSpec
from ..tn import LayerSpec
from .parameter_uses import EmbeddingUse, Use, WeightUse


@dataclass(frozen=True, eq=False)
class Pulled:
    """All uses of one parameter, each with cotangents of its output.

    Attributes:
        uses: The uses.
        cotangents: Of each of them, ``[C, N, …]``, in single precision at least.
    """

    uses: tuple[Use, ...] = ()
    cotangents: tuple[Tensor, ...] = ()

    @property
    def examples(self) -> int:
        """Number of examples ``N``."""
        return self.uses[0].examples

    def halves(self) -> Iterator["Pulled"]:
        """The first and the second half of the examples."""
        middle = (self.examples + 1) // 2
        for part in (slice(0, middle), slice(middle, self.examples)):
            yield Pulled(tuple(use.part(part) for use in self.uses), tuple(v[:, part] for v in self.cotangents))

    def jacobian(self) -> Tensor:
        """``∂f/∂θ`` ``[C, N, P]``."""
        pulled = (use.vjp(v).flatten(2) for use, v in zip(self.uses, self.cotangents, strict=True))
        return reduce(Tensor.add_, pulled)


def jacobian_gram(left: Pulled, right: Pulled, trace: bool, memory: int) -> Tensor:
    """``Σ_p J[c, n, p] J'[c', m, p]`` ``[N, M, C, C]``, with ``trace`` summed over ``c = c'`` as ``[N, M]``.

    Args:
        left: Uses of a parameter.
        right: Uses of the same parameter; where they are the same objects, nothing is computed twice.
        trace: Whether only the sum over the outputs is needed.
        memory: Bytes of intermediate products up to which examples are not split.
    """
    pairs = _networks(left, right, trace)
    if pairs is None:
        left, right = _compact(left, right)
        entries = (left.examples + right.examples) * len(left.cotangents[0]) * _entries(left.uses[0])
        needed = entries * left.cotangents[0].element_size()
    else:
        v = left.cotangents[0]
        plans = [net.plan(v.dtype, v.device) for net, *_ in pairs]
        needed = 2 * max(sum(step.result_bytes for step in plan.steps[:-1]) for plan in plans)  # steps may lay out anew
    if needed > memory and max(left.examples, right.examples) > 1:
        if left.examples >= right.examples:
            return torch.cat([jacobian_gram(half, right, trace, memory) for half in left.halves()])
        return torch.cat([jacobian_gram(left, half, trace, memory) for half in right.halves()], 1)
    if pairs is not None:
        return reduce(Tensor.add_, (net.contract(_operands(*pair)) for net, *pair in pairs))
    j = left.jacobian()
    other = j if left is right else right.jacobian()
    if trace:
        return j.transpose(0, 1).flatten(1) @ other.transpose(0, 1).flatten(1).mT
    made = j.flatten(0, 1) @ other.flatten(0, 1).mT
    return made.view(*j.shape[:2], *other.shape[:2]).permute(1, 3, 0, 2)


_Side = tuple[WeightUse, Tensor]


def _networks(left: Pulled, right: Pulled, trace: bool) -> list[tuple[tn.TensorNetwork, _Side, _Side]] | None:
    """Networks and what they are of, which add up to the product, if all uses read the parameter in one way."""
    if len({_reading(use) for use in (*left.uses, *right.uses)}) > 1 or not isinstance(left.uses[0], WeightUse):
        return None
    sides: list[list[Any]] = [list(zip(each.uses, each.cotangents, strict=True)) for each in (left, right)]
    return [
        (_network(a[0].spec, b[0].spec, len(a[1]), trace, _same(a, b)), a, b) for a, b in product(sides[0], sides[1])
    ]


def _same(left: _Side, right: _Side) -> bool:
    return left[0] is right[0] and left[1] is right[1]


def _operands(left: _Side, right: _Side) -> dict[str, Tensor]:
    """The tensors of a network."""
    operands: dict[str, Tensor] = {}
    for prefix, (use, v) in {"": left, **({} if _same(left, right) else {"other_": right})}.items():
        operands |= {f"{prefix}input": use.input.to(v.dtype), f"{prefix}output_grad": use.output_grads(v)}
    return operands


def _reading(use: Use) -> Any:
    """What is the same for weights whose legs are the same legs of one parameter."""
    if not isinstance(use, WeightUse):
        return type(use)
    return isinstance(use.spec, ConvTransposeSpec), use.spec.weight_shape, use.spec.groups, use.view


@lru_cache(maxsize=1024)
def _network(left: LayerSpec, right: LayerSpec, outputs: int, trace: bool, same: bool) -> tn.TensorNetwork:
    """The Gram matrix of per-example weight VJPs; its plan makes these first, or Gram matrices of their factors."""
    first, second = (tn.per_example_weight_vjp(spec).with_leg("v", outputs, "output_grad") for spec in (left, right))
    if not same:
        second = second.rename(slots={slot: f"other_{slot}" for slot in ("input", "output_grad")})
    shared = ("g", "d", "c", *(f"k{dim}" for dim in range(1, left.dims + 1)), *(["v"] if trace else []))
    net = first.outer(second, share=shared).sum(*shared).named("ntk")
    return net if trace else net.group(("n",), ("n'",), ("v",), ("v'",))


def _compact(left: Pulled, right: Pulled) -> tuple[Pulled, Pulled]:
    """Tables without the rows that no example looks up."""
    tables = [use for use in (*left.uses, *right.uses) if isinstance(use, EmbeddingUse)]
    if len(tables) < len(left.uses) + len(right.uses):
        return left, right
    rows = torch.cat([use.index.flatten() for use in tables]).unique()
    made = replace(left, uses=tuple(use.among(rows) for use in left.uses if isinstance(use, EmbeddingUse)))
    if left is right:
        return made, made
    return made, replace(right, uses=tuple(use.among(rows) for use in right.uses if isinstance(use, EmbeddingUse)))


def _entries(use: Use) -> int:
    """Entries of one row of the Jacobian."""
    return use.rows * prod(use.parameter.shape[1:]) if isinstance(use, EmbeddingUse) else use.parameter.numel()
