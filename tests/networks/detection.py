"""Small networks that find objects: heads over pyramids, boxes, masks, peaks and queries."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import Entry, Stages, cbr, image


class Pyramid(nn.Module):
    """FPN with an extra level by pooling; PANet: a second way, up again."""

    def __init__(self, *, again: bool = False) -> None:
        super().__init__()
        self.backbone, self.again = Stages(6, 8, 8), again
        self.inner = nn.ModuleList([nn.Conv2d(n, 8, 1) for n in (6, 8, 8)])
        self.layer = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)])
        self.down = nn.ModuleList([cbr(8, 8, 3, 2) for _ in range(2)])
        self.merge = nn.ModuleList([cbr(8, 8) for _ in range(2)])

    def forward(self, x: Tensor) -> Any:
        maps = self.backbone(x)
        last = self.inner[-1](maps[-1])
        found = [self.layer[-1](last)]
        for i in range(len(maps) - 2, -1, -1):
            lateral = self.inner[i](maps[i])
            last = lateral + F.interpolate(last, size=lateral.shape[-2:], mode="nearest")
            found.insert(0, self.layer[i](last))
        if self.again:
            for i in range(2):
                found[i + 1] = self.merge[i](found[i + 1] + self.down[i](found[i]))
        found.append(F.max_pool2d(found[-1], 1, 2, 0))
        return {str(i): y for i, y in enumerate(found)}


class BiFpn(nn.Module):
    """EfficientDet: fast normalized fusion with learnt weights, SiLU, depthwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Stages(6, 6, 6)
        self.w1 = nn.Parameter(torch.rand(2, 2) + 0.2)
        self.w2 = nn.Parameter(torch.rand(3, 2) + 0.2)
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1, groups=6, bias=False),
                          nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, momentum=0.01)) for _ in range(4)
        )  # fmt: skip
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.swish = nn.SiLU()

    def forward(self, x: Tensor) -> Any:
        p3, p4, p5 = self.backbone(x)
        w = F.relu(self.w1)
        w = w / (torch.sum(w, dim=0) + 1e-4)
        t4 = self.convs[0](self.swish(w[0, 0] * p4 + w[1, 0] * self.up(p5)))
        o3 = self.convs[1](self.swish(w[0, 1] * p3 + w[1, 1] * self.up(t4)))
        w = F.relu(self.w2)
        w = w / (torch.sum(w, dim=0) + 1e-4)
        down = F.max_pool2d(F.pad(o3, (0, 1, 0, 1)), 3, 2)
        o4 = self.convs[2](self.swish(w[0, 0] * p4 + w[1, 0] * t4 + w[2, 0] * down))
        down = F.max_pool2d(F.pad(o4, (0, 1, 0, 1)), 3, 2)
        o5 = self.convs[3](self.swish(w[0, 1] * p5 + w[1, 1] * down))
        return o3, o4, o5


class Focus(nn.Module):
    """Every second pixel, four times, as channels."""

    def __init__(self, b: int) -> None:
        super().__init__()
        self.conv = cbr(12, b, act=nn.SiLU)

    def forward(self, x: Tensor) -> Any:
        parts = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return self.conv(torch.cat(parts, 1))


