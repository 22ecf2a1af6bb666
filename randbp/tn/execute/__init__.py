"""Execution: steps of a plan lowered to PyTorch kernels, as a straight-line program over registers."""
