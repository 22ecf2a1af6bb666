"""The method of K-BFGS: inverses of both Kronecker factors that follow the curvature by BFGS."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .bfgs import bfgs_inverse, damped_pair, times
from .gathering import Means
from .inverse import shifted_inverse
from .kronecker_inverse import FACTORS, INVERSES, KroneckerInverse, fits

PAIR = ("step", "change")


@dataclass(frozen=True)
class KroneckerBFGS(KroneckerInverse):
    """``H_Γ G H_A`` with inverses of both Kronecker factors by BFGS: the method of K-BFGS.

    Both begin as the inverses of the factors ``A + √λ I`` and ``Γ + √λ I`` of the first batch. Nothing is inverted
    later. After a step, both follow pairs of a step ``s`` and a change ``y``:

    - ``H_A`` follows the running average ``A`` along the mean input row: ``s = H_A ū``, ``y = A s + √λ s``.
    - ``H_Γ`` follows the loss: ``s`` is the change of the layer's mean output on the batch in the step, ``y`` that of
      the loss's gradient with respect to it, both as running averages, and damped (see
      :func:`~randbp.curvature.bfgs.damped_pair`).

    Args:
        approximation: Approximation of weight sharing: ``"reduce"`` or ``"expand"``.
        decay: Decay of the running averages of factors and pairs, in ``[0, 1)``.

    Raises:
        ValueError: If the approximation is neither, or the decay out of range.

    Source: D. Goldfarb, Y. Ren, A. Bahamou, Practical quasi-Newton methods for training deep neural networks, 2020; Y.
    Ren, A. Bahamou, D. Goldfarb, Kronecker-factored quasi-Newton methods for deep learning, 2021.

    Example:
        >>> method, state = KroneckerBFGS(decay=0.0), {"input_factor": torch.ones(1, 1, 1)}
        >>> state |= {"output_grad_factor": torch.ones(1, 1, 1)}
        >>> method.refresh(state, damping=1.0)
        >>> before, after = Means(*torch.ones(3, 1, 1)), Means(*torch.tensor([[[1.0]], [[1.1]], [[1.3]]]))
        >>> method.compare(state, before, after, damping=1.0)  # the gradient changes three times as much as the output
        >>> 1 / state["output_grad_inverse"]
        tensor([[[4.0000]]])
    """

    keys: ClassVar[tuple[str, ...]] = (*FACTORS, *INVERSES, *PAIR)
    second_pass: ClassVar[bool] = True
    costly: ClassVar[bool] = False

    def refresh(self, state: dict[str, Any], damping: float) -> None:
        """Invert the factors if there are no inverses of their shapes yet."""
        for factor, inverse in zip(FACTORS, INVERSES, strict=True):
            if factor in state and (inverse not in state or state[inverse].shape != state[factor].shape):
                shift = state[factor].new_full((len(state[factor]),), damping**0.5)
                state[inverse] = shifted_inverse(state[factor], shift)
                for key in PAIR:
                    state.pop(key, None)

    def compare(self, state: dict[str, Any], before: Means, after: Means, damping: float) -> None:
        """Update both inverses, and the averages of pairs; what is not finite changes nothing."""
        right, left = (state.get(key) for key in INVERSES)
        shape = (*before.output.shape, before.input.shape[1])
        if left is None or right is None or not fits(before.output.new_empty(()).expand(shape), left, right):
            return
        root = damping**0.5
        step = times(right, before.input)
        state[INVERSES[0]] = bfgs_inverse(right, step, times(state[FACTORS[0]], step) + root * step)
        new = after.output - before.output, after.output_grad - before.output_grad
        usable = torch.cat(new, 1).isfinite().all(1, keepdim=True)
        known = [state.get(key, torch.zeros_like(each)) for key, each in zip(PAIR, new, strict=True)]
        step, change = (old.lerp(each, 1 - self.decay) for old, each in zip(known, new, strict=True))
        state[INVERSES[1]] = bfgs_inverse(left, *damped_pair(left, step, change, root))
        state |= {PAIR[0]: torch.where(usable, step, known[0]), PAIR[1]: torch.where(usable, change, known[1])}
