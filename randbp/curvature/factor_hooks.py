"""Hooks that gather the factors of a network's layers during forward and backward passes."""

import weakref
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .._torch.hooks import without_autocast
from ..tn import LayerSpec
from .bfgs import times
from .gathering import Means, Seen
from .layer_factors import input_rows, output_grad_rows
from .layer_hooks import LayerHooks, channels_second, extends, precise, source_of
from .layer_sums import input_sums, output_grad_sums
from .method import Method
from .places import Place
from .projected_gradients import RowPair, pair_of


class Statistics(LayerHooks):
    """Hooks that add up the Kronecker factors of layers, while ``active`` is true.

    What is needed of an input is made in the forward pass, so that no input is held for it; a call counts once the
    gradients of the layer's output and then of its weight have been computed, so calls without a backward pass, and
    those that checkpointing repeats, do not count.

    Args:
        layers: The layers by name.
        method: What is made of the statistics.
        largest: Rows of a factor that is still made.
        counts_terms: Whether positions with a gradient are counted.

    Attributes:
        active: Whether a step gathers anything.
        refreshes: Whether it refreshes the method's state.
        only_means: Whether nothing but means is gathered, for a method that compares two passes.
        held: The optimiser's parameters.
        states: The states of these.
        places: The weights of these layers, by name; those of layers with a forward pass of their own once they run.
        called: Layers that ran in training since the last step that took factors.
        trouble: Why a part of the last call of a layer could not be used, by name.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], method: Method, largest: float, counts_terms: bool = False
    ) -> None:
        super().__init__(layers)
        self.active, self.refreshes, self.only_means, self.method = True, True, False, method
        self.states: Mapping[Any, dict[str, Any]] = {}
        self.largest, self.counts_terms = largest, counts_terms

    def counts(self, module: nn.Module) -> bool:
        """Whether the module trains."""
        return self.active and module.training and torch.is_grad_enabled()

    @property
    def seen(self) -> dict[str, Seen]:
        """The sums so far, by weight."""
        return {key: seen for key, place in self.places.items() if (seen := place.gathering.kept) is not None}

    def take(self) -> dict[str, Seen]:
        """Return the sums so far, and start again from zero."""
        taken = self.seen
        self.drop()
        return taken

    def drop(self) -> None:
        """Forget all statistics."""
        for place in self.places.values():
            place.gathering.drop()

    def watch(
        self, place: Place, weight: Tensor, bias: Tensor | None, spec: LayerSpec, input: Tensor, output: Tensor
    ) -> None:
        """Compute the input's statistics, and let the output's gradient add them together with its own."""
        extended, form, gathering, method = extends(place, bias), place.form, place.gathering, self.method
        if max(place.shape(weight, extended)[1:]) > self.largest:
            return
        with torch.no_grad(), without_autocast(output):
            seen_input = precise(input)
            made, means = None if self.only_means else input_sums(spec, seen_input, method, extended), None
            if method.second_pass:
                rows = made.tensor if made is not None and made.are_rows else input_rows(spec, seen_input, extended)
                matrices = place.matrices(weight, bias if extended else None)
                means = (mean := rows.mean(1)), times(matrices.to(mean), mean)
        held = input if method.pairs and method.approximation == "expand" else None
        gathering.watch(weight)
        this, shape = weakref.ref(self), output.shape

        def note(output_grad: Tensor) -> None:
            if (statistics := this()) is None:
                return
            with torch.no_grad(), without_autocast(output_grad):
                grad = channels_second(form, spec, output_grad.reshape(shape))
                seen = Seen(examples=spec.batch_size)
                if statistics.counts_terms:
                    seen.terms = (grad != 0).any(1).sum()
                if made is not None:
                    made.into(seen.input)
                    output_grad_sums(spec, grad, method).into(seen.output_grad)
                if means is not None:
                    positions = prod(spec.output_size) if method.approximation == "expand" else 1
                    seen.means = Means(*means, output_grad_rows(spec, grad).mean(1) / positions)
                if held is not None:
                    seen.pairs.append(pair_of(spec, precise(held), grad, extended))
                elif method.pairs:
                    seen.pairs.append(RowPair(seen.input.rows(), seen.output_grad.rows()))
                if method.pairs and not statistics.refreshes:
                    method.observe(statistics.states.get(place.parameter, {}), seen)
                gathering.note(seen, place.parameter)

        source_of(output).register_hook(note)
