"""Measurements of a training step: its costs and the errors of its gradients. Figures need matplotlib."""

from .contention import ProcessorWait
from .environment import describe_environment
from .gradient_error import gradient_error
from .gradient_rows import GradientError, GradientRow
from .live_storages import Allocation, LiveStorages
from .memory_report import memory_report
from .memory_rows import MemoryComparison, MemoryReport, Row
from .peak_memory import PeakMemory
from .saved_tensors import HeldTensors, held_for_backward
from .significance import Interval
from .step_peak import StepPeak
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
