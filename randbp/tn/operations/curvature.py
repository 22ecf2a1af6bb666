"""Networks of curvature: KFAC factors, Gram matrices of gradients, diagonals of the generalised Gauss-Newton matrix."""

from functools import lru_cache
from math import prod

from ...layers.integers import as_integer
from ...layers.layer_specs import LayerSpec
from ...layers.pattern import IndexPattern
from ..interface import TensorNetwork
from .layer_derivatives import per_example_weight_vjp, unfold
from .layer_legs import LayerLegs


def _factor(net: TensorNetwork, spec: LayerSpec, rows: tuple[str, ...], count: int, name: str) -> TensorNetwork:
    """The network's product with itself, summed over all open legs but ``g`` and ``rows``, over ``count`` and ``N``."""
    share = tuple(leg for leg in net.open_legs if leg not in rows)
    square = net.outer(net, share=share).sum(*(leg for leg in share if leg != "g"))
    primed = tuple(f"{leg}'" for leg in rows)
    return square.group(("g",), rows, primed).scaled(1 / (max(spec.batch_size, 1) * count)).named(name)


@lru_cache(maxsize=1024)
def kfac_expand(spec: LayerSpec) -> TensorNetwork:
    """The input factor of KFAC-expand (KFC) ``Ω_g = 1/N Σ_n U_n U_nᵀ`` with the unfolded input ``U_n``.

    Slot: ``input`` ``[N, C, *I]``. Result: ``[G, C/G·ΠK, C/G·ΠK]``.

    Source: Grosse & Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers", 2016.

    Example:
        >>> from randbp import tn
        >>> tn.kfac_expand(tn.ConvSpec((2, 6, 8, 8), 4, 3, groups=2)).output_shape
        (2, 27, 27)
    """
    return window_gram(spec, spec.patterns).named("kfac_expand")


@lru_cache(maxsize=1024)
def window_gram(spec: LayerSpec, patterns: tuple[IndexPattern, ...]) -> TensorNetwork:
    """:func:`kfac_expand` with other index patterns than the layer's over the same input."""
    legs = LayerLegs(spec, patterns)
    net = legs.network("unfold", {"input": legs.input}, (("n",), ("g", "c", *legs.k), legs.o))
    return _factor(net, spec, ("c", *legs.k), 1, "window_gram")


@lru_cache(maxsize=1024)
def kfac_reduce(spec: LayerSpec) -> TensorNetwork:
    """The input factor of KFAC-reduce ``Ω_g = 1/(N O²) Σ_n (U_n 1)(U_n 1)ᵀ`` with the unfolded input ``U_n``.

    Slot: ``input`` ``[N, C, *I]``. Result: ``[G, C/G·ΠK, C/G·ΠK]``. ``O`` is the number of output positions.

    Source: Eschenhagen et al., "Kronecker-factored approximate curvature for modern neural networks", 2023.

    Example:
        >>> from randbp import tn
        >>> tn.kfac_reduce(tn.ConvSpec((2, 6, 8, 8), 4, 3, groups=2)).output_shape
        (2, 27, 27)
    """
    legs = LayerLegs(spec)
    count = prod(spec.output_size) ** 2
    return _factor(unfold(spec).sum(*legs.o), spec, ("c", *legs.k), count, "kfac_reduce")


def _gradient(spec: LayerSpec) -> TensorNetwork:
    """The output gradient alone."""
    legs = LayerLegs(spec)
    return legs.network("output_grad", {"output_grad": legs.output}, legs.output, patterns=False)


@lru_cache(maxsize=1024)
def kfac_expand_output_grad(spec: LayerSpec) -> TensorNetwork:
    """The output-gradient factor of KFAC-expand ``Γ_g = 1/(N O) Σ_{n o} V_Y V_Yᵀ``.

    Slot: ``output_grad`` ``[N, D, *O]``, each row the gradient of one example's own loss. Result: ``[G, D/G, D/G]``.

    Example:
        >>> from randbp import tn
        >>> tn.kfac_expand_output_grad(tn.ConvSpec((2, 6, 8, 8), 4, 3, groups=2)).output_shape
        (2, 2, 2)
    """
    return _factor(_gradient(spec), spec, ("d",), prod(spec.output_size), "kfac_expand_output_grad")


