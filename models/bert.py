"""BERT-like encoder with the names of Hugging Face's (Devlin et al., 2018, arXiv:1810.04805)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class Embeddings(nn.Module):
    """The sum of a token's word, position and segment vectors, normalized."""

    position_ids: Tensor

    def __init__(self, vocab: int, hidden: int, positions: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab, hidden)
        self.position_embeddings = nn.Embedding(positions, hidden)
        self.token_type_embeddings = nn.Embedding(2, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=1e-12)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("position_ids", torch.arange(positions)[None], persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[N, L] token ids -> [N, L, hidden]."""
        length = input_ids.size(1)
        positions = self.position_embeddings(self.position_ids[:, :length])
        segments = self.token_type_embeddings(torch.zeros_like(input_ids))
        x = self.word_embeddings(input_ids) + segments + positions
        return self.dropout(self.LayerNorm(x))  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """Multi-head attention written out: two matmuls, a scale, a mask and a softmax."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, hidden // heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(0.1)

    def split(self, x: Tensor) -> Tensor:
        """[N, L, hidden] -> [N, heads, L, hidden/heads]."""
        return x.view(x.size(0), x.size(1), self.heads, self.size).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[N, L, hidden], additive mask [N, 1, 1, L] -> [N, L, hidden]."""
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.size) + mask
        weights = self.dropout(F.softmax(scores, dim=-1))
        context = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
        return context.view(x.size(0), x.size(1), self.heads * self.size)


class Output(nn.Module):
    """A linear layer, a shortcut and a norm."""

    def __init__(self, inner: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """[N, L, inner], [N, L, hidden] -> [N, L, hidden]."""
        return self.LayerNorm(self.dropout(self.dense(x)) + shortcut)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention and its output layer."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.self = SelfAttention(hidden, heads)
        self.output = Output(hidden, hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[N, L, hidden], [N, 1, 1, L] -> [N, L, hidden]."""
        return self.output(self.self(x, mask), x)  # type: ignore[no-any-return]


class Intermediate(nn.Module):
    """A linear layer to the wide space and a GELU."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, inner)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, hidden] -> [N, L, inner]."""
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """One encoder layer, with the norms behind the shortcuts."""

    def __init__(self, hidden: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = Attention(hidden, heads)
        self.intermediate = Intermediate(hidden, inner)
        self.output = Output(inner, hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[N, L, hidden], [N, 1, 1, L] -> [N, L, hidden]."""
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """A list of layers that share the mask."""

    def __init__(self, layers: int, hidden: int, heads: int, inner: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(hidden, heads, inner) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[N, L, hidden], [N, 1, 1, L] -> [N, L, hidden]."""
        for layer in self.layer:
            x = layer(x, mask)
        return x


class Pooler(nn.Module):
    """The first token through a linear layer and a tanh."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.activation = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, hidden] -> [N, hidden]."""
        return self.activation(self.dense(x[:, 0]))  # type: ignore[no-any-return]


class Bert(nn.Module):
    """BERT for the classification of sequences.

    Args:
        vocab: number of different tokens.
        hidden: length of a token's vector.
        layers: number of encoder layers.
        heads: attention heads in a layer.
        positions: longest sequence.
        num_labels: number of logits.
        dropout: share of values set to zero while training.
    """

    def __init__(
        self,
        *,
        vocab: int = 30522,
        hidden: int = 384,
        layers: int = 6,
        heads: int = 12,
        positions: int = 512,
        num_labels: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(vocab, hidden, positions)
        self.encoder = Encoder(layers, hidden, heads, 4 * hidden)
        self.pooler = Pooler(hidden)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(hidden, num_labels)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        self.apply(_init)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token ids [N, L] and a mask [N, L] (1 = read, 0 = padding) -> [N, num_labels]."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        x = self.embeddings(input_ids)
        mask = attention_mask[:, None, None, :].to(x.dtype)
        mask = (1.0 - mask) * torch.finfo(x.dtype).min
        x = self.pooler(self.encoder(x, mask))
        return self.classifier(self.dropout(x))  # type: ignore[no-any-return]


def bert_small(*, vocab: int = 30522, num_labels: int = 2) -> Bert:
    """Six layers of width 384 with 12 heads, the size of the small MiniLM encoders."""
    return Bert(vocab=vocab, num_labels=num_labels)


def _init(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        # 0.02 is the paper's, at a width of 768; narrow layers need larger weights
        nn.init.normal_(module.weight, std=0.55 * module.weight.shape[1] ** -0.5)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
