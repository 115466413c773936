"""Small networks, one for each thing that makes tracing hard; `NETWORKS` lists them with inputs."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint


class Case(NamedTuple):
    """A network class and its example inputs."""

    network: type[nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


NETWORKS: dict[str, Case] = {}


def taking(*args: Any, **kwargs: Any) -> Any:
    """Register a network with the inputs it takes."""

    def register(network: type[nn.Module]) -> type[nn.Module]:
        NETWORKS[network.__name__] = Case(network, args, kwargs)
        return network

    return register


def rows(*shape: int) -> Tensor:
    """Random floats that are the same in every process."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


class Doubled(torch.autograd.Function):
    """A function with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: int) -> Tensor:
        return x * factor

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 7, None


bound_early = Doubled.apply


@taking(rows(2, 4))
class AutogradFunction(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return Doubled.apply(x, 2) + bound_early(x, 3)  # type: ignore[no-untyped-call]


@taking(rows(2, 4))
class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def part(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))

    def forward(self, x: Tensor) -> Any:
        x = self.linear(x)
        return checkpoint(self.part, x, use_reentrant=True) + checkpoint(
            self.part, x, use_reentrant=False
        )


@taking(rows(2, 5, 8))
class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        weighed = self.attention(x, x + 1, x)[0]
        return weighed + self.attention(x, x, x, need_weights=False)[0]


@taking(rows(2, 5, 8))
class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Any:
        return self.encoder(x)


@taking(rows(2, 5, 8), rows(2, 3, 8))
class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        mask = self.body.generate_square_subsequent_mask(y.shape[1])
        return self.body(x, y, tgt_mask=mask)


@dataclass
class Answer:
    """A dataclass of tensors, as models return it."""

    first: Tensor
    second: Any = None
    third: int = 3


Pair = namedtuple("Pair", "left right")


@taking(rows(2, 4))
class NestedOutputs(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return {
            "answer": Answer(x + 1, (x * 2, [x])),
            "pair": Pair(x, x - 1),
            "ordered": OrderedDict(z=x * 3),
            "size": x.shape[0],
            "nothing": None,
            "shape": x.shape,
        }


@taking(
    {"x": rows(2, 4), "more": [rows(2, 3), (rows(2, 2),)]},
    Answer(rows(2, 4), rows(2, 1)),
    flag=True,
    nothing=None,
    number=3,
)
class NestedInputs(nn.Module):
    def forward(
        self,
        given: Any,
        answer: Answer,
        flag: bool = False,
        nothing: None = None,
        *,
        number: int = 1,
        unused: Tensor | None = None,
    ) -> Any:
        total = given["x"].sum(1) + given["more"][1][0].sum(1)
        return total + answer.first.sum(1) * answer.second[:, 0] * number


@taking(rows(2, 4), rows(2, 4), rows(2, 4))
class ManyArguments(nn.Module):
    def forward(self, x: Tensor, *others: Tensor, **options: Any) -> Tensor:
        return x + torch.stack(others).sum(0)


@taking(rows(2, 3, 14, 14))
class Sizes(nn.Module):
    def forward(self, x: Tensor) -> Any:
        b, _, h, w = x.size()
        x = F.pad(x, (0, (4 - w % 4) % 4, 0, (4 - h % 4) % 4))
        column = torch.arange(len(x), device=x.device)[:, None, None, None]
        ones = torch.ones(x.shape[:1] + (1, 1, 1))  # noqa: RUF005 - a size plus a tuple is the case
        zeros = x.new_zeros(b, 1, *x.shape[2:]) + ones * column
        filled = torch.full((b,), 1.5)[:, None, None, None]
        flat = x.flatten(2).transpose(1, 2) / math.sqrt(x.shape[-1]) * x.shape[1] ** -0.5
        other = F.interpolate(x, size=x.shape[-2:]) + x.expand(b, -1, -1, -1)
        total = (x + zeros + filled + other).sum() * x.numel() / x.shape[0]
        return total + flat.reshape(b, -1).sum() + x.view(b, -1)[:, : h * w // 2].sum() - 2**-b


@taking(rows(2, 4), rows(2, 4))
class InPlace(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        x = x * 1
        view = x[:, 1:3]
        view.mul_(2)
        view += 1
        x[0] = x[0] * 3
        x[:, -1] = y[:, 0]
        out = torch.empty_like(x)
        torch.add(x, y, out=out)
        F.relu(out, inplace=True)
        out -= x
        out **= 2
        mask = out > 1
        out[mask] = 0
        out.masked_fill_(out < 0.1, 1).clamp_(max=5)
        x.t()[0].zero_()
        y.add_(1)
        return x, out, y


@taking(rows(4, 4))
class Buffers(nn.Module):
    """Buffers written in place, replaced, written under no_grad, and a plain attribute."""

    count: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("unsaved", torch.ones(3), persistent=False)
        self.weight = nn.Parameter(rows(4))
        self.unused = nn.Linear(3, 3)
        self.plain = torch.arange(4.0)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.mean = self.mean * 0.9 + 0.1 * x.mean(0)
        with torch.no_grad():
            self.mean.mul_(2)
            y = x * self.weight
        return x * self.mean * self.count + self.weight + y + self.plain


@taking(rows(2, 4))
class CarriedState(nn.Module):
    """A plain attribute that carries a tensor from one call to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.state = torch.zeros(4)

    def forward(self, x: Tensor) -> Tensor:
        self.state = self.state * 0.5 + x.mean(0)
        return x + self.state


