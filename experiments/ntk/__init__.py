"""Learning of small CNNs beside what their empirical neural tangent kernels predict.

``python -m experiments ntk``: CNNs of growing width learn handwritten digits by gradient descent on the whole training
set and the squared loss. The outputs of the start are subtracted, so that all begin at zero. A network that is linear
in its parameters, with the Jacobian of the start, would have at step ``t`` the outputs ::

    f_t(x) = Θ(x, X) Θ(X, X)⁻¹ (1 - (1 - η Θ(X, X) / N)^t) y

with the kernel ``Θ`` of the start, which ``randbp.curvature.ntk`` computes. For small steps this is gradient flow, with
``exp(-η t Θ / N)`` for the power. Written to ``runs/ntk``: ``learning.jsonl`` (a line per network; what is written with
the same options is not done again), ``learning.png`` and ``.svg``, and ``learning.md``.

Source: J. Lee et al., Wide neural networks of any depth evolve as linear models under gradient descent, 2019.

The whole takes 10 minutes on one core, ``--quick`` half a minute.
"""

from .run_ntk import main

__all__ = ["main"]
