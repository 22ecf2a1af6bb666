"""Networks of curvature: KFAC factors, Gram matrices of gradients, diagonals of the generalised Gauss-Newton
matrix."""

from functools import lru_cache
from math import prod

from ...layers.integers import as_integer
from ...layers.spec import ConvSpec
from ..interface import TensorNetwork, network
from .layer_derivatives import leg_sizes, operand, per_example_weight_vjp, singles, spatial, unfold
from .transposed import unfold_transpose


def _expand(unfolded: TensorNetwork, spec: ConvSpec, name: str) -> TensorNetwork:
    positions = spatial("o", spec)
    rows = ("c", *spatial("k", spec))
    square = unfolded.outer(unfolded, share=("n", "g", *positions)).sum("n", *positions)
    return square.group(("g",), rows, tuple(f"{leg}'" for leg in rows)).scaled(1 / max(spec.batch_size, 1)).named(name)


def _reduce(unfolded: TensorNetwork, spec: ConvSpec, name: str) -> TensorNetwork:
    positions = spatial("o", spec)
    rows = ("c", *spatial("k", spec))
    count = prod(unfolded.sizes[leg] for leg in positions)
    summed = unfolded.sum(*positions) if positions else unfolded
    square = summed.outer(summed, share=("n", "g")).sum("n")
    scale = 1 / (max(spec.batch_size, 1) * count**2)
    return square.group(("g",), rows, tuple(f"{leg}'" for leg in rows)).scaled(scale).named(name)


@lru_cache(maxsize=1024)
def kfac_expand(spec: ConvSpec) -> TensorNetwork:
    """The input factor of KFAC-expand (KFC) ``Ω_g = 1/N Σ_n U_n U_nᵀ`` with the unfolded input ``U_n``.

    Slot: ``input`` ``[N, C, *I]``. Result: ``[G, C/G·ΠK, C/G·ΠK]``.

    Source: Grosse & Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers", 2016.

    Example:
        >>> from randbp import tn
        >>> tn.kfac_expand(tn.ConvSpec((2, 6, 8, 8), 4, 3, groups=2)).output_shape
        (2, 27, 27)
    """
    return _expand(unfold(spec), spec, "kfac_expand")


@lru_cache(maxsize=1024)
def kfac_reduce(spec: ConvSpec) -> TensorNetwork:
    """The input factor of KFAC-reduce ``Ω_g = 1/(N O²) Σ_n (U_n 1)(U_n 1)ᵀ`` with the unfolded input ``U_n``.

    Slot: ``input`` ``[N, C, *I]``. Result: ``[G, C/G·ΠK, C/G·ΠK]``. ``O`` is the number of output positions.

    Source: Eschenhagen et al., "Kronecker-factored approximate curvature for modern neural networks", 2023.

    Example:
        >>> from randbp import tn
        >>> tn.kfac_reduce(tn.ConvSpec((2, 6, 8, 8), 4, 3, groups=2)).output_shape
        (2, 27, 27)
    """
    return _reduce(unfold(spec), spec, "kfac_reduce")


@lru_cache(maxsize=1024)
def kfac_expand_transpose(spec: ConvSpec) -> TensorNetwork:
    """The input factor of KFAC-expand for a transposed convolution, from `unfold_transpose`.

    Slot: ``input`` of ``spec.output_shape``. Result: ``[G, C/G·ΠK, C/G·ΠK]`` with ``C`` the channels of that
        input.

    Example:
        >>> from randbp import tn
        >>> tn.kfac_expand_transpose(tn.transposed_spec((2, 3, 5, 5), 4, 3)).output_shape
        (1, 27, 27)
    """
    return _expand(unfold_transpose(spec), spec, "kfac_expand_transpose")


@lru_cache(maxsize=1024)
def kfac_reduce_transpose(spec: ConvSpec) -> TensorNetwork:
    """The input factor of KFAC-reduce for a transposed convolution, from `unfold_transpose`.

    Slot: ``input`` of ``spec.output_shape``. Result: ``[G, C/G·ΠK, C/G·ΠK]`` with ``C`` the channels of that
        input.

    Example:
        >>> from randbp import tn
        >>> tn.kfac_reduce_transpose(tn.transposed_spec((2, 3, 5, 5), 4, 3)).output_shape
        (1, 27, 27)
    """
    return _reduce(unfold_transpose(spec), spec, "kfac_reduce_transpose")


