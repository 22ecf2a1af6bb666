"""Convolution, its derivatives and its unfoldings."""

from functools import lru_cache

from ...layers.spec import ConvSpec
from ..interface import TensorNetwork, network
from ..nodes import Axis, Operand, Pattern


def spatial(name: str, spec: ConvSpec) -> tuple[str, ...]:
    """The legs of all spatial dimensions: ``("i1", "i2", …)``.

    Raises:
        TypeError: If the spec is not a convolution's.
    """
    if not isinstance(spec, ConvSpec):
        other = getattr(spec, "adjoint", None)
        hint = "" if other is None else "; tn.conv_transpose and its like take this one's .adjoint"
        raise TypeError(f"spec={spec!r}: expected a tn.ConvSpec{hint}")
    return tuple(f"{name}{dim}" for dim in range(1, spec.dims + 1))


def leg_sizes(spec: ConvSpec) -> dict[str, int]:
    """Size of every leg of a convolution."""
    sizes = {
        "n": spec.batch_size,
        "g": spec.groups,
        "c": spec.in_channels // spec.groups,
        "d": spec.out_channels // spec.groups,
    }
    for dim, pattern in enumerate(spec.patterns, 1):
        sizes |= {
            f"i{dim}": pattern.input_size,
            f"o{dim}": pattern.output_size,
            f"k{dim}": pattern.kernel_size,
        }
    return sizes


def operand(slot: str, spec: ConvSpec, *axes: tuple[str, ...]) -> Operand:
    """An operand with these groups of legs as its dimensions."""
    sizes = leg_sizes(spec)
    return Operand(slot, tuple(Axis.grouped(legs, sizes) for legs in axes))