class C3(nn.Module):
    """Cross-stage partial: two ways, one through bottlenecks."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        half = b // 2
        self.a, self.b = cbr(a, half, 1, act=nn.SiLU), cbr(a, half, 1, act=nn.SiLU)
        self.c = cbr(2 * half, b, 1, act=nn.SiLU)
        self.m = nn.Sequential(cbr(half, half, 1, act=nn.SiLU), cbr(half, half, act=nn.SiLU))

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return self.c(torch.cat((y + self.m(y), self.b(x)), dim=1))


class Sppf(nn.Module):
    """Spatial pyramid pooling, the pools one after the other (`fast`) or beside each other."""

    def __init__(self, n: int, *, fast: bool) -> None:
        super().__init__()
        self.a, self.b, self.fast = (
            cbr(n, n // 2, 1, act=nn.SiLU),
            cbr(2 * n, n, 1, act=nn.SiLU),
            fast,
        )
        self.pools = nn.ModuleList(
            [nn.MaxPool2d(k, 1, k // 2) for k in ((5,) if fast else (5, 9, 13))]
        )

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        if self.fast:
            y1 = self.pools[0](x)
            y2 = self.pools[0](y1)
            return self.b(torch.cat((x, y1, y2, self.pools[0](y2)), 1))
        return self.b(torch.cat([x] + [m(x) for m in self.pools], 1))


class YoloV5(nn.Module):
    """Focus, C3, SPPF, two scales, boxes decoded from anchors on a grid made in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.focus, self.c3 = Focus(8), C3(8, 8)
        self.down, self.spp = cbr(8, 8, 3, 2, act=nn.SiLU), Sppf(8, fast=True)
        self.top = C3(16, 8)
        self.heads = nn.ModuleList([nn.Conv2d(8, 2 * 7, 1) for _ in range(2)])
        self.register_buffer(
            "anchors", torch.tensor([[[10.0, 13], [16, 30]], [[30, 61], [62, 45]]])
        )
        self.register_buffer("stride", torch.tensor([2.0, 4.0]))

    def grid(self, i: int, nx: int, ny: int) -> tuple[Tensor, Tensor]:
        yv, xv = torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij")
        grid = torch.stack((xv, yv), 2).expand((1, 2, ny, nx, 2)).float()
        return grid, self.anchors[i].view((1, 2, 1, 1, 2)).expand((1, 2, ny, nx, 2))  # type: ignore[index]

    def forward(self, x: Tensor) -> Any:
        a = self.c3(self.focus(x))
        b = self.spp(self.down(a))
        a = self.top(torch.cat([F.interpolate(b, scale_factor=2), a], 1))
        z, raw = [], []
        for i, y in enumerate((a, b)):
            y = self.heads[i](y)
            bs, _, ny, nx = y.shape
            y = y.view(bs, 2, 7, ny, nx).permute(0, 1, 3, 4, 2).contiguous()
            raw.append(y)
            grid, anchor = self.grid(i, nx, ny)
            s = y.sigmoid()
            xy = (s[..., 0:2] * 2.0 - 0.5 + grid) * self.stride[i]  # type: ignore[index]
            wh = (s[..., 2:4] * 2) ** 2 * anchor
            z.append(torch.cat((xy, wh, s[..., 4:]), -1).view(bs, -1, 7))
        return torch.cat(z, 1), raw


class YoloV3(nn.Module):
    """Darknet with leaky slopes; boxes are written into the head's output in place."""

    def __init__(self) -> None:
        super().__init__()
        leaky = lambda: nn.LeakyReLU(0.1, inplace=True)  # noqa: E731
        self.a, self.b = cbr(3, 6, 3, 2, act=leaky), cbr(6, 8, 3, 2, act=leaky)
        self.spp, self.side = Sppf(8, fast=False), cbr(8, 4, 1, act=leaky)
        self.big, self.small = nn.Conv2d(8, 12, 1), nn.Conv2d(10, 12, 1)
        self.anchor: Tensor
        self.register_buffer("anchor", torch.tensor([[4.0, 6.0], [8.0, 5.0]]))

    def decode(self, p: Tensor, stride: int) -> Tensor:
        n, _, h, w = p.shape
        p = p.view(n, 2, 6, h, w).permute(0, 1, 3, 4, 2).contiguous()
        gx = torch.arange(w).repeat(h, 1).view(1, 1, h, w).float()
        gy = torch.arange(h).repeat(w, 1).t().view(1, 1, h, w).float()
        y = p.clone()
        y[..., 0] = (torch.sigmoid(p[..., 0]) + gx) * stride
        y[..., 1] = (torch.sigmoid(p[..., 1]) + gy) * stride
        y[..., 2:4] = torch.exp(p[..., 2:4].clamp(max=2.0)) * self.anchor.view(1, 2, 1, 1, 2)
        y[..., 4:] = torch.sigmoid(p[..., 4:])
        return y.view(n, -1, 6)

    def forward(self, x: Tensor) -> Any:
        a = self.a(x)
        b = self.spp(self.b(a))
        up = F.interpolate(self.side(b), scale_factor=2, mode="nearest")
        small = self.small(torch.cat([up, a], 1))
        return torch.cat([self.decode(self.big(b), 4), self.decode(small, 2)], 1)


