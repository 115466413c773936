"""Small convolutional networks around one idea each: backbones, attention, computed filters."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import Entry, cbr, image


class Classifier(nn.Module):
    """A stem, some blocks, the mean over the map and a linear layer."""

    def __init__(self, *blocks: nn.Module, out: int = 8) -> None:
        super().__init__()
        self.stem, self.blocks = cbr(3, 8, 3, 2), nn.Sequential(*blocks)
        self.fc = nn.Linear(out, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), (1, 1)), 1))


class ChannelsFirstNorm(nn.Module):
    """LayerNorm over the channels of a map, written out."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))

    def forward(self, x: Tensor) -> Any:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXt(nn.Module):
    """Depthwise 7 × 7, norm and linear layers on the last axis, layer scale or response norm."""

    def __init__(self, *, second: bool = False) -> None:
        super().__init__()
        self.dw, self.norm = nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.LayerNorm(8, eps=1e-6)
        self.pw1, self.pw2 = nn.Linear(8, 32), nn.Linear(32, 8)
        self.gamma = nn.Parameter(torch.full((8,), 0.5))
        self.beta, self.g2 = (
            nn.Parameter(torch.zeros(1, 1, 1, 32)),
            nn.Parameter(torch.ones(1, 1, 1, 32)),
        )
        self.second, self.down = second, nn.Sequential(ChannelsFirstNorm(8), nn.Conv2d(8, 8, 2, 2))

    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = F.gelu(self.pw1(y))
        if self.second:
            gx = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
            nx = gx / (gx.mean(dim=-1, keepdim=True) + 1e-6)
            y = self.g2 * (y * nx) + self.beta + y
        y = self.gamma * self.pw2(y)
        return self.down(x + y.permute(0, 3, 1, 2))


class Excited(nn.Module):
    """EfficientNet's inverted bottleneck with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.dw = cbr(8, 16, 1, act=nn.SiLU), cbr(16, 16, 5, g=16, act=nn.SiLU)
        self.reduce, self.grow = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = cbr(16, 8, 1, act=None)

    def forward(self, x: Tensor) -> Any:
        y = self.dw(self.expand(x))
        s = y.mean((2, 3), keepdim=True)
        s = self.grow(F.silu(self.reduce(s), inplace=True))
        return self.project(y * s.sigmoid()) + x


class Shuffled(nn.Module):
    """ShuffleNet v2: halves, and channels that change places; v1: groups and a strided branch."""

    def __init__(self, *, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.branch = nn.Sequential(cbr(4, 4, 1), cbr(4, 4, g=4, act=None), cbr(4, 4, 1))
        self.a, self.dw, self.b = cbr(8, 4, 1, g=2), cbr(4, 4, 3, 2, g=4, act=None), cbr(
            4, 8, 1, g=2, act=None)  # fmt: skip

    @staticmethod
    def shuffle(x: Tensor, groups: int) -> Tensor:
        n, c, h, w = x.data.size()
        x = x.view(n, groups, c // groups, h, w)
        return torch.transpose(x, 1, 2).contiguous().view(n, -1, h, w)

    def forward(self, x: Tensor) -> Any:
        if self.first:
            y = self.b(self.dw(self.shuffle(self.a(x), 2)))
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))
        a, b = x.chunk(2, dim=1)
        return self.shuffle(torch.cat((a, self.branch(b)), dim=1), 2)


class Ghost(nn.Module):
    """GhostNet: cheap features beside made ones, the surplus cut off."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        half = math.ceil(b / 2)
        self.b, self.primary, self.cheap = b, cbr(a, half, 1), cbr(half, half, g=half)

    def forward(self, x: Tensor) -> Any:
        y = self.primary(x)
        return torch.cat([y, self.cheap(y)], dim=1)[:, : self.b, :, :]


