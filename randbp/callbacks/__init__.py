"""Lightning callbacks: approximate backpropagation, and what it costs."""

from .gradient_error_monitor import GradientErrorMonitor
from .keep_rate_schedule import KeepRateSchedule
from .monitor import CostMonitor
from .run_summary import RunSummary
from .tensor_dropout import TensorDropout
from .variance_control import VarianceControl

__all__ = [
    "CostMonitor",
    "GradientErrorMonitor",
    "KeepRateSchedule",
    "RunSummary",
    "TensorDropout",
    "VarianceControl",
]
