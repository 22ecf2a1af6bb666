"""Layers, their derivatives and their unfoldings: convolutions, linear layers and transposed convolutions alike.

Shapes and formulas are those of a convolution. A transposed one has a weight ``[C, D/G, *K]``, and its index patterns
are reversed: ``Π[o, i, k]``.
"""

from functools import lru_cache

from ...layers.layer_specs import LayerSpec
from ..interface import TensorNetwork
from .layer_legs import LayerLegs


@lru_cache(maxsize=1024)
def conv(spec: LayerSpec) -> TensorNetwork:
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
    legs = LayerLegs(spec)
    return legs.network("conv", {"input": legs.input}, legs.output, {"weight": legs.weight})


@lru_cache(maxsize=1024)
def weight_vjp(spec: LayerSpec) -> TensorNetwork:
    """The weight VJP ``V_W[g d, c, k] = Σ_{n i o} X Π V_Y[n, g d, o]``.

    Slots: ``input`` ``[N, C, *I]``, ``output_grad`` ``[N, D, *O]``. Result: ``[D, C/G, *K]``.

    Example:
        >>> from randbp import tn
        >>> tn.weight_vjp(tn.ConvSpec((2, 3, 8, 8), 4, 3)).output_shape
        (4, 3, 3, 3)
    """
    return conv(spec).vjp("weight").named("weight_vjp")


@lru_cache(maxsize=1024)
def input_vjp(spec: LayerSpec) -> TensorNetwork:
    """The input VJP ``V_X[n, g c, i] = Σ_{d o k} W Π V_Y``.

    Slots: ``weight`` ``[D, C/G, *K]``, ``output_grad`` ``[N, D, *O]``. Result: ``[N, C, *I]``.

    Example:
        >>> from randbp import tn
        >>> tn.input_vjp(tn.ConvSpec((2, 3, 8, 8), 4, 3)).output_shape
        (2, 3, 8, 8)
    """
    return conv(spec).vjp("input").named("input_vjp")


@lru_cache(maxsize=1024)
def weight_jvp(spec: LayerSpec) -> TensorNetwork:
    """The weight JVP: the convolution with the weight replaced by its tangent.

    Slots: ``input`` ``[N, C, *I]``, ``weight_tangent`` ``[D, C/G, *K]``. Result: ``[N, D, *O]``.

    Example:
        >>> from randbp import tn
        >>> list(tn.weight_jvp(tn.ConvSpec((2, 3, 8), 4, 3)).slots)
        ['input', 'weight_tangent']
    """
    return conv(spec).jvp("weight").named("weight_jvp")


@lru_cache(maxsize=1024)
def input_jvp(spec: LayerSpec) -> TensorNetwork:
    """The input JVP: the convolution with the input replaced by its tangent.

    Slots: ``input_tangent`` ``[N, C, *I]``, ``weight`` ``[D, C/G, *K]``. Result: ``[N, D, *O]``.

    Example:
        >>> from randbp import tn
        >>> list(tn.input_jvp(tn.ConvSpec((2, 3, 8), 4, 3)).slots)
        ['input_tangent', 'weight']
    """
    return conv(spec).jvp("input").named("input_jvp")


@lru_cache(maxsize=1024)
def unfold(spec: LayerSpec) -> TensorNetwork:
    """The unfolded input (im2col) ``U[n, c k, o] = Σ_i X Π``.

    Slot: ``input`` ``[N, C, *I]``. Result: ``[N, C·ΠK, ΠO]``, as `torch.nn.functional.unfold`, in any dimension.

    Example:
        >>> import torch
        >>> from randbp import tn
        >>> x = torch.randn(2, 3, 8, 8)
        >>> u = tn.unfold(tn.ConvSpec((2, 3, 8, 8), 1, 3, stride=2)).contract(input=x)
        >>> torch.equal(u, torch.nn.functional.unfold(x, 3, stride=2))
        True
    """
    legs = LayerLegs(spec)
    return legs.network("unfold", {"input": legs.input}, (("n",), ("g", "c", *legs.k), legs.o))


@lru_cache(maxsize=1024)
def fold(spec: LayerSpec) -> TensorNetwork:
    """The adjoint of `unfold` (col2im): overlapping entries are added up.

    Slot: ``output_grad`` ``[N, C·ΠK, ΠO]``. Result: ``[N, C, *I]``, as `torch.nn.functional.fold`.

    Example:
        >>> from randbp import tn
        >>> tn.fold(tn.ConvSpec((2, 3, 8, 8), 1, 3)).output_shape
        (2, 3, 8, 8)
    """
    return unfold(spec).vjp("input").named("fold")


@lru_cache(maxsize=1024)
def unfolded_kernel(spec: LayerSpec) -> TensorNetwork:
    """The unfolded kernel: per group the Toeplitz matrix that maps the flattened input to the flattened output.

    Slot: ``weight`` ``[D, C/G, *K]``. Result: ``[G, D/G·ΠO, C/G·ΠI]``; without groups ``[D·ΠO, C·ΠI]``.

    Example:
        >>> import torch
        >>> from randbp import tn
        >>> net = tn.unfolded_kernel(tn.ConvSpec((1, 1, 4), 1, 2))
        >>> net.contract(weight=torch.tensor([[[1.0, 2.0]]])).tolist()
        [[1.0, 2.0, 0.0, 0.0], [0.0, 1.0, 2.0, 0.0], [0.0, 0.0, 1.0, 2.0]]
    """
    legs = LayerLegs(spec)
    matrix = (("d", *legs.o), ("c", *legs.i))
    output = (("g",), *matrix) if spec.groups > 1 else matrix
    return legs.network("unfolded_kernel", {"weight": legs.weight}, output)


@lru_cache(maxsize=1024)
def per_example_weight_vjp(spec: LayerSpec) -> TensorNetwork:
    """The weight VJP of every example: the batch leg is kept.

    Slots: ``input`` ``[N, C, *I]``, ``output_grad`` ``[N, D, *O]``. Result: ``[N, D, C/G, *K]``.

    Example:
        >>> from randbp import tn
        >>> tn.per_example_weight_vjp(tn.ConvSpec((2, 3, 8, 8), 4, 3)).output_shape
        (2, 4, 3, 3, 3)
    """
    return weight_vjp(spec).with_leg("n").named("per_example_weight_vjp")
