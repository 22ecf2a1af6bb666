"""One callback at a time chooses the keep rate of a layer's VJP."""

from lightning.pytorch import Callback, Trainer

from ..randomize.current import randomized_layers


def refuse_second_owner(trainer: Trainer, callback: Callback) -> None:
    """Check that no other callback of the trainer chooses the rate of a VJP that this one chooses.

    Raises:
        ValueError: If one does; the message names both, the layer and the VJP.
    """
    mine = [(layer, vjp) for layer, own in getattr(callback, "_given", ()) for vjp in own]
    names = {id(layer): name for name, layer in randomized_layers(trainer.lightning_module).items()}
    for other in getattr(trainer, "callbacks", ()):
        taken = [] if other is callback else [(each, vjp) for each, own in getattr(other, "_given", ()) for vjp in own]
        for layer, vjp in mine:
            if any(layer is theirs and vjp == name for theirs, name in taken):
                raise ValueError(
                    f"{type(callback).__name__}: {type(other).__name__} chooses {vjp} of layer "
                    f"{names[id(layer)]!r}, too; expected one callback for the rate of each VJP"
                )
