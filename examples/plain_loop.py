"""
A loop of your own
==================

A preset turns a model in place, and the loop stays as it was. Here the same network is trained twice on scikit-learn's
digits: as it is, and with everything for backward held in four bits per entry.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import randbp
from randbp.diagnostics import memory_report

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10)),
    )


# %%
# ``preset="memory"`` serves all convolutions and linear layers, and ``handle.lean()`` the loss, which is called outside
# of the model. ``set_step`` makes samples depend on the step alone, so that a resumed run repeats them.


def trained(model: nn.Sequential, handle: randbp.RandomizedHandle | None) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step, batch in enumerate(torch.randperm(1400).split(64) * 3):
        if handle:
            handle.set_step(step)
            with handle.lean():
                loss = F.cross_entropy(model(images[batch]), labels[batch])
        else:
            loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float((model.eval()(images[test]).argmax(1) == labels[test]).float().mean())


# %%
for preset in (None, "memory"):
    model = network()
    handle = randbp.randomize(model, preset=preset) if preset else None
    held = memory_report(model, images[:64]).held_bytes
    print(f"{preset or 'plain':6}  {held / 2**20:.2f} MiB held for backward, accuracy {trained(model, handle):.3f}")
