"""Measurements of a training step: its costs and the errors of its gradients. Figures need matplotlib."""

from .alive import Allocation, LiveStorages
from .contention import ProcessorWait
from .environment import describe_environment
from .gradient_error import gradient_error
from .gradient_rows import GradientError, GradientRow
from .held import HeldTensors, held_for_backward
from .memory import PeakMemory
from .memory_report import memory_report
from .peak import StepPeak
from .report import MemoryComparison, MemoryReport, Row
from .statistics import Interval
from .timing import Quartiles, StepTimer, quartiles

__all__ = [
    "Allocation",
    "GradientError",
    "GradientRow",
    "HeldTensors",
    "Interval",
    "LiveStorages",
    "MemoryComparison",
    "MemoryReport",
    "PeakMemory",
    "ProcessorWait",
    "Quartiles",
    "Row",
    "StepPeak",
    "StepTimer",
    "describe_environment",
    "gradient_error",
    "held_for_backward",
    "memory_report",
    "quartiles",
]
