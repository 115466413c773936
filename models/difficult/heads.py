"""Networks as they are found in the field."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.models.difficult.register import rows, taking


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


@taking(rows(2, 3, 16, 16))
class SkipNetwork(nn.Module):
    """A U-Net: `interpolate` to the size of another tensor, concatenation, pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish())
        self.up = nn.Conv2d(16, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down1(x)
        low = F.interpolate(self.down2(high), size=high.shape[-2:], mode="bilinear")
        return F.pixel_shuffle(self.up(torch.cat([high, low], 1)), 2)


@taking(rows(2, 4, 8, 8))
class SqueezeExcite(nn.Module):
    """A gate computed from the mean of its input, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(x)
        gate = F.relu(self.fc1(x.mean((2, 3), keepdim=True)), inplace=True)
        return x.mul_(F.hardsigmoid(self.fc2(gate)))


@taking(rows(2, 4, 8, 8))
class Reparameterised(nn.Module):
    """Branches that are summed, a list of tensors, and a branch that may be None."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.narrow = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.identity: nn.Module | None = nn.BatchNorm2d(4)
        self.absent: nn.Module | None = None

    def forward(self, x: Tensor) -> Any:
        branches = [self.wide, self.narrow, self.identity, self.absent]
        found = [[branch(x)] for branch in branches if branch is not None]
        return F.relu(sum(part for parts in found for part in parts))


@taking(rows(2, 8, 8, 8))
class ShiftedWindows(nn.Module):
    """Windows that are rolled, a mask and index tables built in forward, a bias by position."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.bias = nn.Linear(8, 24), nn.Parameter(rows(49, 2) * 0.1)
        steps = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))
        apart = steps.flatten(1)[:, :, None] - steps.flatten(1)[:, None, :]
        self.register_buffer("places", (apart[0] + 3) * 7 + apart[1] + 3, persistent=False)

    def windows(self, x: Tensor) -> Tensor:
        """[N, H, W, C] -> [N * windows, 16, C]"""
        b, h, w, c = x.shape
        cut = x.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5)
        return cut.reshape(-1, 16, c)

    def mask(self, h: int, w: int) -> Tensor:
        """[windows, 16, 16]: minus 100 where two places were not neighbours before the roll"""
        regions = torch.zeros(1, h, w, 1)
        for i, rows_ in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
            regions[:, rows_] = float(i)
        flat = self.windows(regions).squeeze(-1)
        return (flat[:, None] - flat[:, :, None]).ne(0).float() * -100.0

    def forward(self, x: Tensor) -> Any:
        x = torch.roll(x.permute(0, 2, 3, 1), shifts=(-2, -2), dims=(1, 2))
        b, h, w, _ = x.shape
        q, k, v = self.qkv(self.windows(x)).view(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.mT * 0.5 + self.bias[self.places.view(-1)].view(16, 16, 2).permute(2, 0, 1)
        masked = scores.view(b, -1, 2, 16, 16) + self.mask(h, w)[None, :, None]
        out = masked.view(-1, 2, 16, 16).softmax(-1) @ v
        out = out.transpose(1, 2).reshape(b, h // 4, w // 4, 4, 4, 8).permute(0, 1, 3, 2, 4, 5)
        return torch.roll(out.reshape(b, h, w, 8), shifts=(2, 2), dims=(1, 2))


@taking(rows(2, 4))
class TracingSwitch(nn.Module):
    """Another path while torch traces, and asserts on shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing() or torch.jit.is_scripting():  # type: ignore[attr-defined,no-untyped-call]
            return x
        assert x.shape[-1] == 4
        torch._assert(x.dim() == 2, "rows of four")
        return F.gelu(self.linear(x))


@taking(rows(2, 4))
class TwoPaths(nn.Module):
    """A branch on a value, in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Linear(4, 4), Gate()

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.gate(self.first(x)))


class Gate(nn.Module):
    """Decides on the sum of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 1e6 else x + 1
