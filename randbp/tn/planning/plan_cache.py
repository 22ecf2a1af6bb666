"""The plan cache: a bounded, thread-safe LRU of contraction plans, keyed by structure and never by index values."""

from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from typing import Any

import torch

from ...layers.integers import as_integer
from ..network import Network
from .path import Optimize
from .plan import Plan, make_plan


@dataclass(frozen=True)
class CacheInfo:
    """State of the plan cache.

    Args:
        hits: Contractions that found their plan.
        misses: Plans that had to be made.
        size: Plans held.
        maxsize: Plans held at most; the least recently used goes first.
        planning_seconds: Time spent on making plans.
        saved_seconds: Planning time that the hits did not have to spend again.
    """

    hits: int
    misses: int
    size: int
    maxsize: int
    planning_seconds: float
    saved_seconds: float


class PlanCache:
    """A bounded LRU of plans, safe under threads.

    The key is the network (its structure and sizes; tensors bound to it do not count), the data type, the device and
    the strategy of the search.

    Args:
        maxsize: Number of plans to hold.

    Example:
        >>> from randbp import tn
        >>> cache = tn.PlanCache(maxsize=8)
        >>> net = tn.conv(tn.ConvSpec((1, 2, 8), 3, 3))
        >>> cache.plan(net) is cache.plan(net)
        True
        >>> cache.info().hits, cache.info().misses
        (1, 1)
    """

    def __init__(self, maxsize: int = 512) -> None:
        if (as_integer(maxsize) or 0) < 1:
            raise ValueError(f"maxsize={maxsize!r}: expected a positive integer")
        self.maxsize = maxsize
        self._made = lru_cache(maxsize)(self._timed)
        self._planning = self._saved = 0.0  # without a lock: threads that meet may lose some of these statistics

    def plan(
        self,
        net: Network,
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008
        optimize: Optimize = None,
    ) -> Plan:
        """Return the plan of a network, and make it if it is not in the cache."""
        plan, seconds = self._made(net.unbound if net.bound else net, dtype, device, optimize)
        self._saved += seconds
        return plan

    def _timed(self, net: Network, *target: Any) -> tuple[Plan, float]:
        start = perf_counter()
        plan = make_plan(net, *target)
        seconds = perf_counter() - start
        self._planning += seconds
        self._saved -= seconds  # which `plan` adds
        return plan, seconds

    def info(self) -> CacheInfo:
        """Return hits, misses, number of plans, and the planning time saved."""
        found = self._made.cache_info()
        return CacheInfo(found.hits, found.misses, found.currsize, self.maxsize, self._planning, self._saved)

    def clear(self) -> None:
        """Forget all plans and set the counters to zero."""
        self._made.cache_clear()
        self._planning = self._saved = 0.0


cache = PlanCache()