def _gradient(spec: ConvSpec) -> TensorNetwork:
    y = operand("output_grad", spec, ("n",), ("g", "d"), *singles(spatial("o", spec)))
    output = (("n",), ("g", "d"), *singles(spatial("o", spec)))
    return network("output_grad", (y,), leg_sizes(spec), output)


@lru_cache(maxsize=1024)
def kfac_expand_output_grad(spec: ConvSpec) -> TensorNetwork:
    """The output-gradient factor of KFAC-expand ``Γ_g = 1/(N O) Σ_{n o} V_Y V_Yᵀ``.

    Slot: ``output_grad`` ``[N, D, *O]``, each row the gradient of one example's own loss. Result: ``[G, D/G,
        D/G]``.

    Example:
        >>> from randbp import tn
        >>> tn.kfac_expand_output_grad(tn.ConvSpec((2, 6, 8, 8), 4, 3, groups=2)).output_shape
        (2, 2, 2)
    """
    positions = spatial("o", spec)
    grad = _gradient(spec)
    square = grad.outer(grad, share=("n", "g", *positions)).sum("n", *positions).group(("g",), ("d",), ("d'",))
    return square.scaled(1 / (max(spec.batch_size, 1) * prod(spec.output_size))).named("kfac_expand_output_grad")


@lru_cache(maxsize=1024)
def kfac_reduce_output_grad(spec: ConvSpec) -> TensorNetwork:
    """The output-gradient factor of KFAC-reduce ``Γ_g = 1/N Σ_n (V_Y 1)(V_Y 1)ᵀ``: positions are summed
    first.

    Slot: ``output_grad`` ``[N, D, *O]``, each row the gradient of one example's own loss. Result: ``[G, D/G,
        D/G]``.

    Example:
        >>> from randbp import tn
        >>> tn.kfac_reduce_output_grad(tn.ConvSpec((2, 6, 8, 8), 4, 3, groups=2)).output_shape
        (2, 2, 2)
    """
    grad = _gradient(spec)
    summed = grad.sum(*spatial("o", spec)) if spec.dims else grad
    square = summed.outer(summed, share=("n", "g")).sum("n").group(("g",), ("d",), ("d'",))
    return square.scaled(1 / max(spec.batch_size, 1)).named("kfac_reduce_output_grad")


@lru_cache(maxsize=1024)
def gradient_gram(spec: ConvSpec) -> TensorNetwork:
    """The Gram matrix of per-example weight gradients ``K[n, n'] = ⟨V_W[n], V_W[n']⟩``: a layer's empirical
    NTK.

    Slots: ``input`` ``[N, C, *I]``, ``output_grad`` ``[N, D, *O]``. Result: ``[N, N]``.

    Example:
        >>> from randbp import tn
        >>> tn.gradient_gram(tn.ConvSpec((5, 3, 8, 8), 4, 3)).output_shape
        (5, 5)
    """
    parameter = ("g", "d", "c", *spatial("k", spec))
    gradient = per_example_weight_vjp(spec)
    return gradient.outer(gradient, share=parameter).sum(*parameter).named("gradient_gram")


@lru_cache(maxsize=1024)
def ggn_diagonal(spec: ConvSpec, columns: int | None = None) -> TensorNetwork:
    """The diagonal of the GGN (or Fisher) matrix of the weight ``Σ_n V_W[n]²`` from per-example factors.

    Slots: ``input`` ``[N, C, *I]``; ``output_grad`` ``[N, D, *O]`` (per-example gradients: the empirical
        Fisher), or
    with ``columns`` ``[V, N, D, *O]``, the columns of a factor of the loss' Hessian backpropagated to the
    output, summed over as well. Result: ``[D, C/G, *K]``.

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
    share = (*summed, "g", "d", "c", *spatial("k", spec))
    return gradient.outer(gradient, share=share).sum(*summed).named("ggn_diagonal")
