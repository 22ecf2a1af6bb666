"""The table of lean mode: each function, what its derivative needs, and how that is held.

A new elementwise function is one row. ``docs/lean.md`` is written from this table.
"""

from collections.abc import Hashable
from functools import partial
from math import inf

from torch.nn import functional as F

from . import bilinear, comparisons, deviation, dropout, indexing, losses, norms, pooling, slope_needs, softmax
from .attention import attention
from .composites import lean_inside
from .kinks import RELU, SIXTH, Kink, Sides, clamp
from .needs import (
    DROPPED,
    INSIDE,
    LAYER,
    MASK,
    MOVES,
    ORDER,
    PLACES,
    POLES,
    ROUNDED,
    SHAPE,
    SIDE,
    SLOPE,
    WINDOW,
    Held,
    Own,
    Rule,
    Sample,
    table,
)
from .prelu import prelu
from .slope_needs import Activation, ByAutograd, Range, Slope, Slopes, fused

POSITIVE, WITHIN, ABOVE, SHARE = (0.3, 4.0), (-0.95, 0.95), (1.1, 4.0), (0.05, 0.95)
ONE, TWO = Sample(), Sample(tensors=2)
QUOTIENT = Sample(POSITIVE, tensors=2)

SELU = (1.7580993408473766, 1.0507009873554805)
"""SELU's scale times its alpha, and its scale."""

_SLOPES_OF_PRELU = Held(5, "one bit per entry for its sign, and 4 for the slopes' gradient, rounded, unbiased")
_PROBABILITIES = Held(
    None, "rounding is unbiased only if probabilities are held, too, one per query and key: less where these are few"
)

KINKS = [
    Rule("relu", Kink(lambda input, inplace=False: RELU), "exact", ONE),
    Rule("F.relu6", Kink(lambda input, inplace=False: Sides("between", 0.0, 6.0)), "exact", ONE),
    # (For NaN PyTorch's vectorised and scalar kernels disagree; this is the vectorised one's zero.)
    Rule(
        "F.hardtanh F.hardtanh_",
        Kink(lambda input, min_val=-1.0, max_val=1.0, inplace=False: Sides("between", min_val, max_val)),
        *("exact", ONE),
    ),
    Rule(
        "F.leaky_relu",  # PyTorch refuses to differentiate it in place with a negative slope
        Kink(
            lambda input, negative_slope=0.01, inplace=False: (
                None if inplace and negative_slope < 0 else Sides("over", other=negative_slope)
            )
        ),
        *("exact", ONE),
    ),
    Rule(
        "threshold",
        Kink(lambda input, threshold, value, inplace=False: Sides("not_under", threshold)),
        *("exact", Sample(options=(0.5, 7.0))),
    ),
    Rule("F.hardsigmoid", Kink(lambda input, inplace=False: Sides("between", -3.0, 3.0, SIXTH)), "exact", ONE),
    Rule("clamp clip", Own(clamp, SIDE), "exact", Sample(options=(-1.0, 0.5))),
    Rule("clamp_min", Own(lambda call, input, min: clamp(call, input, min), SIDE), "exact", Sample(options=(0.5,))),
    Rule(
        "clamp_max", Own(lambda call, input, max: clamp(call, input, None, max), SIDE), "exact", Sample(options=(0.5,))
    ),
    Rule("prelu", Own(prelu, _SLOPES_OF_PRELU), "exact"),
]

