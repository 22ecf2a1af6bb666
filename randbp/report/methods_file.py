"""``methods.json``: methods of training one network that took turns, step by step, in one process."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from .summary_file import Cost, Count, Fields, Number, Text, read_json

METHODS = "methods.json"

Role = Literal["exact", "preset", "rival"]


class Training(Fields):
    """One training run by one method."""

    seed: int  # of weights, order of the images, and samples
    accuracy: Number | None = None  # share of test images named rightly; None if it was only timed
    held_bytes: Cost  # left by the forward pass for backward, the most of the steps that were counted
    peak_bytes: Cost  # of a step, model and optimiser included
    gradient_error: Number  # ‖ĝ - g‖ / ‖g‖ of all gradients, of one draw
    seconds: list[Cost] = Field(min_length=1)  # of each timed step; those of one index are one round of the methods


class Method(Fields):
    """One method of training."""

    name: Text  # in the table
    role: Role  # the reference of the comparison, a recommended method, or an alternative
    what: Text  # description in one sentence
    trainings: list[Training] = Field(min_length=1)  # one per seed, in one order; of one only timed, maybe fewer
    reference_kernels: bool = False  # whether an operation had no fused kernel here, so that it is slow

    @property
    def trained(self) -> bool:
        """Whether it was trained to the end, and tested."""
        return all(training.accuracy is not None for training in self.trainings)


class Methods(Fields):
    """The methods that were compared, and the task."""

    methods: list[Method]  # the exact one first
    model: Text  # name of the network
    data: Text  # name of the data
    about: list[Text]  # sentences on the choice of network, data and rivals
    parameters: Count  # of the network
    batch_size: Count  # images per step
    steps: Count  # of each training
    minibatch_noise: Cost  # √E‖g - E g‖² / √E‖g‖² for batches of this size, in the trained network
    waiting_threads: Cost | None = None  # that found no free processor, on average

    @model_validator(mode="after")
    def _belong_together(self) -> "Methods":
        roles = [method.role for method in self.methods]
        if roles[:1] != ["exact"] or "exact" in roles[1:] or "preset" not in roles:
            raise ValueError("expected the exact method, then others, a preset among them")
        if len({method.name for method in self.methods}) < len(self.methods):
            raise ValueError("expected different names")
        if not (self.exact.trained and any(m.trained for m in self.methods if m.role == "preset")):
            raise ValueError("expected accuracies of the exact method and of a preset")
        shape = [(t.seed, len(t.seconds)) for t in self.exact.trainings]
        for method in self.methods:
            ours = [(t.seed, len(t.seconds)) for t in method.trainings]
            if method.trained and ours != shape:
                raise ValueError(f"{method.name}: expected the exact method's seeds, and as many timed steps")
            first = zip(ours, shape, strict=False)
            if len(ours) > len(shape) or any(seed != of or count > most for (seed, count), (of, most) in first):
                raise ValueError(f"{method.name}: expected the exact method's first seeds, and no more timed steps")
        return self

    @property
    def exact(self) -> Method:
        """The exact method, to which the others are compared."""
        return self.methods[0]


def read_methods(folder: Path) -> Methods | None:
    """Read the methods that were compared in a folder; ``None`` if there were none."""
    path = folder / METHODS
    return read_json(path, Methods) if path.exists() else None
