"""Conversion of an existing model's layers to estimated VJPs, in place, and back."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import TracebackType

from torch import nn

from ..draws.seeds import checked_seed
from ..layers.integers import as_integer
from ..lean import Lean, LeanHandle, make_lean
from .layers import Clock, LayerState, derandomize_layer, is_randomized, layer_state, randomize_layer
from .left_exact import FirstStep, left_exact, summary
from .per_layer import Estimators, estimators_by_layer
from .presets import UNSET, PresetName, Settings, Unset, settings
from .selection import Layers, Selection, select


class RandomizedHandle:
    """What :func:`randomize` did to a model, and the way back. Also a context manager that removes at its end.

    Attributes:
        layers: Names of the randomised layers, in the order of ``model.named_modules()``; of a shared one the first.
        weight_vjp: Estimator of the weights' gradients, or one per layer, as given.
        input_vjp: Estimator of the inputs' gradients, or one per layer, as given.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        weight_vjp: Estimators,
        input_vjp: Estimators,
        clock: Clock,
        left_exact: dict[str, str],
        lean: LeanHandle | None = None,
    ) -> None:
        self.layers = list(modules)
        self.weight_vjp, self.input_vjp = weight_vjp, input_vjp
        self._modules, self._clock, self._lean, self._left_exact = modules, clock, lean, left_exact
        self._first_step = FirstStep(modules.values())
        self._stuck: dict[str, nn.Module] = {}

    @property
    def keep_rates(self) -> dict[str, float]:
        """Keep rate of the weight VJP by layer name; 1 for layers in :attr:`left_exact`."""
        exact = self.left_exact
        return {n: 1.0 if n in exact else layer_state(m).weight_vjp.keep for n, m in self._modules.items()}

    @property
    def input_keep_rates(self) -> dict[str, float]:
        """Keep rate of the input VJP by layer name; 1 for layers in :attr:`left_exact`."""
        exact = self.left_exact
        return {n: 1.0 if n in exact else layer_state(m).input_vjp.keep for n, m in self._modules.items()}

    @property
    def left_exact(self) -> dict[str, str]:
        """Reasons, by name, why chosen layers stay exact.

        That is known of some when the model is randomised, such as lazy layers. Of others it shows in the first step:
        layers that it does not call, and layers with a forward pass of their own in which no call of ``F.conv*``,
        ``F.conv_transpose*``, ``F.linear`` or ``torch.addmm`` has a weight that is made from their parameters alone.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyConv2d(8, 3))
            >>> with warnings.catch_warnings(action="ignore"):
            ...     randomize(model).left_exact
            {'1': 'a lazy layer has no weight before its first call'}
        """
        return self._left_exact | left_exact(self._modules, self._first_step.over)

    def set_step(self, step: int, micro_batch: int = 0, rank: int = 0) -> None:
        """Set the next training step: samples depend on it, and on nothing that ran before.

        Without this call every forward pass draws the next sample of an endless sequence that starts at ``seed``.

        Raises:
            ValueError: If one of the three is not an integer of 64 bits.
        """
        self._clock.set(_counter("step", step), _counter("micro_batch", micro_batch), _counter("rank", rank))

    @contextmanager
    def lean(self) -> Iterator[None]:
        """A context in which code outside the model's modules, such as its loss, is as lean as the model in training.

        A context manager, and a decorator of functions. Without ``lean`` everything is PyTorch's there, too.

        Example:
            >>> import torch
            >>> from randbp import Exact
            >>> model = nn.Sequential(nn.Linear(32, 512))
            >>> handle = randomize(model, Exact(), lean=True)
            >>> with handle.lean():  # holds classes' probabilities in 4 bits instead of their logarithms in 32
            ...     loss = nn.functional.cross_entropy(model(torch.ones(64, 32)), torch.arange(64))
            >>> criterion = handle.lean()(nn.functional.cross_entropy)  # the same for a function
        """
        with nullcontext() if self._lean is None else self._lean.running():
            yield

    def remove(self) -> None:
        """Restore the very same model. Doing so twice is harmless.

        Raises:
            RuntimeError: If something else has changed the class of a layer since, as ``fully_shard`` and
                parametrisations do. All else is restored then, and that layer is exact, but keeps this class; undo
                that change and call this again to restore the class, too.
        """
        self._first_step.remove()
        # A layer whose class could not be restored may have been randomised again since.
        layers = self._modules | {name: module for name, module in self._stuck.items() if not is_randomized(module)}
        self._stuck = {name: module for name, module in layers.items() if not derandomize_layer(module)}
        self._modules, self._left_exact, self.layers = {}, {}, []
        try:
            if self._lean is not None:
                self._lean.remove()
        finally:
            if self._stuck:
                kinds = ", ".join(f"{name!r} ({type(module).__name__})" for name, module in self._stuck.items())
                raise RuntimeError(
                    f"layers {kinds}: its class was changed after randomize(); exact from now on, but to restore the "
                    "class undo that change and call remove() again"
                )

    def __enter__(self) -> "RandomizedHandle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"RandomizedHandle({len(self.layers)} layers, weight_vjp={self.weight_vjp}, input_vjp={self.input_vjp})"


