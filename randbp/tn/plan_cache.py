"""The plan cache: a bounded, thread-safe LRU of contraction plans, keyed by structure and never by index
values."""

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from time import perf_counter

import torch

from .network import TensorNetwork
from .plan import Plan, make_plan

Key = tuple[TensorNetwork, torch.dtype, torch.device]


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

    The key is the network (its structure and sizes; tensors bound to it do not count), the data type and the
    device.

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
        if maxsize < 1:
            raise ValueError(f"maxsize={maxsize}: expected a positive integer")
        self.maxsize = maxsize
        self._lock = Lock()
        self._plans: OrderedDict[Key, tuple[Plan, float]] = OrderedDict()
        self._hits = 0
        self._misses = 0
        self._planning = 0.0
        self._saved = 0.0

    def plan(
        self,
        net: TensorNetwork,
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> Plan:
        """The plan of a network, made if it is not held."""
        key = (net, dtype, device)
        with self._lock:
            found = self._plans.get(key)
            if found is not None:
                self._plans.move_to_end(key)
                self._hits += 1
                self._saved += found[1]
                return found[0]
        start = perf_counter()  # outside the lock: other threads go on; two may plan the same network, harmlessly
        plan = make_plan(net, dtype, device)
        seconds = perf_counter() - start
        with self._lock:
            self._misses += 1
            self._planning += seconds
            # Bound tensors must not live as long as the plan.
            bare = net if not net.bound else TensorNetwork(net.nodes, net.leg_sizes, net.output, net.scale, net.name)
            self._plans[(bare, dtype, device)] = (plan, seconds)
            while len(self._plans) > self.maxsize:
                self._plans.popitem(last=False)
        return plan

    def info(self) -> CacheInfo:
        """Hits, misses, number of plans, and the planning time saved."""
        with self._lock:
            return CacheInfo(self._hits, self._misses, len(self._plans), self.maxsize, self._planning, self._saved)

    def clear(self) -> None:
        """Forget all plans and set the counters to zero."""
        with self._lock:
            self._plans.clear()
            self._hits = self._misses = 0
            self._planning = self._saved = 0.0


cache = PlanCache()
