"""
An estimator of your own
========================

An estimator is one class: what is held of the input in forward, and the weight VJP from that in backward. This one
keeps every second example, or the others, and doubles them. ``gradient_error`` compares it with others, beside the
noise that the choice of the minibatch makes anyway, and tests it for bias.
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import randbp
from randbp.diagnostics import gradient_error


@dataclass(frozen=True)
class EverySecond(randbp.Estimator):
    """``V_W ≈ 2 Σ_{n∈S} V_W,n`` with the even or the odd examples as ``S``, each with probability 1/2."""

    keep: float = 0.5
    serves = frozenset({"weight_vjp"})

    def chosen(self, examples: Tensor, draw: object) -> Tensor:  # the same in forward and backward, because the draw is
        start = int(torch.randint(2, (), generator=draw.generator()))
        return examples[start::2]

    def sketch(self, input: Tensor, spec: object, draw: object) -> tuple[Tensor, ...]:
        return (self.chosen(input, draw).clone(),)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: object, draw: object) -> Tensor:
        return 2 * randbp.Exact().weight_vjp(held, self.chosen(output_grad, draw), spec, draw)


# %%
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[:64] / 16
labels = torch.tensor(digits.target)[:64]
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
errors = {}
for estimator in (EverySecond(), randbp.Batch(0.5), randbp.Spatial(0.5), randbp.Rounding(bits=4)):
    result = gradient_error(model, (images, labels), weight_vjp=estimator)
    errors[type(estimator).__name__] = result.model.error.estimate
    print(f"{estimator}: error {result.model.error.estimate:.3f}, biased layers: {result.biased()}")

# %%
figure, panel = plt.subplots(figsize=(6, 3), layout="constrained")
bars = panel.barh(list(errors), list(errors.values()))
label = panel.set_xlabel("error of the whole gradient, ‖ĝ - g‖/‖g‖")
