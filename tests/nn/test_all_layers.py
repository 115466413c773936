"""Every layer of torch.nn and every functional module: calibrate, run, copy, save."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import quantization as Q
from fxquant.nn import QuantizationMixin, functional
from fxquant.ops import TABLE, T
from tests.nn.test_generate import PUBLIC

Case = tuple[Callable[[], nn.Module], tuple[Any, ...]]


def f(*shape: int) -> Tensor:
    return torch.rand(shape) + 0.1


def i(*shape: int, high: int = 3) -> Tensor:
    return torch.randint(0, high, shape)


def layer(name: str, *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        made: nn.Module = getattr(nn, name)(*args, **kwargs)
        return made

    return make


def _by_dimension() -> Iterator[tuple[str, Case]]:
    for n in (1, 2, 3):
        x = f(2, 4, *[6] * n)
        for kind in ("BatchNorm", "InstanceNorm"):
            yield f"{kind}{n}d", (layer(f"{kind}{n}d", 4, affine=True), (x,))
            yield f"Lazy{kind}{n}d", (layer(f"Lazy{kind}{n}d"), (x,))
        for kind in ("Conv", "ConvTranspose"):
            yield f"{kind}{n}d", (layer(f"{kind}{n}d", 4, 3, 2), (x,))
            yield f"Lazy{kind}{n}d", (layer(f"Lazy{kind}{n}d", 3, 2), (x,))
        for kind in ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool"):
            yield f"{kind}{n}d", (layer(f"{kind}{n}d", 2), (x,))
        yield f"LPPool{n}d", (layer(f"LPPool{n}d", 2, 2), (x,))
        unpooled = (f(1, 1, *[2] * n), torch.arange(2**n).reshape(1, 1, *[2] * n))
        yield f"MaxUnpool{n}d", (layer(f"MaxUnpool{n}d", 2), unpooled)
        yield f"Dropout{n}d", (layer(f"Dropout{n}d"), (x,))
        for kind in ("Circular", "Reflection", "Replication", "Zero"):
            yield f"{kind}Pad{n}d", (layer(f"{kind}Pad{n}d", 1), (x,))
        yield f"ConstantPad{n}d", (layer(f"ConstantPad{n}d", 1, 0.5), (x,))
    for n in (2, 3):
        pool = f"FractionalMaxPool{n}d"
        yield pool, (layer(pool, 2, output_size=3), (f(2, 4, *[6] * n),))


_PLAIN = (
    "AlphaDropout CELU Dropout ELU FeatureAlphaDropout Flatten GELU Hardshrink Hardsigmoid "
    "Hardswish Hardtanh Identity LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU SiLU "
    "Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink"
)
_LOSSES = (
    "BCELoss BCEWithLogitsLoss HuberLoss KLDivLoss L1Loss MSELoss SmoothL1Loss SoftMarginLoss "
    "PoissonNLLLoss HingeEmbeddingLoss MultiLabelSoftMarginLoss"
)
X, S = (f(2, 3, 4),), (f(5, 2, 4),)
CASES: dict[str, Case] = {
    **dict(_by_dimension()),
    **{n: (layer(n), X) for n in _PLAIN.split()},
    **{n: (layer(n), (f(2, 3) / 2, f(2, 3) / 2)) for n in _LOSSES.split()},
    **{n: (layer(n, 4, 3), S) for n in ("RNN", "LSTM", "GRU")},
    **{n: (layer(n, 4, 3), (f(2, 4),)) for n in ("RNNCell", "LSTMCell", "GRUCell")},
    **{n: (layer(n, dim=1), X) for n in ("Softmax", "LogSoftmax", "Softmin")},
    "AdaptiveLogSoftmaxWithLoss": (
        lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2]), (f(3, 4), i(3, high=6)),
    ),
    "Bilinear": (lambda: nn.Bilinear(3, 4, 2), (f(2, 3), f(2, 4))),
    "CTCLoss": (
        nn.CTCLoss,
        (f(6, 1, 4).log_softmax(2), i(1, 2) + 1, torch.tensor([6]), torch.tensor([2])),
    ),
    "ChannelShuffle": (lambda: nn.ChannelShuffle(2), (f(1, 4, 2, 2),)),
    "CosineEmbeddingLoss": (nn.CosineEmbeddingLoss, (f(2, 3), f(2, 3), torch.ones(2))),
    "CrossEntropyLoss": (nn.CrossEntropyLoss, (f(2, 3), i(2))),
    "CrossMapLRN2d": (lambda: nn.CrossMapLRN2d(2), (f(1, 4, 3, 3),)),
    "Embedding": (lambda: nn.Embedding(5, 3), (i(2, 3),)),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(5, 3), (i(2, 3),)),
    "Fold": (lambda: nn.Fold((3, 3), 2), (f(1, 8, 4),)),
    "GLU": (nn.GLU, X),
    "GaussianNLLLoss": (nn.GaussianNLLLoss, (f(2, 3), f(2, 3), f(2, 3))),
    "GroupNorm": (lambda: nn.GroupNorm(1, 3), X),
    "LayerNorm": (lambda: nn.LayerNorm(4), X),
    "LazyLinear": (lambda: nn.LazyLinear(3), X),
    "Linear": (lambda: nn.Linear(4, 3), X),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(2), X),
    "MarginRankingLoss": (nn.MarginRankingLoss, (f(3), f(3), torch.ones(3))),
    "MultiLabelMarginLoss": (nn.MultiLabelMarginLoss, (f(1, 3), i(1, 3))),
    "MultiMarginLoss": (nn.MultiMarginLoss, (f(2, 3), i(2))),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2), (*S, *S, *S)),
    "NLLLoss": (nn.NLLLoss, (f(2, 3), i(2))),
    "PairwiseDistance": (nn.PairwiseDistance, (f(2, 3), f(2, 3))),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), (f(1, 4, 2, 2),)),
    "PixelUnshuffle": (lambda: nn.PixelUnshuffle(2), (f(1, 1, 4, 4),)),
    "RMSNorm": (lambda: nn.RMSNorm(4), X),
    "Softmax2d": (nn.Softmax2d, (f(1, 3, 2, 2),)),
    "Threshold": (lambda: nn.Threshold(0.5, 0.0), X),
    "Transformer": (lambda: nn.Transformer(4, 2, 1, 1, 8), (*S, *S)),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8), 1), (*S, *S),
    ),
    "TransformerDecoderLayer": (lambda: nn.TransformerDecoderLayer(4, 2, 8), (*S, *S)),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 8), 1, enable_nested_tensor=False
        ), S,
    ),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(4, 2, 8), S),
    "TripletMarginLoss": (nn.TripletMarginLoss, (f(2, 3), f(2, 3), f(2, 3))),
    "TripletMarginWithDistanceLoss": (
        nn.TripletMarginWithDistanceLoss, (f(2, 3), f(2, 3), f(2, 3)),
    ),
    "Unflatten": (lambda: nn.Unflatten(2, (2, 2)), X),
    "Unfold": (lambda: nn.Unfold(2), (f(1, 2, 3, 3),)),
    "Upsample": (lambda: nn.Upsample(scale_factor=2), X),
    "UpsamplingBilinear2d": (lambda: nn.UpsamplingBilinear2d(scale_factor=2), (f(1, 1, 2, 2),)),
    "UpsamplingNearest2d": (lambda: nn.UpsamplingNearest2d(scale_factor=2), (f(1, 1, 2, 2),)),
}  # fmt: skip
# what holds layers but computes nothing itself, needs several processes, or takes the caller's
# weights
WITHOUT = {
    "DataParallel", "LinearCrossEntropyLoss", "ModuleDict", "ModuleList", "ParameterDict",
    "ParameterList", "RNNBase", "RNNCellBase", "Sequential", "SyncBatchNorm",
}  # fmt: skip


def test_no_layer_is_forgotten() -> None:
    known = CASES.keys() | WITHOUT | functional.CLASSES.keys()
    assert set(PUBLIC) <= known


def first(value: Any) -> Tensor:
    while not isinstance(value, Tensor):
        value = next(iter(value))
    return value


def made(value: Any) -> Any:
    """The arguments of a sample of the table."""
    if isinstance(value, T):
        return value.make(0)
    return type(value)(map(made, value)) if type(value) in (list, tuple) else value


def check(make: Callable[[], nn.Module], args: Any, kwargs: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about lazy modules and nested tensors
        module = make().eval()
        module(*args, **kwargs)
        q: Any = QuantizationMixin.from_module(module)
        q.output_quantizers[0] = Q.affine.QuantizeDequantize((), 8)
        for name in q.param_quantizers:
            q.param_quantizers[name] = Q.affine.QuantizeDequantize((), 8, True)
        torch.manual_seed(0)
        with torch.no_grad(), q.compute_encodings():
            q(*args, **kwargs)
        torch.manual_seed(0)
        with torch.no_grad():
            got = first(q(*args, **kwargs))
        twin = copy.deepcopy(q)
        fresh = copy.deepcopy(q)
        for quantizer in fresh.modules():
            if isinstance(quantizer, Q.affine.QuantizeDequantize):
                quantizer.min.data.fill_(torch.nan)
        fresh.load_state_dict(q.state_dict())
        for other in (twin, fresh):
            torch.manual_seed(0)
            with torch.no_grad():
                assert torch.equal(first(other(*args, **kwargs)), got)
    if got.dtype is torch.float32:
        scale = q.output_quantizers[0].get_scale()
        assert scale is not None
        assert torch.equal((got / scale).round() * scale, got)


@pytest.mark.parametrize("name", CASES)
def test_layers(name: str) -> None:
    torch.manual_seed(0)
    make, args = CASES[name]
    check(make, args, {})


FUNCTIONS = (r for r in TABLE.rows.values() if issubclass(r.module, functional.Functional))
ROWS = [row for row in FUNCTIONS if row.samples]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_functional_modules(row: Any) -> None:
    sample = row.samples[0]
    check(row.module, made(sample.args), {k: made(v) for k, v in sample.kwargs.items()})