def randomize(
    model: nn.Module,
    weight_vjp: Estimators | Unset = UNSET,
    input_vjp: Estimators | Unset = UNSET,
    layers: Layers | Unset = UNSET,
    seed: int = 0,
    *,
    lean: Lean | Unset = UNSET,
    bits: int | Unset = UNSET,
    parts: int | Unset = UNSET,
    preset: PresetName | None = None,
) -> RandomizedHandle:
    """Estimate the VJPs of a model's layers from now on, in training mode only.

    The model is changed in place and keeps its parameters, ``state_dict``, hooks and types (each layer stays an
    instance of its class). In ``eval()`` mode, without grad mode and with ``keep=1`` each layer is PyTorch's.

    Explicit arguments take precedence over ``preset``. Without a preset, omitted ones have the defaults named below.

    Args:
        model: Any module.
        weight_vjp: Estimator of the weights' gradients, ``Spatial(keep=0.25)`` by default; or a mapping from names or
            globs of layers to estimators. The first key that matches a layer decides; a layer without one is exact.
            With ``layers=None`` the keys also select the layers. A module that is shared under several names can be
            given by any of them.
        input_vjp: Estimator of the inputs' gradients, ``Exact()`` by default, or a mapping as for ``weight_vjp``.
        layers: The layers to estimate: ``None``, the default, for all convolutions, transposed ones
            (``nn.ConvTranspose1d/2d/3d``) included, but no linear layers; a name or glob of ``model.named_modules()``
            or several of them; or a predicate ``(name, module) -> bool``. Names, globs and predicates select
            ``nn.Linear`` like any other layer: ``layers="*"`` means all convolutions and linear layers. A predicate is
            called for each name of a module. :func:`randbp.layers.layer` defines what a layer is: subclasses of
            PyTorch's layers and modules of other classes are served through the calls of ``F.conv*``, ``F.linear`` or
            ``torch.addmm`` in their forward pass.
        seed: Determines all samples, together with the layer's name, the step, micro-batch and rank.
        lean: Whether all other operations of the model, too, hold only what their gradients need; ``False`` by default.
            With ``True``, kinks of activations, places of maxima and dropout masks are held in the bits that they need
            and gradients are unchanged; normalisations, smooth activations and products hold ``bits`` bits per entry
            and gradients are unbiased. ``"exact"`` means only the former. A mapping from names or globs of modules to
            ``True``, ``"exact"`` or ``False`` decides for these modules (the last match counts); all others are lean.
            See :mod:`randbp.lean`.
        bits: Bits per entry of tensors that lean mode rounds, 1 to 8; 4 by default.
        parts: If ``lean`` is true, the number of parts of the batch into which the widest layers of an
            ``nn.Sequential`` are split to lower a step's peak; 4 by default, 1 to split nothing. Layers are split only
            if they treat examples one by one, if their tensors take at least 16 MiB, and if they have no forward hooks
            (other than those registered with ``always_call=True``).
        preset: ``"exact"``: unchanged gradients, bit for bit, with fewer bytes (``Exact()``, ``lean="exact"``).
            ``"memory"``: everything is held in ``bits`` bits per entry, in convolutions and linear layers as well, and
            multiplied in bfloat16 where that is faster (``IfFaster(Precision(estimator=Rounding(bits)))``,
            ``lean=True``). ``"time"``: each VJP runs in the way that is measured to be the fastest with an error of at
            most 0.02, never slower than exact (``IfFaster(Precision())``). A preset selects all convolutions and linear
            layers; there may be none. See :data:`randbp.randomize.PRESETS`.

    Returns:
        A handle with ``layers``, ``keep_rates``, ``left_exact`` and ``remove()``; as a context manager it removes the
        estimators at the end.

    Warns:
        UserWarning: If chosen layers stay exact, now or, where that shows only later, after an optimiser's first step.

    Raises:
        ValueError: If an argument is out of range, a pattern matches no convolution or linear layer or none that can be
            estimated, an estimator cannot serve its VJP, keys give two names of one layer different estimators, or a
            layer is already randomised. The model is then unchanged.

    Example:
        >>> from randbp import Spatial
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> with randomize(model, weight_vjp=Spatial(keep=0.25), layers="2") as handle:
        ...     handle.keep_rates
        {'2': 0.25}
        >>> with randomize(model, preset="memory") as handle:
        ...     handle.keep_rates
        {'0': 0.125, '2': 0.125}
        >>> randomize(model, weight_vjp={"0": Spatial(keep=0.5)}).keep_rates
        {'0': 0.5}
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model={model!r}: expected a torch.nn.Module")
    asked = settings(
        preset, weight_vjp=weight_vjp, input_vjp=input_vjp, layers=layers, lean=lean, bits=bits, parts=parts
    )
    weight_vjp, input_vjp, seed = asked.weight_vjp, asked.input_vjp, checked_seed(seed)
    chosen = _chosen(model, asked, any_will_do=preset is not None and layers is UNSET)
    modules, exact = chosen.modules, chosen.left_exact
    already = [name for name, module in modules.items() if is_randomized(module)]
    if already:
        raise ValueError(f"layers: {already[0]!r} is already randomised; call remove() on its handle first")
    weight_vjps = estimators_by_layer("weight_vjp", weight_vjp, chosen)
    input_vjps = estimators_by_layer("input_vjp", input_vjp, chosen)
    clock = Clock(seed)
    leaner = None
    if asked.lean:
        unsplit = [modules[name] for name, vjp in weight_vjps.items() if vjp.draws_examples]
        leaner = make_lean(model, asked.lean, asked.bits, clock.state, modules.values(), asked.parts, unsplit)
    for name, module in modules.items():
        state = LayerState.of(module, name, weight_vjps[name], input_vjps[name], clock, left_exact=exact)
        randomize_layer(module, state)
    if exact:
        warnings.warn(f"randomize: {summary(exact, len(modules))}", stacklevel=2)
    return RandomizedHandle(modules, weight_vjp, input_vjp, clock, exact, leaner)


def _counter(name: str, value: object) -> int:
    number = as_integer(value)
    if number is None or not -(2**63) <= number < 2**63:
        raise ValueError(f"{name}={value!r}: expected an integer of 64 bits")
    return number


def _chosen(model: nn.Module, asked: Settings, any_will_do: bool) -> Selection:
    """The layers that ``layers`` means; for ``None``, those that keys name, or all for an estimator without keys.

    With ``any_will_do`` a model without such layers is accepted, too.
    """
    vjps = asked.weight_vjp, asked.input_vjp
    keys = [key for vjp in vjps if isinstance(vjp, Mapping) for key in vjp]
    exact = all(not isinstance(vjp, Mapping) and vjp.exact for vjp in vjps)
    everything = Selection.of(model)
    if any_will_do and not keys:
        found = everything.convolutions if asked.layers is None else everything
        return found.served if exact else found
    if asked.layers is None and asked.lean and exact and not everything.convolutions.layers:
        return Selection({})  # a model without convolutions can be lean
    if asked.layers is not None or not keys:
        return select(model, asked.layers)
    everywhere = any(not isinstance(vjp, Mapping) and not vjp.exact for vjp in vjps)
    usual = select(model, None).layers if everywhere else {}
    meant = usual | select(model, "*").named(*keys).layers
    found = everything.where(lambda one: one.names[0] in meant)
    return found if found.modules else Selection(everything.served.layers | found.layers)
