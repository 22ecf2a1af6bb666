"""Outputs under lean mode are PyTorch's, bit for bit and in their order of memory, whatever rounds for backward."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import randbp
from randbp import Exact, Spatial

from .same import lean
from .test_norms import FORMATS

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{f.__name__: f for f in (F.gelu, F.silu, F.mish, F.hardswish, F.softplus, F.elu, F.selu, F.celu, F.logsigmoid)},
    **{f.__name__: f for f in (torch.tanh, torch.sigmoid, torch.exp, torch.sin, torch.erf, F.softsign, F.tanhshrink)},
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu in place": lambda x: F.silu(x * 1, inplace=True),
    "mish in place": lambda x: F.mish(x * 1, inplace=True),
    "tanh in place": lambda x: (x * 1).tanh_(),
    "log": lambda x: x.abs().log(),
    "sqrt": lambda x: (x * x).sqrt(),
    "power": lambda x: x.abs() ** 1.7,
    "power of a number": lambda x: 1.3**x,
    "quotient": lambda x: x / (x * x + 1),
    "number over": lambda x: 2 / (x.abs() + 1),
    "glu": lambda x: F.glu(x, 1),
    "softmax": lambda x: x.softmax(1),
    "log softmax": lambda x: x.log_softmax(-1),
    "log of sums": lambda x: x.logsumexp(-1),
    "unit vectors": F.normalize,
    "variance": lambda x: x.var(1),
    "layer norm": lambda x: F.layer_norm(x, x.shape[2:]),
    "layer norm of channels": lambda x: F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1),
    "root mean square": lambda x: F.rms_norm(x.movedim(1, -1), x.shape[1:2]),
    "group norm": lambda x: F.group_norm(x, 2),
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "instance norm": F.instance_norm,
    "product": lambda x: x * x.flip(0),
    "matrix product": lambda x: x @ x.mT,
    "convolution": lambda x: F.conv2d(x, torch.ones(3, x.shape[1], 1, 2, dtype=x.dtype)),
    "dropout": lambda x: F.dropout(x, 0.3),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "attention with dropout": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.2),
    "cross-entropy": lambda x: F.cross_entropy(x, x.detach().argmax(1)),
    "mean square": lambda x: F.mse_loss(x, x.detach() * 2),
}


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def outputs(function: Callable[..., Tensor], x: Tensor) -> Tensor:
    torch.default_generator.manual_seed(0)
    return function(x.detach().requires_grad_().view_as(x)).detach()


def assert_same_bits(function: Callable[..., Tensor], x: Tensor) -> None:
    ours, theirs = outputs(lean(function, True), x), outputs(function, x)
    assert ours.dtype == theirs.dtype and ours.stride() == theirs.stride()
    assert torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(FUNCTIONS)),
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from([(2, 4, 5, 7), (3, 8, 16, 33), (5, 2, 23, 19), (4, 64, 5, 5)]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_functions(name: str, memory: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert_same_bits(FUNCTIONS[name], FORMATS[memory](x))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("memory", ["contiguous", "channels last", "transposed"])
def test_large_tensors_that_threads_share(memory: str) -> None:
    x = FORMATS[memory](torch.randn(3, 6, 101, 97, generator=torch.Generator().manual_seed(0)))
    for function in (F.gelu, F.silu, F.mish, torch.tanh, F.elu, F.group_norm):
        assert_same_bits(function if function is not F.group_norm else FUNCTIONS["group norm"], x)


class ConvNeXtBlock(nn.Module):
    """Normalisation and activation of channels that were put last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm, self.scale = nn.LayerNorm(channels, eps=1e-6), nn.Parameter(torch.full((channels,), 0.1))
        self.pointwise = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.pointwise(self.norm(self.spatial(x).permute(0, 2, 3, 1)))
        return x + (self.scale * y).permute(0, 3, 1, 2)


class Speech(nn.Module):
    """A feature extractor and a positional convolution with a normed weight, as in wav2vec2."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, 32, 10, 5, bias=False), nn.GroupNorm(32, 32), nn.GELU(), nn.Conv1d(32, 32, 3, 2), nn.GELU()
        )
        self.norm = nn.LayerNorm(32)
        positional = nn.Conv1d(32, 32, 16, padding=8, groups=4)
        self.positional = nn.utils.parametrizations.weight_norm(positional, dim=2)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.features(x).transpose(1, 2))
        y = F.gelu(self.positional(x.transpose(1, 2))[..., :-1]).transpose(1, 2)
        return self.layer(x + y)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ConvNeXt": (lambda: nn.Sequential(nn.Conv2d(3, 24, 4, 4), ConvNeXtBlock(24), ConvNeXtBlock(24)), (3, 3, 52, 44)),
    "wav2vec2": (Speech, (3, 1, 1600)),
}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("estimator", [Exact(), Spatial(keep=0.5)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, estimator: Any) -> None:
    make, shape = NETWORKS[name]
    torch.default_generator.manual_seed(0)
    model, x = make(), torch.randn(shape)
    torch.default_generator.manual_seed(1)
    expected = model(x)
    for level in (True, "exact"):
        with randbp.randomize(model, estimator, layers="*" if name == "ConvNeXt" else None, lean=level):
            torch.default_generator.manual_seed(1)
            assert torch.equal(model(x), expected)
