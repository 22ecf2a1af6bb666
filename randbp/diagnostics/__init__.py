"""Measure what a training step costs, and how far its gradients stray. Needs torch alone; figures need matplotlib."""

from .contention import ProcessorWait
from .environment import describe_environment
from .gradient_error import gradient_error
from .gradient_rows import GradientError, GradientRow
from .held import HeldTensors, held_for_backward
from .memory import PeakMemory
from .statistics import Interval
from .timing import Quartiles, StepTimer, quartiles

__all__ = [
    "GradientError",
    "GradientRow",
    "HeldTensors",
    "Interval",
    "PeakMemory",
    "ProcessorWait",
    "Quartiles",
    "StepTimer",
    "describe_environment",
    "gradient_error",
    "held_for_backward",
    "quartiles",
]
