"""Small networks over two images or many: flow, stereo, video."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import Entry, cbr


class Flow(nn.Module):
    """PWC-Net: a coarse flow warps the second map, a correlation over shifts refines it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(3, 6, 3, 2, act=lambda: nn.LeakyReLU(0.1)), cbr(6, 8, 3, 2)
        self.coarse = nn.Conv2d(9, 2, 3, padding=1)
        self.up, self.fine = (
            nn.ConvTranspose2d(2, 2, 4, 2, 1),
            nn.Conv2d(9 + 6 + 2, 2, 3, padding=1),
        )

    @staticmethod
    def correlate(f: Tensor, g: Tensor) -> Tensor:
        _, _, h, w = f.shape
        g = F.pad(g, (1, 1, 1, 1))
        found = [
            (f * g[:, :, dy : dy + h, dx : dx + w]).mean(1, keepdim=True)
            for dy in range(3)
            for dx in range(3)
        ]
        return F.leaky_relu(torch.cat(found, 1), 0.1)

    @staticmethod
    def warp(x: Tensor, flow: Tensor) -> Tensor:
        n, _, h, w = x.size()
        xx = torch.arange(0, w).view(1, -1).repeat(h, 1).view(1, 1, h, w).repeat(n, 1, 1, 1)
        yy = torch.arange(0, h).view(-1, 1).repeat(1, w).view(1, 1, h, w).repeat(n, 1, 1, 1)
        grid = torch.cat((xx, yy), 1).float() + flow
        gx = 2.0 * grid[:, 0, :, :] / max(w - 1, 1) - 1.0
        gy = 2.0 * grid[:, 1, :, :] / max(h - 1, 1) - 1.0
        at = torch.stack((gx, gy), dim=3)
        inside = F.grid_sample(torch.ones_like(x), at, align_corners=True)
        return F.grid_sample(x, at, align_corners=True) * (inside > 0.999).float()

    def forward(self, x: Tensor, y: Tensor) -> Any:
        f1, g1 = self.a(x), self.a(y)
        coarse = self.coarse(self.correlate(self.b(f1), self.b(g1)))
        flow = self.up(coarse)
        cost = self.correlate(f1, self.warp(g1, flow * 0.625))
        flow = flow + self.fine(torch.cat((cost, f1, flow), 1))
        return F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=False) * 2.0


