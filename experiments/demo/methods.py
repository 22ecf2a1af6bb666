"""What the demo has measured: methods of training one network that took turns, step by step, in one process."""

from typing import Literal

from pydantic import Field

from randbp.report.summary_file import Cost, Count, Fields, Number, Text

METHODS = "methods.json"


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
    role: Literal["exact", "preset", "rival"]  # the reference, a recommended method, or an alternative
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

    @property
    def exact(self) -> Method:
        """The exact method, to which the others are compared."""
        return self.methods[0]
