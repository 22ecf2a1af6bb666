"""
Who holds the memory, and what fits
===================================

``memory_report`` lists which operations hold how many bytes for backward, and how many would be enough.
``advise`` says what fits into a memory, without and with each preset.
"""

import torch
from torch import nn

import randbp
from randbp.diagnostics import memory_report

torch.manual_seed(0)
model = nn.Sequential(
    *(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU()),
    *(nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU()),
    *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 16 * 16, 10)),
)
images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)

plain = memory_report(model, images)
print(plain)

# %%
# The same with everything that backward needs in four bits per entry:

with randbp.randomize(model, preset="memory"):
    lean = memory_report(model, images)
print(plain.compare(lean))

# %%
# A report as a figure:

figure = plain.plot()

# %%
# What fits into 32 MiB? Steps of a few sizes are measured with each setting, and larger ones follow from these.

print(randbp.advise(model, (images, labels), memory="32MiB"))
