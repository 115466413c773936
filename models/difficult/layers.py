"""Networks of layers that are more than one operator."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from fxquant.models.difficult.register import rows, taking


@taking(rows(2, 5, 8))
class Attention(nn.Module):
    """torch's attention layer, with three inputs and with one."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        weighed = self.attention(x, x + 1, x)[0]
        return weighed + self.attention(x, x, x, need_weights=False)[0]


@taking(rows(2, 5, 8))
class Encoder(nn.Module):
    """torch's transformer encoder, which has a fused path of its own in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Any:
        return self.encoder(x)


@taking(rows(2, 5, 8), rows(2, 3, 8))
class EncoderDecoder(nn.Module):
    """A transformer with a mask made from the length of an input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        mask = self.body.generate_square_subsequent_mask(y.shape[1])
        return self.body(x, y, tgt_mask=mask)


@taking(rows(2, 3, 8, 8))
class NormedWeights(nn.Module):
    """Weight and spectral norm, as parametrizations and as hooks."""

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
    """A parametrization: the symmetric matrix of an upper triangle."""

    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).T


@taking(rows(2, 4))
class Parametrized(nn.Module):
    """A parameter that a parametrization computes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows(4, 4))
        parametrize.register_parametrization(self, "weight", Symmetric())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


@taking(torch.arange(14).view(2, 7) % 10)
class Recurrent(nn.Module):
    """LSTM and GRU with their states."""

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
    """Packed sequences of different lengths."""

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
    """Dropout, as a module and as a function, and noise."""

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


@taking(rows(2, 5, 8))
class AttentionDropout(nn.Module):
    """Attention that drops weights while it trains, and returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.4, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        plain = F.scaled_dot_product_attention(x, x, x)
        drop = 0.3 if self.training else 0.0
        weighed, weights = self.attention(x, x, x)
        return plain + F.scaled_dot_product_attention(x, x, x, dropout_p=drop) + weighed, weights


class Jitter(nn.Module):
    """Places, which are shifted while the model trains."""

    def forward(self, x: Tensor) -> Tensor:
        places = torch.linspace(-1, 1, x.shape[1])
        if self.training:
            places = places * torch.empty(1).uniform_(0.5, 2.0)
        return torch.cat([places.sin(), places.cos()])


@taking(rows(2, 5, 10))
class TrainedOtherwise(nn.Module):
    """A module without parameters that computes something else while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.jitter, self.linear = Jitter(), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Any:
        return self.linear(x) * self.jitter(x)


@taking(rows(2, 6, 8))
class Spectrum(nn.Module):
    """Complex numbers: a filter in the frequency domain, rotated pairs, a complex parameter."""

    turns: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(8, 8), nn.Linear(8, 8)
        self.filter = nn.Parameter(rows(5, 2))
        self.mixed = nn.Parameter(torch.complex(rows(4, 4), rows(1, 4)))
        angles = torch.arange(24.0).view(6, 4)
        self.register_buffer("turns", torch.polar(torch.ones(6, 4), angles))

    def forward(self, x: Tensor) -> Any:
        waves = torch.fft.rfft(self.before(x), norm="ortho") * torch.view_as_complex(self.filter)
        x = self.after(torch.fft.irfft(waves, n=8, norm="ortho"))
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], 4, 2)) * self.turns
        turned = torch.view_as_real(pairs @ self.mixed).flatten(2)
        return self.after(turned + torch.fft.fft(torch.fft.fft(x), dim=-2).real), waves.abs()


class Expert(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Any:
        return self.down(F.silu(self.up(x)))


@taking(rows(2, 6, 8))
class ExpertLoop(nn.Module):
    """A mixture of experts that gives each expert its rows, found with `where`."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.experts = nn.ModuleList(Expert() for _ in range(4))

    def forward(self, x: Tensor) -> Any:
        flat = x.reshape(-1, 8)
        weights, chosen = torch.topk(self.router(flat).softmax(-1), 2)
        out = torch.zeros_like(flat)
        mask = F.one_hot(chosen, 4).permute(2, 1, 0)
        for number, expert in enumerate(self.experts):
            rank, row = torch.where(mask[number])
            out.index_add_(0, row, expert(flat[row]) * weights[row, rank, None])
        return out.view(x.shape)


@taking(rows(2, 6, 8))
class GroupedExperts(nn.Module):
    """A mixture of experts that sorts rows by expert and multiplies them in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.up, self.down = nn.Parameter(rows(4, 8, 16)), nn.Parameter(rows(4, 16, 8))

    def forward(self, x: Tensor) -> Any:
        flat = x.reshape(-1, 8)
        weights, chosen = torch.topk(self.router(flat).softmax(-1), 2)
        experts, order = torch.sort(chosen.reshape(-1))
        counts = torch.histc(experts.float(), bins=4, min=0, max=3)
        ends = torch.cumsum(counts, 0, dtype=torch.int32)
        hidden = F.gelu(F.grouped_mm(flat[order // 2], self.up, offs=ends))
        out = F.grouped_mm(hidden, self.down, offs=ends) * weights.reshape(-1)[order, None]
        return out[torch.argsort(order)].view(-1, 2, 8).sum(1).view(x.shape)
