"""Random networks, each from a seed: what a forward can do with images and with sequences.

A network is a list of steps over a stack of values. Every step is drawn from those that fit a value
that is there, so that every network runs; sizes are tiny, so that a thousand of them are tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Values = list[Tensor]
Step = Callable[["RandomNetwork", Values], Tensor]
Inputs = Callable[[int], tuple[Tensor, ...]]


@dataclass
class Case:
    """A network with inputs.

    Attributes:
        name: family and seed.
        model: the network in evaluation mode.
        inputs: gives inputs of a batch size.
    """

    name: str
    model: nn.Module
    inputs: Inputs


class RandomNetwork(nn.Module):
    """Runs its steps and returns its last values."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        self.steps: list[Step] = []
        self.outputs: list[int] = []
        self.as_dict = False

    def add(self, module: nn.Module) -> str:
        """A name for a new part."""
        name = f"{type(module).__name__.lower()}{len(self.parts)}"
        self.parts[name] = module
        return name

    def forward(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        for step in self.steps:
            values.append(step(self, values))
        found = [values[i] for i in self.outputs]
        if self.as_dict:
            return {f"value{i}": v for i, v in enumerate(found)}
        return found[0] if len(found) == 1 else tuple(found)


@dataclass
class Builder:
    """Draws the steps; runs each on an example to know the shapes."""

    rng: np.random.Generator
    model: RandomNetwork = field(default_factory=RandomNetwork)
    values: Values = field(default_factory=list)
    read: set[int] = field(default_factory=set)
    normed: set[int] = field(default_factory=set)

    def run(self, step: Step, *read: int) -> int:
        """Append a step; gives the index of its value."""
        self.model.steps.append(step)
        with torch.no_grad():
            self.values.append(step(self.model, self.values))
        self.read.update(read)
        return len(self.values) - 1

    def call(self, module: nn.Module, index: int) -> int:
        """Append a module that is applied to a value."""
        name = self.model.add(module.eval())
        return self.again(name, index)

    def again(self, name: str, index: int) -> int:
        """Append a part that is there already."""
        return self.run(lambda m, v: m.parts[name](v[index]), index)

    def apply(self, function: Callable[[Tensor], Tensor], index: int) -> int:
        """Append a function of a value."""
        return self.run(lambda m, v: function(v[index]), index)

    def pick(self, options: list[Any]) -> Any:
        """One of several."""
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        """True in this share of cases."""
        return bool(self.rng.random() < share)


def randomize(model: nn.Module, seed: int) -> None:
    """Give batch norms statistics and biases a size, so that nothing is trivially zero."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                for tensor, low, high in (
                    (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0),
                    (module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5),
                ):  # fmt: skip
                    if tensor is not None:
                        tensor.copy_(uniform(tensor, low, high))


# --- images --------------------------------------------------------------------------------------

_ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Sigmoid, nn.GELU, nn.Tanh,
    nn.Hardsigmoid, nn.ELU, nn.PReLU, lambda: nn.LeakyReLU(0.1), lambda: nn.Hardtanh(-0.5, 0.7),
]  # fmt: skip


def _conv(b: Builder, i: int) -> int:
    x = b.values[i]
    channels, size = x.shape[1], min(x.shape[2:])
    out = int(b.rng.integers(2, 7))
    kernel = b.pick([1, 3, 3]) if size >= 3 else 1
    groups = 1
    if b.chance(0.25):
        groups = out = channels
    elif channels % 2 == 0 and b.chance(0.2):
        groups, out = 2, out + out % 2
    stride = 2 if size >= 4 and b.chance(0.25) else 1
    bias, dilation = b.chance(0.7), 2 if size >= 6 and kernel == 3 and b.chance(0.1) else 1
    module = nn.Conv2d(channels, out, kernel, stride, kernel // 2, dilation, groups, bias)
    j = b.call(module, i)
    if b.chance(0.4):
        j = b.call(nn.BatchNorm2d(out), j)
    return b.call(b.pick(_ACTIVATIONS)(), j) if b.chance(0.6) else j


def _activation(b: Builder, i: int) -> int:
    if b.chance(0.5):
        return b.call(b.pick(_ACTIVATIONS)(), i)
    return b.apply(b.pick([F.relu, torch.sigmoid, torch.tanh, F.gelu, F.silu, F.hardswish]), i)


def _two(b: Builder, i: int) -> int:
    """A sum or product with another value of the same shape."""
    same = [j for j, v in enumerate(b.values) if v.shape == b.values[i].shape]
    j, sign = b.pick(same), b.pick(["add", "add", "sub", "mul", "scaled"])
    if sign == "sub":
        return b.run(lambda m, v: v[i] - v[j], i, j)
    if sign == "mul":
        return b.run(lambda m, v: v[i] * v[j], i, j)
    if sign == "scaled":
        return b.run(lambda m, v: v[i] + 0.5 * v[j], i, j)
    return b.run(lambda m, v: v[i] + v[j], i, j)


def _concat(b: Builder, i: int) -> int:
    size = b.values[i].shape[2:]
    fits = [j for j, v in enumerate(b.values) if v.dim() == 4 and v.shape[2:] == size]
    chosen = [i, b.pick(fits)]
    if b.values[i].shape[1] + b.values[chosen[1]].shape[1] > 12:
        return _pool(b, i)
    return b.run(lambda m, v: torch.cat([v[j] for j in chosen], 1), *chosen)


def _pool(b: Builder, i: int) -> int:
    size = min(b.values[i].shape[2:])
    if size < 3:
        return _activation(b, i)
    pools = [
        nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2),
        nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    ]  # fmt: skip
    return b.call(b.pick(pools), i)


def _resize(b: Builder, i: int) -> int:
    if b.values[i].shape[2] > 6:
        return _pool(b, i)
    mode = b.pick(["nearest", "bilinear"])
    return b.apply(lambda x: F.interpolate(x, scale_factor=2, mode=mode), i)


def _gate(b: Builder, i: int) -> int:
    """Squeeze and excitation."""
    channels = b.values[i].shape[1]
    j = b.call(nn.AdaptiveAvgPool2d(1), i)
    j = b.call(nn.Conv2d(channels, channels, 1), j)
    j = b.call(b.pick([nn.Sigmoid, nn.Hardsigmoid])(), j)
    return b.run(lambda m, v: v[i] * v[j], i, j)


def _shared(b: Builder, i: int) -> int:
    """One module on two values."""
    channels = b.values[i].shape[1]
    name = b.model.add(nn.Conv2d(channels, channels, 1).eval())
    j = b.again(name, i)
    k = b.again(name, j)
    return b.run(lambda m, v: v[j] + v[k], j, k)


def _halves(b: Builder, i: int) -> int:
    if b.values[i].shape[1] % 2:
        return _conv(b, i)
    return b.apply(lambda x: torch.cat([p * 1.0 for p in x.chunk(2, 1)][::-1], 1), i)


def _pad(b: Builder, i: int) -> int:
    if b.values[i].shape[2] > 9:
        return _pool(b, i)
    j = b.apply(lambda x: F.pad(x, (1, 0, 1, 2)), i)
    return _conv(b, j)


def _transposed(b: Builder, i: int) -> int:
    if b.values[i].shape[2] > 5:
        return _conv(b, i)
    return b.call(nn.ConvTranspose2d(b.values[i].shape[1], 3, 2, 2), i)


_IMAGE_STEPS = [
    _conv, _conv, _conv, _conv, _activation, _two, _two, _two, _concat, _pool, _resize, _gate,
    _shared, _halves, _pad, _transposed,
]  # fmt: skip


def _image_head(b: Builder, i: int) -> int:
    kind = b.pick(["gap", "mean", "flatten", "none"])
    if kind == "none":
        return i
    if kind == "flatten":
        j = b.call(nn.Flatten(), i)
    elif kind == "gap":
        j = b.call(nn.AdaptiveAvgPool2d(1), i)
        j = b.apply(lambda x: torch.flatten(x, 1), j)
    else:
        j = b.apply(lambda x: x.mean((2, 3)), i)
    j = b.call(nn.Linear(b.values[j].shape[1], 5, bias=b.chance(0.8)), j)
    if b.chance(0.3):
        j = b.call(nn.Linear(5, 3), b.call(nn.ReLU(), j))
    return b.call(nn.Softmax(-1), j) if b.chance(0.2) else j


def images(seed: int) -> Case:
    """A convolutional network of 3 to 9 steps with one or two inputs and one to three outputs."""
    b = Builder(np.random.default_rng(seed))
    torch.manual_seed(seed)
    channels, height, width = int(b.rng.integers(2, 5)), *(int(b.rng.integers(5, 11)) for _ in "hw")
    count = 2 if b.chance(0.25) else 1

    def inputs(batch: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed + batch)
        shape = (batch, channels, height, width)
        return tuple(torch.randn(shape, generator=generator) for _ in range(count))

    b.values = list(inputs(2))
    last = _conv(b, 0)
    for k in range(1, count):
        last = b.run(lambda m, v, k=k, j=last: torch.cat([v[0], v[k]], 1), 0, k)  # type: ignore[misc]
        last = _conv(b, last)
    for _ in range(int(b.rng.integers(2, 9))):
        maps = [j for j, v in enumerate(b.values) if v.dim() == 4]
        last = b.pick(_IMAGE_STEPS)(b, last if b.chance(0.75) else b.pick(maps))
    return _finished(b, f"images-{seed}", [_image_head(b, last)], inputs, seed)


# --- sequences -----------------------------------------------------------------------------------


def _linear(b: Builder, i: int) -> int:
    width = b.values[i].shape[-1]
    out = b.pick([width, width, 6, 8])
    j = b.call(nn.Linear(width, out, bias=b.chance(0.8)), i)
    return b.call(b.pick([nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU])(), j) if b.chance(0.5) else j


def _norm(b: Builder, i: int) -> int:
    if i in b.normed:  # twice is once: what a difference of both has left over is rounding noise
        return _linear(b, i)
    j = b.call(nn.LayerNorm(b.values[i].shape[-1]), i)
    b.normed.add(j)
    return j


def _attention(b: Builder, i: int) -> int:
    width = b.values[i].shape[-1]
    if width % 2:
        return _linear(b, i)
    if b.chance(0.3):
        name = b.model.add(nn.MultiheadAttention(width, 2, batch_first=True).eval())
        return b.run(lambda m, v: m.parts[name](v[i], v[i], v[i], need_weights=False)[0], i)
    q, k, val = (b.call(nn.Linear(width, width), i) for _ in range(3))
    fused = b.chance(0.4)

    def attend(m: RandomNetwork, v: Values) -> Tensor:
        n, t, _ = v[q].shape
        heads = [v[j].view(n, t, 2, width // 2).transpose(1, 2) for j in (q, k, val)]
        if fused:
            mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        else:
            scores = heads[0] @ heads[1].transpose(-2, -1) * (width // 2) ** -0.5
            mixed = scores.softmax(-1) @ heads[2]
        return mixed.transpose(1, 2).reshape(n, t, width)

    j = b.run(attend, q, k, val)
    j = b.call(nn.Linear(width, width), j)
    return b.run(lambda m, v: v[i] + v[j], i, j)


def _mixing(b: Builder, i: int) -> int:
    """A linear layer over the time axis."""
    time = b.values[i].shape[1]
    j = b.apply(lambda x: x.transpose(1, 2), i)
    j = b.call(nn.Linear(time, time), j)
    return b.apply(lambda x: x.transpose(1, 2), j)


def _slices(b: Builder, i: int) -> int:
    return b.apply(b.pick([lambda x: x[:, 1:], lambda x: x.flip(1), lambda x: x[:, :1] + x]), i)


_SEQUENCE_STEPS = [_linear, _linear, _norm, _attention, _attention, _two, _two, _mixing, _slices]


def sequences(seed: int) -> Case:
    """A transformer-like network over embeddings or features."""
    b = Builder(np.random.default_rng(seed))
    torch.manual_seed(seed)
    time, width = int(b.rng.integers(3, 7)), int(b.pick([4, 6, 8]))
    tokens = b.chance(0.4)

    def inputs(batch: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed + batch)
        if tokens:
            return (torch.randint(0, 11, (batch, time), generator=generator),)
        return (torch.randn(batch, time, width, generator=generator),)

    b.values = list(inputs(2))
    last = b.call(nn.Embedding(11, width), 0) if tokens else _linear(b, 0)
    if b.chance(0.5):
        last = _norm(b, last)
    for _ in range(int(b.rng.integers(1, 6))):
        last = b.pick(_SEQUENCE_STEPS)(b, last)
    head = b.pick(["mean", "first", "all"])
    if head == "mean":
        last = b.apply(lambda x: x.mean(1), last)
    elif head == "first":
        last = b.apply(lambda x: x[:, 0], last)
    last = b.call(nn.Linear(b.values[last].shape[-1], 4), last)
    return _finished(b, f"sequences-{seed}", [last], inputs, seed)


def _finished(b: Builder, name: str, outputs: list[int], inputs: Inputs, seed: int) -> Case:
    floats = [j for j, v in enumerate(b.values) if v.is_floating_point() and j >= len(inputs(1))]
    while b.chance(0.25) and len(outputs) < 3:
        outputs.append(b.pick(floats))
    b.model.outputs = list(dict.fromkeys(outputs))
    b.model.as_dict = b.chance(0.15)
    randomize(b.model, seed)
    return Case(name, b.model.eval(), inputs)


def network(seed: int) -> Case:
    """The network of a seed: two thirds are over images, one third over sequences."""
    return sequences(seed) if seed % 3 == 2 else images(seed)
