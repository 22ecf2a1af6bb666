"""Errors of estimated gradients, logged during a training."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from ..randomize.current import randomized_layers
from ..randomize.layers import Clock
from .measuring import Measuring, averaged
from .step_gradients import dots, exact_passes, step_gradients


class GradientErrorMonitor(Measuring):
    """Log how far estimated gradients are from exact ones while a model trains; the training is what it is without.

    At the current parameters, the exact gradients ``g`` of this batch and ``g'`` of the one before, and ``draws``
    estimates ``ĝ`` of the former are computed. For each randomised layer, and for all parameters (``all``), it logs

    - ``gradient_error/<layer>/error``: ``√(mean ‖ĝ - g‖²) / ‖g‖``;
    - ``gradient_error/<layer>/cosine``: mean of ``⟨ĝ, g⟩ / (‖ĝ‖ ‖g‖)``;
    - ``gradient_error/<layer>/noise_ratio``: ``√(mean ‖ĝ - g‖²) / √(‖g - g'‖²/2)``, the error beside the minibatch's
      noise: ``‖g - g'‖²/2`` is an unbiased estimate of the variance of a minibatch's gradient.

    The error is that of all estimators, and of lean mode. Losses, gradients, BatchNorm's statistics, random states,
    metrics and samples of the training are bit for bit those of a training without this callback; ``training_step``
    runs ``draws + 2`` more times per measurement, so it should have no other lasting effects.

    Args:
        every: Number of training batches between measurements; by default ``⌈(draws + 2) / 0.02⌉``, so that one
            forward and backward pass in 50 is a measurement's. The first is at the second batch.
        draws: Number of estimates per measurement.
        seed: Determines their samples.

    Raises:
        ValueError: At construction if a number is out of range; when training starts if no layer is randomised or the
            module optimises manually.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from randbp.callbacks import TensorDropout
        >>> GradientErrorMonitor(draws=2).every
        200
        >>> trainer = Trainer(callbacks=[TensorDropout(), GradientErrorMonitor()], logger=False)
    """

    def __init__(self, every: int | None = None, draws: int = 2, seed: int = 0) -> None:
        super().__init__(every, draws, seed)
        self._found: dict[str, float] = {}

    def start(self, trainer: Trainer, module: LightningModule) -> None:
        """Check that something is estimated."""
        if not randomized_layers(module):
            raise ValueError("GradientErrorMonitor: no layer is randomised, expected TensorDropout beside it")

    def measure(
        self, trainer: Trainer, module: LightningModule, batch: tuple[Any, int], before: tuple[Any, int]
    ) -> None:
        """Compute the errors."""
        layers, clock = randomized_layers(module), Clock(self.seed)
        with step_gradients(trainer, module, layers, clock, (batch, before)) as gradients:
            with exact_passes(module, layers, clock):
                other, exact = gradients(*before), gradients(*batch)
            differences = [a - b for a, b in zip(exact, other, strict=True)]
            sums = {"noise": dots(differences, differences) / 2, "exact": dots(exact, exact)}
            errors, alongs = [], []
            for draw in range(self.draws):
                clock.set(self._batches, draw, trainer.global_rank)
                differences = [a - b for a, b in zip(gradients(*batch), exact, strict=True)]
                errors.append(dots(differences, differences))
                alongs.append(dots(differences, exact))
        sums |= {"errors": torch.stack(errors), "alongs": torch.stack(alongs)}
        sums = averaged(trainer, sums)
        everything = list(range(len(sums["noise"])))
        self._found = {}
        for name, indices in {**_weights(layers, module), "all": everything}.items():
            chosen = {key: value[..., indices].sum(-1) for key, value in sums.items()}
            error, square = chosen["errors"].mean(), chosen["exact"]
            lengths = (square + 2 * chosen["alongs"] + chosen["errors"]).clamp_min(0).sqrt() * square.sqrt()
            cosine = ((square + chosen["alongs"]) / lengths).mean()
            found = {
                "error": (error / square).sqrt(),
                "cosine": cosine,
                "noise_ratio": (error / chosen["noise"]).sqrt(),
            }
            self._found |= {f"gradient_error/{name}/{key}": float(value) for key, value in found.items()}

    def publish(self, trainer: Trainer, module: LightningModule) -> None:
        """Log the latest measurement."""
        for name, value in self._found.items():
            module.log(name, value, logger=bool(trainer.loggers))

    def state_dict(self) -> dict[str, Any]:
        """What was measured last, and when."""
        return {**super().state_dict(), "found": self._found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        super().load_state_dict(state_dict)
        self._found = state_dict["found"]


def _weights(layers: Mapping[str, nn.Module], module: nn.Module) -> dict[str, list[int]]:
    """For each layer, which of a module's trainable parameters are its weights; layers without one are left out."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    numbers = {id(parameter): number for number, parameter in enumerate(trainable)}
    found = {
        name: [numbers[id(p)] for key, p in layer.named_parameters() if key != "bias" and id(p) in numbers]
        for name, layer in layers.items()
    }
    return {name: indices for name, indices in found.items() if indices}
