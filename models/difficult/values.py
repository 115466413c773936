"""Networks whose values are hard to follow: containers, sizes, writes, state."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.models.difficult.register import rows, taking


@dataclass
class Answer:
    """A dataclass of tensors, as models return it."""

    first: Tensor
    second: Any = None
    third: int = 3


Pair = namedtuple("Pair", "left right")


@taking(rows(2, 4))
class NestedOutputs(nn.Module):
    """A dict of a dataclass, a named tuple, an ordered dict, sizes and None."""

    def forward(self, x: Tensor) -> Any:
        return {
            "answer": Answer(x + 1, (x * 2, [x])),
            "pair": Pair(x, x - 1),
            "ordered": OrderedDict(z=x * 3),
            "size": x.shape[0],
            "nothing": None,
            "shape": x.shape,
        }


@taking(
    {"x": rows(2, 4), "more": [rows(2, 3), (rows(2, 2),)]},
    Answer(rows(2, 4), rows(2, 1)),
    flag=True,
    nothing=None,
    number=3,
)
class NestedInputs(nn.Module):
    """Containers, a dataclass, flags, None and keyword-only arguments."""

    def forward(
        self,
        given: Any,
        answer: Answer,
        flag: bool = False,
        nothing: None = None,
        *,
        number: int = 1,
        unused: Tensor | None = None,
    ) -> Any:
        total = given["x"].sum(1) + given["more"][1][0].sum(1)
        return total + answer.first.sum(1) * answer.second[:, 0] * number


@taking(rows(2, 4), rows(2, 4), rows(2, 4))
class ManyArguments(nn.Module):
    """Any number of positional and keyword arguments."""

    def forward(self, x: Tensor, *others: Tensor, **options: Any) -> Tensor:
        return x + torch.stack(others).sum(0)


@taking(rows(2, 3, 14, 14))
class Sizes(nn.Module):
    """Sizes that flow through arithmetic, constructors and reshapes."""

    def forward(self, x: Tensor) -> Any:
        b, _, h, w = x.size()
        x = F.pad(x, (0, (4 - w % 4) % 4, 0, (4 - h % 4) % 4))
        column = torch.arange(len(x), device=x.device)[:, None, None, None]
        ones = torch.ones(x.shape[:1] + (1, 1, 1))  # noqa: RUF005 - a size plus a tuple is the case
        zeros = x.new_zeros(b, 1, *x.shape[2:]) + ones * column
        filled = torch.full((b,), 1.5)[:, None, None, None]
        flat = x.flatten(2).transpose(1, 2) / math.sqrt(x.shape[-1]) * x.shape[1] ** -0.5
        other = F.interpolate(x, size=x.shape[-2:]) + x.expand(b, -1, -1, -1)
        total = (x + zeros + filled + other).sum() * x.numel() / x.shape[0]
        return total + flat.reshape(b, -1).sum() + x.view(b, -1)[:, : h * w // 2].sum() - 2**-b


@taking(rows(2, 4), rows(2, 4))
class InPlace(nn.Module):
    """In-place operators, item assignment, `out=` and views that are written later."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        x = x * 1
        view = x[:, 1:3]
        view.mul_(2)
        view += 1
        x[0] = x[0] * 3
        x[:, -1] = y[:, 0]
        out = torch.empty_like(x)
        torch.add(x, y, out=out)
        F.relu(out, inplace=True)
        out -= x
        out **= 2
        mask = out > 1
        out[mask] = 0
        out.masked_fill_(out < 0.1, 1).clamp_(max=5)
        x.t()[0].zero_()
        y.add_(1)
        return x, out, y


@taking(rows(2, 4))
class Operators(nn.Module):
    """Python's operators, reflected ones too."""

    def forward(self, x: Tensor) -> Any:
        small = x < 1
        return (
            2 - x, 2 / x, 2 ** x.abs(), 3 // x, 5 % x, 1 + x, 2 * x, -x, ~small, (x > 0) & small,
            True | small, x == x, x > 2, abs(x), x @ x.T, x // 2, x % 2,
        )  # fmt: skip


