"""Small transformers and mixers: positions, heads, masks, caches, windows, cheap attention."""

# layers and buffers have no type of their own in nn.Module
# mypy: disable-error-code="no-any-return, operator, index, arg-type"

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.case import Case, floats, mlp

WIDTH, HEADS = 16, 4
SIZE = WIDTH // HEADS


class RmsNorm(nn.Module):
    """Root mean square norm, written out."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> the same."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Heads(nn.Module):
    """Projections; `kv` heads for keys and values."""

    def __init__(self, kv: int = HEADS) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, kv * SIZE), nn.Linear(WIDTH, kv * SIZE)

    def split(self, x: Tensor) -> list[Tensor]:
        """[N, L, C] -> queries, keys and values [N, H, L, C / H]."""
        n, length, _ = x.shape
        return [f(x).view(n, length, -1, SIZE).transpose(1, 2) for f in (self.q, self.k, self.v)]

    def merge(self, x: Tensor) -> Tensor:
        """Back to [N, L, C]."""
        return self.o(x.transpose(1, 2).flatten(2))


class PreNorm(nn.Module):
    """GPT-like: a causal mask from the length, places, one table at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30, WIDTH), nn.Embedding(12, WIDTH)
        self.n1, self.n2, self.n3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc = nn.Sequential(
            nn.Linear(WIDTH, 32), nn.GELU(approximate="tanh"), nn.Linear(32, WIDTH)
        )
        self.head = nn.Linear(WIDTH, 30, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        """[N, L] -> [N, L, 30]."""
        n, length = ids.size()
        x = self.words(ids) + self.places(torch.arange(length))
        q, k, v = (t.view(n, length, HEADS, SIZE).transpose(1, 2)
                   for t in self.qkv(self.n1(x)).split(WIDTH, 2))  # fmt: skip
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(k.size(-1))
        mask = torch.tril(torch.ones(length, length)).view(1, 1, length, length)
        scores = scores.masked_fill(mask == 0, float("-inf"))
        y = F.softmax(scores, -1) @ v
        x = x + self.proj(y.transpose(1, 2).contiguous().view(n, length, WIDTH))
        return self.head(self.n3(x + self.fc(self.n2(x))))


class Llama(nn.Module):
    """RoPE, grouped queries, RMS norm and SwiGLU."""

    def __init__(self, kv: int = 2) -> None:
        super().__init__()
        self.heads, self.n1, self.n2 = Heads(kv), RmsNorm(), RmsNorm()
        self.gate, self.up, self.down = (
            nn.Linear(a, b, bias=False) for a, b in ((WIDTH, 24), (WIDTH, 24), (24, WIDTH))
        )
        inverse = 1.0 / (10000 ** (torch.arange(0, SIZE, 2).float() / SIZE))
        self.register_buffer("inverse", inverse, persistent=False)

    def rotated(self, x: Tensor) -> Tensor:
        """Turned by its place."""
        angles = torch.outer(torch.arange(x.size(-2)).float(), self.inverse)
        angles = torch.cat([angles, angles], -1)
        a, b = x[..., : SIZE // 2], x[..., SIZE // 2 :]
        return x * angles.cos() + torch.cat((-b, a), -1) * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> the same."""
        q, k, v = self.heads.split(self.n1(x))
        q, k = self.rotated(q), self.rotated(k)
        n, kv, length, size = k.shape
        k, v = (t[:, :, None].expand(n, kv, HEADS // kv, length, size)
                .reshape(n, HEADS, length, size) for t in (k, v))  # fmt: skip
        x = x + self.heads.merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        h = self.n2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class ComplexRope(nn.Module):
    """Places as complex numbers that queries and keys are multiplied by; one key for all heads."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = Heads(1)
        angles = torch.outer(
            torch.arange(12).float(), 1 / 10000 ** (torch.arange(0, SIZE, 2) / SIZE)
        )
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))

    def rotated(self, x: Tensor) -> Tensor:
        """Turned by its place."""
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.turns[: x.shape[-2]]).flatten(3).type_as(x)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> the same."""
        q, k, v = self.heads.split(x)
        return self.heads.merge(
            torch.softmax(self.rotated(q) @ self.rotated(k).transpose(2, 3) / 2.0, -1) @ v
        )


class Alibi(nn.Module):
    """Distances, times a slope for each head, instead of places."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = Heads()
        slopes = torch.tensor([2.0 ** -(8 * (i + 1) / HEADS) for i in range(HEADS)])
        self.register_buffer("slopes", slopes.view(1, HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> the same."""
        q, k, v = self.heads.split(x)
        places = torch.arange(x.shape[1])
        distance = (places[None, :] - places[:, None]).abs().float()
        bias = -distance * self.slopes
        return self.heads.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=bias))


class T5(nn.Module):
    """Buckets of relative places, shared by self-attention, and cross-attention without scale."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.cross, self.bias = Heads(), Heads(), nn.Embedding(8, HEADS)
        self.norm, self.fc = RmsNorm(), mlp(WIDTH, 32, WIDTH)

    @staticmethod
    def bucket(distance: Tensor) -> Tensor:
        """Numbers of buckets: exact for near places, by logarithm for far ones."""
        found = (distance > 0).long() * 4
        distance = distance.abs()
        far = 2 + (torch.log(distance.float() / 2) / math.log(16 / 2) * 2).long()
        return found + torch.where(distance < 2, distance, far.clamp(max=3))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """[N, L, C], [N, M, C] -> [N, L, C]."""
        places = torch.arange(x.size(1))
        bias = self.bias(self.bucket(places[None, :] - places[:, None])).permute(2, 0, 1)[None]
        q, k, v = self.own.split(self.norm(x))
        x = x + self.own.merge(torch.softmax(q @ k.transpose(3, 2) + bias, -1) @ v)
        q = self.cross.split(x)[0]
        _, k, v = self.cross.split(memory)
        x = x + self.cross.merge(torch.softmax(q @ k.transpose(3, 2), -1) @ v)
        return x + self.fc(x)


class Cached(nn.Module):
    """One step that reads old keys and values and hands out new ones."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = Heads(2)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, 1, C], 2 of [N, 2, L, C / H] -> the step, keys and values with one more place."""
        q, k, v = self.heads.split(x)
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        many = [torch.repeat_interleave(t, HEADS // 2, dim=1) for t in (keys, values)]
        y = F.scaled_dot_product_attention(q, *many)
        return self.heads.merge(y), keys, values


class PostNorm(nn.Module):
    """BERT-like, with a mask of padding, pooled over what is no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.heads = nn.Embedding(30, WIDTH, padding_idx=0), Heads()
        self.n1, self.n2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.fc, self.head = mlp(WIDTH, 32, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        """[N, L] -> [N, 3]."""
        known = ids.ne(0)
        x = self.words(ids)
        bias = (1.0 - known[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        q, k, v = self.heads.split(x)
        y = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(SIZE) + bias, -1) @ v
        x = self.n1(x + self.heads.merge(y))
        x = self.n2(x + self.fc(x))
        weight = known.unsqueeze(-1).float()
        return self.head((x * weight).sum(1) / weight.sum(1).clamp(min=1e-9))


class EncoderDecoder(nn.Module):
    """torch's own layers: a mask of padding as input, a causal one from the length."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(WIDTH, 2, 1, 1, 32, batch_first=True)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, source: Tensor, target: Tensor, padding: Tensor) -> Tensor:
        """[N, L, C], [N, M, C], [N, L] -> [N, M, 5]."""
        mask = nn.Transformer.generate_square_subsequent_mask(target.size(1))
        y = self.body(source, target, tgt_mask=mask, src_key_padding_mask=padding,
                      memory_key_padding_mask=padding)  # fmt: skip
        return self.head(y)


class Perceiver(nn.Module):
    """Latents read a long input, think twice with the same weights, and are asked by queries."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, WIDTH))
        self.query = nn.Parameter(torch.randn(2, WIDTH))
        self.read, self.think, self.ask = (
            nn.MultiheadAttention(WIDTH, 2, batch_first=True) for _ in range(3)
        )
        self.norm, self.fc = nn.LayerNorm(WIDTH), mlp(WIDTH, 32, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> [N, 2, C]."""
        z = self.latents.unsqueeze(0).expand(x.size(0), -1, -1)
        z = z + self.read(z, x, x)[0]
        for _ in range(2):
            h = self.norm(z)
            z = z + self.think(h, h, h)[0]
            z = z + self.fc(z)
        return self.ask(self.query.expand(x.size(0), -1, -1), z, z)[0]


class Linformer(nn.Module):
    """Keys and values projected along the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.e, self.f = Heads(), nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 12, C] -> the same."""
        q, k, v = self.heads.split(x)
        k = self.e(k.transpose(2, 3)).transpose(2, 3)
        v = self.f(v.transpose(2, 3)).transpose(2, 3)
        return self.heads.merge(torch.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k) / 2, -1) @ v)


class Performer(nn.Module):
    """Positive random features instead of a softmax, and sums before products."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = Heads()
        self.register_buffer("features", torch.randn(8, SIZE) * 0.5)

    def phi(self, x: Tensor) -> Tensor:
        """Features of queries and keys."""
        x = x * SIZE**-0.25
        dots = torch.einsum("...d,md->...m", x, self.features)
        half = x.square().sum(-1, keepdim=True) / 2
        return torch.exp(dots - half - dots.amax(-1, keepdim=True).detach()) + 1e-4

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> the same."""
        q, k, v = self.heads.split(x)
        q, k = self.phi(q), self.phi(k)
        context = torch.einsum("...nd,...ne->...de", k, v)
        scale = 1.0 / torch.einsum("...nd,...d->...n", q, k.sum(-2))
        return self.heads.merge(torch.einsum("...de,...nd,...n->...ne", context, q, scale))


class CausalLinear(nn.Module):
    """Linear attention whose sums run along the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = Heads()

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> the same."""
        q, k, v = self.heads.split(x)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        state = torch.einsum("nhld,nhle->nhlde", k, v).cumsum(2)
        top = torch.einsum("nhld,nhlde->nhle", q, state)
        return self.heads.merge(top / (q * k.cumsum(2)).sum(-1, keepdim=True))


class Longformer(nn.Module):
    """Each place looks at a window around it, cut by unfold."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = Heads()

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> the same."""
        q, k, v = self.heads.split(x)
        near = [F.pad(t, (0, 0, 2, 2)).unfold(2, 5, 1) for t in (k, v)]  # [N, H, L, C / H, 5]
        scores = torch.einsum("nhld,nhldw->nhlw", q, near[0]) / 2
        place = torch.arange(x.size(1))[:, None] + torch.arange(-2, 3)
        outside = (place < 0) | (place >= x.size(1))
        weight = scores.masked_fill(outside, -1e9).softmax(-1)
        return self.heads.merge(torch.einsum("nhlw,nhldw->nhld", weight, near[1]))


class Swin(nn.Module):
    """A shifted window: roll, cut, a table of relative places, a mask, and back."""

    def __init__(self, height: int = 8, window: int = 4) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2
        self.embed, self.norm = nn.Conv2d(3, WIDTH, 2, 2), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, HEADS) * 0.2)
        at = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
        relative = (at[:, :, None] - at[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer("index", relative[..., 0] * (2 * window - 1) + relative[..., 1])
        part = torch.zeros(1, height, height, 1)
        cuts = (slice(0, -window), slice(-window, -self.shift), slice(-self.shift, None))
        for number, (rows, columns) in enumerate((a, b) for a in cuts for b in cuts):
            part[:, rows, columns] = number
        found = self.cut(part).squeeze(-1)
        self.register_buffer("mask", (found[:, None] - found[:, :, None]).ne(0) * -100.0)

    def cut(self, x: Tensor) -> Tensor:
        """[N, H, W, C] -> [N * windows, window ** 2, C]."""
        n, h, w, c = x.shape
        x = x.view(n, h // self.window, self.window, w // self.window, self.window, c)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, self.window**2, c)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 16, 16] -> [N, 8, 8, C]."""
        x = self.embed(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        moved = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2))
        cut = self.cut(moved)
        b, length, _ = cut.shape
        q, k, v = self.qkv(cut).reshape(b, length, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        scores = q * SIZE**-0.5 @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(length, length, -1).permute(2, 0, 1)
        scores = scores + bias.contiguous().unsqueeze(0)
        windows = self.mask.shape[0]
        scores = scores.view(b // windows, windows, HEADS, length, length)
        scores = (scores + self.mask[:, None].unsqueeze(0)).view(-1, HEADS, length, length)
        y = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, length, c))
        y = y.view(n, h // self.window, w // self.window, self.window, self.window, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return x + torch.roll(y, (self.shift, self.shift), (1, 2))


class MaxVit(nn.Module):
    """Blocks of neighbours, then a grid of far places, behind an inverted bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep = (
            nn.Conv2d(3, WIDTH, 1),
            nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, groups=WIDTH),
        )
        self.norm, self.squeeze, self.excite = (
            nn.BatchNorm2d(WIDTH),
            nn.Conv2d(WIDTH, 4, 1),
            nn.Conv2d(4, WIDTH, 1),
        )
        self.block, self.grid = Heads(), Heads()

    @staticmethod
    def attend(heads: Heads, x: Tensor) -> Tensor:
        q, k, v = heads.split(x.flatten(0, 2).flatten(1, 2))
        return heads.merge(torch.softmax(q @ k.mT / 2, -1) @ v).view_as(x)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 8, 8] -> [N, C, 8, 8]."""
        x = F.gelu(self.norm(self.deep(F.gelu(self.wide(x)))))
        x = x * torch.sigmoid(self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        n, c, h, w = x.shape
        y = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1)
        y = y + self.attend(self.block, y)
        x = y.permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)
        y = x.view(n, c, 4, h // 4, 4, w // 4).permute(0, 3, 5, 2, 4, 1)
        y = y + self.attend(self.grid, y)
        return y.permute(0, 5, 3, 1, 4, 2).reshape(n, c, h, w)


class Mixer(nn.Module):
    """Networks along tokens and along channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.n1, self.n2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.tokens, self.channels = mlp(9, 8, 9), mlp(WIDTH, 24, WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 12, 12] -> [N, 4]."""
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.n1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.n2(x))
        return self.head(x.mean(1))


def ids(length: int) -> Any:
    """Words; the last ones of some rows are padding."""

    def made(n: int) -> tuple[Any, ...]:
        keep = torch.arange(length) < torch.randint(2, length + 1, (n, 1))
        return (torch.randint(1, 30, (n, length)) * keep,)

    return made


def padded(n: int) -> tuple[Any, ...]:
    """Source, target, and what of the source is padding."""
    padding = torch.arange(7) >= torch.randint(2, 8, (n, 1))
    return torch.randn(n, 7, WIDTH), torch.randn(n, 5, WIDTH), padding


CASES: dict[str, Case] = {
    "gpt, tied": Case(PreNorm, ids(9)),
    "rope, grouped queries, swiglu": Case(Llama, floats(7, WIDTH)),
    "rope by complex numbers, one key": Case(ComplexRope, floats(7, WIDTH)),
    "alibi": Case(Alibi, floats(7, WIDTH)),
    "t5": Case(T5, lambda n: (torch.randn(n, 6, WIDTH), torch.randn(n, 8, WIDTH))),
    "a cache that is given": Case(
        Cached, lambda n: (torch.randn(n, 1, WIDTH), *torch.randn(2, n, 2, 5, SIZE))),
    "bert with padding": Case(PostNorm, ids(9)),
    "encoder and decoder": Case(EncoderDecoder, padded),
    "perceiver": Case(Perceiver, floats(10, WIDTH), choosing=True),
    "linformer": Case(Linformer, floats(12, WIDTH)),
    "performer": Case(Performer, floats(9, WIDTH)),
    "causal linear attention": Case(CausalLinear, floats(9, WIDTH)),
    "longformer window": Case(Longformer, floats(9, WIDTH)),
    "swin, shifted": Case(Swin, floats(3, 16, 16)),
    "maxvit": Case(MaxVit, floats(3, 8, 8)),
    "mixer": Case(Mixer, floats(3, 12, 12)),
}  # fmt: skip
