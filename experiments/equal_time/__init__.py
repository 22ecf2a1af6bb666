"""Accuracy against measured seconds: estimators beside the honest rivals, a smaller batch and fewer steps.

``python -m experiments equal-time``: small networks on Fashion-MNIST, with BatchNorm, GroupNorm and attention, five
seeds. First the steps of all settings are timed in turn, in one run; then each setting trains, and its seconds are its
steps times the median of one. Exact training is cut, in its batch and in its steps, to the seconds of
``Importance(1/2), 4 bits``. Written to ``runs/equal_time``: ``NETWORK.jsonl`` (a line per run; what is written with the
same options is not done again), ``NETWORK.json`` (times and bytes), ``NETWORK.png`` and ``.svg``, and ``NETWORK.md``.

``--quick`` shows in three minutes that it works.
"""

from .run_equal_time import main

__all__ = ["main"]