@taking(rows(2, 3, 8, 8))
class NormedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        self.b = parametrizations.spectral_norm(nn.Conv2d(4, 4, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.c = nn.utils.weight_norm(nn.Conv2d(4, 4, 1))
            self.d = nn.utils.spectral_norm(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Any:
        return self.d(self.c(self.b(self.a(x))).mean((2, 3)))


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).T


@taking(rows(2, 4))
class Parametrized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows(4, 4))
        parametrize.register_parametrization(self, "weight", Symmetric())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


@taking(rows(2, 4))
class Operators(nn.Module):
    def forward(self, x: Tensor) -> Any:
        small = x < 1
        return (
            2 - x, 2 / x, 2 ** x.abs(), 3 // x, 5 % x, 1 + x, 2 * x, -x, ~small, (x > 0) & small,
            True | small, x == x, x > 2, abs(x), x @ x.T, x // 2, x % 2,
        )  # fmt: skip


@taking(rows(2, 6, 4))
class ManyResults(nn.Module):
    def forward(self, x: Tensor) -> Any:
        a, b, c = x.chunk(3, 1)
        values, places = x.max(1)
        top = torch.topk(x, 2, dim=-1)
        grid = torch.meshgrid(x[0, 0], x[0, 1], indexing="ij")
        return a + b + c, values, places, top.values, top[1], torch.var_mean(x), grid, x.mT


@taking(torch.arange(14).view(2, 7) % 10)
class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.lstm = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(10, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        out, (hidden, cell) = self.lstm(self.embedding(x))
        last, state = self.gru(out)
        return self.head(last[:, -1]), hidden[-1] + cell[0], state


@taking(rows(3, 5, 4), torch.tensor([5, 3, 2]))
class PackedSequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        out, (hidden, _) = self.lstm(packed)
        return hidden, nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0]


@taking(rows(2, 4))
class RandomNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Any:
        noise = torch.rand_like(x) + torch.rand(x.shape[0], 4)
        return F.dropout(x, 0.3, self.training) + self.dropout(x) + noise


@taking(rows(2, 3, 4, 4))
class StandardisedConv(nn.Conv2d):
    """A subclass of a torch class that computes something else."""

    def __init__(self) -> None:
        super().__init__(3, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True)
        return F.conv2d(x, (self.weight - mean) / torch.sqrt(var + 1e-5), self.bias)


@taking(rows(2, 3, 4, 4))
class Shared(nn.Module):
    """A module called three times, tied weights, one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = StandardisedConv(), nn.ReLU()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
        self.b.weight = self.a.weight
        self.alias = self.a

    def forward(self, x: Tensor) -> Any:
        x = self.act(self.conv(x)).mean((2, 3))
        return self.alias(self.act(self.b(self.act(self.a(x)))))


@taking(rows(2, 8))
class Mapped(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return torch.vmap(lambda row: row * 2)(x) + 1


@taking(rows(2, 8))
class FromNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(np.arange(8, dtype="float32")) + torch.Tensor([1.0])


@taking(rows(2, 8))
class AtenOperators(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return torch.ops.aten.relu(x) + torch.ops.aten.mul.Tensor(x, x)


@taking(rows(2, 4))
class FunctionalCall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.other = nn.Parameter(rows(4, 4))

    def forward(self, x: Tensor) -> Any:
        swapped = {"weight": self.other * 2}
        return torch.func.functional_call(self.linear, swapped, (x,)) + self.linear(x)


def doubling(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A forward hook."""
    return output * 2


@taking(rows(2, 4))
class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.leaf = nn.Linear(4, 4)
        self.block = nn.Sequential(nn.Linear(4, 4))
        self.leaf.register_forward_hook(doubling)
        self.block.register_forward_hook(doubling)
        self.register_forward_hook(doubling)

    def forward(self, x: Tensor) -> Any:
        return self.block(self.leaf(x))


@taking(rows(2, 3, 8, 8))
class Generated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(3)])
        self.by_name = nn.ModuleDict({"act": nn.ReLU()})

    def forward(self, x: Tensor) -> Any:
        found = []
        for conv in self.convs:
            x = conv(x)
            found.append(x)

        def pooled() -> Iterator[Tensor]:
            for item in found:
                yield self.by_name["act"](item).mean((2, 3))

        return list(pooled())


