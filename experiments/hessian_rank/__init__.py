"""Ranks of curvature matrices of linear CNNs against upper bounds.

``python -m experiments hessian-rank``: Hessian ``H``, Gauss-Newton matrix ``H_o`` and functional Hessian ``H_f`` of the
squared loss, exact and in double precision, of CNNs with random weights and inputs: of growing width, of all kernel
sizes, of 200 generated sizes, and with ReLU and tanh beside linear ones. ``experiments/hessian_rank/bounds.py`` states
the bounds. Written to ``runs/hessian_rank``: ``ranks.jsonl`` (a line per network; what is written is not done again),
``ranks.png`` and ``.svg``, and ``ranks.md``.

The whole takes 10 minutes on one core, ``--quick`` half a minute.
"""

from .run_hessian_rank import main

__all__ = ["main"]
