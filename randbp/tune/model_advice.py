"""What fits into a memory: a model measured as it is, and under each preset."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._torch.restored import preserved
from ..diagnostics.objective import Objective, check_batch, make_objective
from ..draws.seeds import checked_seed
from ..layers.integers import as_integer
from ..text.units import parse_bytes
from .advice import Advice
from .advisor import LONGEST, Advisor
from .fixed_bytes import OptimizerLike
from .growth import Grow, growth


def advise(
    model: nn.Module,
    batch: Any,
    memory: int | str,
    *,
    loss: Callable[..., Tensor] | None = None,
    grow: Grow = "batch",
    optimizer: OptimizerLike = torch.optim.AdamW,
    draws: int = 4,
    rounds: int = 3,
    seed: int = 0,
) -> Advice:
    """Tell what fits into a memory: the largest batch, or the largest images, without and with each preset.

    In each setting a few steps are measured, at the largest size that fits, if such a step takes at most two seconds
    and the memory of this machine; the table says up to which size. Else it is extrapolated from smaller ones. The peak
    ``P(a)`` of a step with ``a`` examples (pixels) beyond what is fixed (parameters, buffers, their gradients and the
    optimiser's state) is the largest of the straight lines ``c_s + b_s a`` of the step's stretches ``s``, from the
    entry or exit of one module to the next; what fits is the largest ``a`` with ``fixed + P(a) ≤ memory``. Bytes are
    those that PyTorch's allocator hands out: what a GPU's driver, fragmentation or other programs need comes on top, so
    leave it some room. All of it takes as long as some fifty steps of the largest measured size, two minutes at most
    for most networks. Train no other model meanwhile: lean mode treats small tensors as large ones.

    The model is left as it was: parameters, gradients, buffers, modes and PyTorch's random states.

    Args:
        model: A plain model.
        batch: A pair ``(inputs, targets)``, or inputs alone; inputs that are a dictionary are given to the model as
            keywords. Larger and smaller batches are made of it, so a small one will do. Whether it fits itself is part
            of the advice.
        memory: Bytes, as a number or as in ``"24GiB"``.
        loss: ``loss(output, targets)`` for a pair, else ``loss(output)``, such as ``lambda output: output.loss``. By
            default the cross-entropy of a pair.
        grow: What grows: ``"batch"``, or ``"image"`` for the sides of square (cubic) images or patches at the given
            number of examples. The model must accept images of other sizes.
        optimizer: The optimiser, for the size of its state: one of the model's parameters, or what makes one, such as
            its class.
        draws: Number of estimates for the added noise; 0 leaves it out.
        rounds: Timings per setting, of which the median counts; 0 leaves them out.
        seed: Seed of the draws.

    Returns:
        The advice. ``print`` shows it as a table; ``largest`` has the largest size by setting, ``rows`` all figures,
        ``yaml(path)`` writes a file for ``randbp fit``.

    Raises:
        ValueError: If an argument is out of range, batch and loss do not fit, or the model is randomised already.

    Example:
        >>> layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3)]
        >>> model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(2704, 5))
        >>> batch = torch.randn(4, 3, 32, 32), torch.arange(4)
        >>> advice = advise(model, batch, "8MiB", draws=0, rounds=0)
        >>> sorted(advice.largest), advice.largest["plain"] > 4
        (['exact', 'memory', 'plain', 'time'], True)
    """
    room = parse_bytes("memory", memory)
    objective = make_objective(model, loss)
    check_batch("batch", batch)
    check_counts(draws, rounds)
    return advice_on(model, batch, objective, room, grow, optimizer, draws, rounds, checked_seed(seed))


def advice_on(
    model: nn.Module,
    batch: Any,
    objective: Objective,
    memory: int,
    grow: Grow = "batch",
    optimizer: OptimizerLike = torch.optim.AdamW,
    draws: int = 4,
    rounds: int = 3,
    seed: int = 0,
    own_loss: bool = False,
    longest: float = LONGEST,
) -> Advice:
    """:func:`advise` of a function that runs a model on a batch and returns the loss.

    With ``own_loss`` the loss is one that lean mode serves as it serves the model, as it is in a ``training_step``.
    Steps of more than ``longest`` seconds are extrapolated to.
    """
    sizes = growth(grow, batch)
    with preserved(model, inputs=batch) as rewind, torch.inference_mode(False), torch.enable_grad():
        rewind()
        return Advisor(model, batch, objective, memory, sizes, seed, own_loss, longest).advice(optimizer, draws, rounds)


def check_counts(draws: Any, rounds: Any) -> None:
    """Raise ``ValueError`` unless both are numbers of measurements, or 0."""
    for name, number, least in (("draws", draws, 4), ("rounds", rounds, 1)):
        if isinstance(number, bool) or as_integer(number) is None or (number != 0 and number < least):
            raise ValueError(f"{name}={number!r:.60}: expected 0 or an integer >= {least}")