class C2f(nn.Module):
    """YOLOv8's block: halves, and every bottleneck's output is kept."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.a, self.b = cbr(n, n, 1, act=nn.SiLU), cbr(2 * n, n, 1, act=nn.SiLU)
        self.m = nn.ModuleList([cbr(n // 2, n // 2, act=nn.SiLU) for _ in range(2)])

    def forward(self, x: Tensor) -> Any:
        y = list(self.a(x).chunk(2, 1))
        y.extend(m(y[-1]) + y[-1] for m in self.m)
        return self.b(torch.cat(y, 1))


class YoloV8(nn.Module):
    """Anchor-free: distances as distributions, their mean by a fixed 1 × 1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = cbr(3, 8, 3, 2, act=nn.SiLU), C2f(8)
        self.down, self.b = cbr(8, 8, 3, 2, act=nn.SiLU), C2f(8)
        self.box = nn.ModuleList([nn.Conv2d(8, 16, 1) for _ in range(2)])
        self.cls = nn.ModuleList([nn.Conv2d(8, 3, 1) for _ in range(2)])
        self.dfl = nn.Conv2d(4, 1, 1, bias=False).requires_grad_(False)
        self.dfl.weight.data[:] = torch.arange(4.0).view(1, 4, 1, 1)

    def forward(self, x: Tensor) -> Any:
        a = self.a(self.stem(x))
        maps = [a, self.b(self.down(a))]
        n = x.shape[0]
        points, strides, ys = [], [], []
        for i, y in enumerate(maps):
            h, w = y.shape[-2:]
            sx, sy = torch.arange(w) + 0.5, torch.arange(h) + 0.5
            gy, gx = torch.meshgrid(sy, sx, indexing="ij")
            points.append(torch.stack((gx, gy), -1).view(-1, 2))
            strides.append(torch.full((h * w, 1), 2.0 ** (i + 1)))
            ys.append(torch.cat((self.box[i](y), self.cls[i](y)), 1).view(n, 19, -1))
        box, cls = torch.cat(ys, 2).split((16, 3), 1)
        anchors, scale = torch.cat(points).transpose(0, 1), torch.cat(strides).transpose(0, 1)
        b, _, cells = box.shape
        dist = self.dfl(box.view(b, 4, 4, cells).transpose(2, 1).softmax(1)).view(b, 4, cells)
        lt, rb = dist.chunk(2, 1)
        x1y1, x2y2 = anchors.unsqueeze(0) - lt, anchors.unsqueeze(0) + rb
        boxes = torch.cat(((x1y1 + x2y2) / 2, x2y2 - x1y1), 1) * scale
        return torch.cat((boxes, cls.sigmoid()), 1)


class L2Norm(nn.Module):
    """SSD's normalization over channels with a learnt scale."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((n,), 4.0))

    def forward(self, x: Tensor) -> Any:
        norm = x.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10
        x = torch.div(x, norm)
        return self.weight.unsqueeze(0).unsqueeze(2).unsqueeze(3).expand_as(x) * x


class Ssd(nn.Module):
    """Two sources, offsets and scores of default boxes, decoded from a buffer of priors."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.norm = Stages(6, 8, 8), L2Norm(8)
        self.loc = nn.ModuleList([nn.Conv2d(8, 2 * 4, 3, padding=1) for _ in range(2)])
        self.conf = nn.ModuleList([nn.Conv2d(8, 2 * 3, 3, padding=1) for _ in range(2)])
        self.priors: Tensor
        self.register_buffer("priors", torch.rand(2 * 4 * 4 + 2 * 2 * 2, 4) * 0.5 + 0.25)

    def forward(self, x: Tensor) -> Any:
        _, a, b = self.backbone(x)
        loc, conf = [], []
        for y, l, c in zip([self.norm(a), b], self.loc, self.conf, strict=True):  # noqa: E741
            loc.append(l(y).permute(0, 2, 3, 1).contiguous())
            conf.append(c(y).permute(0, 2, 3, 1).contiguous())
        offsets = torch.cat([o.view(o.size(0), -1) for o in loc], 1).view(x.size(0), -1, 4)
        scores = torch.cat([o.view(o.size(0), -1) for o in conf], 1).view(x.size(0), -1, 3)
        p = self.priors
        boxes = torch.cat((p[:, :2] + offsets[..., :2] * 0.1 * p[:, 2:],
                           p[:, 2:] * torch.exp(offsets[..., 2:] * 0.2)), 2)  # fmt: skip
        boxes[:, :, :2] -= boxes[:, :, 2:] / 2
        boxes[:, :, 2:] += boxes[:, :, :2]
        return boxes, F.softmax(scores, dim=-1)