class AllPairs(nn.Module):
    """RAFT: all pairs of places, a pyramid, look-ups around the flow, a recurrent update."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.context = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(3, 8, 3, 2, 1)
        self.z, self.q = nn.Conv2d(8 + 18 + 2, 8, 3, padding=1), nn.Conv2d(28, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        f, g = self.net(x), self.net(y)
        n, c, h, w = f.shape
        corr = torch.matmul(f.view(n, c, h * w).transpose(1, 2), g.view(n, c, h * w))
        corr = corr.view(n * h * w, 1, h, w) / c**0.5
        pyramid = [corr, F.avg_pool2d(corr, 2, stride=2)]
        ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        start = torch.stack([xs, ys], 0).float().unsqueeze(0).repeat(n, 1, 1, 1)
        coords, hidden = start.clone(), torch.tanh(self.context(x))
        dy, dx = torch.meshgrid(torch.linspace(-1, 1, 3), torch.linspace(-1, 1, 3), indexing="ij")
        delta = torch.stack([dx, dy], -1).view(1, 3, 3, 2)
        for _ in range(2):
            found = []
            for i, level in enumerate(pyramid):
                at = coords.permute(0, 2, 3, 1).reshape(n * h * w, 1, 1, 2) / 2**i + delta
                hh, ww = level.shape[-2:]
                sx, sy = at.split([1, 1], dim=-1)
                at = torch.cat([2 * sx / (ww - 1) - 1, 2 * sy / (hh - 1) - 1], dim=-1)
                seen = F.grid_sample(level, at, align_corners=True).view(n, h, w, -1)
                found.append(seen.permute(0, 3, 1, 2))
            given = torch.cat([hidden, *found, coords - start], 1)
            z = torch.sigmoid(self.z(given))
            hidden = (1 - z) * hidden + z * torch.tanh(self.q(given))
            coords = coords + self.head(hidden)
        return coords - start


class Stereo(nn.Module):
    """A volume of shifted pairs, 3-D convolutions, the mean disparity under a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(cbr(3, 4, 3, 2), nn.Conv2d(4, 4, 3, padding=1))
        self.a = nn.Sequential(nn.Conv3d(8, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU())
        self.down, self.up = nn.Conv3d(6, 6, 3, 2, 1), nn.ConvTranspose3d(6, 6, 3, 2, 1, 1)
        self.out = nn.Conv3d(6, 1, 3, padding=1, bias=False)

    def forward(self, left: Tensor, right: Tensor) -> Any:
        f, g = self.net(left), self.net(right)
        n, c, h, w = f.shape
        cost = f.new_zeros((n, 2 * c, 4, h, w))
        for i in range(4):
            if i > 0:
                cost[:, :c, i, :, i:] = f[:, :, :, i:]
                cost[:, c:, i, :, i:] = g[:, :, :, :-i]
            else:
                cost[:, :c, i, :, :] = f
                cost[:, c:, i, :, :] = g
        a = self.a(cost.contiguous())
        cost = self.out(F.relu(self.up(F.relu(self.down(a))) + a))
        cost = F.interpolate(cost, size=(8, h * 2, w * 2), mode="trilinear", align_corners=False)
        prob = F.softmax(torch.squeeze(cost, 1) * 4, dim=1)
        return torch.sum(prob * torch.arange(8, dtype=torch.float32).view(1, 8, 1, 1), 1)


class Shifted(nn.Module):
    """TSM: parts of the channels move by a frame, then 2-D convolutions over all frames."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = cbr(3, 8, 3, 2), cbr(8, 8), nn.Linear(8, 4)

    def shift(self, x: Tensor, frames: int) -> Tensor:
        nt, c, h, w = x.size()
        x = x.view(nt // frames, frames, c, h, w)
        out = torch.zeros_like(x)
        out[:, :-1, :2] = x[:, 1:, :2]
        out[:, 1:, 2:4] = x[:, :-1, 2:4]
        out[:, :, 4:] = x[:, :, 4:]
        return out.view(nt, c, h, w)

    def forward(self, x: Tensor) -> Any:
        n, t = x.shape[:2]
        y = self.stem(x.view((-1, *x.shape[2:])))
        y = y + self.conv(self.shift(y, t))
        return self.fc(y.mean((2, 3))).view(n, t, -1).mean(dim=1)


class Factorized(nn.Module):
    """R(2+1)D: space, then time; a head over a pooled volume."""

    def __init__(self) -> None:
        super().__init__()
        self.space = nn.Conv3d(3, 6, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
        self.time = nn.Conv3d(6, 8, (3, 1, 1), 1, (1, 0, 0), bias=False)
        self.a, self.b = nn.BatchNorm3d(6), nn.BatchNorm3d(8)
        self.short = nn.Conv3d(3, 8, 1, (1, 2, 2), bias=False)
        self.pool, self.fc = nn.AdaptiveAvgPool3d((1, 1, 1)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.b(self.time(F.relu(self.a(self.space(x))))) + self.short(x), inplace=True)
        y = F.max_pool3d(y, (1, 2, 2), stride=(1, 2, 2))
        return self.fc(self.pool(y).flatten(1))


class SlowFast(nn.Module):
    """Two rates of frames; the fast way is joined to the slow one by a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = nn.Conv3d(3, 8, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.fast = nn.Conv3d(3, 4, (3, 3, 3), (1, 2, 2), 1)
        self.side = nn.Conv3d(4, 4, (3, 1, 1), (2, 1, 1), (1, 0, 0))
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        slow, fast = F.relu(self.slow(x[:, :, ::2])), F.relu(self.fast(x))
        slow = torch.cat([slow, F.relu(self.side(fast))], dim=1)
        return self.fc(torch.cat([slow.mean([-1, -2, -3]), fast.mean([-1, -2, -3])], dim=1))


class Recurrent(nn.Module):
    """ConvLSTM over a fixed number of frames, its states of zeros like the input."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.out = nn.Conv2d(3 + 6, 24, 3, padding=1), nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Any:
        n, t, _, height, width = x.shape
        h = torch.zeros(n, 6, height, width)
        c = torch.zeros(n, 6, height, width)
        outs = []
        for k in range(t):
            i, f, o, g = torch.split(self.gates(torch.cat([x[:, k], h], dim=1)), 6, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outs.append(self.out(h))
        return torch.stack(outs, dim=1), (h, c)


class Interpolated(nn.Module):
    """Frame interpolation: kernels of a row and a column for each pixel, applied to patches."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(cbr(6, 8), nn.Conv2d(8, 12, 3, padding=1))

    def forward(self, x: Tensor, y: Tensor) -> Any:
        k = torch.softmax(self.net(torch.cat([x, y], 1)).view(x.size(0), 4, 3, *x.shape[2:]), dim=2)
        total = torch.zeros_like(x)
        for i, frame in enumerate((x, y)):
            n, c, h, w = frame.shape
            patches = F.unfold(frame, 3, padding=1).view(n, c, 3, 3, h, w)
            total = total + torch.einsum(
                "ncijhw,nihw,njhw->nchw", patches, k[:, 2 * i], k[:, 2 * i + 1]
            )
        return total / 2


def two(batch: int, height: int, width: int) -> tuple[Any, ...]:
    return ((batch, 3, height, width),) * 2


NETS: dict[str, Entry] = {
    "flow by warping": Entry(Flow, two(2, 16, 16), (two(1, 16, 24),)),
    "flow by all pairs": Entry(AllPairs, two(2, 8, 12), (two(1, 12, 12),)),
    "stereo": Entry(Stereo, two(2, 8, 16), (two(1, 12, 20),)),
    "shifted frames": Entry(Shifted, ((2, 4, 3, 8, 8),), (((1, 3, 3, 12, 8),),)),
    "space, then time": Entry(Factorized, ((2, 3, 4, 8, 8),), (((1, 3, 5, 12, 8),),)),
    "slow and fast": Entry(SlowFast, ((2, 3, 4, 8, 8),), (((1, 3, 6, 12, 8),),)),
    "convlstm": Entry(Recurrent, ((2, 3, 3, 8, 8),), (((1, 3, 3, 6, 10),),)),
    "frame interpolation": Entry(Interpolated, two(2, 8, 8), (two(3, 6, 10),)),
}
