"""
Second-order training with K-FAC
================================

``KFAC`` is an optimiser like PyTorch's own. Its factors are gathered in the forward and backward pass; nothing is
unfolded. Here it goes beside SGD for forty steps on scikit-learn's digits.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from randbp.curvature import KFAC, factors

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(144, 10)),
    )


def losses(make: object) -> list[float]:
    model = network()
    optimizer, found = make(model), []
    for batch in torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(128)[:13] * 3:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


# %%
curves = {
    "SGD": losses(lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)),
    "K-FAC": losses(lambda model: KFAC(model, lr=0.05)),
}
figure, panel = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, values in curves.items():
    panel.plot(values, label=name)
panel.set(xlabel="step", ylabel="loss of the minibatch", yscale="log")
legend = panel.legend(frameon=False)

# %%
# The curvature of each layer by itself: Kronecker products that multiply, invert and decompose.

found = factors(network(), (images[:64], labels[:64]), nn.CrossEntropyLoss(), kind="mc", seed=0)
for name, product in found.items():
    print(f"layer {name}: trace {product.trace():.3g}, log-determinant of Γ⊗A + λI {product.logdet(damping=1e-3):.1f}")