class Retina(nn.Module):
    """One head over all levels, the bias of rare objects; the best rows of each level."""

    def __init__(self) -> None:
        super().__init__()
        self.fpn = Pyramid()
        self.cls = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, 1, 1))
        self.box = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
        nn.init.constant_(self.cls[2].bias, -math.log((1 - 0.1) / 0.1))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Any:
        scores, boxes = [], []
        for y in list(self.fpn(x).values())[:3]:
            s = self.cls(y)
            n, _, h, w = s.shape
            s = s.view(n, -1, 3, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, 3)
            b = self.box(y).view(n, -1, 4, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, 4)
            best = s.sigmoid().max(-1).values
            k = min(5, best.size(1))
            top, at = best.topk(k, dim=1)
            scores.append(top)
            boxes.append(torch.gather(b, 1, at.unsqueeze(-1).repeat(1, 1, 4)))
        return torch.cat(scores, 1), torch.cat(boxes, 1)


class Scale(nn.Module):
    """A learnt factor of a level."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor) -> Any:
        return x * self.scale


class Fcos(nn.Module):
    """Distances to four sides, centre-ness, group norms in the shared tower."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Stages(8, 8, 8)
        self.tower = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.GroupNorm(4, 8), nn.ReLU())
        self.cls, self.reg, self.ctr = (nn.Conv2d(8, n, 3, padding=1) for n in (3, 4, 1))
        self.scales = nn.ModuleList([Scale(1.0), Scale(0.7)])

    def forward(self, x: Tensor) -> Any:
        boxes, scores = [], []
        for level, y in enumerate(self.backbone(x)[1:]):
            y = self.tower(y)
            reg = torch.exp(self.scales[level](self.reg(y)).clamp(max=3))
            n, _, h, w = reg.shape
            stride = 2 ** (level + 2)
            sx = torch.arange(0, w * stride, step=stride, dtype=torch.float32)
            sy = torch.arange(0, h * stride, step=stride, dtype=torch.float32)
            gy, gx = torch.meshgrid(sy, sx, indexing="ij")
            at = torch.stack((gx.reshape(-1), gy.reshape(-1)), dim=1) + stride // 2
            d = reg.permute(0, 2, 3, 1).reshape(n, -1, 4)
            boxes.append(torch.stack([
                at[:, 0] - d[:, :, 0], at[:, 1] - d[:, :, 1],
                at[:, 0] + d[:, :, 2], at[:, 1] + d[:, :, 3],
            ], dim=-1))  # fmt: skip
            both = torch.sqrt(self.cls(y).sigmoid() * self.ctr(y).sigmoid())
            scores.append(both.flatten(2).transpose(1, 2))
        return torch.cat(boxes, 1), torch.cat(scores, 1)


class CenterNet(nn.Module):
    """Peaks of a heat map are what a max pool leaves as it is; the best become boxes."""

    def __init__(self) -> None:
        super().__init__()
        up = nn.ConvTranspose2d(8, 8, 4, 2, 1)
        down = [cbr(3, 8, 3, 2), cbr(8, 8, 3, 2)]
        self.body = nn.Sequential(*down, up, nn.BatchNorm2d(8), nn.ReLU())
        self.heat, self.size, self.offset = (nn.Conv2d(8, n, 1) for n in (3, 2, 2))

    def gather(self, y: Tensor, at: Tensor) -> Tensor:
        y = y.permute(0, 2, 3, 1).contiguous().view(y.size(0), -1, y.size(1))
        return y.gather(1, at.unsqueeze(2).expand(at.size(0), at.size(1), y.size(2)))

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        heat = self.heat(y).sigmoid_()
        keep = (F.max_pool2d(heat, (3, 3), stride=1, padding=1) == heat).float()
        n, c, h, w = heat.size()
        scores, at = torch.topk((heat * keep).view(n, c, -1), 4)
        at = at % (h * w)
        ys, xs = (at / w).int().float(), (at % w).int().float()
        score, which = torch.topk(scores.view(n, -1), 4)
        classes = (which / 4).int()
        at, ys, xs = (t.view(n, -1).gather(1, which) for t in (at, ys, xs))
        off, size = self.gather(self.offset(y), at), self.gather(self.size(y), at)
        xs, ys = xs.view(n, 4, 1) + off[:, :, 0:1], ys.view(n, 4, 1) + off[:, :, 1:2]
        boxes = torch.cat([xs - size[..., 0:1] / 2, ys - size[..., 1:2] / 2,
                           xs + size[..., 0:1] / 2, ys + size[..., 1:2] / 2], dim=2)  # fmt: skip
        return boxes, score, classes


