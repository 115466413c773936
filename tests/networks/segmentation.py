"""Small networks that give a value for every pixel: segmentation, super resolution, depth."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import Entry, Stages, cbr, image


def double(a: int, b: int) -> nn.Module:
    return nn.Sequential(cbr(a, b), cbr(b, b))


class UNet(nn.Module):
    """U-Net with a transposed or a bilinear way up; skips are padded to fit, or cropped."""

    def __init__(self, *, bilinear: bool, crop: bool = False) -> None:
        super().__init__()
        self.down1, self.down2, self.mid = double(3, 6), double(6, 8), double(8, 8)
        self.pool, self.crop = nn.MaxPool2d(2), crop
        self.bilinear = bilinear
        self.up2: nn.Module = nn.ConvTranspose2d(8, 8, 2, 2)
        self.up1: nn.Module = nn.ConvTranspose2d(8, 6, 2, 2)
        if bilinear:
            self.up2 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.up1 = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                nn.Conv2d(8, 6, 1),
            )
        self.left2, self.left1, self.out = double(16, 8), double(12, 6), nn.Conv2d(6, 4, 1)

    def join(self, skip: Tensor, x: Tensor) -> Tensor:
        if self.crop:
            top = (skip.shape[2] - x.shape[2]) // 2
            left = (skip.shape[3] - x.shape[3]) // 2
            skip = skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        else:
            dy, dx = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
            x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return torch.cat([skip, x], dim=1)

    def forward(self, x: Tensor) -> Any:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        c = self.mid(self.pool(b))
        y = self.left2(self.join(b, self.up2(c)))
        return self.out(self.left1(self.join(a, self.up1(y))))


class NestedUNet(nn.Module):
    """U-Net++ with the mean of its deeply supervised outputs."""

    def __init__(self) -> None:
        super().__init__()
        w = (4, 6, 8)
        self.c00, self.c10, self.c20 = cbr(3, w[0]), cbr(w[0], w[1]), cbr(w[1], w[2])
        self.c01, self.c11 = cbr(w[0] + w[1], w[0]), cbr(w[1] + w[2], w[1])
        self.c02 = cbr(2 * w[0] + w[1], w[0])
        self.outs = nn.ModuleList([nn.Conv2d(w[0], 3, 1), nn.Conv2d(w[0], 3, 1)])
        self.up = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x: Tensor) -> Any:
        x00 = self.c00(x)
        x10 = self.c10(F.max_pool2d(x00, 2, 2))
        x01 = self.c01(torch.cat([x00, self.up(x10)], 1))
        x20 = self.c20(F.max_pool2d(x10, 2, 2))
        x11 = self.c11(torch.cat([x10, self.up(x20)], 1))
        x02 = self.c02(torch.cat([x00, x01, self.up(x11)], 1))
        return torch.stack([f(y) for f, y in zip(self.outs, (x01, x02), strict=True)]).mean(0)


class Aspp(nn.Module):
    """Dilated convolutions beside each other, and the mean of the image, scaled up."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([cbr(a, b, 1), cbr(a, b, d=2), cbr(a, b, d=3)])
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(a, b, 1), nn.ReLU())
        self.project = nn.Sequential(cbr(4 * b, b, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Any:
        parts = [conv(x) for conv in self.convs]
        whole = F.interpolate(self.pool(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        parts.append(whole)
        return self.project(torch.cat(parts, dim=1))


class DeepLab(nn.Module):
    """DeepLab v3 with an auxiliary head, or v3+ with low-level features."""

    def __init__(self, *, plus: bool) -> None:
        super().__init__()
        self.backbone, self.aspp, self.plus = Stages(6, 8), Aspp(8, 6), plus
        self.low = cbr(6, 4, 1)
        self.head = nn.Sequential(cbr(10 if plus else 6, 6), nn.Conv2d(6, 3, 1))
        self.aux = nn.Sequential(cbr(6, 4), nn.Dropout(0.1), nn.Conv2d(4, 3, 1))

    def forward(self, x: Tensor) -> Any:
        size = x.shape[-2:]
        low, high = self.backbone(x)
        y = self.aspp(high)
        if self.plus:
            y = F.interpolate(y, size=low.shape[-2:], mode="bilinear", align_corners=False)
            y = torch.cat((y, self.low(low)), dim=1)
        out = OrderedDict()
        out["out"] = F.interpolate(self.head(y), size=size, mode="bilinear", align_corners=False)
        if not self.plus:
            out["aux"] = F.interpolate(self.aux(low), size=size, mode="bilinear")
        return out


class LiteAspp(nn.Module):
    """LR-ASPP of MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = cbr(3, 6, 3, 2, act=nn.Hardswish), cbr(6, 8, 3, 2, act=nn.Hardswish)
        self.cbr = cbr(8, 8, 1)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1, bias=False),
                                   nn.Sigmoid())  # fmt: skip
        self.low_out, self.high_out = nn.Conv2d(6, 3, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Any:
        low = self.low(x)
        high = self.high(low)
        y = self.cbr(high) * self.scale(high)
        y = F.interpolate(y, size=low.shape[-2:], mode="bilinear", align_corners=False)
        y = self.low_out(low) + self.high_out(y)
        return F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=False)


class PyramidPooling(nn.Module):
    """PSPNet: pools to 1, 2, 3 and 6 cells, which do not divide the map."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(cbr(3, 8, 3, 2), cbr(8, 8))
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(n), nn.Conv2d(8, 2, 1, bias=False),
                          nn.BatchNorm2d(2), nn.ReLU(inplace=True)) for n in (1, 2, 3, 6)
        )  # fmt: skip
        self.out = nn.Sequential(cbr(16, 8), nn.Dropout2d(0.1), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        h, w = y.shape[2], y.shape[3]
        cells = [F.interpolate(p(y), (h, w), mode="bilinear", align_corners=True)
                 for p in self.pools]  # fmt: skip
        return F.interpolate(self.out(torch.cat([y, *cells], 1)), scale_factor=2, mode="nearest")


class SegFormer(nn.Module):
    """Overlapping patches, attention with reduced keys, mixing feed-forward, an MLP head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.ModuleList([nn.Conv2d(3, 8, 7, 4, 3), nn.Conv2d(8, 12, 3, 2, 1)])
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(12)])
        self.q = nn.ModuleList([nn.Linear(8, 8), nn.Linear(12, 12)])
        self.kv = nn.ModuleList([nn.Linear(8, 16), nn.Linear(12, 24)])
        self.reduce = nn.Conv2d(8, 8, 2, 2)
        self.fc1 = nn.ModuleList([nn.Linear(8, 16), nn.Linear(12, 24)])
        self.dw = nn.ModuleList([nn.Conv2d(n, n, 3, 1, 1, groups=n) for n in (16, 24)])
        self.fc2 = nn.ModuleList([nn.Linear(16, 8), nn.Linear(24, 12)])
        self.heads = nn.ModuleList([nn.Linear(8, 6), nn.Linear(12, 6)])
        self.fuse, self.out = cbr(12, 6, 1), nn.Conv2d(6, 3, 1)

    def block(self, i: int, x: Tensor, h: int, w: int) -> Any:
        n, length, c = x.shape
        y = self.norms[i](x)
        q = self.q[i](y).reshape(n, length, 2, c // 2).permute(0, 2, 1, 3)
        if i == 0:
            y = (
                self.reduce(y.permute(0, 2, 1).reshape(n, c, h, w))
                .reshape(n, c, -1)
                .permute(0, 2, 1)
            )
        kv = self.kv[i](y).reshape(n, -1, 2, 2, c // 2).permute(2, 0, 3, 1, 4)
        k, v = kv[0], kv[1]
        scores = (q @ k.transpose(-2, -1)) * (c // 2) ** -0.5
        x = x + (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, length, c)
        y = self.fc1[i](x).transpose(1, 2).view(n, 2 * c, h, w)
        y = F.gelu(self.dw[i](y).flatten(2).transpose(1, 2))
        return x + self.fc2[i](y)

    def forward(self, x: Tensor) -> Any:
        maps = []
        for i in range(2):
            x = self.patch[i](x)
            n, c, h, w = x.shape
            x = self.block(i, x.flatten(2).transpose(1, 2), h, w)
            x = x.transpose(1, 2).reshape(n, c, h, w)
            maps.append(x)
        size = maps[0].size()[2:]
        ys = []
        for head, y in zip(self.heads, maps, strict=True):
            n, _, h, w = y.shape
            y = head(y.flatten(2).transpose(1, 2)).permute(0, 2, 1).reshape(n, -1, h, w)
            ys.append(F.interpolate(y, size=size, mode="bilinear", align_corners=False))
        return self.out(self.fuse(torch.cat(ys[::-1], dim=1)))


class HighResolution(nn.Module):
    """HRNet: two branches that exchange, and a head over both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = cbr(3, 6, 3, 2), cbr(6, 8, 3, 2)
        self.branches = nn.ModuleList([double(6, 6), double(8, 8)])
        self.fuse = nn.ModuleList([
            nn.ModuleList([nn.Identity(), cbr(8, 6, 1, act=None)]),
            nn.ModuleList([cbr(6, 8, 3, 2, act=None), nn.Identity()]),
        ])  # fmt: skip
        self.out = nn.Conv2d(14, 4, 1)

    def forward(self, x: Tensor) -> Any:
        first = self.stem(x)
        xs = [first, self.down(first)]
        xs = [b(y) for b, y in zip(self.branches, xs, strict=True)]
        fused = []
        for i, row in enumerate(self.fuse):
            y = xs[0] if i == 0 else row[0](xs[0])  # type: ignore[index]
            for j in range(1, len(xs)):
                if j > i:
                    size = [xs[i].shape[-2], xs[i].shape[-1]]
                    y = y + F.interpolate(row[j](xs[j]), size=size, mode="bilinear")  # type: ignore[index]
                else:
                    y = y + row[j](xs[j])  # type: ignore[index]
            fused.append(F.relu(y))
        h, w = fused[0].size(2), fused[0].size(3)
        return self.out(torch.cat([fused[0], F.interpolate(fused[1], size=(h, w))], 1))


class Refine(nn.Module):
    """RefineNet: residual units, fusion of two resolutions, chained residual pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Stages(6, 8)
        self.unit = nn.ModuleList([nn.Conv2d(n, n, 3, 1, 1) for n in (6, 8)])
        self.merge = nn.ModuleList([nn.Conv2d(n, 6, 3, 1, 1) for n in (6, 8)])
        self.chain = nn.ModuleList([nn.Conv2d(6, 6, 3, 1, 1, bias=False) for _ in range(2)])
        self.out = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        a, b = (m + u(F.relu(m)) for u, m in zip(self.unit, self.backbone(x), strict=True))
        a, b = (f(y) for f, y in zip(self.merge, (a, b), strict=True))
        y = F.relu(a + F.interpolate(b, scale_factor=2.0, mode="bilinear", align_corners=True))
        path = y
        for conv in self.chain:
            path = conv(F.max_pool2d(path, kernel_size=5, stride=1, padding=2))
            y = y + path
        return self.out(y)


class ENet(nn.Module):
    """ENet: an initial block of a convolution and a pool, and unpooling with the pool's places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 5, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.act, self.act2 = nn.PReLU(8), nn.PReLU(1)
        self.reduce = cbr(8, 4, 1, act=nn.PReLU)
        self.down = nn.Sequential(nn.Conv2d(8, 4, 2, 2), nn.Conv2d(4, 12, 3, 1, 1))
        rows, columns = nn.Conv2d(12, 6, (5, 1), padding=(2, 0)), nn.Conv2d(6, 12, (1, 5))
        self.asym = nn.Sequential(rows, nn.ZeroPad2d((2, 2, 0, 0)), columns, nn.Dropout2d(0.1))
        self.side = nn.Conv2d(12, 8, 1)
        self.up, self.out = nn.ConvTranspose2d(12, 8, 3, 2, 1, 1), nn.ConvTranspose2d(8, 3, 2, 2)

    def forward(self, x: Tensor) -> Any:
        y = self.act(self.norm(torch.cat((self.first(x), F.max_pool2d(x, 2)), 1)))
        main, where = F.max_pool2d(y, 2, stride=2, return_indices=True)
        n, c, h, w = main.shape
        main = torch.cat((main, torch.zeros(n, 12 - c, h, w)), 1)
        z = self.act2(main + self.down(y))
        z = self.act2(z + self.asym(z))
        back = F.max_unpool2d(self.side(z), where, [2, 2], [2, 2])
        return self.out(F.relu(back + self.up(z)))


class ERFNet(nn.Module):
    """ERFNet: factorized residual layers, some dilated, batch norms with an eps of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 5, 3, 2, 1), nn.BatchNorm2d(8, eps=1e-3)
        self.layers = nn.ModuleList()
        for d in (1, 2):
            self.layers.append(nn.ModuleList([
                nn.Conv2d(8, 8, (3, 1), padding=(1, 0)), nn.Conv2d(8, 8, (1, 3), padding=(0, 1)),
                nn.BatchNorm2d(8, eps=1e-3),
                nn.Conv2d(8, 8, (3, 1), padding=(d, 0), dilation=(d, 1)),
                nn.Conv2d(8, 8, (1, 3), padding=(0, d), dilation=(1, d)),
                nn.BatchNorm2d(8, eps=1e-3),
            ]))  # fmt: skip
        self.up, self.upbn = nn.ConvTranspose2d(8, 6, 3, 2, 1, 1), nn.BatchNorm2d(6, eps=1e-3)
        self.out = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.bn(torch.cat([self.conv(x), nn.functional.max_pool2d(x, 2)], 1)))
        for layer in self.layers:
            a, b, n, c, d, m = layer  # type: ignore[misc]
            z = F.relu(n(b(F.relu(a(y)))))  # type: ignore[has-type]
            z = m(d(F.relu(c(z))))  # type: ignore[has-type]
            y = F.relu(F.dropout2d(z, 0.1, training=self.training) + y)
        return self.out(F.relu(self.upbn(self.up(y))))


class BiSeNet(nn.Module):
    """A spatial and a context path with attention, fused by channels."""

    def __init__(self) -> None:
        super().__init__()
        self.space = nn.Sequential(cbr(3, 6, 7, 2), cbr(6, 6, 3, 2))
        self.context = Stages(6, 6, 8)
        self.attend = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Sigmoid())
        self.whole, self.lift = cbr(8, 8, 1), cbr(8, 6)
        self.fuse = cbr(12, 8, 1)
        self.gate1, self.gate2 = nn.Conv2d(8, 4, 1, bias=False), nn.Conv2d(4, 8, 1, bias=False)
        self.out = nn.Conv2d(8, 3, 1, bias=False)

    def forward(self, x: Tensor) -> Any:
        h, w = x.size()[2:]
        space, deep = self.space(x), self.context(x)[-1]
        deep = torch.mul(deep, self.attend(F.avg_pool2d(deep, deep.size()[2:])))
        whole = self.whole(F.avg_pool2d(deep, deep.size()[2:]))
        deep = deep + F.interpolate(whole, deep.size()[2:], mode="nearest")
        deep = self.lift(F.interpolate(deep, space.size()[2:], mode="nearest"))
        y = self.fuse(torch.cat([space, deep], dim=1))
        gate = torch.mean(y, dim=(2, 3), keepdim=True)
        gate = self.gate2(F.relu(self.gate1(gate))).sigmoid()
        y = y * gate + y
        return F.interpolate(self.out(y), (h, w), mode="bilinear", align_corners=True)


class SubPixel(nn.Module):
    """ESPCN: tanh and a shuffle of channels into pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 8, 5, 1, 2), nn.Conv2d(8, 6, 3, 1, 1), nn.Conv2d(
            6, 9, 3, 1, 1)  # fmt: skip
        self.shuffle = nn.PixelShuffle(3)

    def forward(self, x: Tensor) -> Any:
        y = torch.tanh(self.b(torch.tanh(self.a(x))))
        return torch.sigmoid(self.shuffle(self.c(y))).clamp(0.0, 1.0)


class Edsr(nn.Module):
    """EDSR: the mean is subtracted, residuals are scaled, no norms, a long skip."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.45, 0.44, 0.40]).view(1, 3, 1, 1))
        self.head, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(True), nn.Conv2d(8, 8, 3, padding=1)
            )
            for _ in range(2)
        )
        self.up = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Any:
        mean = self.get_buffer("mean")
        x = self.head(x - mean)
        y = x
        for block in self.body:
            y = block(y).mul(0.1).add(y)
        y += x
        return self.tail(self.up(y)) + mean


class Restored(nn.Module):
    """Denoising: pixels are folded into channels, and the noise is subtracted from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(cbr(13, 8), cbr(8, 8), nn.Conv2d(8, 12, 3, padding=1))

    def forward(self, x: Tensor, sigma: Tensor) -> Any:
        n, _, h, w = x.shape
        y = F.pixel_unshuffle(x, 2)
        level = sigma.view(n, 1, 1, 1).repeat(1, 1, h // 2, w // 2)
        return x - F.pixel_shuffle(self.body(torch.cat((y, level), 1)), 2)


class Depth(nn.Module):
    """Monocular depth: disparities of several scales by a sigmoid, reflected borders."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Stages(6, 8, 8)
        self.up = nn.ModuleList([nn.Conv2d(8, 8, 3), nn.Conv2d(16, 6, 3), nn.Conv2d(12, 4, 3)])
        self.disp = nn.ModuleList([nn.Conv2d(6, 1, 3), nn.Conv2d(4, 1, 3)])
        self.pad = nn.ReflectionPad2d(1)

    def forward(self, x: Tensor) -> Any:
        a, b, c = self.backbone((x - 0.45) / 0.225)
        outs = {}
        y = F.elu(self.up[0](self.pad(c)))
        for i, skip in enumerate((b, a)):
            y = F.interpolate(y, scale_factor=2, mode="nearest")
            y = F.elu(self.up[i + 1](self.pad(torch.cat([y, skip], 1))), inplace=True)
            outs[("disp", i)] = torch.sigmoid(self.disp[i](self.pad(y)))
        low, high = 1 / 100.0, 1 / 0.1
        depth = 1.0 / (low + (high - low) * outs[("disp", 1)])
        return outs[("disp", 0)], depth


class PointRend(nn.Module):
    """The least certain points of a coarse map are sampled, decided again and written back."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.coarse = nn.Sequential(cbr(3, 8, 3, 2), cbr(8, 8)), nn.Conv2d(8, 2, 1)
        self.mlp = nn.Sequential(nn.Conv1d(10, 8, 1), nn.ReLU(), nn.Conv1d(8, 2, 1))

    def forward(self, x: Tensor) -> Any:
        fine = self.body(x)
        scores = F.interpolate(self.coarse(fine), scale_factor=2, mode="bilinear")
        n, c, h, w = scores.shape
        unsure = -(scores[:, 0] - scores[:, 1]).abs().view(n, h * w)
        _, at = torch.topk(unsure, k=9, dim=1)
        ys, xs = torch.div(at, w, rounding_mode="floor"), at % w
        points = torch.stack([(xs + 0.5) / w, (ys + 0.5) / h], -1).float() * 2 - 1
        both = [F.grid_sample(m, points.unsqueeze(2), align_corners=False).squeeze(3)
                for m in (fine, scores)]  # fmt: skip
        found = self.mlp(torch.cat(both, 1))
        flat = scores.reshape(n, c, h * w)
        flat = flat.scatter(2, at.unsqueeze(1).expand(-1, c, -1), found)
        return flat.view(n, c, h, w)


class VNet(nn.Module):
    """A 3-D U-Net over volumes with group norms."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.PReLU(4))
        self.down = nn.Conv3d(4, 8, 2, stride=2)
        self.b = nn.Sequential(nn.Conv3d(8, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.LeakyReLU())
        self.up, self.out = nn.ConvTranspose3d(8, 4, 2, stride=2), nn.Conv3d(8, 2, 1)

    def forward(self, x: Tensor) -> Any:
        a = self.a(x) + x
        b = self.b(self.down(a))
        y = self.out(torch.cat([a, self.up(b)], 1))
        small = F.interpolate(y, scale_factor=0.5, mode="trilinear", align_corners=False)
        return F.softmax(y, dim=1), small.argmax(dim=1)


class ObjectContext(nn.Module):
    """OCR: soft regions gather the pixels, every pixel attends to the regions."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.aux = cbr(3, 8, 3, 2), nn.Conv2d(8, 3, 1)
        self.pixel, self.key = cbr(8, 6, 1), nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU())
        self.value, self.out = nn.Conv2d(8, 6, 1), nn.Conv2d(14, 3, 1)

    def forward(self, x: Tensor) -> Any:
        f = self.body(x)
        scores = self.aux(f)
        n, k, h, w = scores.size()
        share = F.softmax(scores.view(n, k, -1), dim=2)
        context = torch.matmul(share, f.view(n, f.size(1), -1).permute(0, 2, 1))
        context = context.permute(0, 2, 1).contiguous().unsqueeze(3)
        q = self.pixel(f).view(n, 6, -1).permute(0, 2, 1)
        sim = F.softmax(torch.matmul(q, self.key(context).view(n, 6, -1)) * 6**-0.5, dim=-1)
        y = torch.matmul(sim, self.value(context).view(n, 6, -1).permute(0, 2, 1))
        y = y.permute(0, 2, 1).contiguous().view(n, 6, h, w)
        return F.interpolate(
            self.out(torch.cat([y, f], 1)), size=x.shape[2:], mode="bicubic"
        ), scores


def noisy(shapes: Any) -> tuple[Tensor, ...]:
    return torch.randn(shapes[0]), torch.rand(shapes[1]) * 0.2 + 0.01


OTHER = (image(2, 3, 24, 16), image(2, 3, 16, 40))
ODD = (image(2, 3, 21, 18), image(1, 3, 27, 33))
NETS: dict[str, Entry] = {
    "u-net, transposed": Entry(lambda: UNet(bilinear=False), image(), OTHER),
    "u-net, bilinear, padded": Entry(lambda: UNet(bilinear=True), image(3, 3, 18, 21), ODD),
    "u-net, cropped": Entry(lambda: UNet(bilinear=True, crop=True), image(3, 3, 17, 19), ODD),
    "u-net++": Entry(NestedUNet, image(), OTHER),
    "deeplab v3": Entry(lambda: DeepLab(plus=False), image(), ODD),
    "deeplab v3+": Entry(lambda: DeepLab(plus=True), image(3, 3, 17, 22), ODD),
    "lr-aspp": Entry(LiteAspp, image(), ODD),
    "pspnet": Entry(PyramidPooling, image(3, 3, 20, 20), OTHER),
    "segformer": Entry(SegFormer, image(2, 3, 16, 24), (image(2, 3, 32, 16),)),
    "hrnet": Entry(HighResolution, image(3, 3, 18, 16), ODD),
    "refinenet": Entry(Refine, image(), OTHER),
    "enet": Entry(ENet, image(), OTHER),
    "erfnet": Entry(ERFNet, image(), OTHER),
    "bisenet": Entry(BiSeNet, image(), OTHER),
    "espcn": Entry(SubPixel, image(2, 1, 7, 9), (image(2, 1, 11, 6),)),
    "edsr": Entry(Edsr, image(2, 3, 8, 9), (image(2, 3, 5, 12),)),
    "denoising": Entry(Restored, ((2, 3, 12, 8), (2,)), (((3, 3, 8, 16), (3,)),), noisy),
    "depth": Entry(Depth, image(), OTHER),
    "pointrend": Entry(PointRend, image(2), OTHER),
    "v-net": Entry(VNet, ((2, 1, 8, 8, 8),), (((1, 1, 4, 8, 12),),)),
    "object context": Entry(ObjectContext, image(), OTHER),
}
