"""All functions with a lean rule: how each is called, and what it holds.

A row serves all functions of its names: a function of ``torch``, the method, the version in place, aliases. Names are
written without ``special_``, ``linalg_`` and underscores. Rules with a sample make their rows themselves; others are a
name in a row here, and a test finds out if it is missing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from randbp.lean.needs import functions_of
from randbp.lean.rules import TABLE
from randbp.lean.slope_needs import Activation, Slope

Span = tuple[float, float]
ANY, POSITIVE, WITHIN, ABOVE, SHARE = (-3.0, 3.0), (0.3, 4.0), (-0.95, 0.95), (1.1, 4.0), (0.05, 0.95)
PAGE, LINE = (64, 96), (6144,)
SIGNAL, IMAGE, VOLUME = (8, 8, 96), (4, 6, 16, 16), (2, 6, 8, 8, 8)


@dataclass(frozen=True)
class Row:
    """Functions that are called alike.

    Attributes:
        names: Of the functions.
        bits: Held per entry of the inputs: by exact rules alone (``None``: as much as by PyTorch), and where they may
            be rounded to 4 bits; to two decimals.
        inputs: Span and shape of each tensor that wants a gradient.
        call: The call.
    """

    names: str
    bits: tuple[float | None, float]
    inputs: tuple[tuple[Span, tuple[int, ...]], ...] = ((ANY, PAGE),)
    call: Callable[..., Any] = lambda function, *inputs: function(*inputs)

    @property
    def entries(self) -> int:
        """Of all inputs."""
        return sum(prod(shape) for _, shape in self.inputs)

    def tensors(self) -> list[Tensor]:
        """The inputs."""
        generator = torch.Generator().manual_seed(0)
        return [
            (low + (high - low) * torch.rand(shape, generator=generator)).requires_grad_()
            for (low, high), shape in self.inputs
        ]


def of(span: Span, *shapes: tuple[int, ...]) -> tuple[tuple[Span, tuple[int, ...]], ...]:
    """Inputs of one span."""
    return tuple((span, shape) for shape in shapes or (PAGE,))


GENERATOR = torch.Generator().manual_seed(1)
MASK = torch.rand(PAGE, generator=GENERATOR) > 0.4
PLACES = torch.randint(0, 64, PAGE, generator=GENERATOR)
CLASSES = PLACES[:, 0].clone()
SIGNS = torch.where(CLASSES % 2 == 0, 1.0, -1.0)
SHARES = torch.softmax(torch.randn(PAGE, generator=GENERATOR), 1)
LABELS = torch.where(PLACES < 10, PLACES, -1)
GRID = torch.rand(4, 9, 10, 2, generator=GENERATOR) * 2.2 - 1.1
WORDS, LENGTHS = torch.arange(1, 41).view(4, 10) % 35 + 1, torch.tensor([30, 28, 30, 25])
TWO = of(ANY, PAGE, PAGE)


def _set(function: Callable[..., Any], x: Tensor) -> Tensor:
    function(x, MASK, -2.0)
    return x


def _power(function: Callable[..., Any], x: Tensor, y: Tensor) -> Any:
    """In place by a number, which is what there is a rule for."""
    return function(x, 2.5 if function.__name__.endswith("_") else y)


def _pool(function: Callable[..., Any], x: Tensor) -> Any:
    return function(x, 2)


def _weighted(function: Callable[..., Any], x: Tensor, *rest: Tensor) -> Any:
    """Batch norm with running statistics, as modules call it."""
    channels = x.shape[1]
    return function(x, torch.zeros(channels), torch.ones(channels), *rest, training=True)


WRITTEN: tuple[Row, ...] = (
    # One side of a kink, or how entries compare.
    Row("nan_to_num", (1, 1)),
    Row("nansum", (1, 1), call=lambda f, x: f(x, 0)),
    Row("nanmean", (2, 2), call=lambda f, x: f(x, 0)),
    Row("abs absolute", (2, 2)),
    Row("median nanmedian max min amax amin", (1, 1), of(ANY, LINE)),
    Row("maximum minimum", (1, 1), TWO),
    Row("fmax fmin", (0.5, 0.5), TWO),
    Row("prelu", (32, 5.28), (*of(ANY, IMAGE), *of(SHARE, (6,)))),
    Row("l1_loss", (1, 1), TWO),
    # Indices and masks.
    Row("max_pool1d max_pool1d_with_indices", (0.5, 0.5), of(ANY, SIGNAL), _pool),
    Row("max_pool2d max_pool2d_with_indices", (0.5, 0.5), of(ANY, IMAGE), _pool),
    Row("max_pool3d max_pool3d_with_indices", (0.5, 0.5), of(ANY, VOLUME), _pool),
    Row("adaptive_max_pool1d adaptive_max_pool1d_with_indices", (0.58, 0.58), of(ANY, SIGNAL), lambda f, x: f(x, 7)),
    Row("adaptive_max_pool2d adaptive_max_pool2d_with_indices", (1.53, 1.53), of(ANY, IMAGE), lambda f, x: f(x, 7)),
    Row("adaptive_max_pool3d adaptive_max_pool3d_with_indices", (0.84, 0.84), of(ANY, VOLUME), lambda f, x: f(x, 3)),
    Row("avg_pool1d adaptive_avg_pool1d", (0, 0), of(ANY, SIGNAL), _pool),
    Row("avg_pool2d adaptive_avg_pool2d", (0, 0), of(ANY, IMAGE), _pool),
    Row("avg_pool3d adaptive_avg_pool3d", (0, 0), of(ANY, VOLUME), _pool),
    Row("cummax cummin", (8, 8), call=lambda f, x: f(x, 1)),
    Row("mode", (0.67, 0.67), call=lambda f, x: f(x, 1)),
    Row("kthvalue", (0.67, 0.67), call=lambda f, x: f(x, 60)),
    Row("topk", (40, 40), call=lambda f, x: f(x, 60)),
    Row("sort msort", (8, 8)),
    Row("gather", (0, 0), call=lambda f, x: f(x, 0, PLACES)),
    Row("take", (0, 0), call=lambda f, x: f(x, PLACES)),
    Row("take_along_dim", (8, 8), call=lambda f, x: f(x, PLACES, 0)),
    Row("index_add", (0, 0), TWO, lambda f, x, y: f(x, 0, CLASSES, y)),
    Row("index_copy", (0.33, 0.33), TWO, lambda f, x, y: f(x, 0, torch.arange(64).flip(0), y)),
    Row("scatter_reduce", (0, 0), TWO, lambda f, x, y: f(x, 0, PLACES, y, "sum")),
    Row("masked_select getitem", (1, 1), call=lambda f, x: f(x, MASK)),
    Row("masked_fill", (1, 1), call=lambda f, x: f(x, MASK, 0.5)),
    Row("masked_scatter", (0.5, 0.5), TWO, lambda f, x, y: f(x, MASK, y)),
    Row("setitem", (1, 1), call=_set),
    Row("where", (0.5, 0.5), TWO, lambda f, x, y: f(MASK, x, y) if f is torch.where else f(x, MASK, y)),
    Row("dropout alpha_dropout", (1, 1), call=lambda f, x: f(x, 0.3, True)),
    Row("pad", (0, 0), of(ANY, IMAGE), lambda f, x: f(x, (1, 2, 3, 4), mode="reflect")),
    Row("grid_sample", (0, 0), of(ANY, IMAGE), lambda f, x: f(x, GRID, align_corners=False)),
    Row("nll_loss", (0.01, 0.01), call=lambda f, x: f(x, CLASSES)),
    # Slopes.
    Row("pow", (48, 5.25), of(POSITIVE, PAGE, PAGE), _power),
    Row("float_power", (96, 5.25), of(POSITIVE, PAGE, PAGE), _power),
    Row("addcdiv", (21.33, 3.5), of(POSITIVE, PAGE, PAGE, PAGE)),
    Row("glu", (32, 4.25), of(ANY, (64, 192))),
    Row("logsumexp", (32.33, 5.25), call=lambda f, x: f(x, 1)),
    Row("prod", (36, 5.25), of(SHARE, (768, 8)), lambda f, x: f(x, 1)),
    Row("dist", (32, 5.25), TWO),
    Row("cosine_similarity", (64.67, 4.25), TWO),
    Row("kl_div", (32, 4.25), (*of(ANY), *of(SHARE)), lambda f, x, y: f(x, y, reduction="batchmean")),
    Row("binary_cross_entropy", (32, 4.25), of(SHARE), lambda f, x: f(x, SHARES)),
    Row("binary_cross_entropy_with_logits", (32, 4.25), call=lambda f, x: f(x, SHARES)),
    Row("multilabel_soft_margin_loss", (160, 4.25), call=lambda f, x: f(x, SHARES)),
    Row("poisson_nll_loss", (32, 4.25), call=lambda f, x: f(x, SHARES)),
    Row("gaussian_nll_loss", (48, 4.25), (*of(ANY), *of(POSITIVE)), lambda f, x, y: f(x, SHARES, y)),
    Row("soft_margin_loss", (64, 4.25), call=lambda f, x: f(x, SHARES.sub(0.01).sign())),
    Row("hinge_embedding_loss", (48, 4.25), call=lambda f, x: f(x, SHARES.sub(0.01).sign())),
    Row("multi_margin_loss", (32, 4.25), call=lambda f, x: f(x, CLASSES)),
    Row("multilabel_margin_loss", (64, 4.25), call=lambda f, x: f(x, LABELS)),
    Row("cosine_embedding_loss", (32.92, 4.25), TWO, lambda f, x, y: f(x, y, SIGNS)),
    Row("triplet_margin_loss", (21.67, 4.25), of(ANY, PAGE, PAGE, PAGE)),
    Row("triplet_margin_with_distance_loss", (21.56, 2.84), of(ANY, PAGE, PAGE, PAGE)),
    Row(
        *("ctc_loss", (42.58, 9.52), of(ANY, (30, 4, 64))),
        lambda f, x: f(x.log_softmax(2), WORDS, LENGTHS, torch.full((4,), 10)),
    ),
    # Rows.
    Row("softmax log_softmax softmin gumbel_softmax", (32, 4.26), call=lambda f, x: f(x, dim=1)),
    Row("normalize", (32.67, 4.59)),
    Row("cross_entropy", (32.01, 4.27), call=lambda f, x: f(x, CLASSES)),
    Row("var var_mean", (32, 4.25)),
    Row("std norm vector_norm", (32.01, 4.25)),
    Row("std_mean", (32.01, 4.26)),
    Row("pairwise_distance", (16.17, 2.12), TWO),
    Row("cdist", (42.67, 14.92), TWO),
    Row("batch_norm", (32.09, 4.3), (*of(ANY, IMAGE), *of(POSITIVE, (6,), (6,))), _weighted),
    Row("group_norm", (32.08, 4.38), of(ANY, IMAGE), lambda f, x: f(x, 2)),
    Row("instance_norm", (32.25, 4.38), of(ANY, IMAGE)),
    Row("layer_norm", (32.67, 4.58), call=lambda f, x: f(x, (96,))),
    Row("rms_norm", (32.33, 4.58), call=lambda f, x: f(x, (96,))),
    Row("local_response_norm", (96, 20), of(POSITIVE, IMAGE), lambda f, x: f(x, 3)),
    Row("lp_pool1d", (96.5, 53.75), of(POSITIVE, SIGNAL), lambda f, x: f(x, 3.0, 2)),
    Row("lp_pool2d", (64.25, 29.5), of(POSITIVE, IMAGE), lambda f, x: f(x, 3.0, 2)),
    Row("lp_pool3d", (48.12, 17.38), of(POSITIVE, VOLUME), lambda f, x: f(x, 3.0, 2)),
    # Products.
    Row("mul rmul imul multiply", (32, 4.25), TWO),
    Row("matmul rmatmul mm", (32, 4.25), of(ANY, (64, 64), (64, 64))),
    Row("inner vecdot kron", (32, 4.25), of(ANY, (64, 64), (64, 64))),
    Row("cross", (32, 4.25), of(ANY, (2048, 3), (2048, 3)), lambda f, x, y: f(x, y, dim=1)),
    Row("bmm", (32, 4.25), of(ANY, (4, 32, 32), (4, 32, 32))),
    Row("dot vdot", (32, 4.25), of(ANY, LINE, LINE)),
    Row("outer", (32, 4.68), of(ANY, (96,), LINE)),
    Row("mv", (32, 4.68), of(ANY, PAGE, (96,))),
    Row("addmm", (21.33, 2.83), of(ANY, (64, 64), (64, 64), (64, 64))),
    Row("addmv", (31.68, 4.63), of(ANY, (64,), PAGE, (96,))),
    Row("addr", (0.33, 0.05), of(ANY, (96, 6144), (96,), LINE)),
    Row("addbmm", (28.44, 3.78), of(ANY, (32, 32), (4, 32, 32), (4, 32, 32))),
    Row("baddbmm", (21.33, 2.83), of(ANY, (4, 32, 32), (4, 32, 32), (4, 32, 32))),
    Row("addcmul", (21.33, 2.83), of(ANY, PAGE, PAGE, PAGE)),
    Row("lerp", (32, 4.25), of(ANY, PAGE, PAGE, PAGE)),
    Row("einsum", (32, 4.25), TWO, lambda f, x, y: f("ij,ij->i", x, y)),
    Row("tensordot", (32, 4.25), TWO, lambda f, x, y: f(x, y, ([0], [0]))),
    Row("bilinear", (32, 4.25), of(ANY, PAGE, PAGE, (3, 96, 96))),
    Row("linear", (32, 13.5), of(ANY, PAGE, (32, 96))),
    Row("conv1d", (32, 5.09), of(ANY, SIGNAL, (8, 8, 3))),
    Row("conv2d", (32, 5.64), of(ANY, IMAGE, (6, 6, 3, 3))),
    Row("conv3d", (32, 8.04), of(ANY, VOLUME, (6, 6, 3, 3, 3))),
    Row("conv_transpose1d", (32, 5.09), of(ANY, SIGNAL, (8, 8, 3))),
    Row("conv_transpose2d", (32, 5.64), of(ANY, IMAGE, (6, 6, 3, 3))),
    Row("conv_transpose3d", (32, 8.04), of(ANY, VOLUME, (6, 6, 3, 3, 3))),
    Row("scaled_dot_product_attention", (42.83, 4.96), of(ANY, (2, 4, 32, 64), (2, 4, 32, 64), (2, 4, 32, 64))),
    Row(
        *("multi_head_attention_forward", (57.9, 7.49), of((-0.3, 0.3), (16, 4, 96), (288, 96), (96, 96))),
        lambda f, x, w, v: f(x, x, x, 96, 4, w, torch.zeros(288), None, None, False, 0.0, v, torch.zeros(96)),
    ),
)


def base_name(function: Callable[..., Any]) -> str:
    """The name of a function in this table.

    >>> base_name(torch.Tensor.__rmul__), base_name(torch.special.expit), base_name(torch.relu_)
    ('rmul', 'expit', 'relu')
    """
    name = function.__name__
    return name if name == "_threshold" else name.removeprefix("special_").removeprefix("linalg_").strip("_")


def made() -> dict[str, Row]:
    """The rows of rules with a sample."""
    rows = {}
    for rule in TABLE:
        if rule.sample is None:
            continue
        sample, held = rule.sample, rule.need.held
        assert held.bits is not None
        grid = isinstance(rule.need, Activation) or (isinstance(rule.need, Slope) and rule.need.range is not None)
        bits = held.bits if grid or rule.level == "exact" else held.bits + 1 / 4  # two scales for 256 entries
        inputs = of(sample.span, *(PAGE,) * sample.tensors)
        options = sample.options
        for name in {base_name(f) for each in rule.names.split() for f in functions_of(each)}:
            exact = bits if rule.level == "exact" else None
            rows[name] = Row(name, (exact, bits), inputs, lambda f, *x, options=options: f(*x, *options))
    return rows


BY_NAME = {**made(), **{name: row for row in WRITTEN for name in row.names.split()}}
