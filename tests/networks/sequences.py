"""Small networks over sequences: recurrent ones, convolutions along time, scans, transforms."""

# layers and buffers have no type of their own in nn.Module
# mypy: disable-error-code="no-any-return, operator, index, arg-type"

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.networks.case import Case, floats, mlp

# --- recurrent -----------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A recurrent layer and a head for each step; its states as well."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(8, 6, **options)
        width = (options.get("proj_size") or 6) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        """[N, L, 8], or [L, N, 8] where the layer has time first."""
        y, state = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        return self.head(y), state


class PackedTwice(nn.Module):
    """Two layers hand on packed steps; a head between them works on their data alone."""

    def __init__(self, *, total: bool, ordered: bool = False) -> None:
        super().__init__()
        self.a = nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.b = nn.GRU(12, 6, batch_first=True)
        self.head, self.total, self.ordered = nn.Linear(6, 3), total, ordered

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, L, 8], [N] -> [N, longest or L, 3], the last state, the lengths."""
        p = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=self.ordered)
        p, _ = self.a(p)
        p, state = self.b(p)
        total = x.size(1) if self.total else None
        y, found = pad_packed_sequence(p, batch_first=True, total_length=total)
        return self.head(y), state[-1], found


class Cells(nn.Module):
    """A loop over cells, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.LSTMCell(8, 6), nn.GRUCell(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, 8] -> [N, L, 3]."""
        h, c, g = x.new_zeros(x.size(0), 6), x.new_zeros(x.size(0), 6), x.new_zeros(x.size(0), 6)
        steps = []
        for t in range(x.size(1)):
            h, c = self.a(x[:, t], (h, c))
            g = self.b(h, g)
            steps.append(self.head(g))
        return torch.stack(steps, 1)


class ConvLstm(nn.Module):
    """Convolutions for the gates of an LSTM over images."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv2d(2 + 4, 16, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, 2, H, W] -> [N, 1, H, W]."""
        n, time, _, height, width = x.shape
        h = torch.zeros(n, 4, height, width)
        c = torch.zeros(n, 4, height, width)
        for t in range(time):
            i, f, o, g = torch.split(self.gates(torch.cat([x[:, t], h], 1)), 4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


class SeqToSeq(nn.Module):
    """An encoder, and a decoder that attends to it and goes on from its own best word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.encoder = nn.Embedding(12, 8), nn.GRU(8, 6, batch_first=True)
        self.cell, self.score = nn.GRUCell(14, 6), nn.Linear(12, 6)
        self.v, self.head = nn.Parameter(torch.randn(6)), nn.Linear(6, 12)

    def forward(self, ids: Tensor) -> Tensor:
        """[N, L] -> [N, 4, 12]."""
        memory, state = self.encoder(self.words(ids))
        h, word, out = state[0], ids.new_ones(ids.size(0)), []
        for _ in range(4):
            both = torch.cat([h.unsqueeze(1).repeat(1, memory.size(1), 1), memory], 2)
            weight = F.softmax(torch.tanh(self.score(both)) @ self.v, 1)
            context = torch.bmm(weight.unsqueeze(1), memory).squeeze(1)
            h = self.cell(torch.cat([self.words(word), context], 1), h)
            logits = self.head(h)
            word = logits.argmax(1)
            out.append(logits)
        return torch.stack(out, 1)


class Qrnn(nn.Module):
    """Convolutions for the gates, one product and sum a step."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv1d(8, 18, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, 8] -> [N, L, 3]."""
        z, f, o = self.gates(F.pad(x.transpose(1, 2), (1, 0))).chunk(3, 1)
        z, f, o = z.tanh(), f.sigmoid(), o.sigmoid()
        c, steps = torch.zeros_like(z[..., 0]), []
        for t in range(z.size(-1)):
            c = torch.lerp(z[..., t], c, f[..., t])
            steps.append(o[..., t] * c)
        return self.head(torch.stack(steps, 1))


class Sru(nn.Module):
    """One product for all gates of all steps; a highway around it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 24, bias=False)
        self.v, self.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.zeros(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, 8] -> the same."""
        u, f, r = self.fc(x).view(*x.shape[:2], 8, 3).unbind(-1)
        c, steps = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            forget = torch.sigmoid(f[:, t] + self.v[0] * c + self.b[0])
            reset = torch.sigmoid(r[:, t] + self.v[1] * c + self.b[1])
            c = forget * c + (1 - forget) * u[:, t]
            steps.append(reset * c + (1 - reset) * x[:, t])
        return torch.stack(steps, 1)


class Mamba(nn.Module):
    """A selective state space, its scan by cumulative sums of logarithms."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.conv = nn.Linear(8, 32), nn.Conv1d(16, 16, 4, padding=3, groups=16)
        self.bc, self.dt = nn.Linear(16, 8 + 2), nn.Linear(2, 16)
        self.a_log = nn.Parameter(torch.log(torch.arange(1, 5).float()).repeat(16, 1))
        self.d, self.out = nn.Parameter(torch.ones(16)), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, 8] -> the same."""
        length = x.size(1)
        h, gate = self.inner(x).chunk(2, -1)
        h = F.silu(self.conv(h.transpose(1, 2))[..., :length].transpose(1, 2))
        dt, b, c = self.bc(h).split([2, 4, 4], -1)
        dt = F.softplus(self.dt(dt)) * 0.1
        decay = torch.einsum("nld,ds->nlds", dt, -torch.exp(self.a_log)).cumsum(1)
        given = torch.einsum("nld,nls,nld->nlds", dt, b, h)
        state = (given * torch.exp(-decay)).cumsum(1) * torch.exp(decay)
        y = torch.einsum("nlds,nls->nld", state, c) + h * self.d
        return self.out(y * F.silu(gate))


class Rwkv(nn.Module):
    """A shift in time, and weights that decay from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.rand(3, 8))
        self.k, self.v, self.r, self.o = (nn.Linear(8, 8, bias=False) for _ in range(4))
        self.decay, self.first = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))
        self.shift = nn.ZeroPad2d((0, 0, 1, -1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, 8] -> the same."""
        old = self.shift(x)
        k, v, r = (
            f(x * m + old * (1 - m))
            for f, m in zip((self.k, self.v, self.r), self.mix, strict=True)
        )
        a = b = torch.zeros_like(k[:, 0])
        steps = []
        for t in range(x.size(1)):
            now = torch.exp(self.first + k[:, t])
            steps.append((a + now * v[:, t]) / (b + now))
            fade, seen = torch.exp(-torch.exp(self.decay)), torch.exp(k[:, t])
            a, b = fade * a + seen * v[:, t], fade * b + seen
        return self.o(torch.sigmoid(r) * torch.stack(steps, 1))


# --- convolutions along time ---------------------------------------------------------------------


class Tcn(nn.Module):
    """Dilated causal convolutions, cut behind, with weight norm."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.layers = nn.ModuleList(
            norm(nn.Conv1d(4 if d == 1 else 8, 8, 3, padding=2 * d, dilation=d)) for d in (1, 2)
        )
        self.skip, self.head = nn.Conv1d(4, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 4, L] -> [N, 3]."""
        y = x
        for layer in self.layers:
            y = F.relu(layer(y)[..., : -layer.padding[0]])
        return self.head(F.relu(y + self.skip(x))[:, :, -1])


class WaveNet(nn.Module):
    """Gated, dilated, with skips that add up."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 8, 1)
        self.gated = nn.ModuleList(nn.Conv1d(8, 16, 2, dilation=d) for d in (1, 2, 4))
        self.onward = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3))
        self.out = nn.Sequential(nn.ReLU(), nn.Conv1d(8, 8, 1), nn.ReLU(), nn.Conv1d(8, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, L] -> [N, 16, L]."""
        x, skip = self.first(x), 0
        for conv, onward, kept in zip(self.gated, self.onward, self.skips, strict=True):
            a, b = conv(F.pad(x, (conv.dilation[0], 0))).chunk(2, 1)
            h = torch.tanh(a) * torch.sigmoid(b)
            skip = skip + kept(h)
            x = x + onward(h)
        return self.out(skip)


class ConvTasNet(nn.Module):
    """A learnt transform, masks of two speakers, and its inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv1d(1, 8, 4, 2, bias=False)
        self.decode = nn.ConvTranspose1d(8, 1, 4, 2, bias=False)
        self.norm, self.inner = nn.GroupNorm(1, 8), nn.Conv1d(8, 12, 1)
        self.deep, self.act = nn.Conv1d(12, 12, 3, padding=1, groups=12), nn.PReLU()
        self.back, self.mask = nn.Conv1d(12, 8, 1), nn.Conv1d(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L] -> [N, 2, L]."""
        w = F.relu(self.encode(x.unsqueeze(1)))
        h = self.norm(w)
        h = h + self.back(self.act(self.deep(self.act(self.inner(h)))))
        masks = torch.sigmoid(self.mask(h)).view(x.size(0), 2, 8, -1)
        parts = (w.unsqueeze(1) * masks).flatten(0, 1)
        return self.decode(parts).view(x.size(0), 2, -1)


class Ctc(nn.Module):
    """Strided convolutions, a recurrent layer, log probabilities with time first, best words."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 4, 3, (2, 2), 1), nn.Hardtanh(0, 20), nn.Conv2d(4, 4, 3, (1, 2), 1)
        )
        self.rnn, self.head = nn.GRU(12, 6, bidirectional=True), nn.Linear(12, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, F, T] -> [T / 4, N, 7], [N, T / 4]."""
        y = self.conv(x.unsqueeze(1))
        y = y.view(y.size(0), y.size(1) * y.size(2), y.size(3)).permute(2, 0, 1)
        y = F.log_softmax(self.head(self.rnn(y)[0]), 2)
        return y, y.argmax(2).transpose(0, 1)


# --- transforms ----------------------------------------------------------------------------------


def mel_bank(bands: int, bins: int) -> Tensor:
    """Triangles, evenly spaced in mel."""
    edges = torch.linspace(0, 2595 * math.log10(1 + 4000 / 700), bands + 2)
    hertz = 700 * (10 ** (edges / 2595) - 1) / 4000 * (bins - 1)
    at = torch.arange(bins).float()[:, None]
    up = (at - hertz[:-2]) / (hertz[1:-1] - hertz[:-2])
    down = (hertz[2:] - at) / (hertz[2:] - hertz[1:-1])
    return torch.minimum(up, down).clamp(min=0)


class StftByConv(nn.Module):
    """A spectrogram by fixed convolutions, mel bands, a logarithm, a small CNN."""

    def __init__(self) -> None:
        super().__init__()
        n = torch.arange(16).float()
        angles = 2 * math.pi * torch.arange(9)[:, None] * n / 16
        window = torch.hann_window(16)
        self.register_buffer("real", (angles.cos() * window)[:, None])
        self.register_buffer("imaginary", (-angles.sin() * window)[:, None])
        self.register_buffer("bank", mel_bank(6, 9))
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L] -> [N, 5]."""
        x = F.pad(x.unsqueeze(1), (8, 8), mode="reflect")
        re, im = F.conv1d(x, self.real, stride=8), F.conv1d(x, self.imaginary, stride=8)
        mel = torch.matmul((re**2 + im**2).transpose(1, 2), self.bank)
        y = self.cnn(torch.log(mel + 1e-3).unsqueeze(1))
        return self.head(y.mean((2, 3)))


class StftOfTorch(nn.Module):
    """torch.stft, its power, mel bands in decibels, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(16))
        self.register_buffer("bank", mel_bank(6, 9))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L] -> [N, 5]."""
        s = torch.stft(x, 16, 8, window=self.window, return_complex=True)
        mel = self.bank.T @ s.abs().pow(2)
        db = 10 * torch.log10(mel.clamp(min=1e-4))
        return self.head(((db + 40) / 40).mean(-1))


class StftAndBack(nn.Module):
    """A mask on a spectrogram, and the inverse transform."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(16))
        self.mask = nn.Conv1d(9, 9, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L] -> the same."""
        s = torch.stft(x, 16, 8, window=self.window, return_complex=True)
        m = torch.sigmoid(self.mask(torch.log1p(s.abs())))
        return torch.istft(s * m, 16, 8, window=self.window, length=x.size(-1))


class FNet(nn.Module):
    """The real part of a transform over places and channels instead of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2, self.fc = nn.LayerNorm(8), nn.LayerNorm(8), mlp(8, 16, 8)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, 8] -> the same."""
        x = self.n1(x + torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real)
        return self.n2(x + self.fc(x))


class Fno(nn.Module):
    """Low frequencies mixed by complex weights, beside a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.drop = nn.Linear(1, 6), nn.Linear(6, 1)
        self.weight = nn.Parameter(torch.randn(2, 6, 6, 4, dtype=torch.cfloat) / 6)
        self.w = nn.ModuleList(nn.Conv1d(6, 6, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, 1] -> the same."""
        x = self.lift(x).permute(0, 2, 1)
        for weight, w in zip(self.weight, self.w, strict=True):
            f = torch.fft.rfft(x)
            out = torch.zeros(x.shape[0], 6, x.size(-1) // 2 + 1, dtype=torch.cfloat)
            out[:, :, :4] = torch.einsum("bix,iox->box", f[:, :, :4], weight)
            x = F.gelu(torch.fft.irfft(out, n=x.size(-1)) + w(x))
        return self.drop(x.permute(0, 2, 1))


class GlobalFilter(nn.Module):
    """GFNet: a product with learnt filters between a transform and its inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.filter = nn.Parameter(torch.randn(8, 5, 8, 2) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 16, 16] -> [N, 8, 8, 8]."""
        x = self.embed(x).permute(0, 2, 3, 1)
        f = torch.fft.rfft2(self.norm(x), dim=(1, 2), norm="ortho")
        f = f * torch.view_as_complex(self.filter)
        return x + torch.fft.irfft2(f, s=(x.shape[1], x.shape[2]), dim=(1, 2), norm="ortho")


class Shifted(nn.Module):
    """The middle of a shifted spectrum, weighed, and back."""

    def __init__(self, dim: Any = (-2, -1)) -> None:
        super().__init__()
        self.conv, self.dim = nn.Conv2d(1, 4, 3, padding=1), dim
        mask = torch.zeros(8, 8)
        mask[2:6, 2:6] = 1
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 8, 8] -> [N, 4, 8, 8]."""
        f = torch.fft.fftshift(torch.fft.fft2(self.conv(x)), dim=self.dim) * self.mask
        return torch.fft.ifft2(torch.fft.ifftshift(f, dim=self.dim)).real


class AutoCorrelation(nn.Module):
    """Autoformer: correlation by transforms, the best delays, rolled values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 8, 6] -> the same."""
        q, k, v = (f(x).transpose(1, 2) for f in (self.q, self.k, self.v))
        product = torch.fft.rfft(q, dim=-1) * torch.conj(torch.fft.rfft(k, dim=-1))
        found = torch.fft.irfft(product, n=8, dim=-1).mean(1)
        weights, delays = found.topk(2, dim=-1)
        weights = weights.softmax(-1)
        places = torch.arange(8)
        twice = torch.cat([v, v], -1)
        out = torch.zeros_like(v)
        for i in range(2):
            at = (places + delays[:, i : i + 1]).unsqueeze(1).expand(-1, 6, -1)
            out = out + twice.gather(-1, at) * weights[:, i, None, None]
        return out.transpose(1, 2)


class LongConv(nn.Module):
    """Hyena-like: a convolution as long as its input, by padded transforms, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, 12), nn.Linear(6, 6)
        self.kernel = nn.Parameter(torch.randn(6, 10) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 10, 6] -> the same."""
        u, gate = self.into(x).chunk(2, -1)
        length = x.size(1)
        f = torch.fft.rfft(u.transpose(1, 2), n=2 * length)
        y = torch.fft.irfft(f * torch.fft.rfft(self.kernel, n=2 * length), n=2 * length)
        return self.out(y[..., :length].transpose(1, 2) * gate)


def packed(n: int, length: int = 7) -> tuple[Any, ...]:
    """Sequences and their lengths; the longest need not be all of the input."""
    return torch.randn(n, length, 8), torch.randint(1, length + 1, (n,))


def ordered(n: int) -> tuple[Any, ...]:
    """The longest first."""
    x, lengths = packed(n)
    return x, lengths.sort(descending=True)[0]


def words(n: int) -> tuple[Any, ...]:
    """Words of a sentence."""
    return (torch.randint(0, 12, (n, 6)),)


CASES: dict[str, Case] = {
    "lstm": Case(lambda: Recurrent(nn.LSTM), floats(6, 8)),
    "lstm, stacked, both ways": Case(
        lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True),
        floats(6, 8)),
    "lstm, projected": Case(
        lambda: Recurrent(nn.LSTM, num_layers=2, proj_size=4, batch_first=True), floats(6, 8)),
    "gru, stacked": Case(lambda: Recurrent(nn.GRU, num_layers=3, batch_first=True), floats(6, 8)),
    "rnn, relu, both ways": Case(
        lambda: Recurrent(nn.RNN, nonlinearity="relu", bidirectional=True), floats(6, 8)),
    "packed twice": Case(lambda: PackedTwice(total=True), packed),
    "packed twice, to the longest": Case(lambda: PackedTwice(total=False), packed),
    "packed twice, the longest first": Case(
        lambda: PackedTwice(total=False, ordered=True), ordered),
    "cells": Case(Cells, floats(5, 8)),
    "conv lstm": Case(ConvLstm, floats(3, 2, 6, 6)),
    "sequence to sequence": Case(SeqToSeq, words, choosing=True),
    "qrnn": Case(Qrnn, floats(6, 8)),
    "sru": Case(Sru, floats(6, 8)),
    "mamba": Case(Mamba, floats(7, 8)),
    "rwkv": Case(Rwkv, floats(5, 8)),
    "tcn": Case(Tcn, floats(4, 12)),
    "wavenet": Case(WaveNet, floats(1, 20)),
    "conv-tasnet": Case(ConvTasNet, floats(22)),
    "ctc": Case(Ctc, floats(6, 16)),
    "stft by convolutions": Case(StftByConv, floats(64)),
    "stft of torch": Case(StftOfTorch, floats(64)),
    "stft and back": Case(StftAndBack, floats(64)),
    "fnet": Case(FNet, floats(6, 8)),
    "fourier operator": Case(Fno, floats(16, 1)),
    "global filter": Case(GlobalFilter, floats(3, 16, 16)),
    "shifted spectrum": Case(Shifted, floats(1, 8, 8)),
    "shifted spectrum, all axes": Case(lambda: Shifted(None), floats(1, 8, 8)),
    "auto correlation": Case(AutoCorrelation, floats(8, 6), choosing=True),
    "long convolution": Case(LongConv, floats(10, 6)),
}  # fmt: skip