ACTIVATIONS = [
    Rule(
        "F.gelu",  # the extremes are at ±√2: 0.5 ± 0.6290 (with tanh 0.6291)
        Activation(
            lambda input, approximate="none": fused(-0.13, 1.13, "gelu_tanh" if approximate == "tanh" else "gelu")
        ),
        sample=ONE,
    ),
    Rule("F.silu", Activation(lambda input, inplace=False: fused(-0.1, 1.1, "silu")), sample=ONE),  # -0.0998, 1.0998
    Rule("F.hardswish", Activation(lambda input, inplace=False: fused(-0.5, 1.5, "hardswish")), sample=ONE),
    Rule("F.mish", Activation(lambda input, inplace=False: fused(-0.12, 1.09, "mish")), sample=ONE),  # -0.1132, 1.0885
    Rule("torch.tanh Tensor.tanh F.tanh", Activation(lambda input: fused(0.0, 1.0, "tanh", 2.0)), sample=ONE),
    Rule("torch.sigmoid Tensor.sigmoid F.sigmoid", Activation(lambda input: fused(0, 0.25, "sigmoid")), sample=ONE),
    Rule(
        "F.softplus",
        Activation(lambda input, beta=1.0, threshold=20.0: fused(0.0, 1.0, "softplus", beta, threshold)),
        sample=ONE,
    ),
    Rule("F.logsigmoid", Activation(lambda input: fused(0.0, 1.0, "softplus", -1.0, inf)), sample=ONE),
    Rule(
        "F.elu",
        Activation(
            lambda input, alpha=1.0, inplace=False: (
                None if alpha < 0 else fused(0.0, max(1.0, alpha), "elu", 1.0, alpha, 1.0)
            )
        ),
        sample=ONE,
    ),
    Rule(
        "F.celu torch.celu",
        Activation(
            lambda input, alpha=1.0, inplace=False: None if alpha <= 0 else fused(0.0, 1.0, "elu", 1 / alpha, 1.0, 1.0)
        ),
        sample=ONE,
    ),
    Rule("F.selu", Activation(lambda input, inplace=False: fused(0, 1.7581, "elu", 1.0, *SELU)), sample=ONE),
    Rule("F.softsign F.tanhshrink", Activation(lambda input: Range(0.0, 1.0)), sample=ONE),
]

ELEMENTWISE = [
    Rule("asinh arcsinh atan arctan hardshrink softshrink tanh_", Slope((0, 1)), sample=ONE),
    Rule("cos sin", Slope((-1, 1)), sample=ONE),
    Rule("erf", Slope((0, 1.12838)), sample=ONE),  # 2 / √π = 1.128379
    Rule("erfc", Slope((-1.12838, 0)), sample=ONE),
    Rule("expit sigmoid_", Slope((0, 0.25)), sample=ONE),
    Rule("ndtr", Slope((0, 0.39895)), sample=ONE),  # 1 / √(2π) = 0.398942
    Rule("torch.selu selu_", Slope((0, 1.7581)), sample=ONE),
    Rule("sinc", Slope((-1.3705, 1.3705)), sample=ONE),  # π · 0.436182 = 1.370306
    Rule("cosh exp exp2 expm1 sinh square i0 i0e i1 i1e log_ndtr", Slope(), sample=ONE),
    Rule("erfcx", Slope(), sample=Sample(POSITIVE)),
    Rule("Tensor.__rpow__", Slope(), sample=Sample(POSITIVE, options=(2,))),
    Rule("acos arccos asin arcsin atanh arctanh erfinv tan", Slope(poles=True), sample=Sample(WITHIN)),
    Rule("acosh arccosh", Slope(poles=True), sample=Sample(ABOVE)),
    Rule("digamma psi lgamma gammaln entr log log10 log1p log2", Slope(poles=True), sample=Sample(POSITIVE)),
    Rule("reciprocal rsqrt sqrt", Slope(poles=True), sample=Sample(POSITIVE)),
    Rule("logit ndtri", Slope(poles=True), sample=Sample(SHARE)),
    Rule("mvlgamma multigammaln", Slope(poles=True), sample=Sample(ABOVE, options=(2,))),
    Rule("Tensor.__rdiv__ Tensor.__rtruediv__", Slope(poles=True), sample=Sample(POSITIVE, options=(2,))),
    Rule("pow_ Tensor.__ipow__ float_power_", Slope(poles="powers")),
]

SEVERAL = [
    Rule(
        "div divide true_divide Tensor.__truediv__ Tensor.__itruediv__", Slopes(slope_needs.quotient), sample=QUOTIENT
    ),
    Rule("torch.addcdiv Tensor.addcdiv", Slopes(slope_needs.sum_and_quotient)),
    Rule("logaddexp", Slopes(slope_needs.log_of_sum, poles=False), sample=TWO),
    Rule("F.glu", Slopes(slope_needs.gated, poles=False)),
    Rule("torch.pow Tensor.pow Tensor.__pow__", ByAutograd(expand=True, single=Slope(poles="powers"))),
    Rule("torch.float_power Tensor.float_power", ByAutograd(expand=True, single=Slope(poles="powers"), double=True)),
    Rule("torch.xlogy Tensor.xlogy special.xlogy special.xlog1py", ByAutograd(expand=True), sample=QUOTIENT),
    Rule("torch.atan2 Tensor.atan2 torch.arctan2 Tensor.arctan2", ByAutograd(expand=True), sample=QUOTIENT),
    Rule("torch.hypot Tensor.hypot", ByAutograd(expand=True), sample=QUOTIENT),
    Rule(
        "torch.logaddexp2 Tensor.logaddexp2 torch.remainder Tensor.remainder", ByAutograd(expand=True), sample=QUOTIENT
    ),
    Rule("Tensor.__mod__ torch.fmod Tensor.fmod", ByAutograd(expand=True), sample=QUOTIENT),
    Rule("torch.copysign Tensor.copysign torch.ldexp Tensor.ldexp", ByAutograd(expand=True), sample=TWO),
]

