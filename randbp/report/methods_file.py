"""``methods.json``: methods of training one network that took turns, step by step, in one process."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from .summary_file import Cost, Count, Fields, Number, Text, read_json

METHODS = "methods.json"

Role = Literal["exact", "preset", "rival"]


class Training(Fields):
    """One training run by one method.

    Args:
        seed: Seed of weights, order of the images, and samples.
        accuracy: Share of the test images that are named rightly; ``None`` of a training run that was only timed.
        held_bytes: Bytes that the forward pass leaves for backward, the largest number of the steps that were counted.
        peak_bytes: Peak memory of a step, model and optimiser included.
        gradient_error: ``‖ĝ - g‖ / ‖g‖`` of all gradients, of one draw.
        seconds: Time of each step that was timed; those of one number belong to one round of all methods that took
            part in it.
    """

    seed: int
    accuracy: Number | None = None
    held_bytes: Cost
    peak_bytes: Cost
    gradient_error: Number
    seconds: list[Cost] = Field(min_length=1)


class Method(Fields):
    """One method of training.

    Args:
        name: Name in the table.
        role: ``exact`` is the reference of the comparison, ``preset`` a recommended method, ``rival`` an alternative.
        what: Description in one sentence.
        trainings: One for each seed, in the same order in all methods; of one that was only timed, perhaps of the first
            seeds alone.
        reference_kernels: Whether an operation had no fused kernel here and ran by its reference, so that it is slow.
    """

    name: Text
    role: Role
    what: Text
    trainings: list[Training] = Field(min_length=1)
    reference_kernels: bool = False

    @property
    def trained(self) -> bool:
        """Whether it was trained to the end, and tested."""
        return all(training.accuracy is not None for training in self.trainings)


class Methods(Fields):
    """The methods that were compared, and the task.

    Args:
        methods: The exact one first.
        model: Name of the network.
        data: Name of the data.
        about: Sentences on the choice of network, data and rivals.
        parameters: Number of parameters of the network.
        batch_size: Images per step.
        steps: Number of steps of each training.
        minibatch_noise: ``√E‖g - E g‖² / √E‖g‖²`` of the gradients of batches of this size, in the trained network.
        waiting_threads: Threads that found no free processor, on average.
    """

    methods: list[Method]
    model: Text
    data: Text
    about: list[Text]
    parameters: Count
    batch_size: Count
    steps: Count
    minibatch_noise: Cost
    waiting_threads: Cost | None = None

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
