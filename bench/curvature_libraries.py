"""How randbp and the libraries beside it make Kronecker factors: of one layer's tensors, and in a pass through a model.

Peers are imported if they are installed (``pip install -e '.[peers]'``). What is timed layer by layer is the function
that each library calls in its hooks.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from randbp.curvature import Approximation, factors, input_factor, output_grad_factor
from randbp.curvature.layer_sums import input_sums, output_grad_sums
from randbp.curvature.method import Method
from randbp.curvature.moments import Moment
from randbp.curvature.weight_matrices import call_input, layer_call
from randbp.tn import LayerSpec

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Seen:
    """What hooks of a layer see in one pass."""

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor
    output_grad: Tensor


def seen_in(model: nn.Module, inputs: Tensor, loss: Callable[[Tensor], Tensor]) -> list[Seen]:
    """A forward and backward pass, watched at all layers."""
    found: list[Seen] = []

    def watch(name: str, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        def note(grad: Tensor) -> None:
            found.append(Seen(name, module, given[0].detach(), output.detach(), grad.detach().clone()))

        output.register_hook(note)

    handles = [
        module.register_forward_hook(lambda module, given, output, name=name: watch(name, module, given, output))
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    ]
    loss(model(inputs)).backward()
    for handle in handles:
        handle.remove()
    return found


class Library:
    """One library.

    Attributes:
        name: Its name.
        installed: Whether it is there.
        approximations: What it can compute, by the names of randbp's approximations.
        grouped: Whether a grouped layer has a factor for each group.
    """

    name: str
    package: str
    approximations: tuple[Approximation, ...] = ("reduce", "expand")
    grouped: bool = True

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None

    def of_layers(self, model: nn.Module, batch: tuple[Tensor, Tensor], approximation: Approximation) -> Any:
        """A function that makes both factors of one layer from what hooks saw."""
        raise NotImplementedError

    def of_model(self, model: nn.Module, batch: tuple[Tensor, Tensor], approximation: Approximation) -> Any:
        """A function that makes all factors of a model, in passes of its own."""
        raise NotImplementedError


class Randbp(Library):
    """Factors as ``randbp.curvature.factors`` holds them: those of reduce as rows where these are few."""

    name, package = "randbp", "randbp"

    def of_layers(self, model: nn.Module, batch: tuple[Tensor, Tensor], approximation: Approximation) -> Any:
        method = Method(approximation)

        def make(seen: Seen) -> Any:
            spec, input, grad, bias = _as_layer(seen)
            moments = Moment(), Moment()
            input_sums(spec, input, method, bias).into(moments[0])
            output_grad_sums(spec, grad, method).into(moments[1])
            return [moment.factor(1 / len(input)) for moment in moments]

        return make

    def of_model(self, model: nn.Module, batch: tuple[Tensor, Tensor], approximation: Approximation) -> Any:
        return lambda: factors(model, batch, nn.CrossEntropyLoss(), "empirical", approximation)


class RandbpMatrices(Library):
    """The same factors of reduce as matrices, by the functions of single calls."""

    name, package, approximations = "randbp, matrices", "randbp", ("reduce",)

    def of_layers(self, model: nn.Module, batch: tuple[Tensor, Tensor], approximation: Approximation) -> Any:
        def make(seen: Seen) -> Any:
            spec, input, grad, bias = _as_layer(seen)
            return input_factor(spec, input, approximation, bias), output_grad_factor(spec, grad, approximation)

        return make


def _as_layer(seen: Seen) -> tuple[LayerSpec, Tensor, Tensor, bool]:
    """Spec, input and output gradient of what was seen, and whether there is a bias."""
    _, spec, input = call_input(layer_call(seen.module, seen.input, seen.output))
    grad = seen.output_grad.movedim(-1, 1) if isinstance(seen.module, nn.Linear) else seen.output_grad
    return spec, input, grad.reshape(spec.output_shape), seen.module.bias is not None


class Curvlinops(Library):
    """``KFACLinearOperator``. Of a grouped layer it takes the mean over groups, which is another, smaller matrix."""

    name, package, grouped = "curvlinops", "curvlinops", False

    def _operator(self, model: nn.Module, batch: tuple[Tensor, Tensor], approximation: Approximation) -> Any:
        from curvlinops import FisherType, KFACLinearOperator, KFACType

        parameters = [
            p for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear) for p in module.parameters()
        ]
        return KFACLinearOperator(
            model, nn.CrossEntropyLoss(), parameters, [batch], check_deterministic=False,
            fisher_type=FisherType.EMPIRICAL, kfac_approx=getattr(KFACType, approximation.upper()),
            num_per_example_loss_terms=1, num_data=len(batch[0]), separate_weight_and_bias=False,
        )  # fmt: skip

    def of_layers(self, model: nn.Module, batch: tuple[Tensor, Tensor], approximation: Approximation) -> Any:
        operator = self._operator(model, batch, approximation)

        def make(seen: Seen) -> Any:
            operator._input_covariances, operator._gradient_covariances = {}, {}
            operator._hook_accumulate_input_covariance(seen.module, (seen.input,), seen.name)
            operator._accumulate_gradient_covariance(seen.output_grad, seen.module, seen.name)
            return operator._input_covariances[seen.name], operator._gradient_covariances[seen.name]

        return make

    def of_model(self, model: nn.Module, batch: tuple[Tensor, Tensor], approximation: Approximation) -> Any:
        operator = self._operator(model, batch, approximation)

        def run() -> Any:
            operator._input_covariances, operator._gradient_covariances = {}, {}
            operator.compute_kronecker_factors()
            return operator._input_covariances, operator._gradient_covariances

        return run


class Singd(Library):
    """``SINGD`` with dense structures, which multiplies what it unfolds by its factor first; groups as curvlinops."""

    name, package, grouped = "singd", "singd", False

    def _optimizer(self, model: nn.Module, batch: tuple[Tensor, Tensor], approximation: Approximation) -> Any:
        from singd.optim.optimizer import SINGD

        return SINGD(model, kfac_approx=approximation, T=1, warn_unsupported=False)

    def of_layers(self, model: nn.Module, batch: tuple[Tensor, Tensor], approximation: Approximation) -> Any:
        optimizer = self._optimizer(model, batch, approximation)
        for handle in optimizer.hook_handles:
            handle.remove()

        def make(seen: Seen) -> Any:
            optimizer._accumulate_H_terms(seen.module, (seen.input,), seen.output_grad)
            name = optimizer.module_names[seen.module]
            return optimizer.H_Ks.pop(name), optimizer.H_Cs.pop(name)

        return make

    def of_model(self, model: nn.Module, batch: tuple[Tensor, Tensor], approximation: Approximation) -> Any:
        optimizer = self._optimizer(model, batch, approximation)

        def run() -> Any:
            optimizer.H_Ks.clear()
            optimizer.H_Cs.clear()
            model.zero_grad()
            nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
            return dict(optimizer.H_Ks), dict(optimizer.H_Cs)

        return run


class BackPACK(Library):
    """``KFAC`` with one sampled label: input factors of expand, output factors of reduce. No BatchNorm, no groups."""

    name, package, approximations = "BackPACK", "backpack", ("expand",)

    def of_layers(self, model: nn.Module, batch: tuple[Tensor, Tensor], approximation: Approximation) -> Any:
        from backpack.extensions import KFAC

        extension = KFAC()
        modules = extension._BackpropExtension__module_extensions  # type: ignore[attr-defined]

        def make(seen: Seen) -> Any:
            seen.module.input0 = seen.input  # type: ignore[assignment]
            try:
                return modules[type(seen.module)].weight(extension, seen.module, (), (), seen.output_grad[None])
            finally:
                del seen.module.input0

        return make

    def of_model(self, model: nn.Module, batch: tuple[Tensor, Tensor], approximation: Approximation) -> Any:
        from backpack import backpack, extend
        from backpack.extensions import KFAC

        model, loss = extend(model), extend(nn.CrossEntropyLoss())

        def run() -> Any:
            model.zero_grad()
            with backpack(KFAC()):
                loss(model(batch[0]), batch[1]).backward()
            return [parameter.kfac for parameter in model.parameters()]

        return run


LIBRARIES: tuple[Library, ...] = (Randbp(), RandbpMatrices(), Curvlinops(), Singd(), BackPACK())


def served(make: Callable[[Seen], Any], seen: Sequence[Seen]) -> list[Seen]:
    """The layers that a library takes."""
    found = []
    for each in seen:
        with suppress(Exception):
            make(each)
            found.append(each)
    return found
