"""Lightning callbacks: approximate backpropagation, and what it costs."""

from .tensor_dropout import TensorDropout

__all__ = ["TensorDropout"]
