"""Bytes that the gradient of an operation needs, as opposed to those that PyTorch holds."""

from math import ceil

import torch

_KINKS = (
    *("relu", "relu_", "relu6", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "threshold", "threshold_"),
    *("clamp", "clamp_", "clamp_min", "clamp_max", "clip", "hardsigmoid", "hardshrink", "softshrink"),
    *("nansum", "nanmean", "nan_to_num"),
)
_COMPARED = (
    "maximum",
    "minimum",
    "fmax",
    "fmin",
    "max",
    "min",
    "amax",
    "amin",
    "median",
    "nanmedian",
    "abs",
    "l1_loss",
)
_ORDERED = ("sort", "msort", "topk", "kthvalue", "mode", "cummax", "cummin")
_MOVED = ("gather", "take", "take_along_dim", "masked_select", "index_add", "index_add_", "index_copy", "index_copy_")
_DROPOUT = ("dropout", "dropout_", "alpha_dropout")
_SHAPES = tuple(f"{kind}avg_pool{dims}d" for kind in ("", "adaptive_") for dims in "123")
_MAXIMA = tuple(
    f"{kind}max_pool{dims}d{ending}" for kind in ("", "adaptive_") for dims in "123" for ending in ("", "_with_indices")
)
_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
_SMOOTH = (
    *("gelu", "silu", "hardswish", "mish", "tanh", "tanh_", "sigmoid", "sigmoid_"),
    *("elu", "celu", "selu", "softplus", "logsigmoid"),
)
_LINEAR = (*(f"conv{kind}{dims}d" for kind in ("", "_transpose") for dims in "123"), "linear")
_PRODUCTS = (
    *("mul", "mul_", "__mul__", "__rmul__", "matmul", "__matmul__", "mm", "bmm", "baddbmm", "addmm", "einsum"),
    *("addcmul", "lerp", "tensordot", "bilinear", "var", "std", "norm", "vector_norm"),
    *("dot", "inner", "outer", "mv", "addmv", "addbmm", "kron", "linalg_vecdot", "linalg_cross", "cdist"),
    "pairwise_distance",
)
_QUOTIENTS = ("div", "div_", "__truediv__", "__itruediv__", "addcdiv", "logaddexp", "glu")
_DERIVED = (
    *("pow", "__pow__", "float_power", "atan2", "hypot", "logaddexp2", "xlogy", "logsumexp", "prod", "dist"),
    *("cosine_similarity", "cosine_embedding_loss", "triplet_margin_loss", "mse_loss", "smooth_l1_loss", "huber_loss"),
    *("binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div", "ctc_loss"),
)
_ROWS = ("softmax", "log_softmax", "normalize", "cross_entropy")
_MASKS = ("where", "masked_fill", "masked_fill_", "masked_scatter", "masked_scatter_", "__setitem__")

_FACTS = {
    **dict.fromkeys(_KINKS, (1, "one bit per entry says on which side of the kink it was")),
    **dict.fromkeys(_COMPARED, (2, "two bits per entry say how it compares")),
    **dict.fromkeys(_ORDERED, (0, "indices need no more than the smallest integers that can hold them")),
    **dict.fromkeys(_MOVED, (0, "the gradient needs indices and masks, not the entries")),
    **dict.fromkeys(_DROPOUT, (1, "one bit per entry says whether it was dropped")),
    **dict.fromkeys(_SHAPES, (0, "the gradient needs the shape of the input, not its entries")),
    **dict.fromkeys(
        _MAXIMA, (8, "a byte per output says where in its window the maximum was; the input is not needed")
    ),
    **dict.fromkeys(_NORMS, (4, "4 bits per entry, stochastically rounded, give an unbiased gradient")),
    **dict.fromkeys(
        _SMOOTH, (4, "4 bits per entry of the derivative, stochastically rounded, give an unbiased gradient")
    ),
    **dict.fromkeys(_LINEAR, (None, "an estimator such as Spatial(keep=1/8) holds that share of the input")),
    **dict.fromkeys((*_PRODUCTS, *_ROWS), (4, "4 bits per entry, stochastically rounded, give an unbiased gradient")),
    **dict.fromkeys(
        (*_QUOTIENTS, *_DERIVED),
        (4, "4 bits per entry of each derivative, stochastically rounded, give an unbiased gradient"),
    ),
    **dict.fromkeys(_MASKS, (1, "one bit per entry of the mask says which was chosen")),
    "prelu": (5, "one bit per entry for its sign, and 4 for the slopes' gradient, rounded, unbiased"),
    "scaled_dot_product_attention": (
        None,
        "rounding is unbiased only if probabilities are held, too, one per query and key: less where these are few",
    ),
    "multi_head_attention_forward": (None, "lean=True rounds what its linear layers, products and softmax hold"),
}


def least_bytes(operation: str, held: list[tuple[torch.dtype, int]]) -> tuple[int | None, str]:
    """Bytes that suffice for the gradient of an operation, and the reason.

    Args:
        operation: Name of the function, such as ``"relu"``.
        held: Dtype and number of entries of each tensor that it holds now.

    Returns:
        The bytes, ``None`` where nothing better is known or an estimator decides; the reason, ``""`` if none.

    Example:
        >>> least_bytes("relu", [(torch.float32, 800)])
        (100, 'one bit per entry says on which side of the kink it was')
    """
    bits, why = _FACTS.get(operation, (None, ""))
    if bits is None:
        return None, why
    total = 0
    for dtype, entries in held:
        if operation in _MAXIMA:
            total += entries if dtype == torch.int64 else 0
        elif operation in _ORDERED:
            total += 2 * entries if dtype == torch.int64 else 0  # of up to 32768 entries
        elif dtype == torch.bool and operation in (*_MASKS, *_MOVED):
            total += ceil(entries / 8)
        elif dtype.is_floating_point:
            total += min(entries * dtype.itemsize, ceil(entries * bits / 8))
        else:
            total += entries * dtype.itemsize
    return total, why
