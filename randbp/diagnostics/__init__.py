"""Measure what a training step costs: time, bytes held for backward, peak memory. Needs torch alone."""

from .contention import ProcessorWait
from .environment import describe_environment
from .held import HeldTensors, held_for_backward
from .memory import PeakMemory
from .timing import Quartiles, StepTimer, quartiles

__all__ = [
    "HeldTensors",
    "PeakMemory",
    "ProcessorWait",
    "Quartiles",
    "StepTimer",
    "describe_environment",
    "held_for_backward",
    "quartiles",
]
