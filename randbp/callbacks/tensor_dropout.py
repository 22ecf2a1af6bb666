"""The callback for approximate backpropagation in a Lightning Trainer."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from ..draws.seeds import checked_seed
from ..estimators import Estimator, plain_estimator
from ..lean import Lean
from ..randomize import UNSET, Estimators, PresetName, RandomizedHandle, Unset, randomize
from ..randomize.presets import settings
from ..randomize.selection import checked_layers
from .predicate import predicate_name


class TensorDropout(Callback):
    """Estimate the weight and input VJPs of a model's layers during ``Trainer.fit``.

    The layers are randomised when fitting starts and are PyTorch's own again when it ends, also after an exception.
    Validation, testing and prediction are exact. A sample depends only on the seed, the layer, the number of training
    batches seen and the rank: a resumed run repeats what the uninterrupted run would have drawn.

    Explicit arguments take precedence over ``preset``. Without a preset, omitted ones have the defaults named below.

    Args:
        weight_vjp: Estimator of the weights' gradients, by default ``Spatial(keep=0.25)``; or a mapping from names or
            globs of layers to estimators, such as the result of :func:`randbp.autotune`. The first key that matches a
            layer decides; a layer without one is exact.
        input_vjp: Estimator of the inputs' gradients, or a mapping as for ``weight_vjp``; exact by default.
        layers: The layers to estimate: ``None``, the default, for all convolutions including transposed ones; names
            or globs of ``pl_module.named_modules()``, or a predicate ``(name, module) -> bool``. These also
            select ``nn.Linear`` (``"*"`` means all), which the default does not.
        seed: Determines all samples; PyTorch's generators are neither read nor changed.
        lean: Whether all other operations, including the loss in ``training_step``, hold only what gradients need:
            ``False`` (the default), ``True``, ``"exact"`` or a mapping from module names or globs; see
            :func:`randbp.randomize`.
        bits: Bits per entry of tensors that lean mode rounds; 4 by default.
        parts: Number of parts of the batch into which lean mode splits the widest layers of an ``nn.Sequential``; 4 by
            default; see :func:`randbp.randomize`.
        preset: ``"exact"`` (gradients bit for bit, fewer bytes), ``"memory"`` (everything in ``bits`` bits per entry)
            or ``"time"`` (each layer as fast as possible with an error of at most 0.02); see
            :func:`randbp.randomize`.

    The attributes of these names are the given values, or else those of the preset.

    Raises:
        ValueError: At construction if an argument is out of range or an estimator cannot serve its VJP; when fitting
            starts if ``layers`` matches no convolution or linear layer.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from randbp import Spatial
        >>> trainer = Trainer(callbacks=[TensorDropout(weight_vjp=Spatial(keep=0.25))], logger=False)
        >>> TensorDropout(preset="memory").lean
        True
    """

    def __init__(
        self,
        weight_vjp: Unset | Estimator | Mapping[str, Estimator] = UNSET,
        input_vjp: Unset | Estimator | Mapping[str, Estimator] = UNSET,
        layers: Unset | str | list[str] | Callable[[str, nn.Module], bool] | None = UNSET,
        seed: int = 0,
        lean: Unset | Lean = UNSET,
        bits: Unset | int = UNSET,
        parts: Unset | int = UNSET,
        preset: PresetName | None = None,
    ) -> None:
        asked = settings(
            preset, weight_vjp=weight_vjp, input_vjp=input_vjp, layers=layers, lean=lean, bits=bits, parts=parts
        )
        self.preset, self._layers_given = preset, layers is not UNSET
        self.weight_vjp, self.input_vjp = asked.weight_vjp, asked.input_vjp
        self.lean, self.bits, self.parts = asked.lean, asked.bits, asked.parts
        self.layers, self.seed = checked_layers(asked.layers), checked_seed(seed)
        # Once and for all, for what a predicate reads may change.
        self._layers_name = predicate_name(self.layers) if callable(self.layers) else self.layers
        self.handle: RandomizedHandle | None = None
        self._step: tuple[pl.LightningModule, Any, Any] | None = None
        self._batches = 0

    def check(self, module: nn.Module) -> None:
        """Check that a model has the layers that are to be estimated; the model is not changed.

        A model that is built only when fitting starts is left to that moment.

        Raises:
            ValueError: If not, as :func:`randbp.randomize` does.

        Example:
            >>> from randbp import Spatial
            >>> TensorDropout(Spatial(keep=0.5), layers="head").check(nn.Sequential(nn.Conv2d(1, 2, 3)))
            Traceback (most recent call last):
            ValueError: layers='head': matches none of the convolutions '0'
        """
        if any(is_overridden(hook, module, pl.LightningModule) for hook in ("configure_model", "setup")):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to warn of will be said when fitting starts
            self._randomized(module).remove()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Randomise the layers."""
        self.handle = self._randomized(pl_module)
        if self.lean:  # a training step is not called as a module is, and has the loss
            step = self.handle.lean()(pl_module.training_step)
            self._step = pl_module, step, pl_module.__dict__.get("training_step")
            pl_module.__dict__["training_step"] = step

    def _randomized(self, module: nn.Module) -> RandomizedHandle:
        return randomize(
            module,
            *(self.weight_vjp, self.input_vjp, self.layers if self._layers_given else UNSET, self.seed),
            lean=self.lean,
            bits=self.bits,
            parts=self.parts,
            preset=self.preset,
        )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Select the samples of this training batch."""
        assert self.handle is not None
        self.handle.set_step(step=self._batches, rank=trainer.global_rank)
        self._batches += 1

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the model."""
        self._remove()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the model after a failure."""
        self._remove()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the model if nothing else did."""
        self._remove()

    @property
    def state_key(self) -> str:
        """Name of this callback's state in a checkpoint, which includes the layers to tell several callbacks apart."""
        chosen = {"layers": self._layers_name}
        for name, vjp in (("weight_vjp", self.weight_vjp), ("input_vjp", self.input_vjp)):
            chosen[name] = list(vjp) if isinstance(vjp, Mapping) else None
        given = {name: value for name, value in chosen.items() if value is not None}
        return self._generate_state_key(**given) if given else super().state_key

    def state_dict(self) -> dict[str, Any]:
        """Settings and the number of training batches seen, as plain values."""
        return {"settings": self._settings(), "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting where the checkpoint stopped; keep this callback's own settings, warning if they differ."""
        self._batches = state_dict["batches"]
        if state_dict["settings"] != self._settings():
            rank_zero_warn(
                f"TensorDropout: the checkpoint was written with {state_dict['settings']}, "
                f"training goes on with {self._settings()}"
            )

    def _settings(self) -> dict[str, Any]:
        return {
            "weight_vjp": _plain(self.weight_vjp),
            "input_vjp": _plain(self.input_vjp),
            "layers": self._layers_name,
            "seed": self.seed,
            "lean": dict(self.lean) if isinstance(self.lean, Mapping) else self.lean,
            "bits": self.bits,
            "parts": self.parts,
        }

    def _remove(self) -> None:
        if self.handle is None:
            return
        if self._step is not None:
            (module, step, before), self._step = self._step, None
            if module.__dict__.get("training_step") is step:
                del module.__dict__["training_step"]
                module.__dict__.update({} if before is None else {"training_step": before})
        handle, self.handle = self.handle, None
        handle.remove()


def _plain(estimators: Estimators) -> dict[str, Any]:
    if isinstance(estimators, Mapping):
        return {pattern: plain_estimator(estimator) for pattern, estimator in estimators.items()}
    return plain_estimator(estimators)
