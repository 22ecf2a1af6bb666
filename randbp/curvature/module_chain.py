"""Models that are chains: modules each of which takes the output of the one before, and nothing else."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Link:
    """A call of a module without children.

    Attributes:
        name: The module's name in the model.
        module: The module.
        input: Its input, as it was before the call.
        output: Its output.
    """

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor


def run_chain(model: nn.Module, inputs: Any) -> list[Link]:
    """Run a model without gradients, and return the calls of its modules, from its input to its output.

    Raises:
        ValueError: If the model is not a chain. The line names the module whose input is not the output of the one
            before.

    Example:
        >>> links = run_chain(nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(inplace=True))), torch.ones(4, 2))
        >>> [link.name for link in links]
        ['0', '1.0']
    """
    names = {module: name for name, module in model.named_modules()}
    links: list[Link] = []
    handles: list[Any] = []
    known: list[Any] = [inputs]
    before: list[Any] = []

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        if len(args) != 1 or args[0] is not known[0]:
            raise ValueError(
                f"model: {names[module]!r} ({type(module).__name__}) does not take the output of "
                f"{repr(links[-1].name) if links else 'nothing'} alone, expected a chain of modules"
            )
        before[:] = [args[0].clone() if getattr(module, "inplace", False) else args[0]]

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        links.append(Link(names[module], module, before[0], output))
        known[0] = output

    for module in names:
        if not any(True for _ in module.children()):
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with torch.no_grad():
            output = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not links or output is not known[0] or not isinstance(output, Tensor):
        raise ValueError(f"model: {type(model).__name__} does not return its last module's output, expected a chain")
    return links
