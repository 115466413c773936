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