class Inception(nn.Module):
    """Four branches: 1 × 1, 3 × 3, 1 × 7 and 7 × 1, a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(8, 2, 1), nn.Sequential(cbr(8, 3, 1), cbr(3, 4))
        self.c = nn.Sequential(nn.Conv2d(8, 3, (1, 7), padding=(0, 3)), nn.ReLU(),
                               nn.Conv2d(3, 3, (7, 1), padding=(3, 0)), nn.ReLU())  # fmt: skip
        self.d = nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), cbr(8, 3, 1))

    def forward(self, x: Tensor) -> Any:
        branches = [self.a(x), self.b(x), self.c(x), self.d(x)]
        return torch.cat([*branches, F.max_pool2d(x, 3, 1, 1)], 1)


class Dense(nn.Module):
    """DenseNet: norm and ReLU before the convolution, all maps so far as its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 4 * i), nn.ReLU(inplace=True),
                          nn.Conv2d(8 + 4 * i, 4, 3, padding=1, bias=False)) for i in range(3)
        )  # fmt: skip
        self.norm, self.conv = nn.BatchNorm2d(20), nn.Conv2d(20, 8, 1, bias=False)
        self.pool = nn.AvgPool2d(2, 2)

    def forward(self, x: Tensor) -> Any:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return self.pool(self.conv(F.relu(self.norm(torch.cat(maps, 1)))))


class RepVgg(nn.Module):
    """3 × 3, 1 × 1 and the input itself, each with its norm, added."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(8, 8, act=None), cbr(8, 8, 1, act=None), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.a(x) + self.b(x) + self.c(x))


class Res2(nn.Module):
    """Res2Net: parts of the channels in a row, each reads the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = cbr(8, 12, 1), cbr(12, 8, 1, act=None)
        self.convs = nn.ModuleList([cbr(3, 3) for _ in range(3)])

    def forward(self, x: Tensor) -> Any:
        parts = torch.split(self.a(x), 3, 1)
        y = parts[0]
        outs = []
        for i, conv in enumerate(self.convs):
            y = conv(y if i == 0 else y + parts[i])
            outs.append(y)
        return F.relu(self.out(torch.cat((*outs, parts[3]), 1)) + x)


class SelectiveKernel(nn.Module):
    """SKNet: a softmax over branches for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([cbr(8, 8, g=2), cbr(8, 8, g=2, d=2)])
        self.fc, self.fcs = cbr(8, 4, 1), nn.Conv2d(4, 16, 1, bias=False)

    def forward(self, x: Tensor) -> Any:
        u = torch.stack([conv(x) for conv in self.convs], dim=1)
        s = self.fcs(self.fc(u.sum(dim=1).mean((2, 3), keepdim=True)))
        a = F.softmax(s.view(-1, 2, 8, 1, 1), dim=1)
        return (u * a).sum(1)


class Cbam(nn.Module):
    """Attention over channels from a mean and a maximum, then over places from both."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Any:
        mean = F.avg_pool2d(x, (x.size(2), x.size(3)), stride=(x.size(2), x.size(3)))
        most = F.max_pool2d(x, (x.size(2), x.size(3)), stride=(x.size(2), x.size(3)))
        gate = torch.sigmoid(self.mlp(mean) + self.mlp(most)).unsqueeze(2).unsqueeze(3).expand_as(x)
        x = x * gate
        both = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * torch.sigmoid(self.conv(both))


class Coordinates(nn.Module):
    """Coordinate attention: means of rows and of columns, joined, split and spread again."""

    def __init__(self) -> None:
        super().__init__()
        self.a = cbr(8, 4, 1, act=nn.Hardswish)
        self.h, self.w = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1)
        self.pool_h, self.pool_w = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))

    def forward(self, x: Tensor) -> Any:
        _, _, h, w = x.size()
        y = self.a(torch.cat([self.pool_h(x), self.pool_w(x).permute(0, 1, 3, 2)], dim=2))
        a, b = torch.split(y, [h, w], dim=2)
        return x * self.h(a).sigmoid() * self.w(b.permute(0, 1, 3, 2)).sigmoid()


