"""Lightning callbacks: approximate backpropagation, and what it costs."""

from .monitor import CostMonitor
from .run_summary import RunSummary
from .tensor_dropout import TensorDropout

__all__ = ["CostMonitor", "RunSummary", "TensorDropout"]