REDUCTIONS = [
    Rule("logsumexp", ByAutograd(lambda input, dim, keepdim=False: dim)),
    Rule("prod", ByAutograd(lambda input, dim=(), keepdim=False, *, dtype=None: dim)),
    Rule("std", ByAutograd(deviation.dims_of_deviation, poles=False)),
    Rule("dist F.ctc_loss", ByAutograd()),
    Rule("F.cosine_similarity", ByAutograd(lambda x1, x2, dim=1, eps=1e-8: dim, expand=True, poles=False)),
    Rule("linalg.norm", ByAutograd(deviation.dims_of_norm, poles=False)),
    Rule("linalg.vector_norm", Own(deviation.vector_norm, SLOPE), "exact"),
    Rule("var torch.var_mean torch.std_mean", Own(deviation.variance, ROUNDED)),
    Rule("cdist", Own(deviation.distances, ROUNDED)),
    Rule("F.pairwise_distance", Own(deviation.pairwise_distance, INSIDE)),
    Rule("softmax", Own(softmax.softmax, ROUNDED)),
    Rule("log_softmax", Own(softmax.log_softmax, ROUNDED)),
    Rule("F.normalize", Own(softmax.normalize, ROUNDED)),
    Rule("F.batch_norm", Own(norms.batch_norm, ROUNDED), "exact"),
    Rule("F.group_norm", Own(norms.group_norm, ROUNDED)),
    Rule("F.instance_norm", Own(norms.instance_norm, ROUNDED)),
    Rule("F.layer_norm", Own(norms.layer_norm, ROUNDED)),
    Rule("F.rms_norm", Own(norms.rms_norm, ROUNDED)),
]

LOSSES = [
    Rule("F.mse_loss F.smooth_l1_loss F.huber_loss", ByAutograd(poles=False), sample=TWO),
    Rule("F.binary_cross_entropy F.binary_cross_entropy_with_logits F.poisson_nll_loss", ByAutograd(poles=False)),
    Rule("F.gaussian_nll_loss F.soft_margin_loss F.hinge_embedding_loss", ByAutograd(poles=False)),
    Rule(
        "F.multi_margin_loss F.multilabel_margin_loss F.multilabel_soft_margin_loss F.cosine_embedding_loss "
        "F.triplet_margin_loss",
        ByAutograd(lambda *args, **kwargs: -1, poles=False),
    ),
    Rule("F.kl_div", ByAutograd(losses.divergence, poles=False)),
    Rule("F.cross_entropy", Own(losses.cross_entropy, ROUNDED)),
    Rule("F.nll_loss", Own(losses.nll_loss, SHAPE), "exact"),
    Rule("F.l1_loss", Own(losses.l1_loss, ORDER), "exact"),
]

CHOICES = [
    Rule("maximum minimum", Own(comparisons.between, ORDER), "exact"),
    Rule("fmax", Own(comparisons.larger, SIDE), "exact"),
    Rule("fmin", Own(comparisons.smaller, SIDE), "exact"),
    Rule("amax amin", Own(comparisons.extreme_of_rows, SIDE), "exact"),
    Rule("max min", Own(comparisons.extreme_or_choice, ORDER), "exact"),
    Rule("median nanmedian", Own(comparisons.median, SIDE), "exact"),
    Rule("abs absolute Tensor.__abs__", Own(comparisons.signs, ORDER), "exact"),
    Rule("nansum nanmean", Own(comparisons.not_a_number, SIDE), "exact"),
    Rule("torch.nan_to_num Tensor.nan_to_num", Own(comparisons.finite, SIDE), "exact"),
    Rule("cummax cummin kthvalue mode msort sort topk", Own(indexing.with_indices, PLACES), "exact"),
    Rule("gather take take_along_dim masked_select index_add index_copy", Own(indexing.moved, MOVES), "exact"),
    Rule("scatter_reduce", Own(indexing.scatter_reduce, MOVES), "exact"),
    Rule("Tensor.__getitem__", Own(indexing.items, MOVES), "exact"),
    Rule("F.pad", Own(indexing.pad, MOVES), "exact"),
    Rule("F.grid_sample", Own(indexing.grid_sample, ROUNDED), "exact"),
    Rule("where masked_fill masked_scatter Tensor.__setitem__", Own(indexing.masked, MASK), "exact"),
    Rule("F.dropout", Own(dropout.dropout, DROPPED), "exact"),
    Rule("torch.dropout torch.dropout_", Own(dropout.torch_dropout, DROPPED), "exact"),
    Rule("F.alpha_dropout", Own(dropout.alpha_dropout, DROPPED), "exact"),
]