class NonLocal(nn.Module):
    """Every place reads every other one, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(8, 4, 1) for _ in range(3))
        self.out, self.pool = nn.Conv2d(4, 8, 1), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Any:
        n = x.size(0)
        g = self.pool(self.g(x)).view(n, 4, -1).permute(0, 2, 1)
        theta = self.theta(x).view(n, 4, -1).permute(0, 2, 1)
        f = torch.matmul(theta, self.pool(self.phi(x)).view(n, 4, -1))
        y = torch.matmul(F.softmax(f, dim=-1), g).permute(0, 2, 1).contiguous()
        return self.out(y.view(n, 4, *x.size()[2:])) + x


class Involution(nn.Module):
    """A kernel of its own for each place, over unfolded patches."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.span = cbr(8, 4, 1), nn.Conv2d(4, 9 * 2, 1)
        self.unfold = nn.Unfold(3, padding=1)

    def forward(self, x: Tensor) -> Any:
        b, c, h, w = x.shape
        weight = self.span(self.reduce(x)).view(b, 2, 9, h, w).unsqueeze(2)
        out = self.unfold(x).view(b, 2, c // 2, 9, h, w)
        return (weight * out).sum(dim=3).view(b, c, h, w)


class CondConv(nn.Module):
    """A mixture of kernels for each image, computed as groups of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Linear(8, 3)
        self.weight = nn.Parameter(torch.randn(3, 8 * 8 * 3 * 3) * 0.1)

    def forward(self, x: Tensor) -> Any:
        n, c, h, w = x.shape
        route = torch.sigmoid(self.route(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        weight = (route @ self.weight).view(n * 8, c, 3, 3)
        y = F.conv2d(x.reshape(1, n * c, h, w), weight, padding=1, groups=n)
        return y.view(n, 8, h, w)


class MixedKernels(nn.Module):
    """Dynamic convolution where the results are mixed, not the kernels; the same up to sums."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)])
        self.route = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        a = F.softmax(self.route(x.mean([-1, -2])) / 0.5, dim=1)
        ys = torch.stack([conv(x) for conv in self.convs], dim=1)
        return torch.einsum("nk,nkchw->nchw", a, ys)


class DynamicFilters(nn.Module):
    """Filters that another network makes, applied depthwise by shifting the padded map."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Conv2d(8, 8, 1), nn.Tanh())

    def forward(self, x: Tensor) -> Any:
        k = self.make(x)
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        h, w = x.shape[-2:]
        total = torch.zeros_like(x)
        for i in range(3):
            for j in range(3):
                total += padded[:, :, i : i + h, j : j + w] * k[:, :, i, j, None, None]
        return total


class Octave(nn.Module):
    """Octave convolution: a fine and a coarse part that exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.hh, self.hl, self.lh, self.ll = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.pool, self.up = nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x: Tensor) -> Any:
        high, low = x[:, :4], self.pool(x[:, 4:])
        h = self.hh(high) + self.up(self.lh(low))
        low = self.ll(low) + self.hl(self.pool(high))
        return torch.cat([h, self.up(low)], 1).relu()


class Standardized(nn.Module):
    """Weight standardization before each use, group norm, a blurring pool with fixed filters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)
        k = torch.tensor([1.0, 2.0, 1.0])
        self.blur: Tensor
        self.register_buffer("blur", (k[:, None] * k[None] / 16).repeat(8, 1, 1, 1))

    def forward(self, x: Tensor) -> Any:
        w = self.conv.weight
        w = (w - w.mean(dim=(1, 2, 3), keepdim=True)) / (w.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        y = F.relu(self.norm(F.conv2d(x, w, self.conv.bias, padding=1)))
        return F.conv2d(F.pad(y, [1, 1, 1, 1], "reflect"), self.blur, stride=2, groups=8)


class Places(nn.Module):
    """CoordConv: the coordinates of a place as channels; a spatial pyramid of pools; a triplet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(10, 8, 3, padding=1)
        self.gate = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        n, _, h, w = x.size()
        xs = torch.arange(w).view(1, 1, 1, w).expand(n, 1, h, w).float() / (w - 1) * 2 - 1
        ys = torch.arange(h).view(1, 1, h, 1).expand(n, 1, h, w).float() / (h - 1) * 2 - 1
        y = self.conv(torch.cat([x, xs.type_as(x), ys.type_as(x)], 1))
        z = y.permute(0, 2, 1, 3).contiguous()
        z = torch.cat((torch.max(z, 1)[0].unsqueeze(1), torch.mean(z, 1).unsqueeze(1)), 1)
        return y * torch.sigmoid(self.gate(z)).permute(0, 2, 1, 3)


