"""Lightning callbacks: approximate backpropagation, and what it costs."""

from .monitor import CostMonitor
from .tensor_dropout import TensorDropout

__all__ = ["CostMonitor", "TensorDropout"]
