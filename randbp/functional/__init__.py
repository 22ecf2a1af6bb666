"""Operations of ``torch.nn.functional`` with an exact forward pass and estimated VJPs."""

from .convolution import conv, conv_spec
from .linear_layer import linear
from .transposed import conv_transpose, conv_transpose_spec

__all__ = ["conv", "conv_spec", "conv_transpose", "conv_transpose_spec", "linear"]