class PyramidPool(nn.Module):
    """SPP before the classifier: maxima over 1, 4 and 9 cells, flattened and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = cbr(3, 4, 3, 2), nn.Linear(4 * 14, 5)

    def forward(self, x: Tensor) -> Any:
        y = self.stem(x)
        cells = [F.adaptive_max_pool2d(y, n).view(x.size(0), -1) for n in (1, 2, 3)]
        return F.log_softmax(self.fc(torch.cat(cells, 1)), dim=1)


class Transformer(nn.Module):
    """Spatial transformer: an image is turned and scaled before it is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(cbr(3, 4, 3, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.loc, self.net = nn.Linear(16, 6), nn.Sequential(cbr(3, 6, 3, 2), cbr(6, 6))
        nn.init.normal_(self.loc.weight, std=0.05)
        self.loc.bias.data.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, x: Tensor) -> Any:
        theta = self.loc(self.look(x)).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.size()), align_corners=False)
        return self.net(F.grid_sample(x, grid, align_corners=False)).amax((2, 3))


class Deformed(nn.Module):
    """A deformable convolution out of sampling: nine moved copies, joined by a 1 × 1."""

    def __init__(self) -> None:
        super().__init__()
        self.offset, self.mask = nn.Conv2d(8, 18, 3, padding=1), nn.Conv2d(8, 9, 3, padding=1)
        self.weight = nn.Conv2d(72, 8, 1)

    def forward(self, x: Tensor) -> Any:
        h, w = x.shape[-2:]
        offset, mask = self.offset(x).tanh(), self.mask(x).sigmoid()
        ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        base = torch.stack((xs, ys), -1).float()
        copies = []
        for k in range(9):
            shift = torch.tensor([k % 3 - 1.0, k // 3 - 1.0])
            at = base + shift + offset[:, 2 * k : 2 * k + 2].permute(0, 2, 3, 1)
            at = 2 * at / torch.tensor([w - 1.0, h - 1.0]) - 1
            copies.append(F.grid_sample(x, at, align_corners=True) * mask[:, k : k + 1])
        return self.weight(torch.cat(copies, 1))


OTHER = (image(2, 3, 24, 16), image(2, 3, 16, 40))


def whole(*producers: Any, out: int = 8) -> Entry:
    return Entry(lambda: Classifier(*(m() for m in producers), out=out), image(), OTHER)


NETS: dict[str, Entry] = {
    "convnext": whole(ConvNeXt, lambda: ConvNeXt(second=True)),
    "efficientnet": whole(Excited, Excited),
    "shufflenet v1": whole(lambda: Shuffled(first=True), out=16),
    "shufflenet v2": whole(Shuffled, Shuffled),
    "ghostnet": whole(lambda: Ghost(8, 9), lambda: Ghost(9, 8)),
    "inception": whole(Inception, out=20),
    "densenet": whole(Dense, Dense),
    "repvgg": whole(RepVgg, RepVgg),
    "res2net": whole(Res2),
    "sknet": whole(SelectiveKernel),
    "cbam": whole(Cbam),
    "coordinate attention": whole(Coordinates),
    "non-local": whole(NonLocal),
    "involution": whole(Involution),
    "condconv": whole(CondConv),
    "mixed kernels": whole(MixedKernels),
    "dynamic filters": whole(DynamicFilters),
    "octave": whole(Octave),
    "standardized weights": whole(Standardized),
    "coordconv": whole(Places),
    "spatial pyramid": Entry(PyramidPool, image(), OTHER),
    "spatial transformer": Entry(Transformer, image(), OTHER),
    "deformable": whole(Deformed),
}