@taking(rows(2, 3, 8, 8))
class Detector(nn.Module):
    """A head with a grid built in forward and item assignment."""

    anchors: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 1)
        self.register_buffer("anchors", rows(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        b, _, ny, nx = self.conv(x).shape
        y = self.conv(x).view(b, 2, 6, ny, nx).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
        down, right = torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij")
        grid = torch.stack((right, down), 2).expand(1, 2, ny, nx, 2).float()
        y[..., 0:2] = (y[..., 0:2] * 2 - 0.5 + grid) * 8
        y[..., 2:4] = (y[..., 2:4] * 2) ** 2 * self.anchors.view(1, 2, 1, 1, 2)
        answer: Tensor = y.view(b, -1, 6)
        return answer


@taking(torch.arange(12).view(2, 6) % 9, mask=torch.ones(2, 6, dtype=torch.long))
class Language(nn.Module):
    """Embeddings, masks made from the inputs, attention by hand and by torch."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(9, 8), nn.Embedding(16, 8)
        self.register_buffer("places", torch.arange(16)[None], persistent=False)
        self.query = nn.Linear(8, 8)

    def forward(self, ids: Tensor, mask: Tensor) -> Any:
        n = ids.shape[1]
        h = self.words(ids) + self.positions(self.places[:, :n])
        lowest = torch.finfo(h.dtype).min
        penalty = (1.0 - mask[:, None, None, :].to(h.dtype)) * lowest
        q = self.query(h).view(*h.shape[:-1], 2, -1).transpose(1, 2)
        scores = (q @ q.transpose(-1, -2) / math.sqrt(q.shape[-1]) + penalty).softmax(-1)
        causal = torch.tril(torch.ones(n, n, dtype=torch.bool))
        scores = torch.where(causal, scores, torch.zeros((), dtype=scores.dtype))
        out = scores @ q + F.scaled_dot_product_attention(q, q, q, is_causal=True)
        return out.transpose(1, 2).reshape(ids.shape[0], n, -1)


@taking(rows(2, 4))
class WritesParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows(4) * 3)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.clamp_(-1, 1)
        return x * self.weight + x.detach() + x.data + x.real


@taking(rows(2, 4))
class MadeInForward(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return nn.ReLU()(x) + nn.Softmax(-1)(x) + torch.einsum("ij,ij->i", x, x)[:, None]
