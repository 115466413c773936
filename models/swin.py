"""Swin-like transformer with shifted windows (Liu et al., 2021, arXiv:2103.14030)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class WindowAttention(nn.Module):
    """Attention inside windows of w×w tokens, with a learned bias for every relative position."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, width * 3)
        self.proj = nn.Linear(width, width)
        self.softmax = nn.Softmax(dim=-1)
        table = torch.randn((2 * window - 1) ** 2, heads) * 0.02
        self.relative_position_bias_table = nn.Parameter(table)
        self.register_buffer("relative_position_index", _relative_index(window))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[N·windows, w·w, width], mask [windows, w·w, w·w] -> [N·windows, w·w, width]."""
        b, tokens, width = x.shape
        qkv = self.qkv(x).reshape(b, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        index = self.relative_position_index.view(-1)
        bias = self.relative_position_bias_table[index].view(tokens, tokens, -1)
        attn = attn + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            windows = mask.shape[0]
            attn = attn.view(b // windows, windows, self.heads, tokens, tokens)
            attn = (attn + mask.unsqueeze(1).unsqueeze(0)).view(-1, self.heads, tokens, tokens)
        x = (self.softmax(attn) @ v).transpose(1, 2).reshape(b, tokens, width)
        return self.proj(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Window attention, shifted in every second block, and an MLP."""

    attn_mask: Tensor | None

    def __init__(self, width: int, heads: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.size, self.window, self.shift = size, window, shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        mask = _shift_mask(size, window, shift) if shift else None
        self.register_buffer("attn_mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, size·size, width] -> [N, size·size, width]."""
        n, length, width = x.shape
        shortcut = x
        x = self.norm1(x).view(n, self.size, self.size, width)
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        x = self.attn(_windows(x, self.window), self.attn_mask)
        x = _unwindows(x, self.window, self.size)
        if self.shift:
            x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        x = shortcut + x.view(n, length, width)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PatchMerging(nn.Module):
    """Joins 2×2 tokens into one of twice the width."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, size·size, width] -> [N, size·size/4, 2·width]."""
        n, _, width = x.shape
        x = x.view(n, self.size, self.size, width)
        parts = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
        x = torch.cat(parts, dim=-1).view(n, -1, 4 * width)
        return self.reduction(self.norm(x))  # type: ignore[no-any-return]


class Swin(nn.Module):
    """Stages of window-attention blocks with patch merging between them.

    Args:
        image: height and width of the image.
        patch: height and width of a patch.
        width: length of a token's vector in the first stage.
        depths: blocks in each stage.
        heads: attention heads in each stage.
        window: tokens along a window's edge.
        num_classes: number of logits.
        in_channels: channels of the image.
    """

    def __init__(
        self,
        *,
        image: int = 224,
        patch: int = 4,
        width: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        window: int = 7,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.patch_norm = nn.LayerNorm(width)
        size = image // patch
        layers: list[nn.Module] = []
        for i, (depth, head) in enumerate(zip(depths, heads, strict=True)):
            if i:
                layers.append(PatchMerging(width, size))
                width, size = width * 2, size // 2
            w = min(window, size)
            shifts = (0 if b % 2 == 0 or w == size else w // 2 for b in range(depth))
            layers += [Block(width, head, size, w, shift) for shift in shifts]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, image, image] -> [N, num_classes]."""
        x = self.patch_norm(self.patch_embed(x).flatten(2).transpose(1, 2))
        x = self.norm(self.layers(x)).mean(dim=1)
        return self.head(x)  # type: ignore[no-any-return]


def _windows(x: Tensor, window: int) -> Tensor:
    """[N, H, W, C] -> [N·windows, w·w, C]."""
    n, h, w, c = x.shape
    x = x.view(n, h // window, window, w // window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window * window, c)


def _unwindows(x: Tensor, window: int, size: int) -> Tensor:
    """[N·windows, w·w, C] -> [N, size, size, C]."""
    count, c = size // window, x.shape[-1]
    x = x.view(-1, count, count, window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size, size, c)


def _relative_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens in a window: [w·w, w·w]."""
    axis = torch.arange(window)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    offset = grid[:, :, None] - grid[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def _shift_mask(size: int, window: int, shift: int) -> Tensor:
    """-100 between tokens that only the roll made neighbours: [windows, w·w, w·w]."""
    part = torch.bucketize(
        torch.arange(size), torch.tensor([size - window, size - shift]), right=True
    )
    region = (part[:, None] * 3 + part[None, :]).view(1, size, size, 1)
    tokens = _windows(region, window).squeeze(-1)
    return (tokens[:, None, :] != tokens[:, :, None]).float() * -100.0