@taking(rows(2, 6, 4))
class ManyResults(nn.Module):
    """Operators with several results: chunk, topk, max, meshgrid."""

    def forward(self, x: Tensor) -> Any:
        a, b, c = x.chunk(3, 1)
        values, places = x.max(1)
        top = torch.topk(x, 2, dim=-1)
        grid = torch.meshgrid(x[0, 0], x[0, 1], indexing="ij")
        return a + b + c, values, places, top.values, top[1], torch.var_mean(x), grid, x.mT


@taking(rows(4, 4))
class Buffers(nn.Module):
    """Buffers written in place, replaced, written under no_grad, and a plain attribute."""

    count: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("unsaved", torch.ones(3), persistent=False)
        self.weight = nn.Parameter(rows(4))
        self.unused = nn.Linear(3, 3)
        self.plain = torch.arange(4.0)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.mean = self.mean * 0.9 + 0.1 * x.mean(0)
        with torch.no_grad():
            self.mean.mul_(2)
            y = x * self.weight
        return x * self.mean * self.count + self.weight + y + self.plain


@taking(rows(2, 4))
class CarriedState(nn.Module):
    """A plain attribute that carries a tensor from one call to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.state = torch.zeros(4)

    def forward(self, x: Tensor) -> Tensor:
        self.state = self.state * 0.5 + x.mean(0)
        return x + self.state


@taking(rows(2, 4))
class WritesParameters(nn.Module):
    """A parameter clamped in forward, and detached views."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows(4) * 3)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.clamp_(-1, 1)
        return x * self.weight + x.detach() + x.data + x.real


@taking(rows(2, 4))
class Divisions(nn.Module):
    """A number over a tensor: the function divides, the operator multiplies by the reciprocal."""

    def forward(self, x: Tensor) -> Any:
        return torch.div(3.0, x), torch.true_divide(1.7, x), 3.0 / x, torch.rsub(x, 2)


@taking(rows(2, 5, 4))
class ResizedCache(nn.Module):
    """A buffer that is made again, in another shape, for inputs of another size."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.zeros(1, 1), persistent=False)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        if self.places.shape[1] != x.shape[1]:
            self.places = torch.arange(float(x.shape[1]))[None]
        return self.linear(x) + self.places[..., None]


@taking(rows(2, 3, 8, 8))
class ReturnedAndWritten(nn.Module):
    """Activations in place between results that are returned together."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardswish(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Hardswish(inplace=True))

    def forward(self, x: Tensor) -> Any:
        first = self.first(x)
        return OrderedDict(first=first, second=self.second(first))


@taking(rows(2, 16, 8))
class WrittenView(nn.Module):
    """A sum in place into a view, whose gradient torch lays out in memory in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(rows(8, 4)), nn.Parameter(rows(1, 1, 4))

    def forward(self, x: Tensor) -> Any:
        y = torch.einsum("adb,bc->adc", x, self.weight)
        y += self.bias
        return y.permute(0, 2, 1).mean([2])


@taking(rows(2, 3, 4, 6))
class OverlappingWindows(nn.Module):
    """Windows that overlap, made with `as_strided` from the strides of the batch's memory."""

    def forward(self, x: Tensor) -> Any:
        x = x.transpose(0, 1).contiguous().transpose(0, 1) * 2  # [N, 3, 4, 6], the batch inside
        size, stride = list(x.size()), list(x.stride())
        size[2], stride[2] = size[2] * 2 - 1, stride[2] // 2
        chunks = x.as_strided(size, stride)
        flat = x.flatten(2)  # [N, 3, 24]
        count, length = 5, 8
        steps = (*flat.stride()[:2], 4 * flat.stride(2), flat.stride(2))
        return chunks, flat.as_strided((*flat.shape[:2], count, length), steps)