def singles(legs: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Each leg as a dimension of its own."""
    return tuple((leg,) for leg in legs)


def patterns(spec: ConvSpec) -> tuple[Pattern, ...]:
    """The index patterns of all dimensions."""
    return tuple(Pattern(p, f"i{dim}", f"o{dim}", f"k{dim}") for dim, p in enumerate(spec.patterns, 1))


@lru_cache(maxsize=1024)
def conv(spec: ConvSpec) -> TensorNetwork:
    """The convolution ``Y[n, g d, o] = Σ_{c i k} X[n, g c, i] Π[i, o, k] W[g d, c, k]``.

    Slots: ``input`` ``[N, C, *I]``, ``weight`` ``[D, C/G, *K]``. Result: ``[N, D, *O]``, as
        `torch.nn.functional.conv2d`.

    Example:
        >>> import torch
        >>> from randbp import tn
        >>> x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
        >>> y = tn.conv(tn.ConvSpec((2, 3, 8, 8), 4, 3, padding=1)).contract(input=x, weight=w)
        >>> torch.allclose(y, torch.nn.functional.conv2d(x, w, padding=1), atol=1e-5)
        True
    """
    x = operand("input", spec, ("n",), ("g", "c"), *singles(spatial("i", spec)))
    w = operand("weight", spec, ("g", "d"), ("c",), *singles(spatial("k", spec)))
    output = (("n",), ("g", "d"), *singles(spatial("o", spec)))
    return network("conv", (x, *patterns(spec), w), leg_sizes(spec), output)


@lru_cache(maxsize=1024)
def weight_vjp(spec: ConvSpec) -> TensorNetwork:
    """The weight VJP ``V_W[g d, c, k] = Σ_{n i o} X Π V_Y[n, g d, o]``.

    Slots: ``input`` ``[N, C, *I]``, ``output_grad`` ``[N, D, *O]``. Result: ``[D, C/G, *K]``.

    Example:
        >>> from randbp import tn
        >>> tn.weight_vjp(tn.ConvSpec((2, 3, 8, 8), 4, 3)).output_shape
        (4, 3, 3, 3)
    """
    return conv(spec).vjp("weight").named("weight_vjp")


@lru_cache(maxsize=1024)
def input_vjp(spec: ConvSpec) -> TensorNetwork:
    """The input VJP ``V_X[n, g c, i] = Σ_{d o k} W Π V_Y``.

    Slots: ``weight`` ``[D, C/G, *K]``, ``output_grad`` ``[N, D, *O]``. Result: ``[N, C, *I]``.

    Example:
        >>> from randbp import tn
        >>> tn.input_vjp(tn.ConvSpec((2, 3, 8, 8), 4, 3)).output_shape
        (2, 3, 8, 8)
    """
    return conv(spec).vjp("input").named("input_vjp")


@lru_cache(maxsize=1024)
def weight_jvp(spec: ConvSpec) -> TensorNetwork:
    """The weight JVP: the convolution with the weight replaced by its tangent.

    Slots: ``input`` ``[N, C, *I]``, ``weight_tangent`` ``[D, C/G, *K]``. Result: ``[N, D, *O]``.

    Example:
        >>> from randbp import tn
        >>> list(tn.weight_jvp(tn.ConvSpec((2, 3, 8), 4, 3)).slots)
        ['input', 'weight_tangent']
    """
    return conv(spec).jvp("weight").named("weight_jvp")


@lru_cache(maxsize=1024)
def input_jvp(spec: ConvSpec) -> TensorNetwork:
    """The input JVP: the convolution with the input replaced by its tangent.

    Slots: ``input_tangent`` ``[N, C, *I]``, ``weight`` ``[D, C/G, *K]``. Result: ``[N, D, *O]``.

    Example:
        >>> from randbp import tn
        >>> list(tn.input_jvp(tn.ConvSpec((2, 3, 8), 4, 3)).slots)
        ['input_tangent', 'weight']
    """
    return conv(spec).jvp("input").named("input_jvp")


@lru_cache(maxsize=1024)
def unfold(spec: ConvSpec) -> TensorNetwork:
    """The unfolded input (im2col) ``U[n, c k, o] = Σ_i X Π``.

    Slot: ``input`` ``[N, C, *I]``. Result: ``[N, C·ΠK, ΠO]``, as `torch.nn.functional.unfold`, in any
        dimension.

    Example:
        >>> import torch
        >>> from randbp import tn
        >>> x = torch.randn(2, 3, 8, 8)
        >>> u = tn.unfold(tn.ConvSpec((2, 3, 8, 8), 1, 3, stride=2)).contract(input=x)
        >>> torch.equal(u, torch.nn.functional.unfold(x, 3, stride=2))
        True
    """
    x = operand("input", spec, ("n",), ("g", "c"), *singles(spatial("i", spec)))
    output = (("n",), ("g", "c", *spatial("k", spec)), spatial("o", spec))
    return network("unfold", (x, *patterns(spec)), leg_sizes(spec), output)


@lru_cache(maxsize=1024)
def fold(spec: ConvSpec) -> TensorNetwork:
    """The adjoint of `unfold` (col2im): overlapping entries are added up.

    Slot: ``output_grad`` ``[N, C·ΠK, ΠO]``. Result: ``[N, C, *I]``, as `torch.nn.functional.fold`.

    Example:
        >>> from randbp import tn
        >>> tn.fold(tn.ConvSpec((2, 3, 8, 8), 1, 3)).output_shape
        (2, 3, 8, 8)
    """
    return unfold(spec).vjp("input").named("fold")


@lru_cache(maxsize=1024)
def unfolded_kernel(spec: ConvSpec) -> TensorNetwork:
    """The unfolded kernel: per group the Toeplitz matrix that maps the flattened input to the flattened
    output.

    Slot: ``weight`` ``[D, C/G, *K]``. Result: ``[G, D/G·ΠO, C/G·ΠI]``; without groups ``[D·ΠO, C·ΠI]``.

    Example:
        >>> import torch
        >>> from randbp import tn
        >>> net = tn.unfolded_kernel(tn.ConvSpec((1, 1, 4), 1, 2))
        >>> net.contract(weight=torch.tensor([[[1.0, 2.0]]])).tolist()
        [[1.0, 2.0, 0.0, 0.0], [0.0, 1.0, 2.0, 0.0], [0.0, 0.0, 1.0, 2.0]]
    """
    w = operand("weight", spec, ("g", "d"), ("c",), *singles(spatial("k", spec)))
    matrix = (("d", *spatial("o", spec)), ("c", *spatial("i", spec)))
    output = (("g",), *matrix) if spec.groups > 1 else matrix
    return network("unfolded_kernel", (w, *patterns(spec)), leg_sizes(spec), output)


@lru_cache(maxsize=1024)
def per_example_weight_vjp(spec: ConvSpec) -> TensorNetwork:
    """The weight VJP of every example: the batch leg is kept.

    Slots: ``input`` ``[N, C, *I]``, ``output_grad`` ``[N, D, *O]``. Result: ``[N, D, C/G, *K]``.

    Example:
        >>> from randbp import tn
        >>> tn.per_example_weight_vjp(tn.ConvSpec((2, 3, 8, 8), 4, 3)).output_shape
        (2, 4, 3, 3, 3)
    """
    return weight_vjp(spec).with_leg("n").named("per_example_weight_vjp")
