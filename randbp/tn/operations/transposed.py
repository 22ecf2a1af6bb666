"""Transposed convolution: the network of a convolution with the roles of i and o exchanged.

The spec describes the convolution whose adjoint this is: the transposed convolution maps
``spec.output_shape`` to ``spec.input_shape`` with a weight of ``spec.weight_shape``, which is PyTorch's
layout for transposed convolutions. `randbp.tn.transposed_spec` builds that spec from PyTorch's arguments. In
the networks below the legs ``i`` and ``c`` belong to the transposed convolution's own input, ``o`` and ``d``
to its output.
"""

from functools import lru_cache

from ...layers.spec import ConvSpec
from ..interface import TensorNetwork, network
from ..nodes import Axis, Operand, Pattern
from .layer_derivatives import leg_sizes as conv_leg_sizes
from .layer_derivatives import singles, spatial


def leg_sizes(spec: ConvSpec) -> dict[str, int]:
    """Size of every leg: a convolution's, with input and output exchanged."""
    sizes = conv_leg_sizes(spec)
    exchange = {"c": "d", "d": "c"}
    for dim in range(1, spec.dims + 1):
        exchange |= {f"i{dim}": f"o{dim}", f"o{dim}": f"i{dim}"}
    return {exchange.get(leg, leg): size for leg, size in sizes.items()}


def patterns(spec: ConvSpec) -> tuple[Pattern, ...]:
    """The index patterns of all dimensions, with the input position as the convolution's output."""
    return tuple(Pattern(p, f"o{dim}", f"i{dim}", f"k{dim}") for dim, p in enumerate(spec.patterns, 1))


def _operand(slot: str, spec: ConvSpec, *axes: tuple[str, ...]) -> Operand:
    sizes = leg_sizes(spec)
    return Operand(slot, tuple(Axis.grouped(legs, sizes) for legs in axes))


@lru_cache(maxsize=1024)
def conv_transpose(spec: ConvSpec) -> TensorNetwork:
    """The transposed convolution ``Y[n, g d, o] = Σ_{c i k} X[n, g c, i] Π[o, i, k] W[g c, d, k]``.

    Slots: ``input`` of ``spec.output_shape``, ``weight`` of ``spec.weight_shape``. Result:
        ``spec.input_shape``, as
    `torch.nn.functional.conv_transpose2d`.

    Args:
        spec: The convolution whose adjoint this is; see `transposed_spec`.

    Example:
        >>> import torch
        >>> from randbp import tn
        >>> x, w = torch.randn(2, 3, 5, 5), torch.randn(3, 4, 3, 3)
        >>> spec = tn.transposed_spec((2, 3, 5, 5), out_channels=4, kernel_size=3, stride=2)
        >>> y = tn.conv_transpose(spec).contract(input=x, weight=w)
        >>> torch.allclose(y, torch.nn.functional.conv_transpose2d(x, w, stride=2), atol=1e-5)
        True
    """
    x = _operand("input", spec, ("n",), ("g", "c"), *singles(spatial("i", spec)))
    w = _operand("weight", spec, ("g", "c"), ("d",), *singles(spatial("k", spec)))
    output = (("n",), ("g", "d"), *singles(spatial("o", spec)))
    return network("conv_transpose", (x, *patterns(spec), w), leg_sizes(spec), output)


@lru_cache(maxsize=1024)
def conv_transpose_weight_vjp(spec: ConvSpec) -> TensorNetwork:
    """The weight VJP of a transposed convolution.

    Slots: ``input`` of ``spec.output_shape``, ``output_grad`` of ``spec.input_shape``. Result:
        ``spec.weight_shape``.

    Example:
        >>> from randbp import tn
        >>> tn.conv_transpose_weight_vjp(tn.transposed_spec((2, 3, 5), 4, 3)).output_shape
        (3, 4, 3)
    """
    return conv_transpose(spec).vjp("weight").named("conv_transpose_weight_vjp")


@lru_cache(maxsize=1024)
def conv_transpose_input_vjp(spec: ConvSpec) -> TensorNetwork:
    """The input VJP of a transposed convolution: the convolution itself.

    Slots: ``weight`` of ``spec.weight_shape``, ``output_grad`` of ``spec.input_shape``. Result:
        ``spec.output_shape``.

    Example:
        >>> from randbp import tn
        >>> tn.conv_transpose_input_vjp(tn.transposed_spec((2, 3, 5), 4, 3)).output_shape
        (2, 3, 5)
    """
    return conv_transpose(spec).vjp("input").named("conv_transpose_input_vjp")


@lru_cache(maxsize=1024)
def conv_transpose_weight_jvp(spec: ConvSpec) -> TensorNetwork:
    """The weight JVP of a transposed convolution. Slots: ``input``, ``weight_tangent``.

    Example:
        >>> from randbp import tn
        >>> list(tn.conv_transpose_weight_jvp(tn.transposed_spec((2, 3, 5), 4, 3)).slots)
        ['input', 'weight_tangent']
    """
    return conv_transpose(spec).jvp("weight").named("conv_transpose_weight_jvp")


@lru_cache(maxsize=1024)
def conv_transpose_input_jvp(spec: ConvSpec) -> TensorNetwork:
    """The input JVP of a transposed convolution. Slots: ``input_tangent``, ``weight``.

    Example:
        >>> from randbp import tn
        >>> list(tn.conv_transpose_input_jvp(tn.transposed_spec((2, 3, 5), 4, 3)).slots)
        ['input_tangent', 'weight']
    """
    return conv_transpose(spec).jvp("input").named("conv_transpose_input_jvp")


@lru_cache(maxsize=1024)
def unfold_transpose(spec: ConvSpec) -> TensorNetwork:
    """The unfolded input of a transposed convolution ``U[n, c k, o] = Σ_i X Π[o, i, k]``.

    With it the transposed convolution is a matrix product, as a convolution is with `unfold`. (The adjoint of
    `unfold`, col2im, is `fold`.)

    Slot: ``input`` of ``spec.output_shape``. Result: ``[N, C·ΠK, ΠO]`` with ``C`` the input's channels and
        ``O`` the
    transposed convolution's output positions.

    Example:
        >>> import torch
        >>> from randbp import tn
        >>> spec = tn.transposed_spec((2, 3, 5, 5), out_channels=4, kernel_size=3, stride=2)
        >>> x, w = torch.randn(2, 3, 5, 5), torch.randn(3, 4, 3, 3)
        >>> u = tn.unfold_transpose(spec).contract(input=x)
        >>> y = w.permute(1, 0, 2, 3).flatten(1) @ u
        >>> torch.allclose(y.view(2, 4, 11, 11), torch.conv_transpose2d(x, w, stride=2), atol=1e-4)
        True
    """
    x = _operand("input", spec, ("n",), ("g", "c"), *singles(spatial("i", spec)))
    output = (("n",), ("g", "c", *spatial("k", spec)), spatial("o", spec))
    return network("unfold_transpose", (x, *patterns(spec)), leg_sizes(spec), output)


@lru_cache(maxsize=1024)
def conv_transpose_per_example_weight_vjp(spec: ConvSpec) -> TensorNetwork:
    """The weight VJP of every example of a transposed convolution; slots as `conv_transpose_weight_vjp`.

    Example:
        >>> from randbp import tn
        >>> tn.conv_transpose_per_example_weight_vjp(tn.transposed_spec((2, 3, 5), 4, 3)).output_shape
        (2, 3, 4, 3)
    """
    return conv_transpose_weight_vjp(spec).with_leg("n").named("conv_transpose_per_example_weight_vjp")