class Detr(nn.Module):
    """Sine positions from a mask's sums, an encoder, queries in a decoder, boxes by a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.proj = Stages(6, 8), nn.Conv2d(8, 8, 1)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        self.queries = nn.Embedding(5, 8)
        self.cls, self.box = (
            nn.Linear(8, 4),
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)),
        )

    def positions(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        ones = torch.ones((n, h, w), dtype=torch.bool)
        ys, xs = ones.cumsum(1, dtype=torch.float32), ones.cumsum(2, dtype=torch.float32)
        ys = ys / (ys[:, -1:, :] + 1e-6) * 2 * math.pi
        xs = xs / (xs[:, :, -1:] + 1e-6) * 2 * math.pi
        dim = 100 ** (2 * torch.div(torch.arange(4), 2, rounding_mode="floor") / 4)
        px, py = xs[:, :, :, None] / dim, ys[:, :, :, None] / dim
        px = torch.stack((px[..., 0::2].sin(), px[..., 1::2].cos()), dim=4).flatten(3)
        py = torch.stack((py[..., 0::2].sin(), py[..., 1::2].cos()), dim=4).flatten(3)
        return torch.cat((py, px), dim=3).flatten(1, 2)

    def forward(self, x: Tensor) -> Any:
        y = self.proj(self.backbone(x)[-1])
        memory = self.encoder(y.flatten(2).permute(0, 2, 1) + self.positions(y))
        queries = self.queries.weight.unsqueeze(0).repeat(x.shape[0], 1, 1)
        h = self.decoder(queries, memory)
        cx, cy, w, hh = self.box(h).sigmoid().unbind(-1)
        boxes = torch.stack([cx - 0.5 * w, cy - 0.5 * hh, cx + 0.5 * w, cy + 0.5 * hh], dim=-1)
        return {"logits": self.cls(h), "boxes": boxes}


class MaskHead(nn.Module):
    """Boxes from an input, features cut out of the map by sampling, a mask and a class for each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(cbr(3, 8, 3, 2), cbr(8, 8))
        self.mask = nn.Sequential(
            cbr(8, 8), nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), nn.Conv2d(6, 2, 1)
        )
        self.fc = nn.Sequential(nn.Linear(8 * 16, 12), nn.ReLU(), nn.Linear(12, 3))

    def cut(self, y: Tensor, boxes: Tensor, size: int) -> Tensor:
        n, k, _ = boxes.shape
        steps = (torch.arange(size, dtype=torch.float32) + 0.5) / size
        x0, y0, x1, y1 = boxes.unbind(-1)
        xs = x0[..., None] + (x1 - x0)[..., None] * steps
        ys = y0[..., None] + (y1 - y0)[..., None] * steps
        grid = torch.stack([xs[:, :, None, :].expand(n, k, size, size),
                            ys[:, :, :, None].expand(n, k, size, size)], -1)  # fmt: skip
        grid = (grid * 2 - 1).view(n, k * size, size, 2)
        cut = F.grid_sample(y, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return cut.view(n, -1, k, size, size).transpose(1, 2).flatten(0, 1)

    def forward(self, x: Tensor, boxes: Tensor) -> Any:
        rois = self.cut(self.body(x), boxes, 4)
        n, k = boxes.shape[:2]
        return self.mask(rois).sigmoid().view(n, k, 2, 8, 8), self.fc(rois.flatten(1)).view(n, k, 3)


class Kept(nn.Module):
    """Rows above a score, as a mask chooses them, with the number of their image."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Sequential(cbr(3, 8, 3, 2), cbr(8, 8, 3, 2)), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.out(self.body(x)).permute(0, 2, 3, 1).flatten(1, 2)
        scores, labels = y[..., 4:].softmax(-1).max(-1)
        keep = scores > 0.55
        where = torch.nonzero(keep)
        return y[..., :4][keep], scores[keep], labels[keep], where[:, 0]


class Suppressed(nn.Module):
    """NMS without a loop: what overlaps a better row decays, by the matrix of overlaps."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Sequential(cbr(3, 8, 3, 2), cbr(8, 8, 3, 2)), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.out(self.body(x)).flatten(2).transpose(1, 2)
        centre, size = y[..., :2], F.softplus(y[..., 2:4])
        boxes, scores = torch.cat([centre - size, centre + size], -1), y[..., 4].sigmoid()
        scores, order = scores.sort(dim=1, descending=True)
        boxes = torch.gather(boxes, 1, order[..., None].expand_as(boxes))
        lt = torch.max(boxes[:, :, None, :2], boxes[:, None, :, :2])
        rb = torch.min(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
        inter = (rb - lt).clamp(min=0).prod(-1)
        area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        iou = inter / (area[:, :, None] + area[:, None, :] - inter)
        better = torch.triu(iou, diagonal=1)
        decay = torch.exp(-(better**2) / 0.5).min(1)[0]
        return boxes, scores * decay


class KeyPoints(nn.Module):
    """An hourglass; a joint is the mean place under a softmax over the map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = cbr(3, 8, 3, 2), nn.Sequential(cbr(8, 8), cbr(8, 8))
        self.side, self.out = cbr(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.stem(x)
        up = F.interpolate(self.inner(F.max_pool2d(y, 2, 2)), scale_factor=2)
        heat = self.out(self.side(y) + up)
        n, k, h, w = heat.shape
        p = torch.softmax(heat.view(n, k, h * w) * 3, -1).view(n, k, h, w)
        xs, ys = torch.linspace(-1, 1, w), torch.linspace(-1, 1, h)
        ex, ey = (p.sum(2) * xs).sum(-1), (p.sum(3) * ys).sum(-1)
        return torch.stack([ex, ey], -1), heat.flatten(2).argmax(-1)


class Siamese(nn.Module):
    """Tracking: the template's features slide over the search region's, image by image."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.bn = nn.Sequential(cbr(3, 8, 3, 2), nn.Conv2d(8, 8, 3)), nn.BatchNorm2d(1)

    def forward(self, z: Tensor, x: Tensor) -> Any:
        z, x = self.body(z), self.body(x)
        n, c, h, w = x.shape
        y = F.conv2d(x.reshape(1, n * c, h, w), z, groups=n)
        return self.bn(y.view(n, 1, y.shape[-2], y.shape[-1]) * 0.1)


class Lines(nn.Module):
    """Lane detection: rows and columns are voted on by linear layers over a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.pool = nn.Sequential(cbr(3, 8, 3, 2), cbr(8, 8, 3, 2)), nn.Conv2d(8, 2, 1)
        self.cls = nn.Sequential(nn.Linear(2 * 4 * 4, 16), nn.ReLU(), nn.Linear(16, 5 * 3 * 2))

    def forward(self, x: Tensor) -> Any:
        y = self.cls(self.pool(self.body(x)).view(-1, 2 * 4 * 4)).view(-1, 5, 3, 2)
        prob = F.softmax(y[:, :-1, :, :], dim=1)
        place = (prob * torch.arange(1, 5).view(1, -1, 1, 1)).sum(dim=1)
        empty = y.argmax(dim=1) == 4
        return torch.where(empty, torch.zeros_like(place), place), y


def with_boxes(shapes: Any) -> tuple[Tensor, ...]:
    x, corners = torch.randn(shapes[0]), torch.rand(shapes[1])
    low = corners[..., :2] * 0.5
    return x, torch.cat([low, low + corners[..., 2:] * 0.4 + 0.1], -1)


OTHER = (image(2, 3, 24, 16), image(2, 3, 16, 40))
ODD = (image(2, 3, 21, 18), image(1, 3, 27, 33))
NETS: dict[str, Entry] = {
    "fpn": Entry(Pyramid, image(3, 3, 18, 20), ODD),
    "panet": Entry(lambda: Pyramid(again=True), image(), OTHER),
    "bifpn": Entry(BiFpn, image(), OTHER),
    "yolo v3": Entry(YoloV3, image(), OTHER),
    "yolo v5": Entry(YoloV5, image(), OTHER),
    "yolo v8": Entry(YoloV8, image(), OTHER),
    "ssd": Entry(Ssd, image(3, 3, 16, 16)),
    "retinanet": Entry(Retina, image(), OTHER),
    "fcos": Entry(Fcos, image(), OTHER),
    "centernet": Entry(CenterNet, image(), OTHER),
    "detr": Entry(Detr, image(), OTHER),
    "mask head": Entry(MaskHead, ((2, 3, 16, 16), (2, 3, 4)),
                       (((1, 3, 24, 20), (1, 5, 4)),), with_boxes),
    "rows above a score": Entry(Kept, image(), OTHER),
    "matrix nms": Entry(Suppressed, image(), OTHER),
    "key points": Entry(KeyPoints, image(), OTHER),
    "siamese tracker": Entry(Siamese, ((2, 3, 12, 12), (2, 3, 20, 20)),
                             (((2, 3, 12, 12), (2, 3, 24, 28)),)),
    "lanes": Entry(Lines, image()),
}  # fmt: skip
