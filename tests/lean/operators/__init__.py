"""PyTorch's own database of operators and modules, run plainly and lean: ``python -m tests.lean.operators``."""