@lru_cache(maxsize=1024)
def kfac_reduce_output_grad(spec: LayerSpec) -> TensorNetwork:
    """The output-gradient factor of KFAC-reduce ``Γ_g = 1/N Σ_n (V_Y 1)(V_Y 1)ᵀ``: positions are summed first.

    Slot: ``output_grad`` ``[N, D, *O]``, each row the gradient of one example's own loss. Result: ``[G, D/G, D/G]``.

    Example:
        >>> from randbp import tn
        >>> tn.kfac_reduce_output_grad(tn.ConvSpec((2, 6, 8, 8), 4, 3, groups=2)).output_shape
        (2, 2, 2)
    """
    return _factor(_gradient(spec).sum(*LayerLegs(spec).o), spec, ("d",), 1, "kfac_reduce_output_grad")


@lru_cache(maxsize=1024)
def gradient_gram(spec: LayerSpec) -> TensorNetwork:
    """The Gram matrix of per-example weight gradients ``K[n, n'] = ⟨V_W[n], V_W[n']⟩``: a layer's empirical NTK.

    Slots: ``input`` ``[N, C, *I]``, ``output_grad`` ``[N, D, *O]``. Result: ``[N, N]``.

    Example:
        >>> from randbp import tn
        >>> tn.gradient_gram(tn.ConvSpec((5, 3, 8, 8), 4, 3)).output_shape
        (5, 5)
    """
    parameter = ("g", "d", "c", *LayerLegs(spec).k)
    gradient = per_example_weight_vjp(spec)
    return gradient.outer(gradient, share=parameter).sum(*parameter).named("gradient_gram")


@lru_cache(maxsize=1024)
def squared_gradient_norms(spec: LayerSpec) -> TensorNetwork:
    """Squared norms of per-example weight gradients ``‖V_W[n]‖²``: the diagonal of :func:`gradient_gram`.

    The plan makes the gradients only where this is cheaper than Gram matrices of positions:
    ``‖V_n U_nᵀ‖² = Σ_{o o'} (V_nᵀ V_n)[o, o'] (U_nᵀ U_n)[o, o']`` with the unfolded input ``U_n``.

    Slots: ``input`` ``[N, C, *I]``, ``output_grad`` ``[N, D, *O]``. Result: ``[N]``.

    Example:
        >>> from randbp import tn
        >>> tn.squared_gradient_norms(tn.ConvSpec((5, 3, 8, 8), 4, 3)).output_shape
        (5,)
    """
    parameter = ("g", "d", "c", *LayerLegs(spec).k)
    gradient = per_example_weight_vjp(spec)
    return gradient.outer(gradient, share=("n", *parameter)).sum(*parameter).named("squared_gradient_norms")


@lru_cache(maxsize=1024)
def ggn_diagonal(spec: LayerSpec, columns: int | None = None) -> TensorNetwork:
    """The diagonal of the GGN (or Fisher) matrix of the weight ``Σ_n V_W[n]²`` from per-example factors.

    Slots: ``input`` ``[N, C, *I]``; ``output_grad`` ``[N, D, *O]`` (per-example gradients: the empirical Fisher), or
    with ``columns`` ``[V, N, D, *O]``, the columns of a factor of the loss' Hessian backpropagated to the output,
    summed over as well. Result: ``[D, C/G, *K]``.

    Args:
        spec: The convolution.
        columns: Number of factor columns ``V``.

    Raises:
        ValueError: If ``columns`` is not a positive integer.

    Example:
        >>> from randbp import tn
        >>> tn.ggn_diagonal(tn.ConvSpec((5, 3, 8, 8), 4, 3), columns=10).slots
        {'input': (5, 3, 8, 8), 'output_grad': (10, 5, 4, 6, 6)}
    """
    gradient = per_example_weight_vjp(spec)
    summed = ["n"]
    if columns is not None:
        if (as_integer(columns) or 0) < 1:
            raise ValueError(f"columns={columns!r}: expected a positive integer, or None for one gradient per example")
        gradient = gradient.with_leg("v", columns, "output_grad")
        summed.append("v")
    share = (*summed, "g", "d", "c", *LayerLegs(spec).k)
    return gradient.outer(gradient, share=share).sum(*summed).named("ggn_diagonal")
