"""
One callback in a Lightning Trainer
===================================

``TensorDropout`` estimates the weight VJPs of all convolutions from a quarter of the positions while a model is fitted;
``CostMonitor`` measures what a step costs. Validation and the trained model are exact.
"""

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from randbp import Spatial
from randbp.callbacks import CostMonitor, TensorDropout


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(512, 10))

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.features(batch[0])), batch[1])

    def validation_step(self, batch: list[Tensor], number: int) -> None:
        found = self.head(self.features(batch[0])).argmax(1)
        self.log("accuracy", (found == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


# %%
pl.seed_everything(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
train, test = random_split(TensorDataset(images, torch.tensor(digits.target)), [1400, 397])
dropout = TensorDropout(weight_vjp=Spatial(keep=0.25), layers="features.*", seed=0)
monitor = CostMonitor()
trainer = pl.Trainer(
    callbacks=[dropout, monitor], max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, default_root_dir="runs",
)  # fmt: skip
trainer.fit(Classifier(), DataLoader(train, 64, shuffle=True), DataLoader(test, 397))

# %%
# What is logged is in ``trainer.callback_metrics``, too.
for name, value in sorted(trainer.callback_metrics.items()):
    print(f"{name}: {float(value):.4g}")
