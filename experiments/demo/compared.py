"""What the demo compares: exact backpropagation, the presets of randbp, and what everybody can do without it."""

from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from experiments.checkpoints import add_checkpoints
from experiments.models.small_vgg import Block
from randbp.callbacks import TensorDropout


@dataclass(frozen=True)
class Way:
    """One way to train.

    Args:
        name: In tables.
        role: As :class:`experiments.demo.methods.Method` has it.
        what: What it does, in a sentence.
        dropout: Arguments of ``TensorDropout`` (and of ``randbp.randomize``), if it is used.
        checkpoints: Whether each block runs again in the backward pass.
        parts: Micro-batches of a step.
        trained: Whether it is trained to the end with every seed; else it takes part in some rounds, to be timed.
    """

    name: str
    role: str
    what: str
    dropout: dict[str, Any] | None = field(default=None)
    checkpoints: bool = False
    parts: int = 1
    trained: bool = True

    def callbacks(self, seed: int) -> list[Callback]:
        """What a Trainer gets."""
        found: list[Callback] = [] if self.dropout is None else [TensorDropout(**self.dropout, seed=seed)]
        return [*found, Checkpoints()] if self.checkpoints else found


class Checkpoints(Callback):
    """Run each block again in the backward pass, as ``torch.utils.checkpoint`` does, while fitting."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        add_checkpoints(pl_module, Block)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for module in pl_module.modules():
            if isinstance(module, Block):
                del module.forward


WAYS = (
    Way("exact", "exact", "PyTorch's backpropagation."),
    Way(
        'preset="exact"',
        "preset",
        'TensorDropout(preset="exact"): the same gradients bit for bit; ReLU, pooling and the like hold '
        "what these need and no more.",
        {"preset": "exact"},
        trained=False,
    ),
    Way(
        'preset="memory"',
        "preset",
        'TensorDropout(preset="memory"): everything that is held for backward is rounded at random, without bias, to 4 '
        "bits per entry; gradients are multiplied in bfloat16 where a measurement at the first step finds that "
        "faster.",
        {"preset": "memory"},
    ),
    Way(
        'preset="time"',
        "preset",
        'TensorDropout(preset="time"): in each layer what a measurement at the first step finds fastest, of exact '
        "products and such in bfloat16; exact where nothing wins by a twentieth.",
        {"preset": "time"},
    ),
    Way(
        "checkpointing",
        "rival",
        "torch.utils.checkpoint around each block: only the blocks' inputs are held, and blocks run a second time in "
        "the backward pass. What everybody uses, in every framework, so it is the published rival here. (Batch "
        "normalisation counts each batch twice in its running averages, which tests of a short training show.)",
        checkpoints=True,
        trained=False,
    ),
    Way(
        "8 micro-batches",
        "rival",
        "accumulate_grad_batches=8: an eighth of the images at a time, so an eighth of the bytes. Exact but for batch "
        "normalisation, which sees an eighth of the images and so makes another network of it, as the gradient error "
        "shows: the honest rival of bytes, wherever it can be used.",
        parts=8,
        trained=False,
    ),
)
