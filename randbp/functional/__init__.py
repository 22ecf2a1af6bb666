"""Operations of ``torch.nn.functional`` with an exact forward pass and estimated VJPs."""

from .call import check_estimator, estimated_call, is_estimated, may_be_estimated
from .convolution import conv, conv_operation, conv_spec
from .linear_layer import linear
from .transposed import conv_transpose, conv_transpose_operation, conv_transpose_spec

__all__ = [
    "check_estimator",
    "conv",
    "conv_operation",
    "conv_spec",
    "conv_transpose",
    "conv_transpose_operation",
    "conv_transpose_spec",
    "estimated_call",
    "is_estimated",
    "linear",
    "may_be_estimated",
]
