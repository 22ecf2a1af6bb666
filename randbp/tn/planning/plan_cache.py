"""The plan cache: a bounded, thread-safe LRU of contraction plans, keyed by structure and never by index
values."""

from dataclasses import dataclass, replace
from threading import Lock
from time import perf_counter

import torch

from ...layers.integers import as_integer
from ..network import Network
from .path import Optimize
from .plan import Plan, make_plan

Key = tuple[Network, torch.dtype, torch.device, Optimize]


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


@dataclass(slots=True)
class Entry:
    """A plan in the cache, and the time of its last use (counted in calls of the cache)."""

    net: Network
    dtype: torch.dtype
    device: torch.device
    plan: Plan
    seconds: float
    used: int


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
        self._lock = Lock()
        self._plans: dict[Key, Entry] = {}
        self._nearest: dict[int, Entry] = {}  # by the identity of the network, for hashing its structure takes longer
        self._hits = 0
        self._misses = 0
        self._planning = 0.0
        self._saved = 0.0

    def plan(
        self,
        net: Network,
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008
        optimize: Optimize = None,
    ) -> Plan:
        """Return the plan of a network, and make it if it is not in the cache."""
        entry = None if optimize else self._nearest.get(id(net))
        if entry is None or entry.net is not net or entry.dtype is not dtype or entry.device != device:
            entry = self._plans.get((net, dtype, device, optimize))
            if entry is None:
                return self._made(net, dtype, device, optimize)
        with self._lock:
            self._hits += 1
            self._saved += entry.seconds
            entry.used = self._hits + self._misses
        return entry.plan

    def _made(self, net: Network, dtype: torch.dtype, device: torch.device, optimize: Optimize) -> Plan:
        start = perf_counter()  # outside the lock: other threads go on; two may plan the same network, harmlessly
        plan = make_plan(net, dtype, device, optimize)
        seconds = perf_counter() - start
        with self._lock:
            self._misses += 1
            self._planning += seconds
            # Bound tensors must not live as long as the plan.
            bare = replace(net, bound={}) if net.bound else net
            entry = Entry(bare, dtype, device, plan, seconds, self._hits + self._misses)
            self._drop((net, dtype, device, optimize))  # another thread's
            self._plans[(bare, dtype, device, optimize)] = entry
            if not optimize:
                self._nearest[id(bare)] = entry
            while len(self._plans) > self.maxsize:
                self._drop(min(self._plans, key=lambda key: self._plans[key].used))
        return plan

    def _drop(self, key: Key) -> None:
        entry = self._plans.pop(key, None)
        if entry is not None and self._nearest.get(id(entry.net)) is entry:
            del self._nearest[id(entry.net)]

    def info(self) -> CacheInfo:
        """Return hits, misses, number of plans, and the planning time saved."""
        with self._lock:
            return CacheInfo(self._hits, self._misses, len(self._plans), self.maxsize, self._planning, self._saved)

    def clear(self) -> None:
        """Forget all plans and set the counters to zero."""
        with self._lock:
            self._plans.clear()
            self._nearest.clear()
            self._hits = self._misses = 0
            self._planning = self._saved = 0.0


cache = PlanCache()