def _pools(dims: int) -> list[Rule]:
    """Poolings of so many dimensions."""
    most, adaptive = f"max_pool{dims}d", f"adaptive_max_pool{dims}d"
    mean = f"F.avg_pool{dims}d F.adaptive_avg_pool{dims}d"
    return [
        Rule(f"F.{most} F.{most}_with_indices torch.{most}", Own(partial(pooling.max_pool, dims), WINDOW), "exact"),
        Rule(f"F.{adaptive} F.{adaptive}_with_indices", Own(partial(pooling.adaptive_max_pool, dims), WINDOW), "exact"),
        Rule(mean, Own(partial(pooling.avg_pool, dims), SHAPE), "exact"),
        Rule(f"F.lp_pool{dims}d", Own(partial(pooling.power_pool, dims), POLES), "exact"),
    ]


_PRODUCT, _CAST = partial(bilinear.product, False), partial(bilinear.product, True)

PRODUCTS = [
    Rule("mul multiply Tensor.__mul__ Tensor.__rmul__ Tensor.__imul__", Own(_PRODUCT, ROUNDED), "exact"),
    Rule("addcmul lerp tensordot F.bilinear kron linalg.vecdot linalg.cross cross", Own(_PRODUCT, ROUNDED), "exact"),
    Rule("matmul linalg.matmul Tensor.__matmul__ Tensor.__rmatmul__", Own(_CAST, ROUNDED), "exact"),
    Rule("bmm mm torch.baddbmm Tensor.baddbmm torch.addmm Tensor.addmm", Own(_CAST, ROUNDED), "exact"),
    Rule("torch.addbmm Tensor.addbmm einsum", Own(_CAST, ROUNDED), "exact"),
    Rule("mv torch.addmv Tensor.addmv torch.addr Tensor.addr outer dot vdot inner", Own(_PRODUCT, ROUNDED), "exact"),
    Rule("F.linear F.conv1d F.conv2d F.conv3d", Own(_CAST, LAYER), "exact"),
    Rule("F.conv_transpose1d F.conv_transpose2d F.conv_transpose3d", Own(_CAST, LAYER), "exact"),
    Rule("F.scaled_dot_product_attention", Own(attention, _PROBABILITIES)),
    Rule("F.multi_head_attention_forward F.local_response_norm F.softmin", Own(lean_inside, INSIDE), "exact"),
    Rule("F.gumbel_softmax F.triplet_margin_with_distance_loss", Own(lean_inside, INSIDE), "exact"),
    Rule("torch.norm Tensor.norm", Own(lean_inside, INSIDE), "exact"),
]

SECTIONS: dict[str, list[Rule]] = {
    "Functions with a kink": KINKS,
    "Activations": ACTIVATIONS,
    "Functions of several tensors": SEVERAL,
    "Functions of one tensor": ELEMENTWISE,
    "Reductions and normalisations": REDUCTIONS,
    "Losses": LOSSES,
    "Choice, order and movement of entries": CHOICES,
    "Pooling": [rule for dims in (1, 2, 3) for rule in _pools(dims)],
    "Products and attention": PRODUCTS,
}
"""The rows by family, as the documentation has them."""

TABLE = [rule for rules in SECTIONS.values() for rule in rules]
"""All rows."""

RULES = table(TABLE)
"""The row of each function."""

BY_NAME: dict[str, Rule] = {
    **{function.__name__: rule for function, rule in RULES.items()},
    **{
        name: RULES[function]
        for name, function in vars(F).items()
        if isinstance(function, Hashable) and function in RULES
    },
}
"""The row of each function by the name under which reports show it."""
