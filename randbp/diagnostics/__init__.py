"""Measure what a training step costs: time, bytes held for backward, peak memory. Needs torch alone."""

from .alive import Allocation, LiveStorages
from .contention import ProcessorWait
from .environment import describe_environment
from .held import HeldTensors, held_for_backward
from .memory import PeakMemory
from .memory_report import memory_report
from .peak import StepPeak
from .report import MemoryComparison, MemoryReport, Row
from .timing import Quartiles, StepTimer, quartiles

__all__ = [
    "Allocation",
    "HeldTensors",
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
    "held_for_backward",
    "memory_report",
    "quartiles",
]
