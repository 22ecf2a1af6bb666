"""Work on the states of weights, each done by one process for all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from .processes import everyones, processes


@dataclass(frozen=True)
class Task:
    """Work that puts new values into a state; all processes have the same states.

    Args:
        state: The state.
        run: The work. It changes no tensor in place.
        cost: How long it takes, in any unit.
        device: Where its tensors are.
    """

    state: dict[str, Any]
    run: Callable[[], None]
    cost: float
    device: torch.device

    def made(self) -> dict[str, Any]:
        """Run it, and return what is new in the state."""
        before = dict(self.state)
        self.run()
        new = {name: value for name, value in self.state.items() if value is not before.get(name)}
        return {name: value.contiguous() if isinstance(value, Tensor) else value for name, value in new.items()}


def shares(costs: Mapping[str, float], processes: int) -> dict[str, int]:
    """The process for each task: the longest tasks first, each to whoever has the least to do so far.

    Example:
        >>> shares({"a": 5, "b": 3, "c": 3, "d": 1}, 2)
        {'a': 0, 'b': 1, 'c': 1, 'd': 0}
    """
    work = [0.0] * processes
    found = {}
    for key in sorted(costs, key=lambda key: (-costs[key], key)):
        found[key] = work.index(min(work))
        work[found[key]] += costs[key]
    return found


def run_spread(tasks: Mapping[str, Task]) -> None:
    """Run tasks, each in one process, and copy what they have put into the states to the others, bit for bit.

    Without other processes all of them run here, and so do those that not all processes have. All processes must call
    this together.
    """
    shared = set.intersection(*everyones(set(tasks))) if processes() > 1 else set()
    for key in tasks.keys() - shared:
        tasks[key].run()
    if not shared:
        return
    owners = shares({key: tasks[key].cost for key in shared}, processes())
    made = {key: tasks[key].made() for key, owner in owners.items() if owner == distributed.get_rank()}
    for theirs in everyones({key: _described(values) for key, values in made.items()}):
        for key, values in theirs.items():
            task = tasks[key]
            for name, value in values.items():
                if isinstance(value, _Empty):
                    mine = made[key][name] if key in made else value.tensor(task.device)
                    distributed.broadcast(mine, owners[key])
                    value = mine
                task.state[name] = value


@dataclass(frozen=True)
class _Empty:
    """A tensor without its entries."""

    shape: torch.Size
    dtype: torch.dtype

    def tensor(self, device: torch.device) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=device)


def _described(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _Empty(v.shape, v.dtype) if isinstance(v, Tensor) else v for name, v in values.items()}
